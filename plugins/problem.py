"""Input and output of the clustering operator, for the NumPy reference and the native library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .settings import ClusterSettings

TABLE_COLUMNS = ("class", "score", "x0", "y0", "x1", "y1", "area", "cx", "cy", "flags")
FLAG_TOUCHES_EDGE = 1
FLAG_MERGE_STOPPED = 2  # merging in this map stopped at its budget
BOUNDARY_THRESHOLD = 0.5  # grid pixels with a higher probability are on a boundary, as in csrc/parts.h


@dataclass(frozen=True)
class Problem:
    """A batch to cluster, with checked C-contiguous arrays."""

    class_map: NDArray[np.uint8] | None  # uint8 (N, h, w), 0 = background, 255 = ignore; or None with logits
    logits: NDArray[np.float32] | None  # float32 (N, C, h, w); or None with class_map
    out_hw: tuple[int, int]  # size of the label map
    # clustering settings, without rules for maps that are None
    settings: ClusterSettings = field(default_factory=ClusterSettings)
    # float32 (N, 2, h, w), (dy, dx) in grid pixels; None: computed from the class map
    displacement: NDArray[np.float32] | None = None
    # float32 (N, ceil(h / boundary_stride), ceil(w / boundary_stride)) in [0, 1], or None
    boundary: NDArray[np.float32] | None = None
    # float32 (N, A, ceil(h / stride), ceil(w / stride)) in [0, 1], or None
    affinity: NDArray[np.float32] | None = None
    # affinity_stride, boundary_stride: grid pixels per cell
    affinity_stride: int = 1
    boundary_stride: int = 1
    scores: NDArray[np.float32] | None = None  # float32 (N, h, w) in [0, 1], or None

    def with_settings(self, **changes: Any) -> Problem:
        """Return the same maps with other settings."""
        return replace(self, settings=replace(self.settings, **changes))

    @property
    def batch(self) -> int:
        return self._semantic.shape[0]

    @property
    def grid_hw(self) -> tuple[int, int]:
        return self._semantic.shape[-2], self._semantic.shape[-1]

    @property
    def _semantic(self) -> NDArray[np.uint8] | NDArray[np.float32]:
        semantic = self.class_map if self.class_map is not None else self.logits
        assert semantic is not None
        return semantic


def problem_of(
    class_map: NDArray[np.uint8], displacement: NDArray[np.float32] | None = None, **rest: Any
) -> Problem:
    """Return the problem of a class map (h, w) or of several (N, h, w).

    Args:
        class_map: see ``Problem``.
        displacement: float32 (2, h, w) of one class map, or (N, 2, h, w).
        rest: maps of ``Problem`` and settings of ``ClusterSettings``, by name; default ``min_area``: 0.
    """
    settings = {"min_area": 0} | {f.name: rest.pop(f.name) for f in fields(ClusterSettings) if f.name in rest}
    batch = np.ascontiguousarray(class_map if class_map.ndim == 3 else class_map[None], np.uint8)
    if displacement is not None:
        vectors = displacement if displacement.ndim == 4 else displacement[None]
        rest["displacement"] = np.ascontiguousarray(vectors, np.float32)
    size_hw = batch.shape[1], batch.shape[2]
    return Problem(batch, None, size_hw, ClusterSettings(**settings), **rest)


def map_strides(shapes: Mapping[str, tuple[int, ...]], offset_count: int) -> dict[str, int]:
    """Check the shapes of a network's maps against each other.

    Args:
        shapes: name -> shape (N, channels, h, w) of logits and, optionally, displacement, boundary, affinity.
        offset_count: number of affinity offsets, one for each affinity channel.

    Returns:
        Grid pixels per cell of each map but the logits.

    Raises:
        EngineError: a map has the wrong rank, batch, number of channels or size.
    """
    n, _, h, w = shapes["logits"]
    channels = {"displacement": 2, "boundary": 1, "affinity": offset_count}
    strides = {}
    for name in channels.keys() & shapes.keys():
        shape = shapes[name]
        if len(shape) != 4 or shape[:2] != (n, channels[name]) or min(shape) < 1:
            raise EngineError(
                f"{name} must have the shape (N, C, h, w) with N = {n} and C = {channels[name]}, got {shape}"
            )
        stride = max(-(-h // shape[2]), -(-w // shape[3])) if name != "displacement" else 1
        if shape[2:] != (-(-h // stride), -(-w // stride)):
            factor = "have the same size" if name == "displacement" else "be an integer factor smaller"
            raise EngineError(f"{name} of {shape[2:]} with logits of {(h, w)}: it must {factor}")
        strides[name] = stride
    return strides


@dataclass(frozen=True)
class Clustering:
    """Output of the operator."""

    label_map: NDArray[np.int32]  # int32 (N, H, W), 0 = none
    semantic_map: NDArray[np.uint8]  # uint8 (N, H, W)
    count: NDArray[np.int32]  # number of instances, int32 (N,)
    table: NDArray[np.float32]  # float32 (N, max count, 10), columns ``TABLE_COLUMNS``
    # number of regions before any merge, int32 (N,)
    regions: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    # cluster_ms, upsample_ms: times in milliseconds
    cluster_ms: float = 0.0
    upsample_ms: float = 0.0
