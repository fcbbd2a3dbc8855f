"""Views for mask refinement through the phases of a library, for tests of their order."""

import ctypes
from pathlib import Path

from tfiseg.plugins.mask_views import MaskViewsCall, RenderedMaskViews
from tfiseg.plugins.native import load_library


def render_by_phases(path: Path, *arguments, seed: int = 0, threads: int = 1) -> RenderedMaskViews:
    """Call ``cut_mask_views_by_phases`` of a library with the arguments of ``render_mask_views``."""
    library = load_library(path, "")
    call = MaskViewsCall(*arguments)
    struct = ctypes.byref(call.struct)
    assert library.cut_mask_views_by_phases(struct, ctypes.c_uint32(seed), threads) == 0
    return call.rendered
