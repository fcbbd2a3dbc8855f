"""Read checkpoints and weights written by ``torch.save``."""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError

MAX_BYTES = 1 << 33  # of a file
_MAX_ENTRIES = 100_000  # values in all dicts and lists together
_MAX_DEPTH = 8


def read_checkpoint(path: Path, kind: str, device: str = "cpu") -> dict[str, Any]:
    """Read a dict of tensors, numbers and texts, without running code in the file.

    Args:
        kind: expected kind for the message, e.g. "a checkpoint of `tfiseg train semantic`".

    Returns:
        The dict in the file; its tensors are finite.

    Raises:
        ModelError: the file is missing, was not written by ``torch.save``, or has other content.
    """
    try:
        _check_file(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except ModelError:
        raise
    except Exception as wrong:  # torch's unpickler raises errors of any class on damaged files
        reason = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        if isinstance(wrong, pickle.UnpicklingError) and "Weights only load failed" in reason:
            reason = (
                "it holds Python objects, which could run code. Save the weights alone: "
                "torch.save(module.state_dict(), FILE)"
            )
        raise ModelError(f"{path} is no {_noun(kind)}: {reason}") from wrong
    if not isinstance(state, dict):
        raise ModelError(f"{path} is no {_noun(kind)}: it holds a {type(state).__name__}, expected a dict")
    try:
        _check_tree(state)
    except ValueError as wrong:
        raise ModelError(f"{path} is no {_noun(kind)}: {wrong}") from wrong
    return state


def _noun(kind: str) -> str:
    return kind.removeprefix("a ")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(f"{path} has {size} bytes, limit {MAX_BYTES}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
            names = [name.split("/", 1)[-1] for name in parts.namelist()]
        if any(name.startswith("code/") for name in names):
            raise ModelError(
                f"{path} is a TorchScript file, which holds compiled code and which torch can't write as "
                f"ONNX. Load its weights into the nn.Module that it was made from: python:module:function "
                f"--weights STATE_DICT"
            )
        if unpacked > size:  # torch.save does not compress, so this is a zip bomb
            raise ModelError(f"{path} unpacks from {size} to {unpacked} bytes: it is no file of torch.save")


def _check_tree(state: dict[Any, Any]) -> None:
    todo: list[tuple[str, Any, int]] = [("", state, 0)]
    seen = 0
    while todo:
        where, value, depth = todo.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_ENTRIES:
            raise ValueError(
                f"it is nested more than {_MAX_DEPTH} deep or holds more than {_MAX_ENTRIES} values"
            )
        if isinstance(value, dict):
            todo += [(f"{where}.{key}".lstrip("."), one, depth + 1) for key, one in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(f"{where}[{k}]", one, depth + 1) for k, one in enumerate(value)]
        elif isinstance(value, torch.Tensor):
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{where} contains NaN or infinity")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} is {value}")
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise ValueError(f"{where} is a {type(value).__name__}, expected tensors, numbers and texts")
