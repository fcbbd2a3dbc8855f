"""Joining of parts that an occluder separated: candidate pairs, and their union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .join_rule import PairFeatures, rule_log_odds
from .partition import PartitionSnapshot
from .view import sample_labels
from .view_planning import PlannedView

JOIN_CELL_PX = 2  # of a view: cell size of the grid on which pairs are measured
_MIN_VISIBLE = 0.7  # share of a part that must lie inside a view
# two parts of similar size are usually two objects, and small parts (in views of crowds) show too little to
# decide; both limits were found in the first experiment
_MAX_AREA_RATIO = 0.4  # of the smaller part to the larger one
_MIN_LARGER_CELLS = 400  # of the larger part: 40 x 40 view pixels, in views of any side

Pair = tuple[int, int]


@dataclass(frozen=True)
class JoinCandidates:
    """Pairs of parts that a view may join.

    Attributes:
        pairs: labels of the parts in the frame, int64 (m, 2).
        labels: the n parts of these pairs on the grid of the view, int32 (g, g), 1..n; 0 = none of them.
        rows: ``pairs`` as indices 0..n-1 into the parts of ``labels``, int64 (m, 2).
        other: where the class map has another class, bool (g, g).
    """

    pairs: NDArray[np.int64]
    labels: NDArray[np.int32]
    rows: NDArray[np.int64]
    other: NDArray[np.bool_]

    def log_odds(
        self,
        image: NDArray[np.uint8],
        displacement: NDArray[np.float32],
        affinity: NDArray[np.float32],
        offsets: NDArray[np.int32],
        rule: NDArray[np.float32],
    ) -> list[tuple[Pair, float]]:
        """Return each pair with the log-odds that its parts are one object; see ``PairFeatures``."""
        features = PairFeatures(self.labels, self.other, image, displacement, affinity, offsets)
        values = rule_log_odds(rule, features.features(*self.rows.T))
        return [((a, b), float(v)) for (a, b), v in zip(self.pairs.tolist(), values, strict=True)]


def find_join_candidates(
    parts: PartitionSnapshot, planned: Sequence[PlannedView], view_px: int
) -> dict[int, JoinCandidates]:
    """Find the pairs of parts that each view may join, by index of the view.

    Both parts have the view's class and come from different components. In a component's own view, one of
    them is a part of it. Views without pairs are left out.
    """
    several = np.bincount(parts.class_of[1:], minlength=256) > 1
    found = {}
    for k, p in enumerate(planned):
        candidates = _find_in_view(parts, p, view_px // JOIN_CELL_PX) if several[p.class_id] else None
        if candidates is not None:
            found[k] = candidates
    return found


def _find_in_view(parts: PartitionSnapshot, planned: PlannedView, grid_px: int) -> JoinCandidates | None:
    grid = sample_labels(parts.label_map, planned.view, grid_px)
    labels, count = np.unique(grid, return_counts=True)
    cell_area_px = (planned.view.side / grid_px) ** 2
    visible = (parts.class_of[labels] == planned.class_id) & (
        count * cell_area_px >= _MIN_VISIBLE * parts.areas[labels]
    )
    labels, size = labels[visible], count[visible]
    if len(labels) < 2:
        return None
    origin = parts.origin_of[labels]
    i, j = np.nonzero(np.triu(origin[:, None] != origin[None], 1))
    if planned.component:
        own = parts.component_of[labels] == planned.component
        i, j = (x[own[i] | own[j]] for x in (i, j))
    smaller, larger = np.minimum(size[i], size[j]), np.maximum(size[i], size[j])
    fits = (smaller <= _MAX_AREA_RATIO * larger) & (larger >= _MIN_LARGER_CELLS)
    i, j = i[fits], j[fits]
    if not len(i):
        return None
    used = np.unique(np.concatenate([i, j]))  # parts of no pair need not be measured
    rank = np.zeros(len(parts.areas), np.int32)
    rank[labels[used]] = np.arange(1, len(used) + 1)
    other = (grid > 0) & (parts.class_of[grid] != planned.class_id)
    rows = np.stack([np.searchsorted(used, i), np.searchsorted(used, j)], axis=1)
    return JoinCandidates(np.stack([labels[i], labels[j]], axis=1).astype(np.int64), rank[grid], rows, other)


def join_parts(parts: PartitionSnapshot, log_odds: Sequence[tuple[Pair, float]]) -> NDArray[np.int32]:
    """Join the pairs with log-odds above 0, the highest first.

    Args:
        parts: of a frame.
        log_odds: pairs of labels with their log-odds; the first value of a pair counts.

    Returns:
        Label map of the frame, int32 (H, W); its labels have gaps.
    """
    first: dict[Pair, float] = {}
    for pair, value in log_odds:
        first.setdefault(pair, value)
    joined = _JoinedParts(parts.origin_of.tolist())
    for (a, b), value in sorted(first.items(), key=lambda item: (-item[1], item[0])):
        if value > 0:
            joined.join(a, b)
    return joined.roots()[parts.label_map].astype(np.int32)


class _JoinedParts:
    """Disjoint sets of parts; a set never holds two parts of one component of the class map."""

    def __init__(self, origin_of: Sequence[int]) -> None:
        self._root = list(range(len(origin_of)))
        self._origins = [{origin} for origin in origin_of]

    def _find(self, i: int) -> int:
        while self._root[i] != i:
            i = self._root[i]
        return i

    def join(self, i: int, j: int) -> None:
        a, b = self._find(i), self._find(j)
        if a != b and not self._origins[a] & self._origins[b]:
            self._root[b] = a
            self._origins[a] |= self._origins[b]

    def roots(self) -> NDArray[np.int64]:
        return np.array([self._find(i) for i in range(len(self._root))])
