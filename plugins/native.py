"""The native clustering library through its C API (csrc/tfiseg.h), by ctypes. Calls release the GIL."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, TfisegError
from .neck import EVIDENCE_FEATURES
from .problem import Clustering, Problem, problem_of
from .settings import ClusterSettings

API_VERSION = 7
ON_CPU = 0
VALUE_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}  # tfiseg_value_type
_KEPT_BYTES = 64 << 20
_local = threading.local()


class SizedStruct(ctypes.Structure):
    """A structure of csrc/tfiseg.h; its first field states its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **values)


def c_fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    """Return the fields of a ``SizedStruct`` from types, each with the names of consecutive fields."""
    sized = [(name, kind) for kind, names in groups for name in names.split()]
    return [("struct_size", ctypes.c_uint32), *sized]


class ProblemStruct(SizedStruct):
    """tfiseg_problem of csrc/tfiseg.h."""

    _fields_ = c_fields(
        (ctypes.c_int32, "batch height width out_height out_width"),
        (ctypes.c_void_p, "class_map logits"),
        (ctypes.c_int32, "classes value_type"),
        (ctypes.c_void_p, "displacement boundary affinity affinity_offsets_yx"),
        (ctypes.c_int32, "affinity_channels affinity_stride boundary_stride"),
        (ctypes.c_void_p, "scores things split"),
        (ctypes.c_double, "merge_affinity centre_radius"),
        (ctypes.c_int32, "min_area max_instances threads evidence_hidden"),
        (ctypes.c_void_p, "evidence_rule"),
        (ctypes.c_int32, "sharpen part_hidden"),
        (ctypes.c_void_p, "part_rule"),
    )


class ResultStruct(SizedStruct):
    """tfiseg_result of csrc/tfiseg.h."""

    _fields_ = c_fields(
        (ctypes.c_void_p, "label_map semantic_map semantic_map_32 count regions table workspace"),
        (ctypes.c_int64, "workspace_bytes"),
        (ctypes.c_double, "cluster_ms upsample_ms"),
    )


def library_path() -> Path:
    """Return the native library's path; raises TfisegError with the command that builds it."""
    here = Path(__file__).parent
    candidates = [here / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    for path in candidates:
        if path.exists():
            return path
    raise TfisegError(
        "tfiseg's native library is not built; searched for "
        + ", ".join(str(p) for p in candidates)
        + ". Build it with `pip install .` in the repository (it needs a C++17 compiler)."
    )


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded native library."""
    return load_library(library_path(), "`pip install .` again")


def load_library(path: Path, build_command: str) -> ctypes.CDLL:
    """Load a library with tfiseg's C API; raises TfisegError if it is of another version."""
    loaded = ctypes.CDLL(str(path))
    loaded.tfiseg_status_string.restype = ctypes.c_char_p
    version = loaded.tfiseg_api_version()
    if version != API_VERSION:
        raise TfisegError(
            f"{path} has C API version {version}, this package needs {API_VERSION}: run {build_command}"
        )
    try:
        for name in ("workspace", "views_workspace", "mask_views_workspace", "refine_masks_workspace"):
            getattr(loaded, f"tfiseg_{name}_size").restype = ctypes.c_int64
    except AttributeError as missing:
        raise TfisegError(
            f"{path} is older than this package and lacks a function ({missing}): run {build_command}"
        ) from missing
    return loaded


@functools.cache
def usable_threads() -> int:
    """Return the number of processors that this process may use, by affinity and container quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        return count


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@dataclass(frozen=True)
class MapAddresses:
    """Addresses and layout of the maps of a batch, in host memory or on the GPU, as in ``ProblemStruct``.

    Addresses of missing maps are None; see ``Problem`` for shapes. ``value_type`` is 0 for float32, 1 for
    float16 (tfiseg_value_type); ``classes`` and ``affinity_channels`` are those of logits and affinity.
    """

    batch: int
    grid_hw: tuple[int, int]
    out_hw: tuple[int, int]
    class_map: int | None = None
    logits: int | None = None
    classes: int = 0
    value_type: int = 0
    displacement: int | None = None
    boundary: int | None = None
    boundary_stride: int = 1
    affinity: int | None = None
    affinity_channels: int = 0
    affinity_stride: int = 1
    scores: int | None = None


def fill_struct(maps: MapAddresses, settings: ClusterSettings, threads: int = 1) -> ProblemStruct:
    """Return the C API's structure, which points into the settings' arrays and the maps: keep them alive."""
    given = dict(vars(maps))
    (height, width), (out_height, out_width) = given.pop("grid_hw"), given.pop("out_hw")
    return ProblemStruct(
        **given,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        affinity_offsets_yx=_address(settings.affinity_offsets),
        things=_address(settings.thing_flags),
        split=_address(settings.split_table),
        merge_affinity=settings.merge_affinity,
        centre_radius=settings.centre_radius,
        min_area=settings.min_area,
        max_instances=settings.max_instances,
        threads=threads,
        evidence_hidden=_hidden_units(settings.merge_rule),
        evidence_rule=_address(settings.merge_rule),
        sharpen=settings.sharpen,
        part_hidden=_hidden_units(settings.part_rule),
        part_rule=_address(settings.part_rule),
    )


def problem_struct(problem: Problem, threads: int = 1) -> ProblemStruct:
    """Return a problem as the C API's structure, which points into its arrays: keep them alive."""
    maps = MapAddresses(
        batch=problem.batch,
        grid_hw=problem.grid_hw,
        out_hw=problem.out_hw,
        class_map=_address(problem.class_map),
        logits=_address(problem.logits),
        classes=0 if problem.logits is None else problem.logits.shape[1],
        displacement=_address(problem.displacement),
        boundary=_address(problem.boundary),
        boundary_stride=problem.boundary_stride,
        affinity=_address(problem.affinity),
        affinity_channels=0 if problem.affinity is None else problem.affinity.shape[1],
        affinity_stride=problem.affinity_stride,
        scores=_address(problem.scores),
    )
    return fill_struct(maps, problem.settings, threads)


def _hidden_units(rule: NDArray[np.float32] | None) -> int:
    return 0 if rule is None else len(rule) // (len(EVIDENCE_FEATURES) + 2)


def check(status: int) -> None:
    """Raise TfisegError if a call of the library failed."""
    if status:
        raise TfisegError(
            f"tfiseg's native library failed: {library().tfiseg_status_string(status).decode()} (status "
            f"{status})"
        )


class NativeCall:
    """A batch and the memory for its result.

    ``run()`` may be repeated without allocating memory, also after the inputs have changed in place.
    """

    def __init__(self, problem: Problem, threads: int | None = None) -> None:
        n, (h, w) = problem.batch, problem.out_hw
        self._problem = problem  # keeps the inputs' memory alive
        self._struct = problem_struct(problem, threads or usable_threads())
        self._label_map = np.empty((n, h, w), np.int32)
        self._semantic_map = np.empty((n, h, w), np.uint8)
        self._count = np.empty(n, np.int32)
        self._regions = np.empty(n, np.int32)
        self._table = np.empty((n, problem.settings.max_instances, 10), np.float32)
        self._workspace_array = _workspace(
            int(library().tfiseg_workspace_size(ctypes.byref(self._struct), ON_CPU))
        )
        self._out = ResultStruct(
            label_map=_address(self._label_map),
            semantic_map=_address(self._semantic_map),
            count=_address(self._count),
            regions=_address(self._regions),
            table=_address(self._table),
            workspace=_address(self._workspace_array),
            workspace_bytes=self._workspace_array.nbytes,
        )

    def run(self) -> Clustering:
        """Cluster the batch; the next run overwrites the result's arrays."""
        check(library().tfiseg_cluster_cpu(ctypes.byref(self._struct), ctypes.byref(self._out)))
        table = self._table[:, : int(self._count.max())]
        times = self._out.cluster_ms, self._out.upsample_ms
        return Clustering(self._label_map, self._semantic_map, self._count, table, self._regions, *times)


def cluster_native(problem: Problem, threads: int | None = None) -> Clustering:
    """Cluster a batch on ``threads`` CPU threads (default: all that the process may use)."""
    return NativeCall(problem, threads).run()


def _workspace(size: int) -> NDArray[np.float64]:
    """Return scratch memory of at least ``size`` bytes; each thread reuses its own if it is small."""
    kept: NDArray[np.float64] | None = getattr(_local, "workspace", None)
    if kept is not None and kept.nbytes >= size:
        return kept
    fresh = np.empty(size // 8 + 1, np.float64)
    if size <= _KEPT_BYTES:
        _local.workspace = fresh
    return fresh


def fit_frame(frame: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a frame like the preprocessing in tfiseg's models, to 1e-4 of 255.

    It is resized bilinearly to twice the size and averaged 2 x 2.

    Args:
        frame: uint8 (H, W, 3).
        size_hw: (h, w) of the result.

    Returns:
        float32 (3, h, w), 0..255, with the frame's channel order.

    Raises:
        InputError: the frame has another type or shape.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise InputError(f"a frame must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
    frame = np.ascontiguousarray(frame)
    fitted = np.empty((3, *size_hw), np.float32)
    check(library().tfiseg_fit_frame(_pointer(frame), *frame.shape[:2], _pointer(fitted), *size_hw))
    return fitted


def region_counts(masks: NDArray[np.uint8], threads: int | None = None) -> NDArray[np.int32]:
    """Count the regions of masks before any merge, int32 (K,); a mask of one region has no neck.

    Args:
        masks: uint8 (K, h, w), 0/1.
    """
    problem = problem_of(masks, max_instances=1)
    return cluster_native(problem, threads).regions


def region_graph(problem: Problem) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return region map int32 (h, w), regions int64 (n, 8) and edges int64 (m, 7), see tfiseg.h."""
    h, w = problem.grid_hw
    region_map = np.empty((h, w), np.int32)
    counts = np.zeros(2, np.int64)
    regions, edges = np.zeros((256, 8), np.int64), np.zeros((1024, 7), np.int64)
    while True:
        status = library().tfiseg_region_graph(
            ctypes.byref(problem_struct(problem, usable_threads())),
            _pointer(region_map),
            _pointer(regions),
            ctypes.c_int64(len(regions)),
            _pointer(edges),
            ctypes.c_int64(len(edges)),
            _pointer(counts),
        )
        check(status)
        if counts[0] <= len(regions) and counts[1] <= len(edges):
            return region_map, regions[: counts[0]], edges[: counts[1]]
        regions, edges = np.zeros((counts[0], 8), np.int64), np.zeros((counts[1], 7), np.int64)
