"""From components of a class map to instances, by looking at them: views of components go through the instance network, the operator
cuts each component in its own view, and pieces that an occluder parted are joined again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..instances import Instances
from ..plugins.operator import SHARPEN, cluster
from .instance_session import DEFAULT_INSTANCE_MODEL, InstanceMaps, InstanceSession
from .joins import Pieces, rule_log_odds
from .sessions import DEFAULT_PROVIDERS
from .views import VIEW_PX, View, cut, cut_mask, sample, solidity, view_of, window

JOIN_GRID_PX = VIEW_PX // 2
MAX_VIEWS = 64  # a frame
_MIN_SIDE_PX = 20  # in smaller components there is nothing to see: their shape decides
_SEEN_SHARE = 0.7  # of a piece that must lie inside a view for the view to place it
# two pieces of like size are two objects more often than not, and in a view of a crowd nothing can be told (found in the first trial)
_GUEST_SHARE = 0.4  # of the host's area, at most
_HOST_CELLS = 400  # of the join grid, at least
_ALIKE_VIEW = 0.75  # a component's view this large beside the class's stands for both

_CONVEX = 0.95  # area over convex hull, from which on a component is let be

Label = NDArray[np.int32]


class Refiner:
    """Instances from a frame and the connected components of its class map, by the instance network. It knows no classes, so the class
    map may come from any network.

    Args:
        model: path of an instance network; default: the one that comes with tfiseg.
        max_views: at most this many views a frame, the largest components first; what gets none stays as it is, unless it is so small
            that its shape decides.
        threads: CPU threads; 0 = all that the process may use.
        providers: ONNX Runtime execution providers.

    Raises:
        ModelError: the model can't be used. InputError: picture and components differ in size.

    Example:
        >>> components = tfiseg.cluster(class_map, split=0)
        >>> instances = tfiseg.Refiner()(picture, components)
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        max_views: int = MAX_VIEWS,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        if max_views < 1:
            raise InputError(f"max_views must be at least 1, got {max_views}")
        self.session = InstanceSession(model or DEFAULT_INSTANCE_MODEL, threads, providers)
        self.max_views = max_views
        self.threads = threads or None

    def __call__(self, image: NDArray[np.uint8], components: Instances) -> Instances:
        """Instances of one picture uint8 (H, W, 3) BGR from the components of its class map, as ``cluster(..., split=0)`` gives them."""
        if image.shape[:2] != components.label_map.shape:
            raise InputError(
                f"the picture is {image.shape[:2]}, its components are of {components.label_map.shape}: they must be of one size"
            )
        began = time.perf_counter()
        planned, looks = looked_at(image, components, self.max_views)
        small = cut_by_shape(components, self.threads)
        if not planned and not small:
            return components
        looked = time.perf_counter()
        maps = self.session.infer(looks.images, looks.masks)
        told = time.perf_counter()
        found = self._cut_views(planned, looks, maps)
        join_rule = self.session.rules.get("join")
        label_map = merge_back(components, planned, found, looks, maps, self.session.affinity_offsets, join_rule, small)
        refined = instances_of(label_map, components)
        steps = (began, looked, told, time.perf_counter())
        times = {name: (b - a) * 1e3 for name, a, b in zip(("views", "instance network", "merge"), steps, steps[1:], strict=False)}
        return replace(refined, stage_ms={**components.stage_ms, **times})

    def _cut_views(self, planned: Sequence[PlannedView], looks: Looks, maps: InstanceMaps) -> list[Label]:
        """What the operator makes of each view's own component: label maps int32 (S, S); of views without one, zeros."""
        own = [k for k, p in enumerate(planned) if p.component]
        labels = [np.zeros((VIEW_PX, VIEW_PX), np.int32)] * len(planned)
        cuts = cluster(
            looks.own[own],
            affinity=maps.affinity[own],
            boundary=maps.boundary[own, 0],
            affinity_offsets=self.session.affinity_offsets,
            merge_rule=self.session.rules.get("merge"),
            sharpen=SHARPEN,
            min_area=0,
            threads=self.threads,
        )
        for k, cut_up in zip(own, cuts, strict=True):
            labels[k] = cut_up.label_map
        return labels


@dataclass(frozen=True)
class PlannedView:
    """A view, the class it looks at, and the component (its number) that it was made for; 0: for all of the class."""

    view: View
    class_id: int
    component: int


def plan_views(components: Instances) -> list[PlannedView]:
    """Views of one frame: each component's own, largest first, then one of each class that has several components."""
    size_hw = (components.label_map.shape[0], components.label_map.shape[1])
    boxes = components.box_xyxy.astype(int)
    order = [int(i) for i in np.argsort(-components.area, kind="stable") if _side(boxes[i]) >= _MIN_SIDE_PX]
    own = [PlannedView(view_of(tuple(boxes[i].tolist()), size_hw), int(components.class_id[i]), i + 1) for i in order]
    whole = []
    for class_id in np.unique(components.class_id):
        its = boxes[components.class_id == class_id]
        if len(its) < 2:
            continue
        view = view_of((*its[:, :2].min(0).tolist(), *its[:, 2:].max(0).tolist()), size_hw)
        largest = max((p.view.side for p in own if p.class_id == class_id), default=0)
        if largest and largest < _ALIKE_VIEW * view.side:
            whole.append(PlannedView(view, int(class_id), 0))
    return own + whole


def _side(box_xyxy: NDArray[np.int64]) -> int:
    return int((box_xyxy[2:] - box_xyxy[:2]).max())


def own_masks(components: Instances, planned: Sequence[PlannedView]) -> NDArray[np.uint8]:
    """The component that each view was made for, uint8 (K, S, S) 0/1, in one piece as it is in the frame; zeros where there is none."""
    own = np.zeros((len(planned), VIEW_PX, VIEW_PX), np.uint8)
    for k, p in enumerate(planned):
        if p.component:  # where it shrinks, every cell that it touches: thin parts must not fall off
            its = (window(components.label_map, p.view) == p.component).astype(np.uint8)
            seen = cut(its * np.uint8(255), View(0, 0, p.view.side), outside=0)
            own[k] = seen > (0 if p.view.side > VIEW_PX else 127)
    return own


def doubtful(planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
    """Which views are worth a look, by number: not those of components that are convex, where nothing could be cut."""
    return [k for k, p in enumerate(planned) if not (p.component and solidity(own[k]) > _CONVEX)]


@dataclass(frozen=True)
class Looks:
    """What the views show: ``images`` uint8 (K, S, S, 3) BGR; ``masks`` uint8 (K, S, S), 0/1 of the view's class; ``own`` uint8
    (K, S, S), 0/1 of the component that the view was made for, in one piece as it is in the frame."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    own: NDArray[np.uint8]


def look(image: NDArray[np.uint8], components: Instances, planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> Looks:
    """Cut the views out of a frame uint8 (H, W, 3) BGR; ``own`` as ``own_masks`` gives it."""
    shape = (len(planned), VIEW_PX, VIEW_PX)
    images, masks = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
    class_of = np.concatenate([[0], components.class_id]).astype(np.int32)
    for k, p in enumerate(planned):
        images[k] = cut(image, p.view)
        its = class_of[window(components.label_map, p.view)] == p.class_id
        masks[k] = cut_mask(its.astype(np.uint8), View(0, 0, p.view.side))
    return Looks(images, masks, own)


def looked_at(image: NDArray[np.uint8], components: Instances, max_views: int = MAX_VIEWS) -> tuple[list[PlannedView], Looks]:
    """The views of a frame that are worth a look, at most ``max_views``, and what they show."""
    planned = plan_views(components)
    own = own_masks(components, planned)
    kept = doubtful(planned, own)[:max_views]
    planned = [planned[k] for k in kept]
    return planned, look(image, components, planned, own[kept])


def cut_by_shape(components: Instances, threads: int | None = None) -> list[tuple[int, Label]]:
    """Components too small to be looked at that their shape parts: number, and label map int32 (h, w) of the component's box."""
    boxes = components.box_xyxy.astype(int)
    small = [i for i in range(len(components)) if _side(boxes[i]) < _MIN_SIDE_PX]
    tiles = np.zeros((len(small), _MIN_SIDE_PX + 2, _MIN_SIDE_PX + 2), np.uint8)  # a frame's edge is no edge of an object: a margin
    for tile, i in zip(tiles, small, strict=True):
        x0, y0, x1, y1 = boxes[i].tolist()
        tile[1 : y1 - y0 + 1, 1 : x1 - x0 + 1] = components.label_map[y0:y1, x0:x1] == i + 1
    parted = []
    for i, found in zip(small, cluster(tiles, min_area=0, threads=threads), strict=True):
        if len(found) > 1:
            x0, y0, x1, y1 = boxes[i].tolist()
            parted.append((i + 1, found.label_map[1 : y1 - y0 + 1, 1 : x1 - x0 + 1]))
    return parted


def merge_back(
    components: Instances,
    planned: Sequence[PlannedView],
    found: Sequence[Label],
    looks: Looks,
    maps: InstanceMaps,
    offsets: NDArray[np.int32],
    join_rule: NDArray[np.float32] | None,
    small: Sequence[tuple[int, Label]] = (),
) -> Label:
    """The frame's label map (numbers with gaps).

    Args:
        components: of the frame.
        planned, looks, maps: the views, what they show, and what the network says of them.
        found: label map of each view's own component, int32 (S, S), as the operator cut it.
        offsets: of the affinities.
        join_rule: see joins.py; None: nothing is joined.
        small: components without a view that are parted, see ``cut_by_shape``.
    """
    pieces = components.label_map.copy()
    component_of = list(range(len(components) + 1))
    for p, labels in zip(planned, found, strict=True):
        if p.component:
            _cut(pieces, component_of, components, p, labels)
    for number, labels in small:
        x0, y0, x1, y1 = components.box_xyxy[number - 1].astype(int).tolist()
        _part(pieces[y0:y1, x0:x1], component_of, number, labels, np.arange(2, labels.max() + 1))
    if join_rule is None:
        return pieces
    areas = np.bincount(pieces.ravel(), minlength=len(component_of))
    of_piece = np.asarray(component_of)
    of_class = np.concatenate([[0], components.class_id])[of_piece]
    candidates: dict[tuple[int, int], float] = {}
    for k, p in enumerate(planned):
        for pair, log_odds in _judged(pieces, areas, of_piece, of_class, p, looks.images[k], maps, k, offsets, join_rule):
            candidates.setdefault(pair, log_odds)  # a component's own view comes first: it is closer
    joins = _Joins(component_of)
    for (a, b), log_odds in sorted(candidates.items(), key=lambda item: (-item[1], item[0])):
        if log_odds > 0:
            joins.unite(a, b)
    return joins.numbers()[pieces].astype(np.int32)


def _cut(pieces: Label, component_of: list[int], components: Instances, planned: PlannedView, labels: Label) -> None:
    """Part a component as its own view says; new pieces get new numbers."""
    count = np.bincount(labels.ravel(), minlength=1)
    count[0] = 0
    parts = np.flatnonzero(count)
    if len(parts) < 2:
        return
    x0, y0, x1, y1 = components.box_xyxy[planned.component - 1].astype(int).tolist()
    of_pixel = _enlarged(labels, parts, planned.view, (x0, y0, x1, y1))
    _part(pieces[y0:y1, x0:x1], component_of, planned.component, of_pixel, parts[parts != count.argmax()])


def _part(spot: Label, component_of: list[int], number: int, of_pixel: Label, parts: NDArray[np.intp]) -> None:
    """Give these parts of component ``number`` new numbers, in its box of the frame."""
    own = spot == number
    for part in parts:
        its = own & (of_pixel == part)
        if its.any():
            spot[its] = len(component_of)
            component_of.append(number)


def _judged(
    pieces: Label,
    areas: NDArray[np.int64],
    of_piece: NDArray[np.int64],
    of_class: NDArray[np.int32],
    planned: PlannedView,
    image: NDArray[np.uint8],
    maps: InstanceMaps,
    k: int,
    offsets: NDArray[np.int32],
    join_rule: NDArray[np.float32],
) -> list[tuple[tuple[int, int], float]]:
    """((piece, piece), log-odds that they are one object) of the pairs that a view can tell about: pieces of its class and of different
    components; in a component's own view those with it. ``of_piece``, ``of_class``: component and class of each piece."""
    there = sample(pieces, planned.view, JOIN_GRID_PX)
    numbers, count = np.unique(there, return_counts=True)
    cell_px = (planned.view.side / JOIN_GRID_PX) ** 2
    seen = (of_class[numbers] == planned.class_id) & (count * cell_px >= _SEEN_SHARE * areas[numbers])
    numbers = numbers[seen]
    if len(numbers) < 2:
        return []
    i, j = np.nonzero(np.triu(of_piece[numbers][:, None] != of_piece[numbers][None], 1))
    if planned.component:
        own = of_piece[numbers] == planned.component
        i, j = (x[own[i] | own[j]] for x in (i, j))
    size = count[seen]
    lesser, greater = np.minimum(size[i], size[j]), np.maximum(size[i], size[j])
    fits = (lesser <= _GUEST_SHARE * greater) & (greater >= _HOST_CELLS)
    i, j = i[fits], j[fits]
    if not len(i):
        return []
    asked = np.unique(np.concatenate([i, j]))  # what is in no pair need not be measured
    rank = np.zeros(len(areas), np.int32)
    rank[numbers[asked]] = np.arange(1, len(asked) + 1)
    other = (there > 0) & (of_class[there] != planned.class_id)
    shown = Pieces(rank[there], other, image, maps.displacement[k], maps.affinity[k], offsets)
    log_odds = rule_log_odds(join_rule, shown.features(np.searchsorted(asked, i), np.searchsorted(asked, j)))
    return [((int(numbers[a]), int(numbers[b])), float(v)) for a, b, v in zip(i, j, log_odds, strict=True)]


def _enlarged(labels: Label, parts: NDArray[np.intp], view: View, box_xyxy: tuple[int, int, int, int]) -> Label:
    """Labels of the grid at the pixels of a box: of all parts the one that, interpolated, has most weight; smooth where nearest is not."""
    x0, y0, x1, y1 = box_xyxy
    zoom = VIEW_PX / view.side
    to_grid = np.array([[zoom, 0, (x0 - view.x + 0.5) * zoom - 0.5], [0, zoom, (y0 - view.y + 0.5) * zoom - 0.5]], np.float64)
    _, nearest = cv2.distanceTransformWithLabels((labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    of_zone = np.zeros(int(nearest.max()) + 1, np.int32)
    of_zone[nearest[labels > 0]] = labels[labels > 0]
    filled = of_zone[nearest]
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    best = np.full((y1 - y0, x1 - x0), -1, np.float32)
    winner = np.zeros((y1 - y0, x1 - x0), np.int32)
    for part in parts:
        its = (filled == part).astype(np.float32)
        weight = cv2.warpAffine(its, to_grid, (x1 - x0, y1 - y0), flags=how, borderMode=cv2.BORDER_REPLICATE)
        higher = weight > best
        best[higher] = weight[higher]
        winner[higher] = part
    return winner


class _Joins:
    """Union of pieces, but never of two that a component was parted into."""

    def __init__(self, component_of: Sequence[int]) -> None:
        self._root = list(range(len(component_of)))
        self._parts = [{c: i} for i, c in enumerate(component_of)]

    def find(self, i: int) -> int:
        while self._root[i] != i:
            i = self._root[i]
        return i

    def unite(self, host: int, guest: int) -> None:
        a, b = self.find(host), self.find(guest)
        if a != b and not self._parts[a].keys() & self._parts[b].keys():
            self._root[b] = a
            self._parts[a] |= self._parts[b]

    def numbers(self) -> NDArray[np.int64]:
        return np.array([self.find(i) for i in range(len(self._root))])


def instances_of(label_map: Label, components: Instances) -> Instances:
    """Instances of a label map with gaps, numbered by first pixel; class and score from the components that they are made of."""
    at = np.flatnonzero(label_map)
    given, component = label_map.ravel()[at], components.label_map.ravel()[at]
    first = np.full(int(given.max(initial=0)) + 1, at.size)
    first[given[::-1]] = np.arange(at.size)[::-1]  # the last one written is a label's first pixel; no sorting of pixels
    n = int((first < at.size).sum())
    rank = np.zeros(len(first), np.int32)
    rank[np.argsort(first, kind="stable")[:n]] = np.arange(1, n + 1)
    height, width = label_map.shape
    which = rank[given].astype(np.int64)
    y, x = np.divmod(at, width)
    rows = np.bincount(which * height + y, minlength=(n + 1) * height).reshape(n + 1, height)[1:]
    columns = np.bincount(which * width + x, minlength=(n + 1) * width).reshape(n + 1, width)[1:]
    made_of = np.bincount(which * (len(components) + 1) + component, minlength=(n + 1) * (len(components) + 1))
    made_of = made_of.reshape(n + 1, len(components) + 1)[1:, 1:]
    area = rows.sum(1)
    low = [(columns > 0).argmax(1), (rows > 0).argmax(1)]
    high = [width - (columns[:, ::-1] > 0).argmax(1), height - (rows[:, ::-1] > 0).argmax(1)]
    count = np.maximum(area, 1)
    return replace(
        components,
        label_map=rank[label_map],
        class_id=components.class_id[made_of.argmax(1)] if n else components.class_id[:0],
        score=(made_of @ components.score.astype(np.float64) / count).astype(np.float32),
        box_xyxy=np.stack([*low, *high], axis=1).astype(np.float32),
        area=area.astype(np.int32),
        centroid_xy=np.stack([(columns @ np.arange(width)) / count, (rows @ np.arange(height)) / count], axis=1).astype(np.float32),
    )
