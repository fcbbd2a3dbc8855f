"""Render views for mask refinement through the C API on the CPU.

See csrc/tfiseg.h and csrc/mask_views.h; runtime/gpu/mask_refiner.py calls the same functions on a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .native import SizedStruct, c_fields, check, library, usable_threads
from .views import VIEW_COLUMNS, Scene, check_scene


class MaskViewsStruct(SizedStruct):
    """tfiseg_mask_views of csrc/tfiseg.h."""

    _fields_ = c_fields(
        (ctypes.c_int32, "height width"),
        (ctypes.c_void_p, "frame label_map count table"),
        (ctypes.c_int32, "max_components"),
        (ctypes.c_void_p, "known"),
        (ctypes.c_int32, "known_count known_side view_count view_side threads"),
        (ctypes.c_void_p, "views images masks workspace"),
        (ctypes.c_int64, "workspace_bytes"),
    )


@dataclass(frozen=True)
class RenderedMaskViews:
    """Views of the components whose masks are refined."""

    # the L known views, each with its component (0: none), then K rendered ones, int32 (L + K, 5), columns
    # ``VIEW_COLUMNS``
    views: NDArray[np.int32]
    images: NDArray[np.uint8]  # of the rendered views, uint8 (K, S, S, 3)
    masks: NDArray[np.uint8]  # of the rendered views, uint8 (K, S, S), 1 = the view's class


def render_mask_views(
    scene: Scene,
    known: NDArray[np.int32],
    known_side: int,
    view_count: int,
    view_side: int,
    threads: int | None = None,
) -> RenderedMaskViews:
    """Render views of the largest components, unless a known view shows the same.

    Args:
        scene: the frame and the components to refine; flags of classes are ignored.
        known: views that were rendered before, int32 (L, 5).
        known_side: their side in pixels, which limits the zoom of all views.
        view_count: maximum number K of components to refine.
        view_side: side of the rendered views in pixels.
    """
    call = MaskViewsCall(scene, known, known_side, view_count, view_side, threads)
    check(library().tfiseg_cut_mask_views_cpu(ctypes.byref(call.struct)))
    return call.rendered


class MaskViewsCall:
    """A tfiseg_mask_views structure and its arrays."""

    def __init__(
        self,
        scene: Scene,
        known: NDArray[np.int32],
        known_side: int,
        view_count: int,
        view_side: int,
        threads: int | None = None,
    ) -> None:
        check_scene(scene)
        shape = (view_count, view_side, view_side)
        self.rendered = RenderedMaskViews(
            np.zeros((len(known) + view_count, len(VIEW_COLUMNS)), np.int32),
            np.zeros((*shape, 3), np.uint8),
            np.zeros(shape, np.uint8),
        )
        count = np.array([len(scene.table)], np.int32)
        self._kept = (scene, known, count)
        self.struct = MaskViewsStruct(
            height=scene.label_map.shape[0],
            width=scene.label_map.shape[1],
            frame=scene.frame.ctypes.data,
            label_map=scene.label_map.ctypes.data,
            count=count.ctypes.data,
            table=scene.table.ctypes.data,
            max_components=max(1, len(scene.table)),
            known=known.ctypes.data,
            known_count=len(known),
            known_side=known_side,
            view_count=view_count,
            view_side=view_side,
            threads=threads or usable_threads(),
            views=self.rendered.views.ctypes.data,
            images=self.rendered.images.ctypes.data,
            masks=self.rendered.masks.ctypes.data,
        )
        self._workspace = np.empty(mask_views_workspace_bytes(self.struct), np.uint8)
        self.struct.workspace = self._workspace.ctypes.data
        self.struct.workspace_bytes = self._workspace.nbytes


def mask_views_workspace_bytes(struct: MaskViewsStruct, c_library: Any = None) -> int:
    """Return the workspace size in bytes, 0 if a size is out of range.

    ``c_library`` is the loaded library; default: the installed one.
    """
    return int((c_library or library()).tfiseg_mask_views_workspace_size(ctypes.byref(struct)))
