"""Check the operator's input maps: shapes, ranges, strides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import as_numpy
from ..errors import InputError
from .settings import IGNORE, MAX_SIDE

_SUM_TOLERANCE = 0.02  # of probabilities in float16


def is_logits(grid: NDArray[Any]) -> bool:
    """Return whether a semantic map has logits, not class IDs; raises InputError if it has neither."""
    if np.issubdtype(grid.dtype, np.floating):
        if grid.ndim in (3, 4):
            return True
        raise InputError(
            f"floating-point semantic must be logits (C, h, w) or (N, C, h, w), got shape {grid.shape}; "
            "for a class map, pass integers: semantic.astype(np.uint8)"
        )
    if np.issubdtype(grid.dtype, np.integer) or grid.dtype == bool:
        if grid.ndim in (2, 3):
            return False
        raise InputError(f"a class map must be (H, W) or (N, H, W), got shape {grid.shape}")
    raise InputError(
        f"semantic must be an integer class map or floating-point logits, got dtype {grid.dtype}"
    )


def checked_semantic(given: NDArray[Any], logits: bool) -> NDArray[Any]:
    """Check logits or a class map of any type; returns float32 (N, C, h, w) or uint8 (N, h, w)."""
    check_sides(given.shape[-2:], "semantic", MAX_SIDE)
    if not logits:
        if given.dtype != np.uint8 and given.size and (given.min() < 0 or given.max() > 255):
            raise InputError(f"class ids must lie in 0..255 (255 = ignore), got {given.min()}..{given.max()}")
        return np.ascontiguousarray(given, np.uint8)
    with np.errstate(over="ignore"):
        given = np.ascontiguousarray(given, np.float32)
    if not is_finite(given):
        raise InputError(
            "logits contain NaN or infinity: check the network for fp16 overflow and missing normalization"
        )
    if not 2 <= given.shape[1] <= 255:
        raise InputError(
            f"logits must have 2 to 255 classes, got shape {given.shape[1:]}: expected (C, h, w) or (N, C, "
            "h, w)"
        )
    return given


def is_finite(array: NDArray[Any]) -> bool:
    """Return whether all values are finite."""
    # a sum needs no array of flags and keeps NaN and infinity, but large finite numbers may overflow
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def check_plausibility(grid: NDArray[Any], is_logits: bool) -> None:
    """Raise InputError for images, and warn about maps that are valid but probably a mistake."""
    if not is_logits and grid.ndim == 3 and grid.shape[-1] in (3, 4) and grid.shape[0] > 16:
        raise InputError(
            f"{grid.shape} looks like an image, expected a class map (H, W): run a semantic network or "
            "tfiseg.Segmenter on it"
        )
    if is_logits and grid.ndim == 3 and min(grid.shape[:2]) > 4 * grid.shape[2]:
        warnings.warn(
            f"logits {grid.shape} are read as (C, h, w); if they are (h, w, C), "
            "pass logits.transpose(2, 0, 1)",
            stacklevel=5,
        )
    if is_logits and grid.ndim == 3 and _are_probabilities(grid):
        warnings.warn(
            "the channels of semantic sum to 1 in each pixel, like probabilities, and are read as logits: "
            "scores will be too low. Pass np.log(semantic.clip(1e-6))",
            stacklevel=5,
        )
    if (
        not is_logits
        and grid.dtype != bool
        and grid.size
        and grid.max() == IGNORE
        and not ((grid > 0) & (grid < IGNORE)).any()
    ):
        warnings.warn(
            "the class map has only 0 and 255, and 255 means ignore; "
            "for a binary mask, pass (mask > 0).astype(np.uint8)",
            stacklevel=5,
        )


def _are_probabilities(grid: NDArray[Any]) -> bool:
    """Return whether the channels of about a thousand pixels (C, h, w) sum to 1."""
    steps = (max(1, side // 32) for side in grid.shape[1:])
    pixels = np.asarray(grid[(slice(None), *(slice(None, None, step) for step in steps))], np.float64)
    with np.errstate(all="ignore"):
        return bool(pixels.size and pixels.min() >= 0 and np.allclose(pixels.sum(0), 1, atol=_SUM_TOLERANCE))


def _as_floats(value: ArrayLike, name: str) -> NDArray[np.float32]:
    array = as_numpy(value, name)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def checked_size(value: object, name: str) -> tuple[int, int]:
    """Return a size (H, W) as integers; raises InputError."""
    if isinstance(value, Sequence | np.ndarray) and len(value) == 2:
        sides = tuple(int(side) for side in value if isinstance(side, Integral))
        if len(sides) == 2:
            return sides
    raise InputError(f"{name} must be two integers (H, W), got {value!r}")


def check_sides(hw: Sequence[int], name: str, limit: int) -> None:
    """Raise InputError if a side is not in 1..limit."""
    if len(hw) != 2 or not all(1 <= s <= limit for s in hw):
        raise InputError(f"{name}: sides must lie in 1..{limit}, got {tuple(hw)}")


def checked_field(
    value: ArrayLike | None, batched: bool, n: int, shape: tuple[int, int, int], name: str
) -> NDArray[np.float32] | None:
    """Check a map of exactly this shape, because displacements do not scale; returns float32 (N, *shape)."""
    if value is None:
        return None
    array = _as_floats(value, name)
    array = array if batched else array[None]
    if array.shape != (n, *shape):
        raise InputError(f"{name} must be {(n, *shape) if batched else shape}, got {np.shape(value)}")
    if not is_finite(array):
        raise InputError(f"{name} contains NaN or infinity")
    return np.ascontiguousarray(array)


def checked_plane(
    value: ArrayLike | None, batched: bool, n: int, h: int, w: int, name: str
) -> tuple[NDArray[np.float32] | None, int]:
    """Check a map of probabilities; returns float32 (N, h / stride, w / stride) and the stride."""
    if value is None:
        return None, 1
    array = _as_floats(value, name)
    array = array if batched else array[None]
    stride = _stride(array.shape[-2:], h, w, name) if array.ndim == 3 and len(array) == n else 0
    if not stride:
        raise InputError(f"{name} must be {(n, h, w) if batched else (h, w)}, got {np.shape(value)}")
    _check_unit(array, name)
    return np.ascontiguousarray(array), stride


def enlarge(
    plane: NDArray[np.float32] | None, stride: int, size_hw: tuple[int, int]
) -> NDArray[np.float32] | None:
    """Repeat the cells of a map so that it has the size of the grid."""
    if plane is None or stride == 1:
        return plane
    repeated = plane.repeat(stride, -1).repeat(stride, -2)  # rows last, which copies whole rows
    return np.ascontiguousarray(repeated[:, : size_hw[0], : size_hw[1]])


def checked_affinity(
    value: ArrayLike | None, batched: bool, n: int, h: int, w: int, offsets: NDArray[np.int32]
) -> tuple[NDArray[np.float32] | None, int]:
    """Check affinities; returns float32 (N, A, h / stride, w / stride) and the stride."""
    if value is None:
        return None, 1
    array = _as_floats(value, "affinity")
    array = array if batched else array[None]
    if array.ndim != 4 or len(array) != n or array.shape[1] != len(offsets):
        raise InputError(
            f"affinity must have one channel for each of the {len(offsets)} offsets: (A, h, w), got "
            f"{np.shape(value)}"
        )
    stride = _stride(array.shape[-2:], h, w, "affinity")
    _check_unit(array, "affinity")
    return np.ascontiguousarray(array), stride


def _stride(shape: Sequence[int], h: int, w: int, name: str) -> int:
    rows = max(1, shape[0])
    # smallest and largest stride that give this number of rows
    low, high = -(-h // rows), max(h, w) if rows == 1 else (h - 1) // (rows - 1)
    fits = [s for s in range(low, high + 1) if (-(-h // s), -(-w // s)) == tuple(shape)]
    if not fits:
        raise InputError(
            f"{name} of {tuple(shape)} is neither the grid {(h, w)} nor an integer factor smaller"
        )
    even = [s for s in fits if h % s == w % s == 0]  # tiny grids fit several factors
    return (even or fits)[0]


def _check_unit(array: NDArray[np.float32], name: str) -> None:
    # this condition also rejects NaN
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"{name} must lie in [0, 1], got {array.min()}..{array.max()}: apply a sigmoid to logits"
        )
