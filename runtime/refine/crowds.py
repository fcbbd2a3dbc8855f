"""Components of many objects, each of which is too small for the instance network in a view of all of them:
parted by shape, at the frame's own resolution, and what shape leaves whole in windows that show its objects
as large as the network wants them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ...plugins.native import region_counts
from ...plugins.operator import cluster
from ...plugins.settings import MAX_SIDE
from .partition import Label, enlarged_labels, instances_of, nearest_label
from .view import View, view_of, window
from .view_planning import PlannedView

_log = logging.getLogger("tfiseg")

MANY = 20  # objects
_COARSE = 1.5  # times a view's side: as large as masks are looked at to begin with
# of an object's diameter in a view: in smaller ones the network parts worse than shape does
# (docs/benchmarks/instance.md)
_LEAST_PX = 24
_WANTED_PX = 48  # in a window
_REACH = 1.6  # diameters: what isn't longer lies whole in one window at least
_WIDER = 1.08  # a step, until there are few enough windows
_EDGE_CELLS = 2  # what comes as near to a window's side may go on beyond it
_LEAST_CELLS = 16
_FREE = 0.7  # of an object that no better window has taken
_CRUMB = 0.1  # of the usual area: smaller parts are their neighbours'
_REST = 0.3  # the same of what is left between objects

Box = tuple[int, int, int, int]
Look = Callable[[Instances, Sequence[PlannedView]], list[Label]]


def crowds_parted(
    components: Instances,
    suspects: Sequence[int],
    view_px: int,
    max_windows: int,
    look: Look,
    threads: int | None = None,
) -> tuple[Instances, NDArray[np.int64]] | None:
    """Components with the crowds among them parted, and by number from 0 on which component each is of, int64
    (n + 1,); None where there is no crowd.

    Args:
        components: of a frame.
        suspects: numbers of those that may be crowds.
        view_px: side of the instance network's views.
        max_windows: at most so many are looked at.
        look: look(components, windows) -> what the operator makes of each window's component in it, label
            maps int32 (S, S).
        threads: CPU threads; default: all that the process may use.
    """
    crowds = [number for number in suspects if _size_if_crowd(components, number, view_px, threads)]
    if not crowds:
        return None
    by_shape = _Numbers(components)
    for number in crowds:
        own = by_shape.own(number)
        parts: Instances = cluster(own.astype(np.uint8), min_area=0, threads=threads)
        by_shape.part(number, _without_crumbs(parts, _CRUMB * _usual(parts.area)))
    pieces = instances_of(by_shape.label_map, components)
    looked_at = _Numbers(pieces)
    of_crowds = np.unique(pieces.label_map[np.isin(components.label_map, crowds)])
    for number in of_crowds[np.argsort(-pieces.area[of_crowds - 1], kind="stable")].tolist():
        if not max_windows:
            break
        size = _size_if_crowd(pieces, number, view_px, threads)
        windows = _windows(pieces, number, size, view_px, max_windows) if size else []
        if windows:
            max_windows -= len(windows)
            looked_at.part(number, _objects(pieces, number, windows, look(pieces, windows), threads))
    pieces = instances_of(looked_at.label_map, components)
    component_of = np.zeros(len(pieces) + 1, np.int64)
    component_of[pieces.label_map] = components.label_map
    return pieces, component_of


class _Numbers:
    """A label map whose components are parted one by one."""

    def __init__(self, components: Instances) -> None:
        self._components = components
        self.label_map = components.label_map.copy()
        self._most = len(components)

    def own(self, number: int) -> NDArray[np.bool_]:
        """A component in its box."""
        x0, y0, x1, y1 = _box_of(self._components, number)
        return np.asarray(self._components.label_map[y0:y1, x0:x1] == number)

    def part(self, number: int, labels: Label) -> None:
        """As labels int32 (h, w) of its box say, of which all of it has one."""
        x0, y0, x1, y1 = _box_of(self._components, number)
        own = self.own(number)
        self.label_map[y0:y1, x0:x1][own] = labels[own] + self._most
        self._most += int(labels.max(initial=0))


def _box_of(components: Instances, number: int) -> Box:
    x0, y0, x1, y1 = components.box_xyxy[number - 1].astype(int).tolist()
    return x0, y0, x1, y1


def _size_if_crowd(components: Instances, number: int, view_px: int, threads: int | None) -> float:
    box = _box_of(components, number)
    own = components.label_map[box[1] : box[3], box[0] : box[2]] == number
    return size_if_crowd(own, box, _size_hw(components), view_px, threads)


def size_if_crowd(
    own: NDArray[np.bool_], box_xyxy: Box, size_hw: tuple[int, int], view_px: int, threads: int | None
) -> float:
    """Diameter in pixels of the objects that a component, bool (h, w) in its box, seems to hold, by the
    regions of its shape; 0: it is no crowd. A crowd's regions are many and of a size: outlines have bumps and
    tables plates, which make many small ones beside large ones."""
    if own.sum() < MANY * _LEAST_CELLS or not _may_be_many(own, view_px, threads):
        return 0.0
    if max(own.shape) > MAX_SIDE:
        _log.warning(
            "a crowd over %d px is not separated: its longer side is %d px", MAX_SIDE, max(own.shape)
        )
        return 0.0
    regions: Instances = cluster(own.astype(np.uint8), split=1.0, min_area=0, threads=threads)
    usual = _usual(regions.area)
    in_view = _diameter(usual) * view_px / view_of(box_xyxy, size_hw, view_px).side
    return (
        _diameter(regions.area.mean())
        if (2 * regions.area >= usual).sum() >= MANY and in_view < _LEAST_PX
        else 0.0
    )


def _may_be_many(own: NDArray[np.bool_], view_px: int, threads: int | None) -> bool:
    """Whether a component has many regions, as seen coarsely: most haven't, and at a frame's resolution it
    takes long to tell."""
    step = -(-max(own.shape) // round(_COARSE * view_px))
    return bool(region_counts(own[None, ::step, ::step].astype(np.uint8), threads)[0] >= MANY)


def _usual(areas: NDArray[np.int32]) -> float:
    """Half of all pixels are in parts of at least this area."""
    ordered = np.sort(areas)
    return float(ordered[np.searchsorted(np.cumsum(ordered), ordered.sum() / 2)])


def _without_crumbs(parts: Instances, least: float) -> Label:
    """Labels of parts, those of smaller ones and of what is none being their neighbours'."""
    large = np.concatenate([[False], parts.area >= least])
    return nearest_label(np.where(large[parts.label_map], parts.label_map, 0))[0]


def _diameter(area: float) -> float:
    return float(2 * np.sqrt(area / np.pi))


def _size_hw(components: Instances) -> tuple[int, int]:
    return components.label_map.shape[0], components.label_map.shape[1]


def _windows(components: Instances, number: int, size: float, view_px: int, most: int) -> list[PlannedView]:
    """Windows over a component of objects of this diameter; where there would be more than ``most``, larger
    ones, as long as they show the objects large enough; else none."""
    x0, y0, x1, y1 = _box_of(components, number)
    side = max(size * view_px / _WANTED_PX, view_px / 4)
    while size * view_px / side >= _LEAST_PX:
        whole = round(side)
        step = max(1.0, whole - _REACH * size)
        corners = [
            View(x, y, whole) for y in _starts(y0, y1, whole, step) for x in _starts(x0, x1, whole, step)
        ]
        shows = [
            v
            for v in corners
            if 2 * np.count_nonzero(window(components.label_map, v) == number) >= size * size
        ]
        if len(shows) <= most:
            return [PlannedView(v, int(components.class_id[number - 1]), number) for v in shows]
        side *= _WIDER
    return []


def _starts(low: int, high: int, side: int, step: float) -> list[int]:
    """Where windows of a side begin that cover low to high, at most a step apart."""
    count = max(1, int(np.ceil((high - low - side) / step)) + 1)
    return (
        [(low + high - side) // 2] if count == 1 else [round(v) for v in np.linspace(low, high - side, count)]
    )


def _objects(
    components: Instances,
    number: int,
    windows: Sequence[PlannedView],
    found: Sequence[Label],
    threads: int | None,
) -> Label:
    """A component's objects as the windows show them, labels int32 (h, w) of its box: what lies whole in one,
    of several that show it the one that it is nearest to the middle of; the rest by shape."""
    x0, y0, x1, y1 = _box_of(components, number)
    own = components.label_map[y0:y1, x0:x1] == number
    labels, count = np.zeros(own.shape, np.int32), 0
    whole = sorted(
        (off, k, label)
        for k, p in enumerate(windows)
        for label, off in _whole(found[k], p.view, (x0, y0, x1, y1))
    )
    shown: dict[int, Label] = {}
    for _, k, label in whole:
        view = windows[k].view
        u0, v0, u1, v1 = (
            max(x0, view.x),
            max(y0, view.y),
            min(x1, view.x + view.side),
            min(y1, view.y + view.side),
        )
        if k not in shown:
            shown[k] = enlarged_labels(found[k], np.arange(1, found[k].max() + 1), view, (u0, v0, u1, v1))
        at = slice(v0 - y0, v1 - y0), slice(u0 - x0, u1 - x0)
        its = (shown[k] == label) & own[at]
        free = its & (labels[at] == 0)
        if free.any() and free.sum() >= _FREE * its.sum():
            count += 1
            labels[at][free] = count
    if not count:
        return own.astype(np.int32)
    usual = np.median(np.bincount(labels.ravel())[1:])
    rest: Instances = cluster((own & (labels == 0)).astype(np.uint8), min_area=0, threads=threads)
    large = np.concatenate([[False], rest.area >= _REST * usual])
    labels = np.where(large[rest.label_map], rest.label_map + count, labels)
    nearest, _ = nearest_label(labels)
    return nearest


def _whole(labels: Label, view: View, box_xyxy: Box) -> list[tuple[int, float]]:
    """Labels int32 (S, S) of a component in this box that lie whole in a view, each with how far from its
    middle."""
    side, (x0, y0, x1, y1), edge = len(labels), box_xyxy, _EDGE_CELLS
    beyond = (
        (view.y > y0, labels[:edge]),
        (view.y + view.side < y1, labels[-edge:]),
        (view.x > x0, labels[:, :edge]),
        (view.x + view.side < x1, labels[:, -edge:]),
    )
    count = np.bincount(labels.ravel(), minlength=1)
    is_whole = count >= _LEAST_CELLS
    is_whole[0] = False
    for goes_on, cells in beyond:
        if goes_on:
            is_whole[cells] = False
    y, x = np.divmod(np.arange(labels.size), side)
    middles = [np.bincount(labels.ravel(), along) / np.maximum(count, 1) for along in (y, x)]
    off = np.maximum(*(np.abs(middle - side / 2) for middle in middles))
    return [(int(label), float(off[label])) for label in np.flatnonzero(is_whole)]
