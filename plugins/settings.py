"""Settings of the clustering operator, with defaults and limits."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy
from ..errors import InputError
from .neck import EVIDENCE_FEATURES

IGNORE = 255
MAX_SIDE = 4096  # of the grid
MAX_OUT_SIDE = 32_767  # of the label map
MAX_INSTANCES = 65_535
MAX_THREADS = 1 << 20  # more than any system provides; the operator runs with those that it gets
MAX_EVIDENCE_HIDDEN = 64
MAX_SHARPEN = 32
MERGE_AFFINITY = 0.3  # best of a trial; values from 0.2 to 0.35 are equally good
CENTRE_RADIUS = 2.5  # grid pixels; in IRNet (CVPR 2019), shorter vectors mark centers
MIN_AREA_PX = 25
SHARPEN = 6  # grid pixels, for the boundaries of tfiseg's networks; higher values improve no outlines
# (dy, dx) of tfiseg's own instance network, in cells of its stride-4 grid
_NEAR = ((0, 1), (1, 0), (0, 3), (3, 0), (3, 3), (3, -3))
_FAR = ((0, 8), (8, 0), (6, 6), (6, -6), (0, 16), (16, 0), (12, 12), (12, -12))
AFFINITY_OFFSETS = _NEAR + _FAR

Split = str | float | Mapping[int, float]


@dataclass(frozen=True, eq=False)
class ClusterSettings:
    """Settings of the clustering operator. They are validated; arrays may be given as lists.

    Args:
        things: IDs of countable classes; None: all but 0.
        split: "auto" decides from the shape of each neck; a float cuts where saddle / peak is below it (0 =
            never: connected components); {class id: float} sets it for these classes, the others are "auto".
        min_area: smallest instance to keep, in pixels of the result.
        max_instances: maximum number of instances; the largest are kept.
        affinity_offsets: int32 (A, 2), (dy, dx) of the affinity channels, in affinity cells.
        merge_affinity: regions merge while their mean affinity is above it.
        merge_rule: float32 (hidden * 19 + 1,), weights of a learned rule that decides from shape, affinity
            and boundary together. It belongs to the network that computes the affinities (csrc/tfiseg.h,
            evidence_rule). None: ``merge_affinity`` alone decides.
        part_rule: the second-pass rule, weights as ``merge_rule``; needs affinity and boundary. What a
            boundary cuts from an instance is clustered again by this rule, and parts of at least a fifth of
            the instance become instances. None: no second pass.
        centre_radius: displacements shorter than this mark centers; grid pixels.
        sharpen: move cuts onto the boundary within this many grid pixels, 0..32; 0: keep the cuts.

    Raises:
        InputError: a value is out of range.
    """

    things: Iterable[int] | int | None = None
    split: Split = "auto"
    min_area: int = MIN_AREA_PX
    max_instances: int = MAX_INSTANCES
    affinity_offsets: NDArray[np.int32] = field(default_factory=lambda: np.array(AFFINITY_OFFSETS, np.int32))
    merge_affinity: float = MERGE_AFFINITY
    merge_rule: NDArray[np.float32] | None = None
    part_rule: NDArray[np.float32] | None = None
    centre_radius: float = CENTRE_RADIUS
    sharpen: int = 0

    def __post_init__(self) -> None:
        check_max_instances(self.max_instances)
        check_min_area(self.min_area)
        are_numbers = all(isinstance(v, Real) for v in (self.merge_affinity, self.centre_radius))
        # this condition also rejects NaN
        if not (are_numbers and 0 <= self.merge_affinity <= 1 and self.centre_radius >= 0):
            raise InputError(
                f"merge_affinity must lie in 0..1 and centre_radius be positive, got {self.merge_affinity} "
                f"and {self.centre_radius}"
            )
        if not (isinstance(self.sharpen, Integral) and 0 <= self.sharpen <= MAX_SHARPEN):
            raise InputError(f"sharpen must lie in 0..{MAX_SHARPEN} grid pixels, got {self.sharpen!r}")
        clean = {
            "things": _listed(self.things),
            "affinity_offsets": _checked_offsets(self.affinity_offsets),
            "merge_rule": _checked_rule(self.merge_rule, "merge_rule"),
            "part_rule": _checked_rule(self.part_rule, "part_rule"),
        }
        for name, value in clean.items():
            object.__setattr__(self, name, value)
        assert self.thing_flags is not None
        assert self.split_table is not None  # both raise now, not on first use

    @functools.cached_property
    def thing_flags(self) -> NDArray[np.uint8]:
        """Flags of countable class IDs, uint8 (256,)."""
        return thing_flags(self.things)

    @functools.cached_property
    def split_table(self) -> NDArray[np.float64]:
        """Saddle / peak ratio of each class ID, float64 (256,); NaN = "auto"."""
        return split_table(self.split)

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """Hashable key, equal for settings with the same effect."""
        rules = (b"" if rule is None else rule.tobytes() for rule in (self.merge_rule, self.part_rule))
        arrays = (self.thing_flags, self.split_table, self.affinity_offsets)
        numbers = (self.min_area, self.max_instances, self.sharpen, self.merge_affinity, self.centre_radius)
        return (*numbers, *(array.tobytes() for array in arrays), *rules)

    def for_maps(self, affinity: bool, boundary: bool) -> ClusterSettings:
        """Return the settings without rules for missing maps."""
        return replace(
            self,
            merge_rule=self.merge_rule if affinity else None,
            part_rule=self.part_rule if affinity and boundary else None,
            sharpen=self.sharpen if boundary else 0,
        )

    def components(self, min_area: int) -> ClusterSettings:
        """Return the settings for connected components, without cuts and learned rules."""
        return replace(self, split=0.0, min_area=min_area, merge_rule=None, part_rule=None, sharpen=0)


def cut_settings(
    affinity_offsets: NDArray[np.int32],
    rules: Mapping[str, NDArray[np.float32]],
    max_instances: int = MAX_INSTANCES,
) -> ClusterSettings:
    """Return the settings that cut a component in its view with the maps of an instance network.

    Args:
        affinity_offsets: of the network.
        rules: "merge" and "part" rules of the network; without "part", there is no second pass.
        max_instances: maximum number of parts of a component.
    """
    return ClusterSettings(
        min_area=0,
        max_instances=max_instances,
        affinity_offsets=affinity_offsets,
        merge_rule=rules.get("merge"),
        part_rule=rules.get("part"),
        sharpen=SHARPEN,
    )


def check_max_instances(max_instances: int) -> None:
    """Raise InputError if a maximum number of instances is out of range."""
    if not (isinstance(max_instances, Integral) and 1 <= max_instances <= MAX_INSTANCES):
        raise InputError(f"max_instances must lie in 1..{MAX_INSTANCES}, got {max_instances!r}")


def check_min_area(min_area: int) -> None:
    """Raise InputError if a minimum area is out of range."""
    if not isinstance(min_area, Integral) or not 0 <= min_area <= MAX_OUT_SIDE**2:
        raise InputError(f"min_area must lie in 0..{MAX_OUT_SIDE**2} pixels, an integer, got {min_area!r}")


def _checked_offsets(value: Any) -> NDArray[np.int32]:
    """Convert affinity offsets to int32 (A, 2); raises InputError if one is longer than any grid."""
    try:
        offsets = np.asarray(as_numpy(value, "affinity_offsets"), np.int64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as wrong:
        raise InputError(f"affinity_offsets must be pairs of integers (dy, dx), got {value!r}") from wrong
    if offsets.size and not (offsets.min() >= -MAX_SIDE and offsets.max() <= MAX_SIDE):
        raise InputError(
            f"affinity_offsets must lie in -{MAX_SIDE}..{MAX_SIDE} cells, got "
            f"{offsets.min()}..{offsets.max()}"
        )
    return np.ascontiguousarray(offsets, np.int32)


def _checked_rule(value: Any, name: str) -> NDArray[np.float32] | None:
    if value is None:
        return None
    rule = np.ascontiguousarray(as_numpy(value, name), np.float32)
    unit = len(EVIDENCE_FEATURES) + 2
    if rule.ndim != 1 or rule.size % unit != 1 or not 1 <= rule.size // unit <= MAX_EVIDENCE_HIDDEN:
        raise InputError(
            f"{name} must hold hidden * {unit} + 1 numbers for 1 to {MAX_EVIDENCE_HIDDEN} hidden units, got "
            f"shape {rule.shape}"
        )
    if not np.isfinite(rule).all():
        raise InputError(f"{name} contains NaN or infinity")
    return rule


def _listed(things: Iterable[int] | int | None) -> tuple[int, ...] | None:
    if things is None or isinstance(things, Integral):
        return None if things is None else (int(things),)
    if not isinstance(things, Iterable):
        raise InputError(f"things must be class ids in 0..254, got {things!r}")
    return tuple(things)


def thing_flags(things: Iterable[int] | int | None) -> NDArray[np.uint8]:
    """Return flags of countable class IDs, uint8 (256,); None: all but 0 and 255. Raises InputError."""
    flags = np.zeros(256, np.uint8)
    if things is None:
        flags[1:IGNORE] = 1
        return flags
    for class_id in _listed(things) or ():
        if not (isinstance(class_id, Integral) and 0 <= class_id < IGNORE):
            raise InputError(f"things: class ids are integers in 0..254, got {class_id!r}")
        flags[int(class_id)] = 1
    flags[0] = 0  # the operator's background
    return flags


def split_table(split: Split) -> NDArray[np.float64]:
    """Return the saddle / peak ratio of each class ID, float64 (256,); NaN = "auto". Raises InputError."""
    values = np.full(256, np.nan)
    if isinstance(split, Mapping):
        for class_id, ratio in split.items():
            is_id = isinstance(class_id, Integral) or (isinstance(class_id, str) and class_id.isdecimal())
            if not is_id or not 0 <= int(class_id) < 256:
                raise InputError(f"split: class ids lie in 0..255, got {class_id!r}")
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
