"""How shapes lie to one another: places where two touch, groups that are near, necks between regions."""

import numpy as np
from tfiseg.plugins.native import region_graph
from tfiseg.plugins.problem import problem_of
from tfiseg.plugins.reference_graph import neck_log_odds

NEAR = 0.6  # of the square root of the larger area: pieces further apart are not asked about
_OVERLAP = 0.05  # of the object's side, at most
_ONE_GROUND = 0.7  # of objects side by side


def neck_evidence(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """What shape alone says of each pair of regions.

    Args:
        mask: of a component, uint8 (2 S, 2 S) 0/1.
        label: some of its basins, int32 (2 S, 2 S), 1 to n, 0 = none.

    Returns:
        The split rule's log-odds that the neck between two regions is inside one object, (n, n); 0 where they
        do not touch.
    """
    region_map, regions, edges = region_graph(problem_of(mask))
    number = np.zeros(len(regions) + 1, np.int64)
    number[region_map.ravel()] = label.ravel()
    ends = number[edges[:, :2] + 1]
    kept = (ends > 0).all(1)
    i, j = ends[kept].T - 1
    evidence = np.zeros((int(label.max()),) * 2)
    evidence[i, j] = evidence[j, i] = neck_log_odds(regions, edges[kept])
    return evidence


def near_groups(boxes: np.ndarray, areas: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Group shapes that a chain of near ones connects.

    Args:
        boxes: of n shapes, int (n, 4), x, y, width, height.
        areas: of the shapes, (n,), in pixels.
        allowed: pairs that may connect, bool (n, n); default: all.

    Returns:
        The group of each shape, (n,), by the number of one of its shapes.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    gaps = (low[:, None] - high[None]).max(2)
    gaps = np.maximum(np.maximum(gaps, gaps.T), 0)
    near = np.triu(gaps <= NEAR * np.sqrt(np.maximum(areas[:, None], areas[None])), 1)
    group = np.arange(len(boxes))
    for i, j in np.argwhere(near if allowed is None else near & allowed):
        group[group == group[j]] = group[i]
    return group


def touching_place(
    label: np.ndarray, opacity: np.ndarray, rng: np.random.Generator, sideways: float = 0.85
) -> tuple[int, int]:
    """Where a new object touches the others at its first contact, or overlaps them by a few pixels.

    Args:
        label: int (S, S), the objects there are, 1.. .
        opacity: float (h, w), of the new object.
        rng: random numbers.
        sideways: how often it comes from the left or the right, instead of from above or below.

    Returns:
        Its upper left corner (x, y); anywhere near the middle if there is no other object.
    """
    solid, there = opacity > 0.5, label > 0
    if not there.any() or not solid.any():
        center = rng.uniform(0.3, 0.7, 2) * label.shape
        return int(center[1] - opacity.shape[1] / 2), int(center[0] - opacity.shape[0] / 2)
    upright = rng.random() > sideways
    if upright:
        solid, there = solid.T, there.T
    rows = np.flatnonzero(there.any(1))
    low, high = int(rows[0]), int(rows[-1]) + 1
    if not upright and rng.random() < _ONE_GROUND:
        y = high + round(rng.normal(0, 0.04) * (high - low)) - len(solid)
    else:
        y = round(rng.uniform(low - 0.6 * len(solid), high - 0.4 * len(solid)))
    room_before, room_behind = (int(n) for n in (there.any(0).argmax(), there.any(0)[::-1].argmax()))
    mirrored = bool(rng.random() * (room_before + room_behind) < room_before)
    if mirrored:
        solid, there = solid[:, ::-1], there[:, ::-1]
    ours = [(y + r, int(solid[r].argmax())) for r in np.flatnonzero(solid.any(1)).tolist()]
    width = there.shape[1]
    contacts = [
        width - int(there[row, ::-1].argmax()) - first
        for row, first in ours
        if 0 <= row < len(there) and there[row].any()
    ]
    depth = rng.uniform(-0.01, _OVERLAP) * float(np.sqrt(solid.sum()))
    x = round((max(contacts) if contacts else width / 2) - depth)
    if mirrored:
        x = width - x - solid.shape[1]
    return (y, x) if upright else (x, y)
