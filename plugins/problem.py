"""What the clustering operator takes and gives, as plain arrays: shared by the numpy reference and the native
library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
MAX_SIDE = 4096  # of the grid
MAX_OUT_SIDE = 32_767  # of the label map
MAX_INSTANCES = 65_535
MAX_EVIDENCE_HIDDEN = 64
MAX_SHARPEN = 32
TABLE_COLUMNS = ("class", "score", "x0", "y0", "x1", "y1", "area", "cx", "cy", "flags")
FLAG_TOUCHES_EDGE = 1
FLAG_MERGE_STOPPED = 2  # merging in this picture stopped at its budget
MERGE_AFFINITY = 0.3  # a trial's best; 0.2 to 0.35 is flat (docs/benchmarks)
CENTRE_RADIUS = 2.5  # grid pixels; IRNet (CVPR 2019) takes vectors shorter than this as centres
CALM = 0.5  # probability of a boundary up to which a grid pixel isn't on it, as in csrc/parts.h
AUTO = float("nan")  # in `split`: decided from shape


@dataclass(frozen=True)
class Problem:
    """One batch to cluster. Arrays are C-contiguous and already checked.

    Args:
        class_map: uint8 (N, h, w), 0 = background, 255 = ignore; or None with logits.
        logits: float32 (N, C, h, w); or None with class_map.
        displacement: float32 (N, 2, h, w), (dy, dx) in grid pixels; None: geometric.
        boundary: float32 (N, ceil(h / boundary_stride), ceil(w / boundary_stride)) in [0, 1], or None.
        affinity: float32 (N, A, ceil(h / stride), ceil(w / stride)) in [0, 1], or None.
        affinity_offsets: int32 (A, 2), (dy, dx) in affinity cells.
        affinity_stride, boundary_stride: grid pixels per cell.
        scores: float32 (N, h, w) in [0, 1], or None.
        evidence_rule: float32 (hidden * 19 + 1,), with affinity; in the order of tfiseg.h. None: the mean
            affinity decides.
        part_rule: as evidence_rule, with affinity and boundary; for the second look at pieces that a boundary
            crosses. None: no such look.
        sharpen: with boundary: cuts move onto it within so many grid pixels, 0..32; 0: they stay where the
            shape has them.
        things: uint8 (256,), 1 = countable.
        split: float64 (256,), saddle / peak ratio per class at or above which a neck is no neck; NaN =
            decided from shape.
        min_area: pixels of the label map.
        max_instances: K; the largest are kept.
        out_hw: size of the label map.
    """

    class_map: NDArray[np.uint8] | None
    logits: NDArray[np.float32] | None
    out_hw: tuple[int, int]
    things: NDArray[np.uint8]
    split: NDArray[np.float64]
    displacement: NDArray[np.float32] | None = None
    boundary: NDArray[np.float32] | None = None
    affinity: NDArray[np.float32] | None = None
    affinity_offsets: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    affinity_stride: int = 1
    boundary_stride: int = 1
    scores: NDArray[np.float32] | None = None
    evidence_rule: NDArray[np.float32] | None = None
    part_rule: NDArray[np.float32] | None = None
    sharpen: int = 0
    merge_affinity: float = MERGE_AFFINITY
    centre_radius: float = CENTRE_RADIUS
    min_area: int = 0
    max_instances: int = MAX_INSTANCES

    @property
    def batch(self) -> int:
        return self._given.shape[0]

    @property
    def grid_hw(self) -> tuple[int, int]:
        return self._given.shape[-2], self._given.shape[-1]

    @property
    def _given(self) -> NDArray[np.uint8] | NDArray[np.float32]:
        given = self.class_map if self.class_map is not None else self.logits
        assert given is not None
        return given


def problem_of(
    class_map: NDArray[np.uint8], displacement: NDArray[np.float32] | None = None, **rest: Any
) -> Problem:
    """The problem of one class map (h, w) with default settings: all classes countable, every neck decided
    from shape."""
    things = np.ones(256, np.uint8)
    things[[0, IGNORE]] = 0
    vectors = None if displacement is None else np.ascontiguousarray(displacement[None], np.float32)
    batch = np.ascontiguousarray(class_map[None], np.uint8)
    return Problem(
        batch, None, (class_map.shape[0], class_map.shape[1]), things, np.full(256, AUTO), vectors, **rest
    )


@dataclass(frozen=True)
class Clustering:
    """What the operator gives.

    ``label_map`` int32 (N, H, W), 0 = none; ``semantic_map`` uint8 (N, H, W); ``count`` int32 (N,); ``table``
    float32 (N, max count, 10), columns ``TABLE_COLUMNS``; ``regions`` int32 (N,), how many there were before
    any merged.
    """

    label_map: NDArray[np.int32]
    semantic_map: NDArray[np.uint8]
    count: NDArray[np.int32]
    table: NDArray[np.float32]
    regions: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    cluster_ms: float = 0.0
    upsample_ms: float = 0.0
