"""The clustering operator in NumPy: merge basins by shape, boundary or affinity. See reference.py."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .neck import CLASS, FIXED_POINT, PEAK, Edges, Regions, evidence_features, neck_features, union
from .problem import Problem
from .reference_basins import (
    contacts,
    follow,
    geometric_basins,
    given_basins,
    neighbor_slices,
    squared_distance,
)

BOUNDARY_RATIO = 1.0  # as kBoundaryRatio and kBoundaryLogits in merge.h
BOUNDARY_LOGITS = 8.0
# edge columns: a, b, saddle, contact, boundary sum, affinity sum, affinity count
SADDLE, CONTACT, BOUNDARY, AFFINITY, PAIRS = 2, 3, 4, 5, 6


def to_fixed(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Convert [0, 1] to 16-bit fixed point, because sums of integers do not depend on their order.

    Values below 0 and NaN become 0, values above 1 become 1.
    """
    unit = np.where(values > 0, np.minimum(values, np.float32(1)), np.float32(0)).astype(np.float32)
    return (unit * np.float32(FIXED_POINT) + np.float32(0.5)).astype(np.int64)


def merge_budget(pixels: int) -> int:
    """Return the maximum number of edge scores to update if scores depend on shape, as in merge.h."""
    return 8192 + pixels // 4


def region_rows(
    region_map: NDArray[np.int64], n: int, peaks: NDArray[np.int64], cls: NDArray[np.uint8]
) -> Regions:
    """Return the rows of regions 1..n of ``region_map``, see neck.py."""
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


def _edge_rows(
    a: NDArray[np.int64], b: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[Edges, NDArray[np.int64]]:
    """Sum the values of each pair (saddles: maximum): edges (m, 7), sorted; the edge of each row."""
    pairs, index = np.unique(np.minimum(a, b) << 32 | np.maximum(a, b), return_inverse=True)
    rows = np.zeros((len(pairs), 7), np.int64)
    rows[:, 0], rows[:, 1] = pairs >> 32, pairs & 0xFFFFFFFF
    np.maximum.at(rows[:, SADDLE], index, values[:, 0])
    for k in range(1, 5):
        np.add.at(rows[:, 2 + k], index, values[:, k])
    return rows, index


@cache
def neck_rule() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], np.float32]:
    """Read csrc/neck_rule.h: weights (n, 13) and biases (n,) of hidden units, output weights (n,), bias."""
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
    """Return the log-odds that each neck is inside one object, (m,), in the order of csrc/merge.h."""
    return _log_odds(neck_features(regions, edges).astype(np.float32), *neck_rule())


def evidence_log_odds(rule: NDArray[np.float32], regions: Regions, edges: Edges) -> NDArray[np.float32]:
    """Return the log-odds that the regions of each edge are one object, (m,); ``rule``: see tfiseg.h."""
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


def merge_scores(problem: Problem, regions: Regions, edges: Edges) -> NDArray[np.float64]:
    """Return the score of each edge, (m,): pairs above 0 are one object, and higher ones merge earlier."""
    if problem.settings.merge_rule is not None:
        return evidence_log_odds(problem.settings.merge_rule, regions, edges).astype(np.float64)
    if problem.affinity is not None:
        pairs = edges[:, PAIRS]
        mean = edges[:, AFFINITY] / (np.maximum(pairs, 1) * FIXED_POINT)
        return np.where(pairs > 0, mean - problem.settings.merge_affinity, -1.0)
    contact = np.maximum(edges[:, CONTACT], 1)
    no_boundary = (
        0.5 - edges[:, BOUNDARY] / (contact * FIXED_POINT)
        if problem.boundary is not None
        else np.zeros(len(edges))
    )
    if problem.displacement is not None:
        return no_boundary
    threshold = problem.settings.split_table[regions[edges[:, 0], 7]]
    low_peak = np.minimum(regions[edges[:, 0], PEAK], regions[edges[:, 1], PEAK])
    ratio = np.sqrt(edges[:, SADDLE] / low_peak) + BOUNDARY_RATIO * no_boundary
    fixed = np.where(ratio >= threshold, 1.0 + ratio - threshold, ratio - threshold - 1.0)
    learned = neck_log_odds(regions, edges).astype(np.float64) + BOUNDARY_LOGITS * no_boundary
    return np.where(np.isnan(threshold), learned, fixed)


def depends_on_shape(problem: Problem, class_id: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each class ID (m,) whether scores depend on the regions' shape, not only on their edge."""
    if problem.settings.merge_rule is not None:
        return np.ones(len(class_id), bool)
    if problem.affinity is not None or problem.displacement is not None:
        return np.zeros(len(class_id), bool)
    return np.asarray(np.isnan(problem.settings.split_table[class_id]))


def agglomerate(
    problem: Problem, regions: Regions, edges: Edges, pixels: int
) -> tuple[NDArray[np.int64], bool]:
    """Merge in rounds of mutually best pairs while scores are above 0.

    Of equal scores, the edge with the smallest pair of regions in it is best, so that a merge elsewhere never
    changes which of two edges is better.

    Returns:
        The smallest region of each union, (n,), and whether merging stopped at its budget.
    """
    parent = np.arange(len(regions))
    regions = regions.copy()
    rescored, smallest_pair = 0, np.arange(len(edges))  # of regions in each edge: edges are sorted by pair
    while len(edges) and rescored <= merge_budget(pixels):
        score = merge_scores(problem, regions, edges)
        best = np.full(len(regions), -1)
        ranked = np.lexsort((smallest_pair, -score))
        ranked = ranked[score[ranked] > 0]
        ends, first = np.unique(edges[ranked, :2], return_index=True)
        best[ends] = ranked[first // 2]
        best_edges = np.unique(best[ends])
        mutual = best_edges[(best[edges[best_edges, :2]] == best_edges[:, None]).all(1)]
        if not len(mutual):
            break
        a, b = edges[mutual, 0], edges[mutual, 1]
        regions[a] = union(regions[a], regions[b])
        parent[b] = a
        ends = parent[edges[:, :2]]
        keep = ends[:, 0] != ends[:, 1]
        edges, joined = _edge_rows(ends[keep, 0], ends[keep, 1], edges[keep, 2:])
        before, smallest_pair = smallest_pair[keep], np.full(len(edges), np.iinfo(np.int64).max)
        np.minimum.at(smallest_pair, joined, before)
        changed = np.isin(edges[:, :2], a).any(1)
        rescored += int(depends_on_shape(problem, regions[edges[changed, 0], CLASS]).sum())
    return follow(parent), rescored > merge_budget(pixels)


def _affinity_pairs(
    problem: Problem,
    index: int,
    cls: NDArray[np.uint8],
    region_map: NDArray[np.int64],
    piece: NDArray[np.int64] | None,
) -> list[NDArray[np.int64]]:
    """Return the edges of all pixel pairs at the affinity offsets, one array per offset."""
    assert problem.affinity is not None
    h, w = cls.shape
    stride = problem.affinity_stride
    found = []
    for k, (dy, dx) in enumerate(problem.settings.affinity_offsets * stride):
        if abs(dy) >= h or abs(dx) >= w:
            continue
        here, there = neighbor_slices(h, w, int(dy), int(dx))
        cells = np.repeat(np.repeat(to_fixed(problem.affinity[index, k]), stride, 0), stride, 1)[:h, :w]
        a, b = region_map[here], region_map[there]
        joined = (a > 0) & (b > 0) & (a != b) & (cls[here] == cls[there])
        if piece is not None:
            joined &= piece[here] == piece[there]
        value = cells[here][joined]
        none = np.zeros_like(value)
        found.append(np.stack([a[joined] - 1, b[joined] - 1, none, none, none, value, none + 1], axis=1))
    return found


def merge_regions(
    problem: Problem, index: int, cls: NDArray[np.uint8], piece: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], int, bool]:
    """Cluster the countable pixels of one map into unions of regions.

    Args:
        cls: countable class of each pixel, (h, w), 0 = none.
        piece: (h, w); regions of different pieces do not merge; default: all may merge.

    Returns:
        Union of each pixel, (h, w), 0 = none, in raster order with gaps; the number of regions before any
        merge; whether merging stopped at its budget.
    """
    squared = np.zeros(cls.shape, np.int64)
    if problem.displacement is not None:
        root = given_basins(cls, problem.displacement[index], problem.settings.centre_radius)
        touching = problem.boundary is not None or problem.settings.merge_rule is not None
        i, j = contacts(cls, root) if touching else (np.zeros(0, np.int64), np.zeros(0, np.int64))
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
    pairs = np.concatenate(rows)
    edges, _ = _edge_rows(pairs[:, 0], pairs[:, 1], pairs[:, 2:])
    parent, is_stopped = agglomerate(problem, regions, edges, cls.size)
    return np.concatenate([[0], parent + 1])[region_map], len(roots), is_stopped
