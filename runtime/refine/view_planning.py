"""Which views of a frame are looked at, and what they show: one of each component, and one of each class that
has several; then closer ones of what was parted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from .view import View, boxes_of, cut, cut_mask, extents, solidity, view_of, window

MAX_VIEWS = 64  # a frame
_MOST_CANDIDATES = 256  # components that are looked at by their shape, for these
_MIN_SIDE_PX = 10  # in smaller components there is nothing to part
_MIN_OUTLINED_PX = 20  # smaller ones have no outline to speak of
_ALIKE_VIEW = 0.75  # a view this large beside another stands for both
_CONVEX = 0.95  # area over convex hull, from which on a component is let be


@dataclass(frozen=True)
class PlannedView:
    """A view, the class it looks at, and the component, or piece of one (its number), that it was made for;
    0: for all of the class."""

    view: View
    class_id: int
    component: int


def plan_views(components: Instances, view_px: int) -> list[PlannedView]:
    """Views of one frame: each component's own, largest first, then one of each class that has several
    components."""
    size_hw = (components.label_map.shape[0], components.label_map.shape[1])
    boxes = components.box_xyxy.astype(int)
    order = [
        int(i) for i in np.argsort(-components.area, kind="stable") if longest_side(boxes[i]) >= _MIN_SIDE_PX
    ]
    own = [
        PlannedView(view_of(tuple(boxes[i].tolist()), size_hw, view_px), int(components.class_id[i]), i + 1)
        for i in order
    ]
    whole = []
    for class_id in np.unique(components.class_id):
        its = boxes[components.class_id == class_id]
        if len(its) < 2:
            continue
        view = view_of((*its[:, :2].min(0).tolist(), *its[:, 2:].max(0).tolist()), size_hw, view_px)
        largest = max((p.view.side for p in own if p.class_id == class_id), default=0)
        if largest and largest < _ALIKE_VIEW * view.side:
            whole.append(PlannedView(view, int(class_id), 0))
    return own + whole


def component_views(components: Instances, view_px: int, max_views: int) -> list[PlannedView]:
    """Each component's own view, the largest first, at most so many, where it has an outline to be drawn."""
    boxes = components.box_xyxy.astype(int)
    own = [p for p in plan_views(components, view_px) if p.component]
    return [p for p in own if longest_side(boxes[p.component - 1]) >= _MIN_OUTLINED_PX][:max_views]


def longest_side(box_xyxy: NDArray[np.int64]) -> int:
    return int((box_xyxy[2:] - box_xyxy[:2]).max())


def own_masks(
    label_map: NDArray[np.int32], planned: Sequence[PlannedView], view_px: int
) -> NDArray[np.uint8]:
    """The component, or piece, that each view was made for, uint8 (K, S, S) 0/1, connected as in the frame;
    zeros where there is none."""
    own = np.zeros((len(planned), view_px, view_px), np.uint8)
    for k, p in enumerate(planned):
        if p.component:  # where it shrinks, every cell that it touches: thin parts must not fall off
            its = (window(label_map, p.view) == p.component).astype(np.uint8)
            seen = cut(its * np.uint8(255), View(0, 0, p.view.side), view_px, outside=0)
            own[k] = seen > (0 if p.view.side > view_px else 127)
    return own


def doubtful(planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
    """Which views are worth a look, by number: not those of components that are convex, where nothing could
    be cut."""
    return [k for k, p in enumerate(planned) if not (p.component and solidity(own[k]) > _CONVEX)]


def _is_round(label_map: NDArray[np.int32], planned: PlannedView) -> bool:
    """Whether a small component is convex, as far as its pixels can tell: not worth a view, of which there
    could be hundreds."""
    its = (window(label_map, planned.view) == planned.component).astype(np.uint8)
    outlines, _ = cv2.findContours(
        its, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )  # several: parts of a grid's component
    # through the centres of pixels: their corners make steps, which are no dents
    return sum(map(cv2.contourArea, outlines)) > _CONVEX * cv2.contourArea(
        cv2.convexHull(np.concatenate(outlines))
    )


@dataclass(frozen=True)
class Looks:
    """What the views show: ``images`` uint8 (K, S, S, 3) BGR; ``masks`` uint8 (K, S, S), 0/1 of the view's
    class; ``own`` uint8 (K, S, S), 0/1 of the component that the view was made for, in one piece as it is in
    the frame."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    own: NDArray[np.uint8]


def look(
    image: NDArray[np.uint8], components: Instances, planned: Sequence[PlannedView], own: NDArray[np.uint8]
) -> Looks:
    """Cut the views out of a frame uint8 (H, W, 3) BGR; ``own`` as ``own_masks`` gives it."""
    return Looks(*shown(image, components, planned, own.shape[1]), own)


def shown(
    image: NDArray[np.uint8], components: Instances, planned: Sequence[PlannedView], view_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """``images`` and ``masks`` of ``Looks``."""
    shape = (len(planned), view_px, view_px)
    images, masks = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
    class_of = np.concatenate([[0], components.class_id])
    for k, p in enumerate(planned):
        images[k] = cut(image, p.view, view_px)
        its = (class_of == p.class_id).astype(np.uint8)[window(components.label_map, p.view)]
        masks[k] = cut_mask(its, View(0, 0, p.view.side), view_px)
    return images, masks


def worth_a_look(components: Instances, view_px: int) -> tuple[list[PlannedView], NDArray[np.uint8]]:
    """The views of a frame that could tell something, and the component that each was made for (see
    ``own_masks``)."""
    return _telling(components.label_map, plan_views(components, view_px), view_px)


def closer_looks(
    label_map: NDArray[np.int32], cut_in: Mapping[int, PlannedView], view_px: int
) -> tuple[list[PlannedView], NDArray[np.uint8]]:
    """The same of pieces of components, largest first: those that a view of their own shows closer than the
    one that each was ``cut_in``, by its number in ``label_map`` int32 (H, W). Among many, an object is small
    in the view of all."""
    size_hw = label_map.shape[0], label_map.shape[1]
    rank = np.zeros(max(int(label_map.max(initial=0)), *cut_in, 0) + 1, np.int64)
    rank[[*cut_in]] = np.arange(1, len(cut_in) + 1)
    number = rank[label_map.ravel()]
    at = np.flatnonzero(number)
    rows, columns = extents(at, number[at], len(cut_in), size_hw)
    area, boxes, numbers = rows.sum(1), boxes_of(rows, columns), [*cut_in]
    planned = []
    for k in np.argsort(-area, kind="stable").tolist():
        seen, view = cut_in[numbers[k]], view_of(tuple(boxes[k].tolist()), size_hw, view_px)
        if area[k] and longest_side(boxes[k]) >= _MIN_SIDE_PX and view.side < _ALIKE_VIEW * seen.view.side:
            planned.append(PlannedView(view, seen.class_id, numbers[k]))
    return _telling(label_map, planned, view_px)


def _telling(
    label_map: NDArray[np.int32], planned: Sequence[PlannedView], view_px: int
) -> tuple[list[PlannedView], NDArray[np.uint8]]:
    of_component = [
        p for p in planned if p.component and not (p.view.side < view_px and _is_round(label_map, p))
    ]
    planned = of_component[:_MOST_CANDIDATES] + [p for p in planned if not p.component]
    own = own_masks(label_map, planned, view_px)
    kept = doubtful(planned, own)
    return [planned[k] for k in kept], own[kept]


def looked_at(
    image: NDArray[np.uint8], components: Instances, view_px: int, max_views: int = MAX_VIEWS
) -> tuple[list[PlannedView], Looks]:
    """The views of a frame that could tell something, at most ``max_views``, and what they show."""
    planned, own = worth_a_look(components, view_px)
    planned, own = planned[:max_views], own[:max_views]
    return planned, look(image, components, planned, own)
