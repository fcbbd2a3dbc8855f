"""Array arguments: conversion from other libraries, checks of shape and dtype, and indexing of rows."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def as_numpy(value: Any, name: str = "array") -> NDArray[Any]:
    """Return an array argument as a NumPy array.

    Args:
        value: an array, a sequence, or a torch tensor on any device; bfloat16 becomes float32.
        name: name of the argument in errors.

    Raises:
        InputError: the values form no regular array.
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
    """Return whether a value is a torch tensor, without importing torch."""
    return any(c.__name__ == "Tensor" and c.__module__.split(".")[0] == "torch" for c in type(value).__mro__)


def check_array(owner: str, name: str, value: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raise InputError unless ``value`` is a NumPy array of this dtype and shape."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        raise InputError(f"{owner}: {name} must be {np.dtype(dtype)} {shape}, got {describe_array(value)}")


def describe_array(value: Any) -> str:
    """Return the dtype and shape of an array, or the type of another value, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{type(value).__name__} of shape {np.shape(value)}" if np.ndim(value) else type(value).__name__


def picture_problem(value: Any, array: NDArray[Any]) -> str:
    """Return what is wrong with a value that is no picture, and how to correct it.

    Args:
        value: what the user gave.
        array: the value as an array.
    """
    if value is None:
        fix = "cv2.imread returns None for a file that it can't read, so pass the path itself"
    elif hasattr(value, "read"):
        fix = f"pass the content of the {type(value).__name__}, picture.read()"
    elif isinstance(value, bytearray | memoryview):
        fix = "pass the content of a file as bytes(picture)"
    elif array.dtype.kind not in "fiub" or not array.ndim:
        fix = f"pass a path, a URL, a PIL image, an array or a tensor instead of {type(value).__name__}"
    elif not array.size:
        fix = "it is empty"
    elif array.ndim > 3:
        fix = "give a batch as a list"
    elif array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        fix = "put the channels last, picture.transpose(1, 2, 0)"
    elif array.ndim == 3 and array.shape[2] == 4:
        fix = "drop the alpha channel, picture[..., :3]"
    elif array.dtype.kind == "f":
        fix = "scale it to 0..255, and use picture.astype(np.uint8)"
    elif array.dtype == np.uint16:
        fix = "scale it to 8 bits, such as (picture >> 8).astype(np.uint8)"
    elif array.dtype != np.uint8:
        fix = "use picture.astype(np.uint8) if the values are 0..255"
    else:
        fix = "expected one or three channels"
    return f"{array.dtype} {array.shape}: {fix}"


def row_number(index: Integral | int, count: int) -> int:
    """Return the row, 0..count-1, of an index that may be negative, or raise IndexError."""
    if not -count <= int(index) < count:
        valid = f"indices go from 0 to {count - 1}" if count else "there are none"
        raise IndexError(f"instance {index} of {count}: {valid}")
    return int(index) % count


def row_numbers(index: Any, count: int) -> NDArray[np.intp]:
    """Return the rows of a slice, a bool mask (count,) or a list of numbers, in its order.

    Raises:
        InputError: another type of index, a mask of another length, or a duplicate number.
        IndexError: a number is out of range.
    """
    if isinstance(index, slice):
        return np.arange(count)[index]
    array = as_numpy(index, "an index")
    if array.dtype == bool and array.ndim == 1:
        if len(array) != count:
            raise InputError(
                f"a mask must be bool ({count},), one value for each instance, got {describe_array(array)}"
            )
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputError(
            "an index must be a number, a slice, a bool mask (n,) or a list of numbers, got "
            f"{_describe_index(index, array)}"
        )
    rows = np.array([row_number(i, count) for i in array.tolist()], np.intp)
    if len(np.unique(rows)) < len(rows):
        raise InputError(f"an index must contain each instance at most once, got {array.tolist()}")
    return rows


def _describe_index(index: Any, array: NDArray[Any]) -> str:
    by_name = '[name == "person" for name in instances.names]'
    if isinstance(index, bool | np.bool_):
        return f"{bool(index)}: a comparison with a list is one bool. To select by class name, use {by_name}"
    if array.dtype.kind == "U":
        return f"text: to select by class name, use {by_name}"
    return describe_array(array) if array.ndim else type(index).__name__


def renumber(label_map: NDArray[np.int32], number: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return ``number[label_map]``, int32 (H, W), in a few milliseconds for a 1080p frame.

    Args:
        label_map: int32 (H, W), values 0..n.
        number: int32 (n + 1,), new number of each instance.
    """
    if len(number) > 256 or not label_map.size:
        return number[label_map.astype(np.intp)]  # other integers are much slower in NumPy
    table = np.zeros(256, np.int32)
    table[: len(number)] = number
    return np.asarray(cv2.LUT(label_map.astype(np.uint8), table), np.int32)
