"""Mask refinement in NumPy, the definition of the rule; csrc/mask_refinement.h equals it bit for bit.

A class map is as coarse as the grid of its network. In a view of a component, an instance network predicts
which pixels belong to the object. The rule moves outlines accordingly:

1. A component loses pixels with a probability of at most 0.4, unless the component fills the square within
   reach around them. The reach is 15 % of the longer side of the component's box, at least 8 pixels.
2. A component claims pixels with a probability above 0.6, if it is the nearest component of its class in the
   square within reach. A pixel of another component is claimed only with a higher probability than in the
   view of its own one. Without such a view, or outside of its zone, a pixel is never claimed.
3. Of several claims, the highest probability wins, then the earlier view. Islands of claimed pixels that do
   not touch a pixel that their component keeps are ignored. Other claimed pixels go to the instance of the
   component that is nearest.
4. A component whose view has no probability above 0.4 on the component neither loses nor claims pixels.
5. An instance that would keep none of its pixels keeps all of them.

The result does not depend on any order. All numbers are integers: probabilities have 16 bits, positions
between the cells of a map 8. The code is simple rather than fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .mask_refinement import PredictedMasks, RefinedMasks
from .problem import FLAG_TOUCHES_EDGE

# as in mask_refinement.h
_MIN_REACH_PX, _POSITION_BITS, _WEIGHT_BITS = 8, 24, 8
_ONE = 65535 << 16  # of a probability
_REMOVE_BELOW, _ADD_ABOVE, _CERTAIN = _ONE * 2 // 5, _ONE * 3 // 5, (1 << 32) - 1

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Zone:
    """A component with a view, and the window of the frame in which its outline may move.

    ``probability`` is int64 (H, W), 0 outside of the window; ``window`` and ``own`` are bool (H, W).
    """

    view: int
    component: int
    class_id: int
    reach: int
    window: Mask
    own: Mask
    probability: NDArray[np.int64]


def _interpolate(
    cells: int, corner: int, side: int, pixels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return for each pixel along one axis of ``cells`` two of these, and the weight of the second one."""
    step = (cells << _POSITION_BITS) // side
    position = (pixels - corner) * step + step // 2 - (1 << (_POSITION_BITS - 1))
    cell = position >> _POSITION_BITS
    weight = (position >> (_POSITION_BITS - _WEIGHT_BITS)) & ((1 << _WEIGHT_BITS) - 1)
    return np.clip(cell, 0, cells - 1), np.clip(cell + 1, 0, cells - 1), weight


def _probability(
    foreground: NDArray[np.float32], view: list[int], size_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the probability of each pixel of the frame, as if the map continued beyond the view."""
    unit = np.clip(np.nan_to_num(foreground.astype(np.float32), nan=0.0), 0, 1)
    cells = (unit * np.float32(65535) + np.float32(0.5)).astype(np.int64)
    x, y, side = view
    top, bottom, down = _interpolate(len(foreground), y, side, np.arange(size_hw[0]))
    left, right, across = _interpolate(len(foreground), x, side, np.arange(size_hw[1]))
    whole = 1 << _WEIGHT_BITS
    rows = cells[:, left] * (whole - across) + cells[:, right] * across
    return np.asarray(rows[top] * (whole - down[:, None]) + rows[bottom] * down[:, None])


def _make_zones(predicted: PredictedMasks, own_map: NDArray[np.int32]) -> list[_Zone]:
    h, w = own_map.shape
    zones: dict[int, _Zone] = {}
    for k, (x, y, side, view_class, component) in enumerate(predicted.views.tolist()):
        if not view_class or not 0 < component <= len(predicted.component_table) or component in zones:
            continue
        row = predicted.component_table[component - 1]
        x0, y0, x1, y1 = row[2:6].astype(int).tolist()
        reach = max(max(x1 - x0, y1 - y0) * 3 // 20, _MIN_REACH_PX)
        window = np.zeros((h, w), bool)
        window[
            max(y0 - reach, y, 0) : max(0, min(y1 + reach, y + side, h)),
            max(x0 - reach, x, 0) : max(0, min(x1 + reach, x + side, w)),
        ] = True
        probability = _probability(predicted.foregrounds[k], [x, y, side], (h, w)) * window
        own = own_map == component
        zones[component] = _Zone(k, component, int(row[0]), reach, window, own, probability)
    return list(zones.values())


def _interior(own: Mask, reach: int) -> Mask:
    """Return the pixels around which a mask fills the square within reach, as far as it is in the frame."""
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.erode(own.astype(np.uint8), square) > 0  # the frame's border does not erode


def _nearest(classes: NDArray[np.uint8], class_id: int, reach: int, y: int, x: int) -> tuple[int, int] | None:
    """Return the position of the nearest pixel of a class in the square within reach, or None.

    Of equally near ones: fewer rows away, then above, then on the left.
    """
    top, left = max(y - reach, 0), max(x - reach, 0)
    ys, xs = np.nonzero(classes[top : y + reach + 1, left : x + reach + 1] == class_id)
    if not len(ys):
        return None
    dy, dx = ys + top - y, xs + left - x
    first = np.lexsort((dx > 0, dy > 0, np.abs(dy), dy * dy + dx * dx))[0]
    return int(y + dy[first]), int(x + dx[first])


def _claim_pixels(
    predicted: PredictedMasks, zones: list[_Zone], own_map: NDArray[np.int32], classes: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return zone (index + 1; 0 = none) and instance of the claim of each pixel, int32 (H, W)."""
    highest = np.where(own_map > 0, _CERTAIN, 0)
    for zone in zones:
        highest[zone.own & zone.window] = zone.probability[zone.own & zone.window]
    least, strongest = np.maximum(highest, _ADD_ABOVE), np.zeros(own_map.shape, np.int64)
    winner, label = np.zeros((2, *own_map.shape), np.int32)
    for index, zone in enumerate(zones, 1):
        if not (zone.probability[zone.own] > _REMOVE_BELOW).any():
            continue
        claims = zone.probability >> 8  # 24 bits, so that a claim fits into a word
        is_claimed = ~zone.own & zone.window & (zone.probability > least) & (claims > strongest)
        for y, x in np.argwhere(is_claimed).tolist():
            position = _nearest(classes, zone.class_id, zone.reach, y, x)
            if position is not None and own_map[position] == zone.component:
                strongest[y, x] = claims[y, x]
                winner[y, x], label[y, x] = index, predicted.label_map[position]
    return winner, label


def refine_masks_reference(predicted: PredictedMasks) -> RefinedMasks:
    """Refine masks like ``mask_refinement.refine_masks``."""
    class_of = np.concatenate([[0], predicted.component_table[:, 0]]).astype(np.uint8)
    own_map = np.where(predicted.label_map > 0, predicted.component_map, 0)
    classes = class_of[own_map]
    zones = _make_zones(predicted, own_map)
    winner, label = _claim_pixels(predicted, zones, own_map, classes)
    moved = predicted.label_map.copy()
    removed = [
        zone.own & zone.window & (zone.probability <= _REMOVE_BELOW) & ~_interior(zone.own, zone.reach)
        for zone in zones
    ]
    for zone, lost in zip(zones, removed, strict=True):
        if (zone.probability[zone.own] > _REMOVE_BELOW).any():
            moved[lost] = 0
    for index, (zone, lost) in enumerate(zip(zones, removed, strict=True), 1):
        kept = zone.own & ~lost & (winner == 0)
        count, islands = cv2.connectedComponents(((winner == index) | kept).astype(np.uint8), connectivity=8)
        touches = np.zeros(count, bool)
        touches[islands[kept]] = True
        added = (winner == index) & touches[islands]
        moved[added] = label[added]
    own_pixels = (moved == predicted.label_map) & (moved > 0)
    for instance in range(1, len(predicted.table) + 1):
        mask = predicted.label_map == instance
        if not own_pixels[mask].any():
            moved[mask] = instance
    return _number(moved, predicted.table)


def _number(moved: NDArray[np.int32], table: NDArray[np.float32]) -> RefinedMasks:
    """Number the instances by their first pixels, and measure them."""
    numbers, first = np.unique(moved, return_index=True)
    numbers = numbers[np.argsort(first)]
    numbers = numbers[numbers > 0]
    rank = np.zeros(len(table) + 1, np.int32)
    rank[numbers] = np.arange(1, len(numbers) + 1)
    h, w = moved.shape
    rows = np.zeros((len(numbers), 10), np.float32)
    for k, number in enumerate(numbers):
        y, x = np.nonzero(moved == number)
        edge = x.min() == 0 or y.min() == 0 or x.max() == w - 1 or y.max() == h - 1
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        center = (x.sum() / len(x), y.sum() / len(x))
        rows[k] = (*table[number - 1, :2], *box, len(x), *center, FLAG_TOUCHES_EDGE if edge else 0)
    return RefinedMasks(rank[moved], rows, numbers.astype(np.int32))
