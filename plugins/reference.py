"""The clustering operator in numpy: the definition that everything fast is tested to equal, bit for bit. Slow
and plain on purpose.

reference_graph.py makes unions of regions; here their cuts move onto the boundary, what a boundary crosses is
looked at again, and labels come to full resolution.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .neck import FIXED_POINT
from .problem import CALM, FLAG_MERGE_STOPPED, FLAG_TOUCHES_EDGE, Clustering, Problem
from .reference_basins import FORWARD, shifted
from .reference_graph import to_fixed, unions_of

_BOUNDARY_COST, _UNREACHED = 10, 1 << 30  # as in sharpen.h
_CROSSED_PX, _LEFT_PX, _PART_SHARES = 8, 64, 5  # as in parts.h
_SIDES = ((-1, 0), (0, -1), (0, 1), (1, 0))


def _grid_labels(
    problem: Problem, index: int, semantic: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], int, bool]:
    """Cluster one picture at the grid's size.

    Returns:
        Instance of each grid pixel, (h, w), 0 = none, numbered in raster order; the number of regions before
        any merge; whether merging stopped at its budget.
    """
    cls = np.where(problem.settings.thing_flags[semantic] > 0, semantic, 0).astype(np.uint8)
    least = (
        problem.settings.min_area if problem.logits is None else 0
    )  # with logits, areas are those at full resolution
    label, regions, is_stopped = unions_of(problem, index, cls)
    if problem.settings.sharpen:
        assert problem.boundary is not None
        label = sharpened(label, cls, problem.boundary[index], problem.settings.sharpen)
    if problem.settings.part_rule is not None:
        label, is_part_stopped = parted(problem, index, label, cls)
        is_stopped |= is_part_stopped
    return _numbered(label, least, problem.settings.max_instances), regions, is_stopped


def parted(
    problem: Problem, index: int, piece: NDArray[np.int64], cls: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], bool]:
    """A second look at pieces (h, w) that a boundary crosses where shape has no neck, as people arm in arm.

    What the boundary leaves of a piece is clustered by its shape anew, by a rule of its own. Parts of at
    least a fifth of the piece are objects if there are two; they grow over the rest of it, slower where the
    boundary is likely, and what none of them reaches is the largest's. Ties go to the part whose first pixel
    comes first.
    """
    assert problem.boundary is not None
    h, w = cls.shape
    calm = problem.boundary[index] <= np.float32(CALM)
    area = np.bincount(piece.ravel())
    left = np.bincount(piece.ravel(), calm.ravel()).astype(np.int64)
    crossed = (area - left >= _CROSSED_PX) & (left >= _LEFT_PX)
    crossed[0] = False
    cut = np.zeros((h, w), bool)  # a line between pieces, so that no two of them touch
    for dy, dx in FORWARD:
        here, there = shifted(h, w, dy, dx)
        cut[here] |= (piece[there] > 0) & (piece[here] != piece[there]) & (cls[here] == cls[there])
    inside = np.where(crossed[piece] & calm & ~cut, cls, 0).astype(np.uint8)
    again = replace(problem, displacement=None).with_settings(
        merge_rule=problem.settings.part_rule, sharpen=0
    )
    part, _, is_stopped = unions_of(again, index, inside, piece)
    numbers, first, part_area = np.unique(part, return_index=True, return_counts=True)
    of = piece.ravel()[first]
    kept = (numbers > 0) & (part_area * _PART_SHARES >= area[of])
    split = np.bincount(of[kept], minlength=len(area)) > 1
    kept &= split[of]
    label_of, largest = np.zeros(int(numbers.max(initial=0)) + 1, np.int64), np.zeros(len(area), np.int64)
    order = np.zeros(len(area) + int(kept.sum()), np.int64)
    by_size = sorted(np.flatnonzero(kept), key=lambda k: (-part_area[k], first[k]))
    for label, k in enumerate(by_size, start=len(area)):
        label_of[numbers[k]], order[label] = label, first[k]
        largest[of[k]] = largest[of[k]] or label
    label_map = np.where(split[piece], label_of[part], piece)
    free = split[piece] & (label_map == 0)
    label_map, distance = _spread(label_map, piece, free, problem.boundary[index], order)
    return np.where(distance == _UNREACHED, largest[piece], label_map), is_stopped


def _spread(
    label: NDArray[np.int64],
    kind: NDArray[np.integer],
    free: NDArray[np.bool_],
    boundary: NDArray[np.float32],
    order: NDArray[np.int64],
    steps: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels (h, w) spread over the free pixels of their kind, slower where the boundary is likely; and how
    far each has come.

    ``order``: by label, of two that come from equally far the smaller wins. ``steps``: default: until nothing
    changes.
    """
    h, w = label.shape
    cost = 1 + ((to_fixed(boundary) * _BOUNDARY_COST + (1 << 15)) >> 16)
    distance = np.where(free, _UNREACHED, 0)
    for _ in range(steps if steps is not None else _UNREACHED):
        best, winner = distance.copy(), label.copy()
        for dy, dx in _SIDES:
            here, there = shifted(h, w, dy, dx)
            way = distance[there] + cost[here]
            known = (
                free[here] & (label[there] > 0) & (kind[here] == kind[there]) & (distance[there] < _UNREACHED)
            )
            earlier = (way == best[here]) & (order[label[there]] < order[winner[here]])
            nearer = known & ((way < best[here]) | earlier)
            best[here], winner[here] = (
                np.where(nearer, way, best[here]),
                np.where(nearer, label[there], winner[here]),
            )
        if steps is None and np.array_equal(best, distance) and np.array_equal(winner, label):
            break
        distance, label = best, winner
    return label, distance


def sharpened(
    label: NDArray[np.int64], cls: NDArray[np.uint8], boundary: NDArray[np.float32], width: int
) -> NDArray[np.int64]:
    """Labels (h, w) with their cuts moved onto the boundary (TFISeg's semantic-aware propagation, with few
    local iterations).

    A cut runs along a ridge of the mask's shape. In a band around it labels are let go and spread again from
    both sides, step by step, slower where the boundary is likely; where the two fronts meet is the new cut.
    Ties go to the label whose first pixel comes first.
    """
    h, w = label.shape
    cut = np.zeros((h, w), bool)
    for dy, dx in _SIDES:
        here, there = shifted(h, w, dy, dx)
        cut[here] |= (
            (label[here] > 0) & (label[there] > 0) & (label[here] != label[there]) & (cls[here] == cls[there])
        )
    band = np.zeros((h, w), bool)
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            if dy * dy + dx * dx <= width * width + width and abs(dy) < h and abs(dx) < w:
                here, there = shifted(h, w, dy, dx)
                band[here] |= cut[there] & (label[here] > 0) & (cls[here] == cls[there])
    held = np.bincount(label[~band], minlength=int(label.max(initial=0)) + 1) > 0
    free = band & held[label]
    values, first = np.unique(label, return_index=True)
    order = np.zeros(len(held), np.int64)
    order[values] = first
    return _spread(label, cls, free, boundary, order, 2 * width)[0]


def _numbered(label: NDArray[np.int64], min_area: int, max_instances: int) -> NDArray[np.int64]:
    """Labels 1..n by first pixel in raster order, without what is too small; beyond ``max_instances`` the
    largest are kept."""
    values, first, area = np.unique(label, return_index=True, return_counts=True)
    keep = [k for k in range(len(values)) if values[k] > 0 and area[k] >= min_area]
    keep = sorted(keep, key=lambda k: (-area[k], first[k]))[:max_instances]
    lookup = np.zeros(int(label.max(initial=0)) + 1, np.int64)
    for number, k in enumerate(sorted(keep, key=lambda k: first[k]), start=1):
        lookup[values[k]] = number
    return lookup[label]


def grid_positions(
    size: int, out_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Lower and upper grid pixel, weight of the upper and the nearer of both, of each output pixel
    (half-pixel centres)."""
    p = (np.arange(out_size, dtype=np.float32) + np.float32(0.5)) * np.float32(
        np.float32(size) / np.float32(out_size)
    ) - np.float32(0.5)
    p = np.maximum(p, np.float32(0))
    low = np.minimum(p.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.where(high == low, np.float32(0), p - low.astype(np.float32)).astype(np.float32)
    return low, high, weight, np.where(weight < 0.5, low, high)


def full_resolution(
    logits: NDArray[np.float32],
    grid_class: NDArray[np.uint8],
    grid_label: NDArray[np.int64],
    out_hw: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Class and grid label of every output pixel: argmax of bilinear logits, then the nearest grid pixel of
    that class."""
    classes, h, w = logits.shape
    y0, y1, wy, near_y = (v[:, None] for v in grid_positions(h, out_hw[0]))
    x0, x1, wx, near_x = (v[None, :] for v in grid_positions(w, out_hw[1]))
    corners = [grid_class[y0, x0], grid_class[y0, x1], grid_class[y1, x0], grid_class[y1, x1]]
    agreed = (corners[0] == corners[1]) & (corners[0] == corners[2]) & (corners[0] == corners[3])
    one = np.float32(1)
    winner, best = np.zeros(out_hw, np.int64), np.full(out_hw, -np.inf, np.float32)
    for k in range(classes):
        above = (one - wx) * logits[k][y0, x0] + wx * logits[k][y0, x1]
        below = (one - wx) * logits[k][y1, x0] + wx * logits[k][y1, x1]
        value = (one - wy) * above + wy * below
        higher = value > best
        winner, best = np.where(higher, k, winner), np.where(higher, value, best)
    least, label = np.full(out_hw, 1e30, np.float32), np.zeros(out_hw, np.int64)
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            gy, gx = y0 + dy, x0 + dx
            inside = (gy >= 0) & (gy < h) & (gx >= 0) & (gx < w)
            at = (np.clip(gy, 0, h - 1), np.clip(gx, 0, w - 1))
            vy, vx = np.float32(dy) - wy, np.float32(dx) - wx
            far = vy * vy + vx * vx
            nearer = inside & (grid_class[at] == winner) & (far < least)
            least = np.where(nearer, far, least)
            label = np.where(nearer, grid_label[at], label)
    return (
        np.where(agreed, corners[0], winner).astype(np.uint8),
        np.where(agreed, grid_label[near_y, near_x], label),
    )


def _softmax_scores(logits: NDArray[np.float32], semantic: NDArray[np.uint8]) -> NDArray[np.float32]:
    top = np.take_along_axis(logits, semantic[None].astype(np.int64), 0)
    return np.asarray(np.float32(1) / np.exp(logits - top).sum(0, dtype=np.float32), np.float32)


def _table(
    label: NDArray[np.int64],
    n: int,
    semantic: NDArray[np.uint8],
    class_of: NDArray[np.int64],
    score: NDArray[np.float64],
    is_stopped: bool,
) -> NDArray[np.float32]:
    table = np.zeros((n, 10), np.float64)
    h, w = label.shape
    for k in range(n):
        y, x = np.nonzero(label == k + 1)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        edge = box[0] == 0 or box[1] == 0 or box[2] == w or box[3] == h
        table[k] = (
            class_of[k],
            score[k],
            *box,
            len(x),
            x.sum() / len(x),
            y.sum() / len(y),
            (FLAG_TOUCHES_EDGE if edge else 0) | (FLAG_MERGE_STOPPED if is_stopped else 0),
        )
    return table.astype(np.float32)


def cluster_reference(problem: Problem) -> Clustering:
    """The operator, in numpy: equal to the native one bit for bit, but for the last bits of scores."""
    labels, semantics, tables, regions = [], [], [], []
    if problem.boundary is not None:
        (h, w), stride = problem.grid_hw, problem.boundary_stride
        problem = replace(
            problem,
            boundary=problem.boundary.repeat(stride, 1).repeat(stride, 2)[:, :h, :w],
            boundary_stride=1,
        )
    for index in range(problem.batch):
        if problem.logits is not None:
            logits = problem.logits[index]
            semantic = logits.argmax(0).astype(np.uint8)
        else:
            assert problem.class_map is not None
            semantic = problem.class_map[index]
        grid, region_count, is_stopped = _grid_labels(problem, index, semantic)
        regions.append(region_count)
        n = int(grid.max(initial=0))
        area = np.bincount(grid.ravel(), minlength=n + 1)[1:]
        class_of = np.zeros(n + 1, np.int64)
        class_of[grid.ravel()] = semantic.ravel()
        scores = np.ones(n)
        if problem.scores is not None or problem.logits is not None:
            each = problem.scores[index] if problem.scores is not None else _softmax_scores(logits, semantic)
            sums = np.zeros(n + 1, np.int64)
            np.add.at(sums, grid.ravel(), to_fixed(each).ravel())
            scores = sums[1:] / np.maximum(area, 1) / FIXED_POINT
        label = grid
        if problem.logits is not None:
            semantic, label = full_resolution(logits, semantic, grid, problem.out_hw)
            order = [v for v in np.unique(label) if v > 0 and (label == v).sum() >= problem.settings.min_area]
            first = {v: int(np.argmax(label.ravel() == v)) for v in order}
            order.sort(key=lambda v: first[v])
            lookup = np.zeros(n + 1, np.int64)
            lookup[order] = np.arange(1, len(order) + 1)
            label, n = lookup[label], len(order)
            class_of = np.concatenate([[0], class_of[order]])
            scores = scores[np.array(order, np.int64) - 1]
        labels.append(label.astype(np.int32))
        semantics.append(semantic)
        tables.append(_table(label, n, semantic, class_of[1:], scores, is_stopped))
    count = np.array([len(t) for t in tables], np.int32)
    table = np.zeros((problem.batch, int(count.max()), 10), np.float32)
    for index, rows in enumerate(tables):
        table[index, : len(rows)] = rows
    return Clustering(np.stack(labels), np.stack(semantics), count, table, np.array(regions, np.int32))
