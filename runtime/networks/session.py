"""Network sessions: a frame in, the network's maps out. One class per engine kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
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


def check_exists(path: Path) -> None:
    """Raise ModelError where there is no model file."""
    if not path.exists():
        raise ModelError(
            f"there is no model {path}; leave `model` out to use the network that comes with tfiseg"
        )


def info_of(text: str | None, path: Path) -> ModelInfo:
    """The metadata of a model file from its text, None without; raises ModelError."""
    if text is None:
        raise ModelError(
            f"{path} has no tfiseg metadata: to use your own network, run it yourself and hand its "
            "logits to tfiseg.cluster "
            "(samples/own_network.py shows how), or write it in tfiseg's format (docs/architecture.md)"
        )
    return ModelInfo.from_json(text, str(path))


def check_interface(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise ModelError where a network has other inputs and outputs than tfiseg's format."""
    if [*inputs] != ["frame"] or "logits" not in outputs:
        raise ModelError(
            f"{path} has inputs {[*inputs]} and outputs {[*outputs]}; wanted input 'frame' and "
            "output 'logits'"
        )


def check_maps(path: Path, info: ModelInfo, maps: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ModelError where a map can't be one of a frame's."""
    for name, value in maps.items():
        is_map = value.ndim == 4 and value.shape[0] == 1 and min(value.shape) >= 1
        if not is_map or not np.issubdtype(value.dtype, np.floating):
            raise ModelError(
                f"{path}: its output {name} is {value.dtype} {value.shape}, expected float32 (1, C, h, w)"
            )
    classes, names = maps["logits"].shape[1], len(info.class_names)
    if classes != names:
        raise ModelError(
            f"{path} gives logits of {classes} classes, its metadata names {names}: export it again"
        )
