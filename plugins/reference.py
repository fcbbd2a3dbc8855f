"""The clustering operator in NumPy, the definition of its result. All other versions equal it bit for bit.

reference_graph.py merges regions. This module moves cuts onto the boundary, runs the second pass, and
computes labels at full resolution. The code is simple rather than fast.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .neck import FIXED_POINT
from .problem import BOUNDARY_THRESHOLD, FLAG_MERGE_STOPPED, FLAG_TOUCHES_EDGE, Clustering, Problem
from .reference_basins import FORWARD, neighbor_slices
from .reference_graph import merge_regions, to_fixed

_BOUNDARY_COST, _UNREACHED = 10, 1 << 30  # as in sharpen.h
_CROSSED_PX, _LEFT_PX, _PART_SHARES = 8, 64, 5  # as in parts.h
_SIDES = ((-1, 0), (0, -1), (0, 1), (1, 0))


def _grid_labels(
    problem: Problem, index: int, semantic: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], int, bool]:
    """Cluster one map at the grid's size.

    Returns:
        Instance of each grid pixel, (h, w), 0 = none, numbered in raster order; the number of regions before
        any merge; whether merging stopped at its budget.
    """
    cls = np.where(problem.settings.thing_flags[semantic] > 0, semantic, 0).astype(np.uint8)
    # with logits, the minimum area applies at full resolution
    min_area = problem.settings.min_area if problem.logits is None else 0
    label, regions, is_stopped = merge_regions(problem, index, cls)
    if problem.settings.sharpen:
        assert problem.boundary is not None
        label = propagate_labels(label, cls, problem.boundary[index], problem.settings.sharpen)
    if problem.settings.part_rule is not None:
        label, is_part_stopped = split_at_boundaries(problem, index, label, cls)
        is_stopped |= is_part_stopped
    return _number_instances(label, min_area, problem.settings.max_instances), regions, is_stopped


def split_at_boundaries(
    problem: Problem, index: int, piece: NDArray[np.int64], cls: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], bool]:
    """Run the second pass on pieces (h, w) that a boundary crosses without a neck, like people arm in arm.

    The second-pass rule clusters the pixels of a piece that are not on a boundary. If at least two parts have
    a fifth of the piece or more, these parts become instances. They grow over the other pixels of the piece,
    more slowly where the boundary is likely. Pixels that no part reaches go to the largest part. Ties go to
    the part whose first pixel comes first.

    Returns:
        Label of each pixel, and whether merging stopped at its budget.
    """
    assert problem.boundary is not None
    h, w = cls.shape
    off_boundary = problem.boundary[index] <= np.float32(BOUNDARY_THRESHOLD)
    area = np.bincount(piece.ravel())
    left = np.bincount(piece.ravel(), off_boundary.ravel()).astype(np.int64)
    crossed = (area - left >= _CROSSED_PX) & (left >= _LEFT_PX)
    crossed[0] = False
    cut = np.zeros((h, w), bool)  # pixels between pieces, so that no two pieces touch
    for dy, dx in FORWARD:
        here, there = neighbor_slices(h, w, dy, dx)
        cut[here] |= (piece[there] > 0) & (piece[here] != piece[there]) & (cls[here] == cls[there])
    inside = np.where(crossed[piece] & off_boundary & ~cut, cls, 0).astype(np.uint8)
    second_pass = replace(problem, displacement=None).with_settings(
        merge_rule=problem.settings.part_rule, sharpen=0
    )
    part, _, is_stopped = merge_regions(second_pass, index, inside, piece)
    numbers, first, part_area = np.unique(part, return_index=True, return_counts=True)
    piece_of = piece.ravel()[first]
    kept = (numbers > 0) & (part_area * _PART_SHARES >= area[piece_of])
    split = np.bincount(piece_of[kept], minlength=len(area)) > 1
    kept &= split[piece_of]
    label_of, largest = np.zeros(int(numbers.max(initial=0)) + 1, np.int64), np.zeros(len(area), np.int64)
    order = np.zeros(len(area) + int(kept.sum()), np.int64)
    by_size = sorted(np.flatnonzero(kept), key=lambda k: (-part_area[k], first[k]))
    for label, k in enumerate(by_size, start=len(area)):
        label_of[numbers[k]], order[label] = label, first[k]
        largest[piece_of[k]] = largest[piece_of[k]] or label
    label_map = np.where(split[piece], label_of[part], piece)
    free = split[piece] & (label_map == 0)
    label_map, distance = _spread_labels(label_map, piece, free, problem.boundary[index], order)
    return np.where(distance == _UNREACHED, largest[piece], label_map), is_stopped


def _spread_labels(
    label: NDArray[np.int64],
    kind: NDArray[np.integer],
    free: NDArray[np.bool_],
    boundary: NDArray[np.float32],
    order: NDArray[np.int64],
    steps: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spread labels (h, w) over free pixels of the same kind, more slowly where the boundary is likely.

    Args:
        label: labels, 0 = none.
        kind: labels do not spread to pixels of another kind.
        free: pixels that take a new label.
        order: rank of each label; at equal distance, the lower rank wins.
        steps: number of steps; default: until nothing changes.

    Returns:
        Labels, and the distance of each pixel.
    """
    h, w = label.shape
    cost = 1 + ((to_fixed(boundary) * _BOUNDARY_COST + (1 << 15)) >> 16)
    distance = np.where(free, _UNREACHED, 0)
    for _ in range(steps if steps is not None else _UNREACHED):
        best, winner = distance.copy(), label.copy()
        for dy, dx in _SIDES:
            here, there = neighbor_slices(h, w, dy, dx)
            reached = distance[there] + cost[here]
            known = (
                free[here] & (label[there] > 0) & (kind[here] == kind[there]) & (distance[there] < _UNREACHED)
            )
            earlier = (reached == best[here]) & (order[label[there]] < order[winner[here]])
            nearer = known & ((reached < best[here]) | earlier)
            best[here] = np.where(nearer, reached, best[here])
            winner[here] = np.where(nearer, label[there], winner[here])
        if steps is None and np.array_equal(best, distance) and np.array_equal(winner, label):
            break
        distance, label = best, winner
    return label, distance


def propagate_labels(
    label: NDArray[np.int64], cls: NDArray[np.uint8], boundary: NDArray[np.float32], width: int
) -> NDArray[np.int64]:
    """Move the cuts between labels (h, w) onto the boundary (TFISeg's semantic-aware propagation).

    Labels in a band around each cut are removed and spread again from both sides, more slowly where the
    boundary is likely. The new cut is where these labels meet. Ties go to the label whose first pixel comes
    first.
    """
    h, w = label.shape
    cut = np.zeros((h, w), bool)
    for dy, dx in _SIDES:
        here, there = neighbor_slices(h, w, dy, dx)
        cut[here] |= (
            (label[here] > 0) & (label[there] > 0) & (label[here] != label[there]) & (cls[here] == cls[there])
        )
    band = np.zeros((h, w), bool)
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            if dy * dy + dx * dx <= width * width + width and abs(dy) < h and abs(dx) < w:
                here, there = neighbor_slices(h, w, dy, dx)
                band[here] |= cut[there] & (label[here] > 0) & (cls[here] == cls[there])
    remains = np.bincount(label[~band], minlength=int(label.max(initial=0)) + 1) > 0
    free = band & remains[label]
    values, first = np.unique(label, return_index=True)
    order = np.zeros(len(remains), np.int64)
    order[values] = first
    return _spread_labels(label, cls, free, boundary, order, 2 * width)[0]


def _number_instances(label: NDArray[np.int64], min_area: int, max_instances: int) -> NDArray[np.int64]:
    """Number instances 1..n by first pixel; drop small ones, and the smallest ones above the limit."""
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
    """Return lower and upper grid pixel of output pixels, weight of the upper one, and the nearest one."""
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
    """Return class and grid label of every output pixel.

    The class is the argmax of the bilinear logits. The label is that of the nearest grid pixel of this class.
    """
    classes, h, w = logits.shape
    y0, y1, wy, near_y = (v[:, None] for v in grid_positions(h, out_hw[0]))
    x0, x1, wx, near_x = (v[None, :] for v in grid_positions(w, out_hw[1]))
    corners = [grid_class[y0, x0], grid_class[y0, x1], grid_class[y1, x0], grid_class[y1, x1]]
    equal = (corners[0] == corners[1]) & (corners[0] == corners[2]) & (corners[0] == corners[3])
    one = np.float32(1)
    winner, best = np.zeros(out_hw, np.int64), np.full(out_hw, -np.inf, np.float32)
    for k in range(classes):
        above = (one - wx) * logits[k][y0, x0] + wx * logits[k][y0, x1]
        below = (one - wx) * logits[k][y1, x0] + wx * logits[k][y1, x1]
        value = (one - wy) * above + wy * below
        higher = value > best
        winner, best = np.where(higher, k, winner), np.where(higher, value, best)
    nearest, label = np.full(out_hw, 1e30, np.float32), np.zeros(out_hw, np.int64)
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            gy, gx = y0 + dy, x0 + dx
            inside = (gy >= 0) & (gy < h) & (gx >= 0) & (gx < w)
            at = (np.clip(gy, 0, h - 1), np.clip(gx, 0, w - 1))
            vy, vx = np.float32(dy) - wy, np.float32(dx) - wx
            squared = vy * vy + vx * vx
            nearer = inside & (grid_class[at] == winner) & (squared < nearest)
            nearest = np.where(nearer, squared, nearest)
            label = np.where(nearer, grid_label[at], label)
    return (
        np.where(equal, corners[0], winner).astype(np.uint8),
        np.where(equal, grid_label[near_y, near_x], label),
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
    pixels = np.argsort(label.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(label.ravel(), minlength=n + 1))
    for k in range(n):
        y, x = np.divmod(pixels[ends[k] : ends[k + 1]], w)
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
    """Run the operator in NumPy; equal to the native one bit for bit, except the last bits of scores."""
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
            pixel_scores = (
                problem.scores[index] if problem.scores is not None else _softmax_scores(logits, semantic)
            )
            sums = np.zeros(n + 1, np.int64)
            np.add.at(sums, grid.ravel(), to_fixed(pixel_scores).ravel())
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
