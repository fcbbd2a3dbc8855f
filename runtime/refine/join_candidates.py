"""Joining pieces that an occluder parted: which pairs of pieces a view can tell about, what the join rule
says of them, and their union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .join_rule import Pieces, rule_log_odds
from .partition import Placed
from .view import sample
from .view_planning import PlannedView

JOIN_CELL_PX = 2  # of a view: the grid on which pairs are judged
_SEEN_SHARE = 0.7  # of a piece that must lie inside a view for the view to place it
# two pieces of like size are two objects more often than not, and in a view of a crowd nothing can be told
# (found in the first trial)
_GUEST_SHARE = 0.4  # of the host's area, at most
_HOST_CELLS = 400  # of the join grid, at least: 40 x 40 view pixels, in views of any side

Pair = tuple[int, int]


@dataclass(frozen=True)
class Candidates:
    """Pairs of pieces that a view can tell about: ``pairs`` (m, 2), their numbers in the frame; ``shown``
    int32 (g, g), the pieces in them, numbered 1..n; ``ranks`` (m, 2), the pairs in these numbers, from 0;
    ``other`` bool (g, g), where another class is."""

    pairs: NDArray[np.int64]
    shown: NDArray[np.int32]
    ranks: NDArray[np.int64]
    other: NDArray[np.bool_]

    def judged(
        self,
        image: NDArray[np.uint8],
        displacement: NDArray[np.float32],
        affinity: NDArray[np.float32],
        offsets: NDArray[np.int32],
        rule: NDArray[np.float32],
    ) -> list[tuple[Pair, float]]:
        """((piece, piece), log-odds that they are one object) by what the view shows and the network's maps
        of it (see ``Pieces``)."""
        shown = Pieces(self.shown, self.other, image, displacement, affinity, offsets)
        log_odds = rule_log_odds(rule, shown.features(*self.ranks.T))
        return [((a, b), float(v)) for (a, b), v in zip(self.pairs.tolist(), log_odds, strict=True)]


def candidates_in(placed: Placed, planned: Sequence[PlannedView], view_px: int) -> dict[int, Candidates]:
    """The pairs that each view can tell about, by number of the view; views without any are left out. Pieces
    of its class and of different components; in a component's own view those with it."""
    several = np.bincount(placed.class_of[1:], minlength=256) > 1
    found = {}
    for k, p in enumerate(planned):
        its = _candidates(placed, p, view_px // JOIN_CELL_PX) if several[p.class_id] else None
        if its is not None:
            found[k] = its
    return found


def _candidates(placed: Placed, planned: PlannedView, grid_px: int) -> Candidates | None:
    there = sample(placed.label_map, planned.view, grid_px)
    numbers, count = np.unique(there, return_counts=True)
    cell_px = (planned.view.side / grid_px) ** 2
    seen = (placed.class_of[numbers] == planned.class_id) & (
        count * cell_px >= _SEEN_SHARE * placed.areas[numbers]
    )
    numbers, size = numbers[seen], count[seen]
    if len(numbers) < 2:
        return None
    family = placed.family_of[numbers]
    i, j = np.nonzero(np.triu(family[:, None] != family[None], 1))
    if planned.component:
        own = placed.component_of[numbers] == planned.component
        i, j = (x[own[i] | own[j]] for x in (i, j))
    lesser, greater = np.minimum(size[i], size[j]), np.maximum(size[i], size[j])
    fits = (lesser <= _GUEST_SHARE * greater) & (greater >= _HOST_CELLS)
    i, j = i[fits], j[fits]
    if not len(i):
        return None
    asked = np.unique(np.concatenate([i, j]))  # what is in no pair need not be measured
    rank = np.zeros(len(placed.areas), np.int32)
    rank[numbers[asked]] = np.arange(1, len(asked) + 1)
    other = (there > 0) & (placed.class_of[there] != planned.class_id)
    ranks = np.stack([np.searchsorted(asked, i), np.searchsorted(asked, j)], axis=1)
    return Candidates(np.stack([numbers[i], numbers[j]], axis=1).astype(np.int64), rank[there], ranks, other)


def united(placed: Placed, judged: Sequence[tuple[Pair, float]]) -> NDArray[np.int32]:
    """The frame's label map (H, W), numbers with gaps, of pieces joined by log-odds above 0, the surest
    first; what is said of a pair first counts."""
    log_odds: dict[Pair, float] = {}
    for pair, value in judged:
        log_odds.setdefault(pair, value)
    joins = _Joins(placed.family_of.tolist())
    for (a, b), value in sorted(log_odds.items(), key=lambda item: (-item[1], item[0])):
        if value > 0:
            joins.unite(a, b)
    return joins.numbers()[placed.label_map].astype(np.int32)


class _Joins:
    """Union of pieces, but never of two that a component was parted into."""

    def __init__(self, family_of: Sequence[int]) -> None:
        self._root = list(range(len(family_of)))
        self._parts = [{c: i} for i, c in enumerate(family_of)]

    def find(self, i: int) -> int:
        while self._root[i] != i:
            i = self._root[i]
        return i

    def unite(self, host: int, guest: int) -> None:
        a, b = self.find(host), self.find(guest)
        if a != b and not self._parts[a].keys() & self._parts[b].keys():
            self._root[b] = a
            self._parts[a] |= self._parts[b]

    def numbers(self) -> NDArray[np.int64]:
        return np.array([self.find(i) for i in range(len(self._root))])
