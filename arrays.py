"""Array arguments: conversion from other libraries, checks of shape and dtype, indexing of rows."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def as_numpy(value: Any, name: str = "array") -> NDArray[Any]:
    """Return an array argument as NumPy. Torch tensors may be on any device.

    bfloat16, which numpy does not have, becomes float32.

    Raises:
        InputError: the values make no regular array.
    """
    if is_tensor(value):
        tensor = value.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} can't be read as an array: {error}") from error


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; torch itself is not imported."""
    return any(c.__name__ == "Tensor" and c.__module__.split(".")[0] == "torch" for c in type(value).__mro__)


def check_array(owner: str, name: str, value: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raise InputError, with what was expected and got, unless ``value`` is a numpy array of this kind."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        raise InputError(f"{owner}: {name} must be {np.dtype(dtype)} {shape}, got {described(value)}")


def described(value: Any) -> str:
    """An array's dtype and shape, or a value's type, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{type(value).__name__} of shape {np.shape(value)}" if np.ndim(value) else type(value).__name__


def row_number(index: Integral | int, count: int) -> int:
    """Row 0..count-1 of an index that may be negative; raises IndexError."""
    if not -count <= int(index) < count:
        valid = f"indices go from 0 to {count - 1}" if count else "there are none"
        raise IndexError(f"instance {index} of {count}: {valid}")
    return int(index) % count


def row_numbers(index: Any, count: int) -> NDArray[np.intp]:
    """Rows that a slice, a bool mask (count,) or a list of numbers names, in its order.

    Raises:
        InputError: another kind of index, a mask of another length, or a number twice. IndexError: a number
            is out of range.
    """
    if isinstance(index, slice):
        return np.arange(count)[index]
    wanted = as_numpy(index, "an index")
    if wanted.dtype == bool and wanted.ndim == 1:
        if len(wanted) != count:
            raise InputError(
                f"a mask must be bool ({count},), one value for each instance, got {described(wanted)}"
            )
        return np.flatnonzero(wanted)
    if wanted.ndim != 1 or (wanted.size and not np.issubdtype(wanted.dtype, np.integer)):
        raise InputError(
            f"an index is a number, a slice, a bool mask (n,) or a list of numbers, got {described(wanted)}"
        )
    rows = np.array([row_number(i, count) for i in wanted.tolist()], np.intp)
    if len(np.unique(rows)) < len(rows):
        raise InputError(f"an index must name each instance once, got {wanted.tolist()}")
    return rows


def renumbered(label_map: NDArray[np.int32], number: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return ``number[label_map]``, int32 (H, W), in a few milliseconds for a 1080p frame.

    Args:
        label_map: int32 (H, W), values 0..n.
        number: int32 (n + 1,), the new number of each.
    """
    if len(number) > 256 or not label_map.size:
        return number[label_map.astype(np.intp)]  # numpy converts other integers much more slowly
    table = np.zeros(256, np.int32)
    table[: len(number)] = number
    return np.asarray(cv2.LUT(label_map.astype(np.uint8), table), np.int32)
