"""Join rule: whether two parts that do not touch belong to one occluded object.

The rule is a small network on features of each pair. It is fitted on composites by
export/instance/rule_fitting.py and stored in the metadata of the instance network.
"""

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
    "center distance / sides",
    "log2 area of small",
    "gap / side of small",
    "gap / side of large",
    "log2 gap",
    "mean affinity",
    "log2 pixel pairs",
    "mean affinity, far",
    "mean affinity, very far",
    "vote distance / path",
    "vote distance / sides",
    "overlap of columns",
    "overlap of rows",
    "color difference",
    "other class between",
    "other classes in view",
)
_FAR, _VERY_FAR = 5, 10  # minimum offsets in affinity cells
_NO_EVIDENCE = 0.5

Label = NDArray[np.int32]
Floats = NDArray[np.float64]


class PairFeatures:
    """Features of pairs of parts that a view shows, on a grid of g = S / 2 cells per side.

    Args:
        parts: labels of the n parts, int32 (g, g), 0 = none, 1..n.
        other: where the class map has another class, a possible occluder, bool (g, g).
        image: the view, uint8 (S, S, 3).
        displacement: float32 (2, g / 2, g / 2), in cells of 2 grid cells.
        affinity: float32 (A, g / 2, g / 2) in [0, 1].
        offsets: int32 (A, 2), in cells of 2 grid cells.
    """

    def __init__(
        self,
        parts: Label,
        other: NDArray[np.bool_],
        image: NDArray[np.uint8],
        displacement: NDArray[np.float32],
        affinity: NDArray[np.float32],
        offsets: NDArray[np.int32],
    ) -> None:
        n = self.n = int(parts.max())
        ys, xs = np.nonzero(parts)
        part = parts[ys, xs] - 1
        terms = (np.ones(len(part), np.int64), xs, ys, xs * xs, xs * ys, ys * ys)
        self.regions = np.zeros((n, 8), np.int64)
        for k, term in enumerate(terms):
            self.regions[:, k] = np.bincount(part, term, n)
        count = np.maximum(self.regions[:, 0], 1)
        votes = displacement[:, ys // 2, xs // 2] * 2
        self.center = np.stack([np.bincount(part, v, n) / count for v in (ys, xs)], axis=1)
        self.vote = np.stack(
            [np.bincount(part, v, n) / count for v in (ys + votes[0], xs + votes[1])], axis=1
        )
        grid_image = image.reshape(parts.shape[0], 2, parts.shape[1], 2, 3).mean((1, 3))
        self.color = np.stack([np.bincount(part, grid_image[ys, xs, k], n) / count for k in range(3)], axis=1)
        self.low, self.high = np.full((n, 2), 1 << 20), np.zeros((n, 2), int)
        for axis, values in enumerate((ys, xs)):
            np.minimum.at(self.low[:, axis], part, values)
            np.maximum.at(self.high[:, axis], part, values + 1)
        self._other = other
        self._at = [np.argwhere(parts == k + 1) for k in range(n)]
        self._distance = [
            cv2.distanceTransform((parts != k + 1).astype(np.uint8), cv2.DIST_L2, 3) for k in range(n)
        ]
        self.gap = self._gaps()
        self.affinity_sum, self.affinity_count = self._sum_affinities(parts, affinity, offsets)
        reach = np.abs(offsets).max(1)
        self._kinds = (slice(None), reach >= _FAR, reach >= _VERY_FAR)

    def _gaps(self) -> Floats:
        """Return the distance between each two parts in grid cells, (n, n)."""
        return np.array(
            [[d[at[:, 0], at[:, 1]].min() for at in self._at] for d in self._distance], np.float64
        ).reshape(self.n, self.n)

    def _other_between(self, i: int, j: int) -> float:
        """Return the share of other classes on the shortest straight line between two parts.

        It is 0.5 if no cell lies between them.
        """
        at = self._at[j]
        end = at[self._distance[i][at[:, 0], at[:, 1]].argmin()]
        start = self._at[i][((self._at[i] - end) ** 2).sum(1).argmin()]
        steps = int(np.abs(end - start).max())
        if steps < 2:
            return _NO_EVIDENCE
        line = np.rint(start + (end - start) * (np.arange(1, steps) / steps)[:, None]).astype(int)
        return float(self._other[line[:, 0], line[:, 1]].mean())

    def _sum_affinities(
        self, parts: Label, affinity: NDArray[np.float32], offsets: NDArray[np.int32]
    ) -> tuple[Floats, Floats]:
        """Return sums of affinities and counts of pixel pairs between parts, (A, n, n) each."""
        n, (h, w) = self.n, parts.shape
        total, count = np.zeros((2, len(offsets), n, n))
        for k, (dy, dx) in enumerate((offsets * 2).tolist()):
            if abs(dy) >= h or abs(dx) >= w:
                continue
            here = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
            there = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
            a, b = parts[here], parts[there]
            ys, xs = np.nonzero((a > 0) & (b > 0) & (a != b))
            if not len(ys):
                continue
            pair = (a[ys, xs] - 1).astype(np.int64) * n + b[ys, xs] - 1
            value = affinity[k, (ys + here[0].start) // 2, (xs + here[1].start) // 2]
            total[k] = np.bincount(pair, value, n * n).reshape(n, n)
            count[k] = np.bincount(pair, None, n * n).reshape(n, n)
        return total + total.transpose(0, 2, 1), count + count.transpose(0, 2, 1)

    def features(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> Floats:
        """Return the features of pairs of parts, float64 (m, 20), columns ``JOIN_FEATURES``.

        Args:
            i: first part of each pair, int64 (m,), 0..n-1.
            j: second part of each pair, int64 (m,), 0..n-1.
        """
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
        vote_distance = np.hypot(*(self.vote[small] - self.vote[large]).T)
        path = np.hypot(*(self.center[small] - self.vote[large]).T)
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
            np.hypot(*(self.center[small] - self.center[large]).T) / (side_a + side_b),
            coarse_log2(a[:, 0].astype(np.float64)),
            gap / side_a,
            gap / side_b,
            np.log2(1 + gap),
            means[0],
            np.log2(1 + count.sum(0)),
            means[1],
            means[2],
            vote_distance / np.maximum(path, 1),
            vote_distance / (side_a + side_b),
            overlap[:, 1],
            overlap[:, 0],
            np.abs(self.color[small] - self.color[large]).sum(1) / 255,
            np.array([self._other_between(s, g) for s, g in zip(small, large, strict=True)]),
            # 0 if the network has few classes: an occluder may then be of an unknown class
            np.full(len(small), self._other.mean()),
        ]
        return np.stack(columns, axis=1)


def rule_log_odds(rule: NDArray[np.float32], features: Floats) -> Floats:
    """Return the log-odds (m,) of a rule with one hidden ReLU layer.

    Args:
        rule: float32: hidden weights (n, f), hidden biases (n), output weights (n), output bias.
        features: (m, f).
    """
    f = features.shape[1]
    hidden = (len(rule) - 1) // (f + 2)
    weights = rule[: hidden * f].reshape(hidden, f)
    bias, out = rule[hidden * f : hidden * (f + 1)], rule[hidden * (f + 1) : hidden * (f + 2)]
    return np.asarray(np.maximum(features @ weights.T + bias, 0) @ out + rule[-1], np.float64)
