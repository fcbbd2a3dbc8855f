"""The clustering operator in numpy, first half: from classes to unions of regions. See reference.py.

Steps and sources: exact Euclidean distance transform inside each class region; steepest ascent on it (or a
given displacement field, TFISeg sec. 3); persistence of the summits; merging by shape, boundary or affinity.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .neck import CLASS, FIXED_POINT, PEAK, Edges, Regions, evidence_features, neck_features, union
from .problem import Problem

FAR_SQUARED = 1 << 26  # no pixel of another class in the picture
BOUNDARY_RATIO = 1.0  # as kBoundaryRatio and kBoundaryLogits in merge.h
BOUNDARY_LOGITS = 8.0
FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
# edge columns: a, b, saddle, contact, boundary sum, affinity sum, affinity count
SADDLE, CONTACT, BOUNDARY, AFFINITY, PAIRS = 2, 3, 4, 5, 6


def to_fixed(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Convert [0, 1] to 16-bit fixed point: sums of integers do not depend on their order.

    Values below 0 and NaN become 0, values above 1 become 1.
    """
    unit = np.where(values > 0, np.minimum(values, np.float32(1)), np.float32(0)).astype(np.float32)
    return (unit * np.float32(FIXED_POINT) + np.float32(0.5)).astype(np.int64)


def merge_budget(pixels: int) -> int:
    """Return how many edge scores a merge may update where scores depend on shape, as in merge.h."""
    return 8192 + pixels // 4


def squared_distance(cls: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Squared distance of each countable pixel to the nearest pixel of another class, (h, w); the picture's
    border is none."""
    out = np.zeros(cls.shape, np.int64)
    h, w = cls.shape
    far = h + w
    for class_id in np.unique(cls[cls > 0]):
        inside = cls == class_id
        column = np.full((h, w), far, np.int64)
        for y in range(h):  # nearest other pixel above
            column[y] = np.where(inside[y], column[y - 1] + 1 if y else far, 0)
        for y in range(h - 2, -1, -1):  # and below
            column[y] = np.minimum(column[y], column[y + 1] + 1)
        squares = np.where(column >= far, FAR_SQUARED, column * column)
        best = squares.copy()
        for k in range(1, w):
            if k * k >= best.max():
                break
            best[:, k:] = np.minimum(best[:, k:], squares[:, :-k] + k * k)
            best[:, :-k] = np.minimum(best[:, :-k], squares[:, k:] + k * k)
        out[inside] = np.minimum(best, FAR_SQUARED)[inside]
    return out


def ascent_links(cls: NDArray[np.uint8], squared: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flat index of the 3 x 3 neighbour of one's class with the largest distance (ties: smallest index), (h,
    w)."""
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    best, link = np.full((h, w), -1, np.int64), index.copy()
    for dy, dx in _AROUND:  # in raster order, so the first of equals has the smallest index
        here, there = shifted(h, w, dy, dx)
        higher = (cls[there] == cls[here]) & (squared[there] > best[here]) & (cls[here] > 0)
        best[here] = np.where(higher, squared[there], best[here])
        link[here] = np.where(higher, index[there], link[here])
    return link


def shifted(h: int, w: int, dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the pixels that have a neighbour at (dy, dx), and of those neighbours."""
    here = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
    there = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
    return here, there


def follow(link: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each pixel's links end: pointer jumping, log2(longest way) gathers. Same shape as ``link``."""
    flat = link.ravel()
    while not np.array_equal(flat, flat[flat]):
        flat = flat[flat]
    return flat.reshape(link.shape)


class _Forest:
    """Union-find over pixels."""

    def __init__(self, link: NDArray[np.int64]) -> None:
        self.link = link.ravel().copy()

    def find(self, i: int) -> int:
        while self.link[i] != i:
            self.link[i] = self.link[self.link[i]]
            i = int(self.link[i])
        return i


def is_noise(saddle: int, peak: int) -> bool:
    """sqrt(peak) - sqrt(saddle) < 1 in integers: the summit is the raster's, not the shape's."""
    rise = peak - saddle - 1
    return rise < 0 or rise * rise < 4 * saddle


def _contacts(
    cls: NDArray[np.uint8], label: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixel pairs (i, j) of one class and different labels among 8-neighbours, in raster order, then by
    direction E, SW, S, SE."""
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    pairs = []
    for d, (dy, dx) in enumerate(FORWARD):
        here, there = shifted(h, w, dy, dx)
        touch = (cls[here] > 0) & (cls[here] == cls[there]) & (label[here] != label[there])
        i = index[here][touch]
        pairs.append(np.stack([i * 4 + d, i, index[there][touch]]))
    every = np.concatenate(pairs, axis=1)
    every = every[:, np.argsort(every[0], kind="stable")]
    return every[1], every[2]


def geometric_basins(
    cls: NDArray[np.uint8], squared: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Basin of each pixel (flat index of its summit) with the raster's noise merged, and the contacts (i, j)
    left open."""
    summit = follow(ascent_links(cls, squared))
    i, j = _contacts(cls, summit)
    height = squared.ravel()
    saddle = np.minimum(height[i], height[j])
    order = np.argsort(-saddle, kind="stable")
    forest = _Forest(summit)
    open_pairs = []
    for k in order:
        a, b = forest.find(int(i[k])), forest.find(int(j[k]))
        if a == b:
            continue
        if (height[a], -a) < (height[b], -b):
            a, b = b, a
        if is_noise(int(saddle[k]), int(height[b])):
            forest.link[b] = a
        else:
            open_pairs.append(k)
    return follow(forest.link.reshape(cls.shape)), i[open_pairs], j[open_pairs]


def given_basins(
    cls: NDArray[np.uint8], displacement: NDArray[np.float32], centre_radius: float
) -> NDArray[np.int64]:
    """Basin of each pixel: everything that a given field (2, h, w) leads to one place, and centres that touch
    are one place."""
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    target = index.copy()
    open_way = cls > 0
    step = displacement.copy()
    for _ in range(4):
        ty, tx = _clamp_round(y + step[0], h), _clamp_round(x + step[1], w)
        reached = open_way & (cls[ty, tx] == cls)
        target = np.where(reached, ty * w + tx, target)
        open_way &= ~reached
        step = step * np.float32(0.5)
    square = displacement[0] * displacement[0] + displacement[1] * displacement[1]
    radius = np.float32(centre_radius)
    centre = (cls > 0) & (square < radius * radius)
    forest = _Forest(index)
    links = [(index.ravel(), target.ravel())]
    for dy, dx in FORWARD:
        here, there = shifted(h, w, dy, dx)
        touch = centre[here] & centre[there] & (cls[here] == cls[there])
        links.append((index[here][touch], index[there][touch]))
    for ends_a, ends_b in links:
        for i, j in zip(ends_a[ends_a != ends_b].tolist(), ends_b[ends_a != ends_b].tolist(), strict=True):
            a, b = forest.find(i), forest.find(j)
            forest.link[max(a, b)] = min(a, b)
    return follow(forest.link.reshape(h, w))


def _clamp_round(v: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    rounded = v + np.float32(0.5)
    return np.where(rounded > 0, np.minimum(rounded, np.float32(limit - 1)), 0).astype(np.int64)  # NaN: 0


def region_rows(
    region_map: NDArray[np.int64], n: int, peaks: NDArray[np.int64], cls: NDArray[np.uint8]
) -> Regions:
    """Sums over each region 1..n of ``region_map``: rows as in neck.py."""
    y, x = np.divmod(np.arange(region_map.size), region_map.shape[1])
    label = region_map.ravel()
    inside = label > 0
    at, y, x = label[inside] - 1, y[inside], x[inside]
    rows = np.zeros((n, 8), np.int64)
    for k, term in enumerate((np.ones_like(x), x, y, x * x, x * y, y * y)):
        np.add.at(rows[:, k], at, term)
    rows[:, PEAK] = peaks
    rows[at, 7] = cls.ravel()[inside]
    return rows


def _edge_rows(a: NDArray[np.int64], b: NDArray[np.int64], values: NDArray[np.int64]) -> Edges:
    """Edges (m, 7) summed per pair of regions, sorted by pair; the saddle is a maximum."""
    pairs = np.sort(np.stack([a, b], axis=1), axis=1)
    unique, index = np.unique(pairs, axis=0, return_inverse=True)
    index = index.ravel()
    rows = np.zeros((len(unique), 7), np.int64)
    rows[:, :2] = unique
    np.maximum.at(rows[:, SADDLE], index, values[:, 0])
    for k in range(1, 5):
        np.add.at(rows[:, 2 + k], index, values[:, k])
    return rows


@cache
def neck_rule() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], np.float32]:
    """The weights in csrc/neck_rule.h: hidden (n, 13), hidden bias (n,), out (n,), out bias."""
    text = (Path(__file__).parent / "csrc" / "neck_rule.h").read_text()

    def numbers(name: str) -> NDArray[np.float32]:
        body = re.search(rf"{name}[^=]*= ([^;]*);", text)
        assert body, f"neck_rule.h has no {name}"
        return np.array(re.findall(r"-?\d[\d.]*(?:e[-+]?\d+)?", body[1]), np.float64).astype(np.float32)

    bias = numbers("kNeckHiddenBias")
    return (
        numbers("kNeckHiddenWeight").reshape(len(bias), -1),
        bias,
        numbers("kNeckOutWeight"),
        np.float32(numbers("kNeckOutBias")[0]),
    )


def neck_log_odds(regions: Regions, edges: Edges) -> NDArray[np.float32]:
    """Log-odds that each neck lies inside one object, (m,); single precision, sums in the order of
    csrc/merge.h."""
    return _log_odds(neck_features(regions, edges).astype(np.float32), *neck_rule())


def evidence_log_odds(rule: NDArray[np.float32], regions: Regions, edges: Edges) -> NDArray[np.float32]:
    """Log-odds that the regions of each edge are one object, (m,), by a rule in tfiseg.h's order; single
    precision."""
    features = evidence_features(regions, edges).astype(np.float32)
    n = features.shape[1]
    hidden = len(rule) // (n + 2)
    weight, bias, out = np.split(rule[:-1], [hidden * n, hidden * (n + 1)])
    return _log_odds(features, weight.reshape(hidden, n), bias, out, rule[-1])


def _log_odds(
    features: NDArray[np.float32],
    hidden: NDArray[np.float32],
    hidden_bias: NDArray[np.float32],
    out_weight: NDArray[np.float32],
    out_bias: np.float32,
) -> NDArray[np.float32]:
    total = np.full(len(features), out_bias)
    for weight, bias, out in zip(hidden, hidden_bias, out_weight, strict=True):
        value = np.full(len(features), bias)
        for k in range(features.shape[1]):
            value = value + weight[k] * features[:, k]
        total = np.where(value > 0, total + out * value, total)
    return total


def scores_of(problem: Problem, regions: Regions, edges: Edges) -> NDArray[np.float64]:
    """Above 0: one object; the larger, the earlier the pair merges. (m,)"""
    if problem.settings.merge_rule is not None:
        return evidence_log_odds(problem.settings.merge_rule, regions, edges).astype(np.float64)
    if problem.affinity is not None:
        pairs = edges[:, PAIRS]
        mean = edges[:, AFFINITY] / (np.maximum(pairs, 1) * FIXED_POINT)
        return np.where(pairs > 0, mean - problem.settings.merge_affinity, -1.0)
    contact = np.maximum(edges[:, CONTACT], 1)
    opened = (
        0.5 - edges[:, BOUNDARY] / (contact * FIXED_POINT)
        if problem.boundary is not None
        else np.zeros(len(edges))
    )
    if problem.displacement is not None:
        return opened
    wanted = problem.settings.split_table[regions[edges[:, 0], 7]]
    low_peak = np.minimum(regions[edges[:, 0], PEAK], regions[edges[:, 1], PEAK])
    ratio = np.sqrt(edges[:, SADDLE] / low_peak) + BOUNDARY_RATIO * opened
    fixed = np.where(ratio >= wanted, 1.0 + ratio - wanted, ratio - wanted - 1.0)
    return np.where(
        np.isnan(wanted), neck_log_odds(regions, edges).astype(np.float64) + BOUNDARY_LOGITS * opened, fixed
    )


def depends_on_shape(problem: Problem, class_id: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell for each class id (m,) whether scores change with the regions' shape, not only with their edge."""
    if problem.settings.merge_rule is not None:
        return np.ones(len(class_id), bool)
    if problem.affinity is not None or problem.displacement is not None:
        return np.zeros(len(class_id), bool)
    return np.asarray(np.isnan(problem.settings.split_table[class_id]))


def agglomerate(
    problem: Problem, regions: Regions, edges: Edges, pixels: int
) -> tuple[NDArray[np.int64], bool]:
    """Merge in rounds of mutually best pairs (ties: smallest pair) while scores are above 0.

    Returns:
        The smallest region of each union, (n,), and whether merging stopped at its budget.
    """
    into = np.arange(len(regions))
    regions = regions.copy()
    rescored = 0
    while len(edges) and rescored <= merge_budget(pixels):
        score = scores_of(problem, regions, edges)
        best = np.full(len(regions), -1)
        for e in np.argsort(-score, kind="stable"):
            if score[e] > 0:
                for end in edges[e, :2]:
                    if best[end] < 0:
                        best[end] = e
        mutual = [e for e in np.unique(best[best >= 0]) if (best[edges[e, :2]] == e).all()]
        if not mutual:
            break
        a, b = edges[mutual, 0], edges[mutual, 1]
        regions[a] = union(regions[a], regions[b])
        into[b] = a
        ends = into[edges[:, :2]]
        keep = ends[:, 0] != ends[:, 1]
        edges = _edge_rows(ends[keep, 0], ends[keep, 1], edges[keep, 2:])
        changed = np.isin(edges[:, :2], a).any(1)
        rescored += int(depends_on_shape(problem, regions[edges[changed, 0], CLASS]).sum())
    return follow(into), rescored > merge_budget(pixels)


def _affinity_pairs(
    problem: Problem,
    index: int,
    cls: NDArray[np.uint8],
    region_map: NDArray[np.int64],
    piece: NDArray[np.int64] | None,
) -> list[NDArray[np.int64]]:
    """(a, b, saddle, contact, boundary, affinity, count) rows of all pixel pairs at the affinity offsets, as
    columns."""
    assert problem.affinity is not None
    h, w = cls.shape
    stride = problem.affinity_stride
    found = []
    for k, (dy, dx) in enumerate(problem.settings.affinity_offsets * stride):
        if abs(dy) >= h or abs(dx) >= w:
            continue
        here, there = shifted(h, w, int(dy), int(dx))
        cells = np.repeat(np.repeat(to_fixed(problem.affinity[index, k]), stride, 0), stride, 1)[:h, :w]
        a, b = region_map[here], region_map[there]
        joined = (a > 0) & (b > 0) & (a != b) & (cls[here] == cls[there])
        if piece is not None:
            joined &= piece[here] == piece[there]
        value = cells[here][joined]
        none = np.zeros_like(value)
        found.append(np.stack([a[joined] - 1, b[joined] - 1, none, none, none, value, none + 1], axis=1))
    return found


def unions_of(
    problem: Problem, index: int, cls: NDArray[np.uint8], piece: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], int, bool]:
    """Cluster one picture's countable pixels into unions of regions.

    Args:
        problem: the batch.
        index: the picture.
        cls: countable class of each pixel, (h, w), 0 = none.
        piece: regions of different pieces do not merge, (h, w); default: all may.

    Returns:
        Union of each pixel, (h, w), 0 = none, in raster order with gaps; the number of regions before any
        merge; whether merging stopped at its budget.
    """
    squared = np.zeros(cls.shape, np.int64)
    if problem.displacement is not None:
        root = given_basins(cls, problem.displacement[index], problem.settings.centre_radius)
        touching = problem.boundary is not None or problem.settings.merge_rule is not None
        i, j = _contacts(cls, root) if touching else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    else:
        squared = squared_distance(cls)
        root, i, j = geometric_basins(cls, squared)
    roots, first, number = np.unique(root[cls > 0], return_index=True, return_inverse=True)
    order = np.argsort(first)  # regions are numbered by first pixel in raster order
    roots = roots[order]
    region_map = np.zeros(cls.shape, np.int64)
    region_map[cls > 0] = np.argsort(order)[number.ravel()] + 1
    regions = region_rows(region_map, len(roots), squared.ravel()[roots], cls)
    a, b = region_map.ravel()[i] - 1, region_map.ravel()[j] - 1
    saddle = np.minimum(squared.ravel()[i], squared.ravel()[j])
    edge = np.zeros_like(saddle)
    if problem.boundary is not None:
        flat = problem.boundary[index].ravel()
        edge = np.maximum(to_fixed(flat[i]), to_fixed(flat[j]))
    rows = [
        np.stack([a, b, saddle, np.ones_like(a), edge, np.zeros_like(a), np.zeros_like(a)], axis=1)[a != b]
    ]
    if problem.affinity is not None:
        rows += _affinity_pairs(problem, index, cls, region_map, piece)
    every = np.concatenate(rows)
    edges = _edge_rows(every[:, 0], every[:, 1], every[:, 2:])
    into, is_stopped = agglomerate(problem, regions, edges, cls.size)
    return np.concatenate([[0], into + 1])[region_map], len(roots), is_stopped
