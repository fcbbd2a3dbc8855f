"""Refine masks through the C API on the CPU: move outlines to where an instance network predicts them.

See csrc/tfiseg.h and csrc/mask_refinement.h; reference_mask_refinement.py defines the rule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .native import VALUE_TYPES, SizedStruct, c_fields, check, library, usable_threads
from .views import VIEW_COLUMNS

# probabilities below which pixels are removed and above which they are added, as in csrc/mask_refinement.h:
# the gap between them keeps good masks unchanged (chosen on composites)
REMOVE_BELOW, ADD_ABOVE = 0.4, 0.6
MAX_REFINEMENT_VIEWS = 65535


class MaskRefinementStruct(SizedStruct):
    """tfiseg_mask_refinement of csrc/tfiseg.h."""

    _fields_ = c_fields(
        (ctypes.c_int32, "height width"),
        (ctypes.c_void_p, "label_map count table"),
        (ctypes.c_int32, "max_instances max_components"),
        (ctypes.c_void_p, "component_map component_count component_table views map_sides foreground"),
        (ctypes.c_int32, "view_count max_map_side value_type threads"),
        (ctypes.c_void_p, "refined_map refined_count refined_table instance_of workspace"),
        (ctypes.c_int64, "workspace_bytes"),
    )


@dataclass(frozen=True)
class PredictedMasks:
    """The instances of a frame, and what an instance network predicts in views of their components."""

    label_map: NDArray[np.int32]  # instances, int32 (H, W), 0 = none, 1..n
    table: NDArray[np.float32]  # of the instances, float32 (n, 10), columns ``TABLE_COLUMNS`` of problem.py
    component_map: NDArray[np.int32]  # connected components of the class map, int32 (H, W), 0 = none, 1..m
    component_table: NDArray[np.float32]  # float32 (m, 10)
    views: NDArray[np.int32]  # int32 (K, 5), columns ``VIEW_COLUMNS`` of views.py; component 0 = not used
    # for each view, the probability that its cells belong to the component, float32 or float16 (q, q) in [0,
    # 1], all of one type
    foregrounds: Sequence[NDArray[Any]]


@dataclass(frozen=True)
class RefinedMasks:
    """Instances with refined masks.

    ``label_map`` is int32 (H, W), numbered by first pixel; ``table`` float32 (n, 10); ``instance_of`` int32
    (n,) the given instance of each one, from 1.
    """

    label_map: NDArray[np.int32]
    table: NDArray[np.float32]
    instance_of: NDArray[np.int32]


def refine_masks(predicted: PredictedMasks, threads: int | None = None) -> RefinedMasks:
    """Add and remove pixels near the outlines of instances.

    Args:
        threads: CPU threads; default: all that the process may use.

    Raises:
        InputError: an array has another type or shape.
    """
    call = MaskRefinementCall(predicted, threads)
    check(library().tfiseg_refine_masks_cpu(ctypes.byref(call.struct)))
    return call.refined


class MaskRefinementCall:
    """A tfiseg_mask_refinement structure and the arrays that it points into."""

    def __init__(self, predicted: PredictedMasks, threads: int | None = None) -> None:
        _check(predicted)
        label_map, sides = predicted.label_map, [len(one) for one in predicted.foregrounds]
        instances, components = len(predicted.table), len(predicted.component_table)
        counts = np.array([[instances], [components]], np.int32)
        map_sides = np.array(sides, np.int32)
        foreground = np.concatenate([one.ravel() for one in predicted.foregrounds])
        self._kept = (predicted, counts, map_sides, foreground)
        self._label_map = np.empty_like(label_map)
        self._count = np.empty(1, np.int32)
        self._table = np.empty((max(1, instances), 10), np.float32)
        self._instance_of = np.empty(max(1, instances), np.int32)
        self.struct = MaskRefinementStruct(
            height=label_map.shape[0],
            width=label_map.shape[1],
            label_map=label_map.ctypes.data,
            count=counts[0].ctypes.data,
            table=predicted.table.ctypes.data,
            max_instances=max(1, instances),
            max_components=max(1, components),
            component_map=predicted.component_map.ctypes.data,
            component_count=counts[1].ctypes.data,
            component_table=predicted.component_table.ctypes.data,
            views=predicted.views.ctypes.data,
            map_sides=map_sides.ctypes.data,
            foreground=foreground.ctypes.data,
            view_count=len(sides),
            max_map_side=max(sides),
            value_type=VALUE_TYPES[foreground.dtype],
            threads=threads or usable_threads(),
            refined_map=self._label_map.ctypes.data,
            refined_count=self._count.ctypes.data,
            refined_table=self._table.ctypes.data,
            instance_of=self._instance_of.ctypes.data,
        )
        size = int(library().tfiseg_refine_masks_workspace_size(ctypes.byref(self.struct)))
        self._workspace = np.empty(size, np.uint8)
        self.struct.workspace, self.struct.workspace_bytes = self._workspace.ctypes.data, size

    @property
    def refined(self) -> RefinedMasks:
        n = int(self._count[0])
        return RefinedMasks(self._label_map, self._table[:n], self._instance_of[:n])


def _check(predicted: PredictedMasks) -> None:
    """Raise InputError for arrays of other shapes, because the library does not check them."""
    h, w = predicted.label_map.shape
    views = len(predicted.foregrounds)
    for name, kind, shape in (
        ("label_map", np.int32, (h, w)),
        ("component_map", np.int32, (h, w)),
        ("table", np.float32, (len(predicted.table), 10)),
        ("component_table", np.float32, (len(predicted.component_table), 10)),
        ("views", np.int32, (views, len(VIEW_COLUMNS))),
    ):
        array = getattr(predicted, name)
        if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
            raise InputError(
                f"mask refinement needs a contiguous {name} {np.dtype(kind)} {shape}, got {array.dtype} "
                f"{array.shape}"
            )
    if not 1 <= views <= MAX_REFINEMENT_VIEWS:
        raise InputError(f"mask refinement needs 1..{MAX_REFINEMENT_VIEWS} views, got {views}")
    kinds = {one.dtype for one in predicted.foregrounds}
    if len(kinds) > 1 or not kinds <= set(VALUE_TYPES):
        raise InputError(f"foreground maps must be all float32 or all float16, got {sorted(map(str, kinds))}")
    for one in predicted.foregrounds:
        if one.ndim != 2 or one.shape[0] != one.shape[1]:
            raise InputError(f"a foreground map must be square, got {one.shape}")
