"""Whether two pieces that don't touch are parts of one object behind something: what a view shows of each
pair, and a small network's verdict on it. The network (a "join rule") is fitted on composites
(export/instance/rule_fitting.py) and travels with the instance network."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ...plugins.neck import coarse_log2, compactness, union

JOIN_FEATURES = (
    "log2 area ratio",
    "compactness of small",
    "compactness of large",
    "compactness of both",
    "centre distance / sides",
    "log2 area of small",
    "gap / side of small",
    "gap / side of large",
    "log2 gap",
    "mean affinity",
    "log2 pairs",
    "mean affinity, far",
    "mean affinity, very far",
    "votes apart / way of the large one's",
    "votes apart / sides",
    "overlap of columns",
    "overlap of rows",
    "colours apart",
    "other class between",
    "other classes in view",
)
_FAR, _VERY_FAR = 5, 10  # offsets in affinity cells beyond which pairs count as such
_NO_EVIDENCE = 0.5

Label = NDArray[np.int32]
Floats = NDArray[np.float64]


class Pieces:
    """The pieces that a view shows, on its grid of S / 2 cells a side, and what the network's maps say of
    pairs of them.

    Args:
        pieces: int32 (g, g), 0 = none, 1..n.
        other: bool (g, g), where the class map has another class: what may stand in front.
        image: uint8 (S, S, 3), the view.
        displacement: float32 (2, g / 2, g / 2), in cells of 2 grid cells.
        affinity: float32 (A, g / 2, g / 2) in [0, 1].
        offsets: int32 (A, 2), in cells of 2 grid cells.
    """

    def __init__(
        self,
        pieces: Label,
        other: NDArray[np.bool_],
        image: NDArray[np.uint8],
        displacement: NDArray[np.float32],
        affinity: NDArray[np.float32],
        offsets: NDArray[np.int32],
    ) -> None:
        n = self.n = int(pieces.max())
        ys, xs = np.nonzero(pieces)
        its = pieces[ys, xs] - 1
        terms = (np.ones(len(its), np.int64), xs, ys, xs * xs, xs * ys, ys * ys)
        self.regions = np.zeros((n, 8), np.int64)
        for k, term in enumerate(terms):
            self.regions[:, k] = np.bincount(its, term, n)
        count = np.maximum(self.regions[:, 0], 1)
        votes = displacement[:, ys // 2, xs // 2] * 2
        self.centre = np.stack([np.bincount(its, v, n) / count for v in (ys, xs)], axis=1)
        self.vote = np.stack([np.bincount(its, v, n) / count for v in (ys + votes[0], xs + votes[1])], axis=1)
        shrunk = image.reshape(pieces.shape[0], 2, pieces.shape[1], 2, 3).mean((1, 3))
        self.colour = np.stack([np.bincount(its, shrunk[ys, xs, k], n) / count for k in range(3)], axis=1)
        self.low, self.high = np.full((n, 2), 1 << 20), np.zeros((n, 2), int)
        for axis, values in enumerate((ys, xs)):
            np.minimum.at(self.low[:, axis], its, values)
            np.maximum.at(self.high[:, axis], its, values + 1)
        self._other = other
        self._at = [np.argwhere(pieces == k + 1) for k in range(n)]
        self._distance = [
            cv2.distanceTransform((pieces != k + 1).astype(np.uint8), cv2.DIST_L2, 3) for k in range(n)
        ]
        self.gap = self._gaps()
        self.affinity_sum, self.affinity_count = self._pairs(pieces, affinity, offsets)
        reach = np.abs(offsets).max(1)
        self._kinds = (slice(None), reach >= _FAR, reach >= _VERY_FAR)

    def _gaps(self) -> Floats:
        """Distance between each two pieces in grid cells, (n, n)."""
        return np.array(
            [[d[at[:, 0], at[:, 1]].min() for at in self._at] for d in self._distance], np.float64
        ).reshape(self.n, self.n)

    def _other_between(self, i: int, j: int) -> float:
        """Share of another class on the straight way from piece to piece where they are nearest; 0.5 where
        there is no cell between."""
        at = self._at[j]
        end = at[self._distance[i][at[:, 0], at[:, 1]].argmin()]
        start = self._at[i][((self._at[i] - end) ** 2).sum(1).argmin()]
        steps = int(np.abs(end - start).max())
        if steps < 2:
            return _NO_EVIDENCE
        way = np.rint(start + (end - start) * (np.arange(1, steps) / steps)[:, None]).astype(int)
        return float(self._other[way[:, 0], way[:, 1]].mean())

    def _pairs(
        self, pieces: Label, affinity: NDArray[np.float32], offsets: NDArray[np.int32]
    ) -> tuple[Floats, Floats]:
        """Sum of affinities and number of pixel pairs between each two pieces, by channel: (A, n, n) each."""
        n, (h, w) = self.n, pieces.shape
        total, count = np.zeros((2, len(offsets), n, n))
        for k, (dy, dx) in enumerate((offsets * 2).tolist()):
            if abs(dy) >= h or abs(dx) >= w:
                continue
            here = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
            there = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
            a, b = pieces[here], pieces[there]
            ys, xs = np.nonzero((a > 0) & (b > 0) & (a != b))
            if not len(ys):
                continue
            pair = (a[ys, xs] - 1).astype(np.int64) * n + b[ys, xs] - 1
            value = affinity[k, (ys + here[0].start) // 2, (xs + here[1].start) // 2]
            total[k] = np.bincount(pair, value, n * n).reshape(n, n)
            count[k] = np.bincount(pair, None, n * n).reshape(n, n)
        return total + total.transpose(0, 2, 1), count + count.transpose(0, 2, 1)

    def features(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> Floats:
        """What the rule sees of pairs (i, j) of pieces, numbered from 0: (m, 20), columns
        ``JOIN_FEATURES``."""
        first = self.regions[i, 0] <= self.regions[j, 0]
        small, large = np.where(first, i, j), np.where(first, j, i)
        a, b = self.regions[small], self.regions[large]
        side_a, side_b = np.sqrt(a[:, 0]), np.sqrt(b[:, 0])
        gap = self.gap[small, large]
        total, count = self.affinity_sum[:, small, large], self.affinity_count[:, small, large]
        means = []
        for kind in self._kinds:
            pairs = count[kind].sum(0)
            means.append(np.where(pairs > 0, total[kind].sum(0) / np.maximum(pairs, 1), _NO_EVIDENCE))
        apart = np.hypot(*(self.vote[small] - self.vote[large]).T)
        way = np.hypot(*(self.centre[small] - self.vote[large]).T)
        low, high = (
            np.maximum(self.low[small], self.low[large]),
            np.minimum(self.high[small], self.high[large]),
        )
        shorter = np.minimum(self.high[small] - self.low[small], self.high[large] - self.low[large])
        overlap = np.clip(high - low, -shorter, None) / shorter
        columns = [
            coarse_log2(a[:, 0] / b[:, 0]),
            compactness(a),
            compactness(b),
            compactness(union(a, b)),
            np.hypot(*(self.centre[small] - self.centre[large]).T) / (side_a + side_b),
            coarse_log2(a[:, 0].astype(np.float64)),
            gap / side_a,
            gap / side_b,
            np.log2(1 + gap),
            means[0],
            np.log2(1 + count.sum(0)),
            means[1],
            means[2],
            apart / np.maximum(way, 1),
            apart / (side_a + side_b),
            overlap[:, 1],
            overlap[:, 0],
            np.abs(self.colour[small] - self.colour[large]).sum(1) / 255,
            np.array([self._other_between(s, g) for s, g in zip(small, large, strict=True)]),
            np.full(
                len(small), self._other.mean()
            ),  # none at all: a network that knows few classes; what is between may be an unknown one
        ]
        return np.stack(columns, axis=1)


def rule_log_odds(rule: NDArray[np.float32], features: Floats) -> Floats:
    """Log-odds (m,) by a rule's one hidden ReLU layer; ``rule`` holds hidden weights (n, f), hidden biases
    (n), out weights (n), bias."""
    f = features.shape[1]
    hidden = (len(rule) - 1) // (f + 2)
    weights = rule[: hidden * f].reshape(hidden, f)
    bias, out = rule[hidden * f : hidden * (f + 1)], rule[hidden * (f + 1) : hidden * (f + 2)]
    return np.asarray(np.maximum(features @ weights.T + bias, 0) @ out + rule[-1], np.float64)
