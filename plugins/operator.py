"""``cluster``: instance masks from somebody's own semantic network. Checks its input once, here; everything
below trusts it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..instances import instances_from_table
from .native import cluster_native
from .neck import EVIDENCE_FEATURES
from .problem import (
    CENTRE_RADIUS,
    FLAG_MERGE_STOPPED,
    IGNORE,
    MAX_EVIDENCE_HIDDEN,
    MAX_INSTANCES,
    MAX_OUT_SIDE,
    MAX_SHARPEN,
    MAX_SIDE,
    MERGE_AFFINITY,
    Problem,
)


class MergeStoppedWarning(UserWarning):
    """Merging stopped at its budget: the evidence is noise, and instances may be parts of objects."""


Split = str | float | Mapping[int, float]

# (dy, dx) of tfiseg's own instance network, in cells of its stride-4 grid
_NEAR = ((0, 1), (1, 0), (0, 3), (3, 0), (3, 3), (3, -3))
_FAR = ((0, 8), (8, 0), (6, 6), (6, -6), (0, 16), (16, 0), (12, 12), (12, -12))
AFFINITY_OFFSETS = _NEAR + _FAR
MIN_AREA_PX = 25
# grid pixels, with the boundaries of tfiseg's own networks: less moves too little, more gains no outline
# (docs/benchmarks)
SHARPEN = 6


def cluster(
    semantic: ArrayLike,
    displacement: ArrayLike | None = None,
    boundary: ArrayLike | None = None,
    affinity: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    things: Iterable[int] | None = None,
    *,
    split: Split = "auto",
    affinity_offsets: Sequence[tuple[int, int]] | NDArray[np.int32] = AFFINITY_OFFSETS,
    merge_affinity: float = MERGE_AFFINITY,
    merge_rule: ArrayLike | None = None,
    part_rule: ArrayLike | None = None,
    centre_radius: float = CENTRE_RADIUS,
    sharpen: int = 0,
    min_area: int = MIN_AREA_PX,
    max_instances: int = MAX_INSTANCES,
    output_size_hw: tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
    threads: int | None = None,
) -> Any:
    """Split a semantic segmentation into instances.

    Args:
        semantic: class map, integers (H, W), 0 = background, 255 = ignore; or logits, floats (C, h, w). With
            a leading axis N it is a batch, and a list of Instances comes back.
        displacement: float (2, H, W), (dy, dx) in grid pixels to the centre of each pixel's instance;
            default: from shape.
        boundary: float (H, W) in [0, 1], 1 = between two instances; an integer factor smaller than the grid
            is allowed.
        affinity: float (A, h, w) in [0, 1]: probability that a cell and the one at each offset lie on one
            object; an integer factor smaller than the grid is allowed. Without a ``merge_rule``, it alone
            decides what merges.
        scores: float (H, W) in [0, 1], per-pixel confidence; default: softmax of the logits, or 1.
        things: class ids that are countable; default: all but 0.
        split: "auto" decides each neck from its shape; a float cuts where saddle / peak is below it (0 =
            never cut: connected components); {class id: float} does so for these classes and "auto" for the
            others.
        affinity_offsets: (A, 2) (dy, dx) of the affinity channels, in affinity cells.
        merge_affinity: regions merge while their mean affinity is above it.
        merge_rule: float (hidden * 19 + 1,), weights of a learned rule that decides from shape, affinity and
            boundary together; it belongs to the network that made the affinities (csrc/tfiseg.h,
            evidence_rule). Default: ``merge_affinity``.
        part_rule: the same for a second look at what a boundary crosses: what it leaves of an instance is
            clustered anew, by this rule, and parts of at least a fifth of it are instances of their own.
            Needs ``affinity`` and ``boundary``. Default: no second look.
        centre_radius: given displacements shorter than this mark centres; grid pixels.
        sharpen: with a boundary: move cuts onto it within so many grid pixels, 0..32 (0: they stay where the
            shape has them).
        min_area: smaller instances are dropped; pixels of the result.
        max_instances: at most this many are kept, the largest.
        output_size_hw: (H, W) of the result, with logits; default: the grid's.
        class_names: name of each class id, for the result.
        threads: CPU threads; default: all that the process may use.

    Returns:
        Instances, or a list of them for a batch.

    Raises:
        InputError: the input is unusable; the message names what is wrong and how to mend it.

    Example:
        >>> instances = cluster(class_map)
        >>> [(i.class_id, i.area) for i in instances]
    """
    grid = np.asarray(semantic)
    is_logits = _is_logits(grid)
    _warn_of_look_alikes(grid, is_logits)
    batched = grid.ndim == (4 if is_logits else 3)
    given = grid if batched else grid[None]
    if batched and not len(grid):
        return []
    _check_sides(given.shape[-2:], "semantic", MAX_SIDE)
    h, w = given.shape[-2:]
    if is_logits:
        with np.errstate(over="ignore"):
            given = np.asarray(given, np.float32)
        if not _is_finite(given):
            raise InputError(
                "logits contain NaN or infinity: check the network's output (fp16 overflow and missing normalisation do this)"
            )
        if not 2 <= given.shape[1] <= 255:
            raise InputError(
                f"logits must have 2 to 255 classes, got shape {grid.shape}: expected (C, h, w) or (N, C, h, w)"
            )
    elif given.dtype != np.uint8 and given.size and (given.min() < 0 or given.max() > 255):
        raise InputError(f"class ids must lie in 0..255 (255 = ignore), got {given.min()}..{given.max()}")
    out_hw = (h, w) if output_size_hw is None else tuple(int(side) for side in output_size_hw)
    _check_sides(out_hw, "output_size_hw", MAX_OUT_SIDE)
    if not is_logits and out_hw != (h, w):
        raise InputError(
            f"output_size_hw {out_hw} needs logits; a class map keeps its size {(h, w)}: resize it first (nearest)"
        )
    if not (isinstance(max_instances, Integral) and 1 <= max_instances <= MAX_INSTANCES):
        raise InputError(f"max_instances must lie in 1..{MAX_INSTANCES}, got {max_instances}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    check_min_area(min_area)
    if not (0 <= merge_affinity <= 1 and centre_radius >= 0):  # so written that NaN fails, too
        raise InputError(
            f"merge_affinity must lie in 0..1 and centre_radius be positive, got {merge_affinity} and {centre_radius}"
        )
    contours, boundary_stride = _plane(boundary, batched, len(given), h, w, "boundary")
    maps = {
        "displacement": _evidence(displacement, batched, len(given), (2, h, w), "displacement"),
        "boundary": contours,
        "scores": _enlarged(*_plane(scores, batched, len(given), h, w, "scores"), (h, w)),
    }
    offsets = _offsets(affinity_offsets)
    links, stride = _affinity(affinity, batched, len(given), h, w, offsets)
    result = cluster_native(
        Problem(
            class_map=None if is_logits else np.ascontiguousarray(given, np.uint8),
            logits=np.ascontiguousarray(given, np.float32) if is_logits else None,
            out_hw=(out_hw[0], out_hw[1]),
            things=thing_flags(things),
            split=split_table(split),
            affinity=links,
            affinity_offsets=offsets,
            affinity_stride=stride,
            boundary_stride=boundary_stride,
            evidence_rule=_rule(merge_rule, "merge_rule", links is not None),
            part_rule=_rule(part_rule, "part_rule", links is not None and boundary is not None),
            merge_affinity=merge_affinity,
            centre_radius=centre_radius,
            sharpen=_band(sharpen, boundary is not None),
            min_area=int(min_area),
            max_instances=max_instances,
            **maps,
        ),
        threads,
    )
    if any((result.table[k, :n, -1].astype(int) & FLAG_MERGE_STOPPED).any() for k, n in enumerate(result.count)):
        warnings.warn(
            "merging stopped at its budget, so instances may be parts of objects: the class map or the evidence "
            "looks like noise. Check what the network gives",
            MergeStoppedWarning,
            stacklevel=2,
        )
    times = {"cluster": result.cluster_ms / len(given), "upsample": result.upsample_ms / len(given)}
    found = [
        instances_from_table(
            result.label_map[k],
            result.semantic_map[k],
            result.table[k, :n],
            class_names=class_names,
            stage_ms=dict(times),
        )
        for k, n in enumerate(result.count.tolist())
    ]
    return found if batched else found[0]


def _is_logits(grid: NDArray[Any]) -> bool:
    if np.issubdtype(grid.dtype, np.floating):
        if grid.ndim in (3, 4):
            return True
        raise InputError(
            f"a floating-point semantic is taken as logits (C, h, w) or (N, C, h, w), got shape {grid.shape}; "
            "for a class map pass integers: semantic.astype(np.uint8)"
        )
    if np.issubdtype(grid.dtype, np.integer) or grid.dtype == bool:
        if grid.ndim in (2, 3):
            return False
        raise InputError(f"a class map must be (H, W) or (N, H, W), got shape {grid.shape}")
    raise InputError(
        f"semantic must be an integer class map or floating-point logits, got dtype {grid.dtype}"
    )


def _is_finite(array: NDArray[Any]) -> bool:
    # NaN and infinity pass through a sum, which needs no array of flags; a sum of large finite numbers may
    # overflow
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def _warn_of_look_alikes(grid: NDArray[Any], is_logits: bool) -> None:
    """What is valid by its shape but most likely meant otherwise."""
    if not is_logits and grid.ndim == 3 and grid.shape[-1] in (3, 4) and grid.shape[0] > 16:
        raise InputError(
            f"{grid.shape} looks like a picture, not a class map (H, W): run a semantic network on it, or tfiseg.Segmenter"
        )
    if is_logits and grid.ndim == 3 and min(grid.shape[:2]) > 4 * grid.shape[2]:
        warnings.warn(
            f"logits {grid.shape} are taken as (C, h, w); if they are (h, w, C), pass logits.transpose(2, 0, 1)",
            stacklevel=3,
        )
    if (
        not is_logits
        and grid.dtype == np.uint8
        and grid.size
        and grid.max() == IGNORE
        and not ((grid > 0) & (grid < IGNORE)).any()
    ):
        warnings.warn(
            "the class map holds only 0 and 255, and 255 means ignore; a binary mask is (mask > 0).astype(np.uint8)",
            stacklevel=3,
        )


def check_min_area(min_area: int) -> None:
    """Raises InputError where no instance can be so large or so small."""
    if not 0 <= min_area <= MAX_OUT_SIDE**2:
        raise InputError(f"min_area must lie in 0..{MAX_OUT_SIDE**2} pixels, got {min_area}")


def _check_sides(hw: Sequence[int], name: str, most: int) -> None:
    if len(hw) != 2 or not all(1 <= s <= most for s in hw):
        raise InputError(f"{name}: sides must lie in 1..{most}, got {tuple(hw)}")


def _evidence(
    value: ArrayLike | None, batched: bool, n: int, shape: tuple[int, int, int], name: str
) -> NDArray[np.float32] | None:
    """float32 (N, *shape), finite; a map that is an integer factor smaller is an error here: displacements do
    not scale."""
    if value is None:
        return None
    array = np.asarray(value, np.float32)
    array = array if batched else array[None]
    if array.shape != (n, *shape):
        raise InputError(f"{name} must be {(n, *shape) if batched else shape}, got {np.shape(value)}")
    if not _is_finite(array):
        raise InputError(f"{name} contains NaN or infinity")
    return np.ascontiguousarray(array)


def _plane(
    value: ArrayLike | None, batched: bool, n: int, h: int, w: int, name: str
) -> tuple[NDArray[np.float32] | None, int]:
    """float32 (N, h / stride, w / stride) in [0, 1], and the stride."""
    if value is None:
        return None, 1
    array = np.asarray(value, np.float32)
    array = array if batched else array[None]
    stride = _stride(array.shape[-2:], h, w, name) if array.ndim == 3 and len(array) == n else 0
    if not stride:
        raise InputError(f"{name} must be {(n, h, w) if batched else (h, w)}, got {np.shape(value)}")
    _check_unit(array, name)
    return np.ascontiguousarray(array), stride


def _enlarged(
    plane: NDArray[np.float32] | None, stride: int, size_hw: tuple[int, int]
) -> NDArray[np.float32] | None:
    if plane is None or stride == 1:
        return plane
    repeated = plane.repeat(stride, -1).repeat(stride, -2)  # rows last: whole ones are copied
    return np.ascontiguousarray(repeated[:, : size_hw[0], : size_hw[1]])


def _affinity(
    value: ArrayLike | None, batched: bool, n: int, h: int, w: int, offsets: NDArray[np.int32]
) -> tuple[NDArray[np.float32] | None, int]:
    if value is None:
        return None, 1
    array = np.asarray(value, np.float32)
    array = array if batched else array[None]
    if array.ndim != 4 or len(array) != n or array.shape[1] != len(offsets):
        raise InputError(
            f"affinity must have one channel for each of the {len(offsets)} offsets: (A, h, w), got {np.shape(value)}"
        )
    stride = _stride(array.shape[-2:], h, w, "affinity")
    _check_unit(array, "affinity")
    return np.ascontiguousarray(array), stride


def _offsets(value: Sequence[tuple[int, int]] | NDArray[np.int32]) -> NDArray[np.int32]:
    """Convert affinity offsets to int32 (A, 2); raise InputError where one is longer than any grid."""
    try:
        offsets = np.asarray(value, np.int64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as wrong:
        raise InputError(f"affinity_offsets must be pairs of integers (dy, dx), got {value!r}") from wrong
    if offsets.size and not (offsets.min() >= -MAX_SIDE and offsets.max() <= MAX_SIDE):
        raise InputError(
            f"affinity_offsets must lie in -{MAX_SIDE}..{MAX_SIDE} cells, got {offsets.min()}..{offsets.max()}"
        )
    return np.ascontiguousarray(offsets, np.int32)


def _rule(value: ArrayLike | None, name: str, has_evidence: bool) -> NDArray[np.float32] | None:
    if value is None:
        return None
    if not has_evidence:
        raise InputError(
            f"a {name} weighs affinities{' and boundaries' if name == 'part_rule' else ''}: give them as well"
        )
    rule = np.ascontiguousarray(value, np.float32)
    unit = len(EVIDENCE_FEATURES) + 2
    if rule.ndim != 1 or rule.size % unit != 1 or not 1 <= rule.size // unit <= MAX_EVIDENCE_HIDDEN:
        raise InputError(
            f"{name} must hold hidden * {unit} + 1 numbers for 1 to {MAX_EVIDENCE_HIDDEN} hidden units, got shape {rule.shape}"
        )
    if not _is_finite(rule):
        raise InputError(f"{name} contains NaN or infinity")
    return rule


def _band(width: int, has_boundary: bool) -> int:
    if not (isinstance(width, Integral) and 0 <= width <= MAX_SHARPEN):
        raise InputError(f"sharpen must lie in 0..{MAX_SHARPEN} grid pixels, got {width!r}")
    if width and not has_boundary:
        raise InputError("sharpen moves cuts onto a boundary: give boundary as well")
    return int(width)


def _stride(shape: Sequence[int], h: int, w: int, name: str) -> int:
    rows = max(1, shape[0])
    least, most = -(-h // rows), max(h, w) if rows == 1 else (h - 1) // (rows - 1)  # that leave so many rows
    fits = [s for s in range(least, most + 1) if (-(-h // s), -(-w // s)) == tuple(shape)]
    if not fits:
        raise InputError(
            f"{name} of {tuple(shape)} is neither the grid {(h, w)} nor an integer factor smaller"
        )
    even = [s for s in fits if h % s == w % s == 0]  # tiny grids fit several factors
    return (even or fits)[0]


def _check_unit(array: NDArray[np.float32], name: str) -> None:
    # written so that NaN fails, too
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"{name} must lie in [0, 1], got {array.min()}..{array.max()}: apply a sigmoid to logits"
        )


def thing_flags(things: Iterable[int] | None) -> NDArray[np.uint8]:
    """1 for each countable class id, uint8 (256,); None: all but 0 and 255. Raises InputError."""
    flags = np.zeros(256, np.uint8)
    if things is None:
        flags[1:IGNORE] = 1
        return flags
    for class_id in things:
        if not (isinstance(class_id, Integral) and 0 <= class_id < IGNORE):
            raise InputError(f"things: class ids are integers in 0..254, got {class_id!r}")
        flags[int(class_id)] = 1
    flags[0] = 0  # the operator's background
    return flags


def split_table(split: Split) -> NDArray[np.float64]:
    """The saddle / peak ratio of each class id, float64 (256,); NaN = "auto". Raises InputError."""
    values = np.full(256, np.nan)
    if isinstance(split, Mapping):
        for class_id, ratio in split.items():
            if not 0 <= int(class_id) < 256:
                raise InputError(f"split: class ids lie in 0..255, got {class_id}")
            values[int(class_id)] = _ratio(ratio)
    elif not (isinstance(split, str) and split == "auto"):
        values[:] = _ratio(split)
    return values


def _ratio(value: Any) -> float:
    if isinstance(value, Real) and 0 <= float(value) <= 1:
        return float(value)
    raise InputError(
        f'split must be "auto", a saddle / peak ratio in 0..1, or {{class id: ratio}}, got {value!r}'
    )
