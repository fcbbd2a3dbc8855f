"""Views through the C API (csrc/tfiseg.h, csrc/views.h): which components of a frame an instance network
looks at, what it is shown, and what was found in the views carried back into the frame. On the CPU;
runtime/gpu/view_refiner.py calls the same on a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .native import check, library, usable_threads

VIEW_COLUMNS = ("x", "y", "side", "class", "component")
CANDIDATES_PER_VIEW = 16  # so many components are looked at by their shape, for each that may get a view


class ViewsStruct(ctypes.Structure):
    """tfiseg_views of csrc/tfiseg.h."""

    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("frame", ctypes.c_void_p),
        ("label_map", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("max_components", ctypes.c_int32),
        ("wanted", ctypes.c_void_p),
        ("view_count", ctypes.c_int32),
        ("view_side", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("views", ctypes.c_void_p),
        ("images", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        ("own", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
    ]


class PiecesStruct(ctypes.Structure):
    """tfiseg_pieces of csrc/tfiseg.h."""

    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("max_parts", ctypes.c_int32),
        ("least_regions", ctypes.c_int32),
        ("labels", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("regions", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("label_map", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("component_of", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Scene:
    """A frame and the components of its class map.

    Args:
        frame: uint8 (H, W, 3) BGR.
        label_map: int32 (H, W), 0 = none, 1..n.
        table: float32 (n, 10), columns ``TABLE_COLUMNS`` of problem.py.
        wanted: uint8 (256,), 1 for the classes that are looked at; components of others are left out.
    """

    frame: NDArray[np.uint8]
    label_map: NDArray[np.int32]
    table: NDArray[np.float32]
    wanted: NDArray[np.uint8]


@dataclass(frozen=True)
class CutViews:
    """K views of side S. ``views`` int32 (K, 5), columns ``VIEW_COLUMNS``: corner and side in pixels of the
    frame, class, and the component that it was made for, 0 = all of the class; a class of 0: there is none.
    ``images`` uint8 (K, S, S, 3); ``masks`` uint8 (K, S, S), 1 where the view's class is; ``own``, the same
    of its component."""

    views: NDArray[np.int32]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    own: NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """What the operator made of ``own``: ``labels`` int32 (K, S, S), ``counts`` and ``regions`` int32 (K,),
    ``tables`` float32 (K, M, 10)."""

    labels: NDArray[np.int32]
    counts: NDArray[np.int32]
    regions: NDArray[np.int32]
    tables: NDArray[np.float32]


@dataclass(frozen=True)
class Pieces:
    """``label_map`` int32 (H, W), numbered by first pixel; ``table`` float32 (n, 10); ``component_of`` int32
    (n,), from 1."""

    label_map: NDArray[np.int32]
    table: NDArray[np.float32]
    component_of: NDArray[np.int32]


def cut_views(scene: Scene, view_count: int, view_side: int, threads: int | None = None) -> CutViews:
    """At most ``view_count`` views of the components that are worth a look, the largest first, then of
    classes of several components."""
    call = ViewsCall(scene, view_count, view_side, threads)
    check(library().tfiseg_cut_views_cpu(ctypes.byref(call.struct)))
    return call.cut


def place_pieces(
    scene: Scene, cut: CutViews, found: Found, least_regions: int = 2, threads: int | None = None
) -> Pieces:
    """The pieces of a frame: components parted as their views tell. ``least_regions``: of fewer by its shape,
    a component stays whole."""
    call = ViewsCall(scene, len(cut.views), cut.own.shape[1], threads, cut, found.tables.shape[1])
    pieces = PiecesCall(scene, found, least_regions)
    check(library().tfiseg_place_pieces_cpu(ctypes.byref(call.struct), ctypes.byref(pieces.struct)))
    return pieces.pieces


class ViewsCall:
    """tfiseg_views over arrays that it keeps alive."""

    def __init__(
        self,
        scene: Scene,
        view_count: int,
        view_side: int,
        threads: int | None = None,
        cut: CutViews | None = None,
        max_parts: int = 1,
    ) -> None:
        _check(scene)
        shape = (view_count, view_side, view_side)
        if cut is None:
            maps = (np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
            cut = CutViews(np.zeros((view_count, len(VIEW_COLUMNS)), np.int32), *maps)
        self.cut = cut
        count = np.array([len(scene.table)], np.int32)
        self._kept = (scene, count)
        self.struct = ViewsStruct(
            struct_size=ctypes.sizeof(ViewsStruct),
            height=scene.label_map.shape[0],
            width=scene.label_map.shape[1],
            frame=scene.frame.ctypes.data,
            label_map=scene.label_map.ctypes.data,
            count=count.ctypes.data,
            table=scene.table.ctypes.data,
            max_components=max(1, len(scene.table)),
            wanted=scene.wanted.ctypes.data,
            view_count=view_count,
            view_side=view_side,
            threads=threads or usable_threads(),
            views=cut.views.ctypes.data,
            images=cut.images.ctypes.data,
            masks=cut.masks.ctypes.data,
            own=cut.own.ctypes.data,
        )
        self._workspace = np.empty(views_workspace_bytes(self.struct, max_parts), np.uint8)
        self.struct.workspace, self.struct.workspace_bytes = (
            self._workspace.ctypes.data,
            self._workspace.nbytes,
        )


def _check(scene: Scene) -> None:
    """The library reads as far as its structures say."""
    h, w = scene.label_map.shape
    wanted = (
        (scene.frame, np.uint8, (h, w, 3)),
        (scene.label_map, np.int32, (h, w)),
        (scene.table, np.float32, (len(scene.table), 10)),
    )
    for array, kind, shape in (*wanted, (scene.wanted, np.uint8, (256,))):
        if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
            raise InputError(
                f"a scene needs {np.dtype(kind)} {shape} without gaps, got {array.dtype} {array.shape}"
            )
    if scene.label_map.size and not 0 <= scene.label_map.min() <= scene.label_map.max() <= len(scene.table):
        raise InputError(f"labels must lie in 0..{len(scene.table)}, which the table has rows for")


class PiecesCall:
    """tfiseg_pieces over arrays that it keeps alive."""

    def __init__(self, scene: Scene, found: Found, least_regions: int) -> None:
        views, max_parts = found.tables.shape[:2]
        most = pieces_room(max(1, len(scene.table)), views, max_parts)
        self._label_map = np.empty_like(scene.label_map)
        self._count = np.empty(1, np.int32)
        self._table = np.empty((most, 10), np.float32)
        self._component_of = np.empty(most, np.int32)
        self._kept = found
        self.struct = PiecesStruct(
            struct_size=ctypes.sizeof(PiecesStruct),
            max_parts=max_parts,
            least_regions=least_regions,
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
    def pieces(self) -> Pieces:
        n = int(self._count[0])
        return Pieces(self._label_map, self._table[:n], self._component_of[:n])


def pieces_room(max_components: int, views: int, max_parts: int) -> int:
    """Rows that the table of pieces has room for."""
    return max_components + views * (max_parts - 1)


def views_workspace_bytes(struct: ViewsStruct, max_parts: int, of: Any = None) -> int:
    """Bytes of workspace that both calls need; 0: something is out of range. ``of``: the library; default:
    the installed one."""
    return int((of or library()).tfiseg_views_workspace_size(ctypes.byref(struct), max_parts))
