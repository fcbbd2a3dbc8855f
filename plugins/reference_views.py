"""Views of components in NumPy, the definition of their content; csrc/views.h equals it bit for bit.

All sums are sums of integers, because products of float64 matrices are below 2^53. The code is simple, not
fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mask_views import RenderedMaskViews
from .problem import FLAG_TOUCHES_EDGE
from .views import CANDIDATES_PER_VIEW, PlacedInstances, RenderedViews, Scene, ViewClusterings

# as in views.h and mask_views.h
_GRAY, _MIN_SIDE, _MARGIN_PX, _MAX_ZOOM, _CONVEX_PERCENT, _REACH = 127, 10, 16, 4, 95, 8
_MIN_MASK_SIDE = 20

Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _View:
    x: int
    y: int
    side: int
    class_id: int
    component: int

    @property
    def row(self) -> tuple[int, int, int, int, int]:
        """The view's row of a table with ``VIEW_COLUMNS``."""
        return self.x, self.y, self.side, self.class_id, self.component

    def window(self, plane: NDArray[np.float64], outside: float) -> NDArray[np.float64]:
        """Crop a map (H, W) to the view, (side, side), with the value ``outside`` beyond the map."""
        h, w = plane.shape
        out = np.full((self.side, self.side), outside, np.float64)
        y0, x0, y1, x1 = (
            max(self.y, 0),
            max(self.x, 0),
            min(self.y + self.side, h),
            min(self.x + self.side, w),
        )
        out[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x] = plane[y0:y1, x0:x1]
        return out


def _view_of(box: Box, size_hw: tuple[int, int], size: int, class_id: int, component: int) -> _View:
    x0, y0, x1, y1 = box
    side = max(max(x1 - x0, y1 - y0) * 5 // 4 + _MARGIN_PX, -(-size // _MAX_ZOOM))
    corner = []
    for low, high, length in ((x0, x1, size_hw[1]), (y0, y1, size_hw[0])):
        start = (low + high - side) // 2
        corner.append(min(max(start, 0), length - side) if side <= length else start)
    return _View(corner[0], corner[1], side, class_id, component)


def _weights(side: int, size: int) -> tuple[NDArray[np.float64], int]:
    """Return the weights (size, side) of ``side`` pixels in ``size`` cells, and the sum of a row.

    A view that shrinks is averaged, another one is interpolated linearly.
    """
    weight = np.zeros((size, side))
    pixel = np.arange(side)
    for cell in range(size):
        if side > size:
            begin = cell * side
            weight[cell] = np.maximum(
                np.minimum(begin + side, (pixel + 1) * size) - np.maximum(begin, pixel * size), 0
            )
        else:
            at = min(max((2 * cell + 1) * side - size, 0), (side - 1) * 2 * size)
            weight[cell] = np.maximum(2 * size - np.abs(pixel * 2 * size - at), 0)
    return weight, side if side > size else 2 * size


def _weighted_sums(window: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], int]:
    weight, total = _weights(len(window), size)
    return (weight @ window @ weight.T).astype(np.int64), total * total


def _component_mask(label_map: NDArray[np.int32], view: _View, size: int) -> Mask:
    """Return the mask of the view's component, (size, size)."""
    covered, total = _weighted_sums(view.window((label_map == view.component).astype(np.float64), 0), size)
    return covered > 0 if view.side > size else 2 * covered >= total


def _twice_hull(points: list[tuple[int, int]]) -> int:
    """Return twice the area of the convex hull (Andrew's monotone chain)."""

    def half(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        chain: list[tuple[int, int]] = []
        for p in ordered:
            while len(chain) >= 2 and _cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    ordered = sorted(set(points))
    if len(ordered) < 3:
        return 0
    hull = half(ordered) + half(ordered[::-1])
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(hull, hull[1:] + hull[:1], strict=True)))


def _cross(a: tuple[int, int], b: tuple[int, int], p: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


def _is_convex(own: Mask) -> bool:
    """Return whether a mask is convex, with pixels as squares."""
    points = [(int(x) + dx, int(y) + dy) for y, x in np.argwhere(own) for dx in (0, 1) for dy in (0, 1)]
    return not points or 100 * 2 * int(own.sum()) > _CONVEX_PERCENT * _twice_hull(points)


def _is_convex_between_centers(mask: Mask) -> bool:
    """Return whether the polygon through the centers of a mask's pixels is convex.

    A square of four centers adds 1 to the area if all four are in the mask, 1/2 if three are.
    """
    covered = mask[:-1, :-1].astype(int) + mask[1:, :-1] + mask[:-1, 1:] + mask[1:, 1:]
    twice = int(np.maximum(covered - 2, 0).sum())
    return 100 * twice > _CONVEX_PERCENT * _twice_hull([(int(x), int(y)) for y, x in np.argwhere(mask)])


def _plan_views(scene: Scene, limit: int, size: int) -> Iterator[_View]:
    """Yield the informative views: first those of components, then those of classes."""
    size_hw = (scene.label_map.shape[0], scene.label_map.shape[1])
    boxes: list[Box] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in scene.table[:, 2:6].astype(int).tolist()]
    class_of, area = scene.table[:, 0].astype(int).tolist(), scene.table[:, 6]
    things = [k for k in range(len(boxes)) if scene.thing_flags[class_of[k]] and 0 < class_of[k] < 255]
    candidates = [k for k in things if max(boxes[k][2] - boxes[k][0], boxes[k][3] - boxes[k][1]) >= _MIN_SIDE]
    for k in sorted(candidates, key=lambda k: (-area[k], k))[: CANDIDATES_PER_VIEW * limit]:
        view = _view_of(boxes[k], size_hw, size, class_of[k], k + 1)
        if _is_convex(_component_mask(scene.label_map, view, size)):
            continue
        mask = view.window((scene.label_map == k + 1).astype(np.float64), 0) > 0
        if view.side >= size or not _is_convex_between_centers(mask):
            yield view
    for class_id in sorted({class_of[k] for k in things}):
        class_boxes = np.array([boxes[k] for k in things if class_of[k] == class_id])
        low, high = class_boxes.min(0).tolist(), class_boxes.max(0).tolist()
        view = _view_of((low[0], low[1], high[2], high[3]), size_hw, size, class_id, 0)
        sides = [
            _view_of(boxes[k], size_hw, size, class_id, k + 1).side
            for k in candidates
            if class_of[k] == class_id
        ]
        if len(class_boxes) > 1 and sides and 4 * max(sides) < 3 * view.side:
            yield view


def render_views_reference(scene: Scene, view_count: int, view_side: int) -> RenderedViews:
    """Render views like ``views.render_views``."""
    shape = (view_count, view_side, view_side)
    out = RenderedViews(
        np.zeros((view_count, 5), np.int32),
        np.full((*shape, 3), _GRAY, np.uint8),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.uint8),
    )
    out.views[:, 2] = view_side
    planned = list(_plan_views(scene, view_count, view_side))[:view_count]
    for k, view in enumerate(planned):
        out.views[k] = view.row
        _render(scene, view, out.images[k], out.masks[k])
        if view.component:
            out.own[k] = _component_mask(scene.label_map, view, view_side)
    return out


def _render(scene: Scene, view: _View, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Render a view into an image (S, S, 3) and the mask (S, S) of its class."""
    for channel in range(3):
        total, whole = _weighted_sums(
            view.window(scene.frame[..., channel].astype(np.float64), _GRAY), len(image)
        )
        image[..., channel] = (2 * total + whole) // (2 * whole)
    class_of = np.concatenate([[0], scene.table[:, 0]])
    covered, whole = _weighted_sums(
        view.window((class_of[scene.label_map] == view.class_id).astype(np.float64), 0), len(image)
    )
    mask[:] = 2 * covered >= whole


def render_mask_views_reference(
    scene: Scene, known: NDArray[np.int32], known_side: int, view_count: int, view_side: int
) -> RenderedMaskViews:
    """Render views for mask refinement like ``mask_views.render_mask_views``."""
    size_hw = (scene.label_map.shape[0], scene.label_map.shape[1])
    boxes: list[Box] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in scene.table[:, 2:6].astype(int).tolist()]
    class_of, area = scene.table[:, 0].astype(int).tolist(), scene.table[:, 6]
    large = [k for k, (x0, y0, x1, y1) in enumerate(boxes) if max(x1 - x0, y1 - y0) >= _MIN_MASK_SIDE]
    order = sorted(large, key=lambda k: (-area[k], k))[:view_count]
    shown = [tuple(row[:4]) for row in known.tolist()]
    component, others = [0] * len(shown), []
    for view in (_view_of(boxes[k], size_hw, known_side, class_of[k], k + 1) for k in order):
        same = shown.index(view.row[:4]) if view.row[:4] in shown else None
        if same is None or component[same]:
            others.append(view)
        else:
            component[same] = view.component
    shape = (view_count, view_side, view_side)
    images, masks = np.full((*shape, 3), _GRAY, np.uint8), np.zeros(shape, np.uint8)
    views = np.zeros((len(shown) + view_count, 5), np.int32)
    views[:, 2] = 1
    views[: len(shown)] = [(*row, own) for row, own in zip(shown, component, strict=True)] or 0
    for k, view in enumerate(others):
        views[len(shown) + k] = view.row
        _render(scene, view, images[k], masks[k])
    return RenderedMaskViews(views, images, masks)


def place_instances_reference(
    scene: Scene, rendered: RenderedViews, found: ViewClusterings, min_regions: int = 2
) -> PlacedInstances:
    """Place parts like ``views.place_instances``."""
    class_of = scene.table[:, 0].astype(int)
    used = np.concatenate([[False], (scene.thing_flags[class_of] > 0) & (class_of > 0) & (class_of < 255)])
    instance_map = np.where(used[scene.label_map], scene.label_map, 0).astype(np.int64)
    component_of = list(range(len(scene.table) + 1))
    for k, row in enumerate(rendered.views.tolist()):
        view, parts = _View(*row), int(found.counts[k])
        if not view.component or parts < 2 or found.regions[k] < min_regions:
            continue
        largest = int(found.tables[k, :parts, 6].argmax()) + 1
        number = {largest: view.component, 0: view.component}
        for part in range(1, parts + 1):
            if part != largest:
                number[part] = len(component_of)
                component_of.append(view.component)
        for y, x in np.argwhere(scene.label_map == view.component).tolist():
            instance_map[y, x] = number[_part_at(found.labels[k], view, y, x)]
    return _table_of(instance_map, np.array(component_of), scene)


def _part_at(labels: NDArray[np.int32], view: _View, y: int, x: int) -> int:
    """Return the part with the largest weight in the four cells around a pixel, else the nearest part."""
    size, unit = len(labels), 2 * view.side
    places = []
    for at in (y - view.y, x - view.x):
        cell, part = divmod((2 * at + 1) * size - view.side, unit)
        places.append(((max(cell, 0), unit - part), (min(cell + 1, size - 1), part)))
    weight: dict[int, int] = {}
    for v, a in places[0]:
        for u, b in places[1]:
            weight[int(labels[v, u])] = weight.get(int(labels[v, u]), 0) + a * b
    weight.pop(0, None)
    if weight:
        return min(weight, key=lambda part: (-weight[part], part))
    v, u = (second[0] if second[1] > first[1] else first[0] for first, second in places)
    for reach in range(1, _REACH + 1):
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                if (
                    max(abs(dy), abs(dx)) == reach
                    and 0 <= v + dy < size
                    and 0 <= u + dx < size
                    and labels[v + dy, u + dx]
                ):
                    return int(labels[v + dy, u + dx])
    return 0


def _table_of(labels: NDArray[np.int64], component_of: NDArray[np.int64], scene: Scene) -> PlacedInstances:
    numbers, first = np.unique(labels, return_index=True)
    numbers = numbers[np.argsort(first)]
    numbers = numbers[numbers > 0]
    rank = np.zeros(len(component_of), np.int32)
    rank[numbers] = np.arange(1, len(numbers) + 1)
    components = component_of[numbers].astype(np.int32)
    h, w = labels.shape
    table = np.zeros((len(numbers), 10), np.float32)
    for k, number in enumerate(numbers):
        y, x = np.nonzero(labels == number)
        edge = x.min() == 0 or y.min() == 0 or x.max() == w - 1 or y.max() == h - 1
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        table[k] = (
            *scene.table[components[k] - 1, :2],
            *box,
            len(x),
            x.sum() / len(x),
            y.sum() / len(x),
            FLAG_TOUCHES_EDGE if edge else 0,
        )
    return PlacedInstances(rank[labels], table, components)
