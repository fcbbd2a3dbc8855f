"""Splitting of crowds: components of many objects.

In a view of the whole crowd, each object is too small. So a crowd is first split by shape at the frame's own
resolution. What shape leaves whole is processed in overlapping windows that show its objects large enough for
the instance network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ...plugins.native import region_counts
from ...plugins.operator import cluster
from ...plugins.settings import MAX_SIDE
from .partition import Label, instances_from_labels, nearest_label, upsample_labels
from .view import View, crop_labels, make_view
from .view_planning import PlannedView

_log = logging.getLogger("tfiseg")

MIN_REGIONS = 20  # of similar size, in a crowd
_COARSE = 1.5  # longer side, relative to a view's side, to which masks are subsampled for the first check
# diameter of an object in a view, in pixels: below, shape separates better than the network
# (docs/benchmarks/crowds.md)
_MIN_OBJECT_PX = 24
_OBJECT_PX = 48  # diameter of objects in windows, if max_windows allows it
_OVERLAP = 1.6  # diameters: objects up to this length are complete in at least one window
_WIDER = 1.08  # factor by which windows grow until there are few enough
_EDGE_CELLS = 2  # an object as near to a window's border may continue beyond it
_MIN_CELLS = 16  # of an object in a window
_FREE = 0.7  # share of an object's pixels that no better window has taken
_MIN_PART = 0.1  # of the typical area: smaller parts are merged into their neighbors
_MIN_REST = 0.3  # of the typical area: smaller remainders between objects are merged into their neighbors

Box = tuple[int, int, int, int]
ClusterWindows = Callable[[Instances, Sequence[PlannedView]], list[Label]]


def split_crowds(
    components: Instances,
    suspects: Sequence[int],
    view_px: int,
    max_windows: int,
    cluster_windows: ClusterWindows,
    threads: int | None = None,
) -> tuple[Instances, NDArray[np.int64]] | None:
    """Split the crowds among the components of a frame.

    Args:
        components: connected components of a class map.
        suspects: labels of the components that may be crowds.
        view_px: side S of the instance network's views in pixels.
        max_windows: maximum number of windows.
        cluster_windows: function of (components, windows) that returns the operator's labels of each
            window's component, int32 (S, S).
        threads: CPU threads; default: all that the process may use.

    Returns:
        The n components with crowds split, and by label the component that contains each, int64 (n + 1,);
        None if there is no crowd.
    """
    crowds = [label for label in suspects if _crowd_diameter(components, label, view_px, threads)]
    if not crowds:
        return None
    by_shape = _SplitMap(components)
    for label in crowds:
        own = by_shape.mask(label)
        found: Instances = cluster(own.astype(np.uint8), min_area=0, threads=threads)
        by_shape.split(label, _merge_small(found, _MIN_PART * _typical(found.area)))
    parts = instances_from_labels(by_shape.label_map, components)
    by_window = _SplitMap(parts)
    of_crowds = np.unique(parts.label_map[np.isin(components.label_map, crowds)])
    for label in of_crowds[np.argsort(-parts.area[of_crowds - 1], kind="stable")].tolist():
        if not max_windows:
            break
        diameter = _crowd_diameter(parts, label, view_px, threads)
        windows = _plan_windows(parts, label, diameter, view_px, max_windows) if diameter else []
        if windows:
            max_windows -= len(windows)
            by_window.split(
                label, _combine_windows(parts, label, windows, cluster_windows(parts, windows), threads)
            )
    parts = instances_from_labels(by_window.label_map, components)
    component_of = np.zeros(len(parts) + 1, np.int64)
    component_of[parts.label_map] = components.label_map
    return parts, component_of


class _SplitMap:
    """A label map whose components are split one by one."""

    def __init__(self, components: Instances) -> None:
        self._components = components
        self.label_map = components.label_map.copy()
        self._max_label = len(components)

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return the mask of a component in its box, bool (h, w)."""
        x0, y0, x1, y1 = _box(self._components, label)
        return np.asarray(self._components.label_map[y0:y1, x0:x1] == label)

    def split(self, label: int, labels: Label) -> None:
        """Split a component by labels int32 (h, w) of its box, which cover all of it."""
        x0, y0, x1, y1 = _box(self._components, label)
        own = self.mask(label)
        self.label_map[y0:y1, x0:x1][own] = labels[own] + self._max_label
        self._max_label += int(labels.max(initial=0))


def _box(components: Instances, label: int) -> Box:
    x0, y0, x1, y1 = components.box_xyxy[label - 1].astype(int).tolist()
    return x0, y0, x1, y1


def _crowd_diameter(components: Instances, label: int, view_px: int, threads: int | None) -> float:
    box = _box(components, label)
    own = components.label_map[box[1] : box[3], box[0] : box[2]] == label
    size_hw = components.label_map.shape[0], components.label_map.shape[1]
    return crowd_diameter(own, box, size_hw, view_px, threads)


def crowd_diameter(
    own: NDArray[np.bool_], box_xyxy: Box, size_hw: tuple[int, int], view_px: int, threads: int | None
) -> float:
    """Estimate the diameter of a crowd's objects in pixels; 0 if it is no crowd.

    A crowd has many regions of similar size. Many small regions beside a large one are no crowd: they come
    from bumps of an outline or plates on a table.

    Args:
        own: mask of the component in its box, bool (h, w).
        box_xyxy: that box in pixels; x1 and y1 are exclusive.
        size_hw: size of the frame in pixels.
        view_px: side of the instance network's views in pixels.
        threads: CPU threads; None: all that the process may use.
    """
    if own.sum() < MIN_REGIONS * _MIN_CELLS or not _has_many_regions(own, view_px, threads):
        return 0.0
    if max(own.shape) > MAX_SIDE:
        _log.warning(
            "a crowd over %d px is not separated: its longer side is %d px", MAX_SIDE, max(own.shape)
        )
        return 0.0
    regions: Instances = cluster(own.astype(np.uint8), split=1.0, min_area=0, threads=threads)
    typical = _typical(regions.area)
    object_px = _diameter(typical) * view_px / make_view(box_xyxy, size_hw, view_px).side
    is_crowd = (2 * regions.area >= typical).sum() >= MIN_REGIONS and object_px < _MIN_OBJECT_PX
    return _diameter(regions.area.mean()) if is_crowd else 0.0


def _has_many_regions(own: NDArray[np.bool_], view_px: int, threads: int | None) -> bool:
    """Check a subsampled mask first, because the full check is slow."""
    step = -(-max(own.shape) // round(_COARSE * view_px))
    return bool(region_counts(own[None, ::step, ::step].astype(np.uint8), threads)[0] >= MIN_REGIONS)


def _typical(areas: NDArray[np.int32]) -> float:
    """Return the area at which larger areas hold half of all pixels."""
    ordered = np.sort(areas)
    return float(ordered[np.searchsorted(np.cumsum(ordered), ordered.sum() / 2)])


def _merge_small(parts: Instances, min_area: float) -> Label:
    """Replace small parts and background by the nearest part that is large enough."""
    large = np.concatenate([[False], parts.area >= min_area])
    return nearest_label(np.where(large[parts.label_map], parts.label_map, 0))[0]


def _diameter(area: float) -> float:
    return float(2 * np.sqrt(area / np.pi))


def _plan_windows(
    components: Instances, label: int, diameter: float, view_px: int, max_windows: int
) -> list[PlannedView]:
    """Plan windows over a crowd of objects of this diameter.

    They grow until there are few enough; if objects would be too small in them, there are none.
    """
    x0, y0, x1, y1 = _box(components, label)
    side = max(diameter * view_px / _OBJECT_PX, view_px / 4)
    while diameter * view_px / side >= _MIN_OBJECT_PX:
        side_px = round(side)
        step = max(1.0, side_px - _OVERLAP * diameter)
        views = [
            View(x, y, side_px)
            for y in _starts(y0, y1, side_px, step)
            for x in _starts(x0, x1, side_px, step)
        ]
        used = [
            v
            for v in views
            if 2 * np.count_nonzero(crop_labels(components.label_map, v) == label) >= diameter * diameter
        ]
        if len(used) <= max_windows:
            return [PlannedView(v, int(components.class_id[label - 1]), label) for v in used]
        side *= _WIDER
    return []


def _starts(low: int, high: int, side: int, step: float) -> list[int]:
    """Return the starts of windows that cover low to high, at most a step apart."""
    count = max(1, int(np.ceil((high - low - side) / step)) + 1)
    if count == 1:
        return [(low + high - side) // 2]
    return [round(v) for v in np.linspace(low, high - side, count)]


def _combine_windows(
    components: Instances,
    label: int,
    windows: Sequence[PlannedView],
    window_labels: Sequence[Label],
    threads: int | None,
) -> Label:
    """Combine the labels of a crowd's windows to labels int32 (h, w) of its box.

    Each object is taken from the window that shows it nearest to its center, if it is complete there. The
    rest is split by shape.
    """
    x0, y0, x1, y1 = _box(components, label)
    own = components.label_map[y0:y1, x0:x1] == label
    labels, count = np.zeros(own.shape, np.int32), 0
    objects = sorted(
        (offset, k, number)
        for k, p in enumerate(windows)
        for number, offset in _complete_objects(window_labels[k], p.view, (x0, y0, x1, y1))
    )
    upsampled: dict[int, Label] = {}
    for _, k, number in objects:
        view = windows[k].view
        u0, v0 = max(x0, view.x), max(y0, view.y)
        u1, v1 = min(x1, view.x + view.side), min(y1, view.y + view.side)
        if k not in upsampled:
            present = np.arange(1, window_labels[k].max() + 1)
            upsampled[k] = upsample_labels(window_labels[k], present, view, (u0, v0, u1, v1))
        at = slice(v0 - y0, v1 - y0), slice(u0 - x0, u1 - x0)
        mask = (upsampled[k] == number) & own[at]
        free = mask & (labels[at] == 0)
        if free.any() and free.sum() >= _FREE * mask.sum():
            count += 1
            labels[at][free] = count
    if not count:
        return own.astype(np.int32)
    typical = np.median(np.bincount(labels.ravel())[1:])
    rest: Instances = cluster((own & (labels == 0)).astype(np.uint8), min_area=0, threads=threads)
    large = np.concatenate([[False], rest.area >= _MIN_REST * typical])
    labels = np.where(large[rest.label_map], rest.label_map + count, labels)
    nearest, _ = nearest_label(labels)
    return nearest


def _complete_objects(labels: Label, view: View, box_xyxy: Box) -> list[tuple[int, float]]:
    """Find the objects of a window that its borders do not cut.

    Args:
        labels: of the window, int32 (S, S).
        view: the window.
        box_xyxy: box of the crowd: at its borders nothing is cut.

    Returns:
        Pairs (label, largest distance along an axis from the center of the window, in cells).
    """
    side, (x0, y0, x1, y1), edge = len(labels), box_xyxy, _EDGE_CELLS
    borders = (
        (view.y > y0, labels[:edge]),
        (view.y + view.side < y1, labels[-edge:]),
        (view.x > x0, labels[:, :edge]),
        (view.x + view.side < x1, labels[:, -edge:]),
    )
    count = np.bincount(labels.ravel(), minlength=1)
    is_complete = count >= _MIN_CELLS
    is_complete[0] = False
    for cuts, cells in borders:
        if cuts:
            is_complete[cells] = False
    y, x = np.divmod(np.arange(labels.size), side)
    centers = [np.bincount(labels.ravel(), along) / np.maximum(count, 1) for along in (y, x)]
    offset = np.maximum(*(np.abs(center - side / 2) for center in centers))
    return [(int(label), float(offset[label])) for label in np.flatnonzero(is_complete)]
