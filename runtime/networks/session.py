"""Network sessions: a frame in, the network's maps out. One class per engine kind."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .model_info import ModelInfo

DEFAULT_MODEL = Path(__file__).parents[1] / "models" / "tfiseg-voc21.onnx"
BACKENDS = ("onnxruntime", "torch")  # of models in ONNX
DEVICES = ("cpu", "cuda")
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
CUDA_PROVIDER = "CUDAExecutionProvider"


class Session(Protocol):
    """What runs a network: ``OnnxSession``, ``TorchSession``, or ``GpuSession``'s kinds."""

    path: Path
    info: ModelInfo

    def has(self, output: str) -> bool: ...

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]: ...

    def close(self) -> None: ...
