"""The interface of network sessions, and checks of model files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...files import printable
from .model_info import ModelInfo

DEFAULT_MODEL = Path(__file__).parents[1] / "models" / "tfiseg-voc21.onnx"
BACKENDS = ("onnxruntime", "torch")  # for models in ONNX
DEVICES = ("cpu", "cuda")
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
CUDA_PROVIDER = "CUDAExecutionProvider"


class Session(Protocol):
    """A session that runs a network: an image in, the network's maps out."""

    path: Path
    info: ModelInfo

    def has(self, output: str) -> bool: ...

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]: ...

    def close(self) -> None: ...


def check_exists(path: Path) -> None:
    """Raise ModelError if there is no model file, or it is a folder."""
    if not path.exists():
        raise ModelError(
            f"there is no model {printable(str(path))}; leave `model` out to use the network that comes with "
            "tfiseg"
        )
    if path.is_dir():
        raise ModelError(
            f"can't read the model {printable(str(path))}: Is a directory. ONNX Runtime can't load a folder: "
            "name a model file (.onnx)"
        )


def parse_info(text: str | None, path: Path) -> ModelInfo:
    """Parse the metadata of a model. Raises ModelError if it is missing or damaged."""
    if text is None:
        raise ModelError(
            f"{path} has no tfiseg metadata: convert the network with `tfiseg export`, or run it yourself "
            "and pass its logits to tfiseg.cluster (samples/own_network.py)"
        )
    return ModelInfo.from_json(text, str(path))


def check_interface(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise ModelError if inputs and outputs are not those of tfiseg's format."""
    if [*inputs] != ["frame"] or "logits" not in outputs:
        raise ModelError(
            f"{path} has inputs {[*inputs]} and outputs {[*outputs]}; expected input 'frame' and "
            "output 'logits'"
        )


def check_maps(path: Path, info: ModelInfo, maps: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ModelError if a map has the wrong type, shape or number of classes."""
    for name, value in maps.items():
        is_map = value.ndim == 4 and value.shape[0] == 1 and min(value.shape) >= 1
        if not is_map or not np.issubdtype(value.dtype, np.floating):
            raise ModelError(
                f"{path}: its output {name} is {value.dtype} {value.shape}, expected float32 (1, C, h, w)"
            )
    classes, names = maps["logits"].shape[1], len(info.class_names)
    if classes != names:
        raise ModelError(
            f"{path} returns logits of {classes} classes, its metadata names {names}: export it again"
        )
