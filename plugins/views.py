"""Render views of components, and place the instances found in them, through the C API on the CPU.

See csrc/tfiseg.h and csrc/views.h; runtime/gpu/view_refiner.py calls the same functions on a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .native import SizedStruct, c_fields, check, library, usable_threads

VIEW_COLUMNS = ("x", "y", "side", "class", "component")
CANDIDATES_PER_VIEW = 16  # number of components to check for convexity, for each view


class ViewsStruct(SizedStruct):
    """tfiseg_views of csrc/tfiseg.h."""

    _fields_ = c_fields(
        (ctypes.c_int32, "height width"),
        (ctypes.c_void_p, "frame label_map count table"),
        (ctypes.c_int32, "max_components"),
        (ctypes.c_void_p, "wanted"),
        (ctypes.c_int32, "view_count view_side threads"),
        (ctypes.c_void_p, "views images masks own workspace"),
        (ctypes.c_int64, "workspace_bytes"),
    )


class PiecesStruct(SizedStruct):
    """tfiseg_pieces of csrc/tfiseg.h."""

    _fields_ = c_fields(
        (ctypes.c_int32, "max_parts least_regions"),
        (ctypes.c_void_p, "labels counts regions tables label_map count table component_of"),
    )


@dataclass(frozen=True)
class Scene:
    """A frame and the components of its class map."""

    frame: NDArray[np.uint8]  # uint8 (H, W, 3) BGR
    label_map: NDArray[np.int32]  # int32 (H, W), 0 = none, 1..n
    table: NDArray[np.float32]  # float32 (n, 10), columns ``TABLE_COLUMNS`` of problem.py
    # uint8 (256,), 1 for classes to refine; components of other classes are skipped
    thing_flags: NDArray[np.uint8]


@dataclass(frozen=True)
class RenderedViews:
    """K views of side S."""

    # int32 (K, 5), columns ``VIEW_COLUMNS``: corner and side in pixels of the frame, class (0 = no view), and
    # component (0 = all components of the class)
    views: NDArray[np.int32]
    images: NDArray[np.uint8]  # uint8 (K, S, S, 3)
    masks: NDArray[np.uint8]  # uint8 (K, S, S), 1 = the view's class
    own: NDArray[np.uint8]  # uint8 (K, S, S), 1 = the view's component


@dataclass(frozen=True)
class ViewClusterings:
    """The operator's result for ``own``.

    ``labels`` is int32 (K, S, S), ``counts`` and ``regions`` int32 (K,), ``tables`` float32 (K, M, 10).
    """

    labels: NDArray[np.int32]
    counts: NDArray[np.int32]
    regions: NDArray[np.int32]
    tables: NDArray[np.float32]


@dataclass(frozen=True)
class PlacedInstances:
    """Instances in the frame.

    ``label_map`` is int32 (H, W), numbered by first pixel; ``table`` float32 (n, 10); ``component_of`` int32
    (n,), 1...
    """

    label_map: NDArray[np.int32]
    table: NDArray[np.float32]
    component_of: NDArray[np.int32]


def render_views(scene: Scene, view_count: int, view_side: int, threads: int | None = None) -> RenderedViews:
    """Render informative views: of components, the largest first, then of classes with several components.

    Args:
        view_count: maximum number of views.
        view_side: side of views in pixels.
    """
    call = ViewsCall(scene, view_count, view_side, threads)
    check(library().tfiseg_cut_views_cpu(ctypes.byref(call.struct)))
    return call.rendered


def place_instances(
    scene: Scene,
    rendered: RenderedViews,
    found: ViewClusterings,
    min_regions: int = 2,
    threads: int | None = None,
) -> PlacedInstances:
    """Split components into the parts found in their views, and place these in the frame.

    Args:
        scene, rendered: the frame and its views.
        min_regions: components with fewer regions are not split.
    """
    count, side = rendered.own.shape[:2]
    call = ViewsCall(scene, count, side, threads, rendered, found.tables.shape[1])
    placement = PlacementCall(scene, found, min_regions)
    check(library().tfiseg_place_pieces_cpu(ctypes.byref(call.struct), ctypes.byref(placement.struct)))
    return placement.placed


class ViewsCall:
    """A tfiseg_views structure and its arrays."""

    def __init__(
        self,
        scene: Scene,
        view_count: int,
        view_side: int,
        threads: int | None = None,
        rendered: RenderedViews | None = None,
        max_parts: int = 1,
    ) -> None:
        check_scene(scene)
        shape = (view_count, view_side, view_side)
        if rendered is None:
            maps = (np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
            rendered = RenderedViews(np.zeros((view_count, len(VIEW_COLUMNS)), np.int32), *maps)
        self.rendered = rendered
        count = np.array([len(scene.table)], np.int32)
        self._kept = (scene, count)
        self.struct = ViewsStruct(
            height=scene.label_map.shape[0],
            width=scene.label_map.shape[1],
            frame=scene.frame.ctypes.data,
            label_map=scene.label_map.ctypes.data,
            count=count.ctypes.data,
            table=scene.table.ctypes.data,
            max_components=max(1, len(scene.table)),
            wanted=scene.thing_flags.ctypes.data,
            view_count=view_count,
            view_side=view_side,
            threads=threads or usable_threads(),
            views=rendered.views.ctypes.data,
            images=rendered.images.ctypes.data,
            masks=rendered.masks.ctypes.data,
            own=rendered.own.ctypes.data,
        )
        self._workspace = np.empty(views_workspace_bytes(self.struct, max_parts), np.uint8)
        self.struct.workspace = self._workspace.ctypes.data
        self.struct.workspace_bytes = self._workspace.nbytes


def check_max_views(max_views: int | None) -> None:
    """Raise InputError if a maximum number of views per frame is out of range; None: the default."""
    if max_views is not None and not (isinstance(max_views, Integral) and max_views >= 1):
        raise InputError(f"max_views must be at least 1, got {max_views!r}")


def check_scene(scene: Scene) -> None:
    """Raise InputError for arrays with another shape or type, because the library does not check them."""
    h, w = scene.label_map.shape
    for array, kind, shape in (
        (scene.frame, np.uint8, (h, w, 3)),
        (scene.label_map, np.int32, (h, w)),
        (scene.table, np.float32, (len(scene.table), 10)),
        (scene.thing_flags, np.uint8, (256,)),
    ):
        if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
            raise InputError(
                f"a scene needs contiguous {np.dtype(kind)} {shape}, got {array.dtype} {array.shape}"
            )
    if scene.label_map.size and not 0 <= scene.label_map.min() <= scene.label_map.max() <= len(scene.table):
        raise InputError(f"labels must be in 0..{len(scene.table)}, the number of rows in the table")


class PlacementCall:
    """A tfiseg_pieces structure and its arrays."""

    def __init__(self, scene: Scene, found: ViewClusterings, min_regions: int) -> None:
        views, max_parts = found.tables.shape[:2]
        limit = max_placed_instances(max(1, len(scene.table)), views, max_parts)
        self._label_map = np.empty_like(scene.label_map)
        self._count = np.empty(1, np.int32)
        self._table = np.empty((limit, 10), np.float32)
        self._component_of = np.empty(limit, np.int32)
        self._kept = found
        self.struct = PiecesStruct(
            max_parts=max_parts,
            least_regions=min_regions,
            labels=found.labels.ctypes.data,
            counts=found.counts.ctypes.data,
            regions=found.regions.ctypes.data,
            tables=found.tables.ctypes.data,
            label_map=self._label_map.ctypes.data,
            count=self._count.ctypes.data,
            table=self._table.ctypes.data,
            component_of=self._component_of.ctypes.data,
        )

    @property
    def placed(self) -> PlacedInstances:
        n = int(self._count[0])
        return PlacedInstances(self._label_map, self._table[:n], self._component_of[:n])


def max_placed_instances(max_components: int, views: int, max_parts: int) -> int:
    """Return the maximum number of placed instances, which is the number of rows of their table."""
    return max_components + views * (max_parts - 1)


def views_workspace_bytes(struct: ViewsStruct, max_parts: int, c_library: Any = None) -> int:
    """Return the workspace size of both calls in bytes, 0 if a size is out of range.

    ``c_library`` is the loaded library; default: the installed one.
    """
    return int((c_library or library()).tfiseg_views_workspace_size(ctypes.byref(struct), max_parts))
