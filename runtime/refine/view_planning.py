"""Planning of the views of a frame: of components, of classes, and closer views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from .view import (
    View,
    crop_labels,
    make_view,
    project_labels,
    projected_boxes,
    render_mask,
    render_view,
    solidity,
)

MAX_VIEWS = 64  # per frame
_MAX_CANDIDATES = 256  # components per frame whose solidity is measured
_MIN_SIDE_PX = 10  # smaller components are never split
_MIN_MASK_SIDE_PX = 20  # smaller masks are not refined
_SIMILAR_SIDE = 0.75  # ratio of sides from which on two views show the same
_CONVEX = 0.95  # solidity above which a component counts as convex


@dataclass(frozen=True)
class PlannedView:
    """A view, its class, and the label of its component or part; 0: all of the class."""

    view: View
    class_id: int
    component: int


@dataclass(frozen=True)
class RenderedViews:
    """Rendered inputs of the instance network for K views of side S.

    Attributes:
        images: uint8 (K, S, S, 3) BGR.
        masks: mask of the view's class, uint8 (K, S, S), 0 or 1.
        own: mask of the view's component, uint8 (K, S, S), 0 or 1, connected as in the frame.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    own: NDArray[np.uint8]


def plan_views(components: Instances, view_px: int) -> list[PlannedView]:
    """Plan views of components, largest first, then of classes with several of them."""
    size_hw = (components.label_map.shape[0], components.label_map.shape[1])
    boxes = components.box_xyxy.astype(int)
    order = [
        int(i) for i in np.argsort(-components.area, kind="stable") if _longer_side(boxes[i]) >= _MIN_SIDE_PX
    ]
    of_components = [
        PlannedView(make_view(tuple(boxes[i].tolist()), size_hw, view_px), int(components.class_id[i]), i + 1)
        for i in order
    ]
    of_classes = []
    for class_id in np.unique(components.class_id):
        class_boxes = boxes[components.class_id == class_id]
        if len(class_boxes) < 2:
            continue
        box = (*class_boxes[:, :2].min(0).tolist(), *class_boxes[:, 2:].max(0).tolist())
        view = make_view(box, size_hw, view_px)
        largest = max((p.view.side for p in of_components if p.class_id == class_id), default=0)
        if largest and largest < _SIMILAR_SIDE * view.side:
            of_classes.append(PlannedView(view, int(class_id), 0))
    return of_components + of_classes


def plan_mask_views(components: Instances, view_px: int, max_views: int) -> list[PlannedView]:
    """Plan views for mask refinement: of the largest components, at most ``max_views``."""
    boxes = components.box_xyxy.astype(int)
    planned = [p for p in plan_views(components, view_px) if p.component]
    return [p for p in planned if _longer_side(boxes[p.component - 1]) >= _MIN_MASK_SIDE_PX][:max_views]


def plan_informative_views(
    components: Instances, view_px: int
) -> tuple[list[PlannedView], NDArray[np.uint8]]:
    """Plan the views that can change the result; also return ``render_components`` of them."""
    return _without_convex(components.label_map, plan_views(components, view_px), view_px)


def plan_closer_views(
    label_map: NDArray[np.int32], split_in: Mapping[int, PlannedView], view_px: int
) -> tuple[list[PlannedView], NDArray[np.uint8]]:
    """Plan views of parts that enlarge them more than the view in which they were split.

    In a view of many objects, each one is small. Views of their own show more.

    Args:
        label_map: parts, int32 (H, W).
        split_in: label of a part -> the view in which it was split.
        view_px: side S of rendered views in pixels.

    Returns:
        As ``plan_informative_views``, largest parts first.
    """
    size_hw = label_map.shape[0], label_map.shape[1]
    rank = np.zeros(max(int(label_map.max(initial=0)), *split_in, 0) + 1, np.int64)
    rank[[*split_in]] = np.arange(1, len(split_in) + 1)
    ranks = rank[label_map.ravel()]
    index = np.flatnonzero(ranks)
    rows, columns = project_labels(index, ranks[index], len(split_in), size_hw)
    area, boxes, parts = rows.sum(1), projected_boxes(rows, columns), [*split_in]
    planned = []
    for k in np.argsort(-area, kind="stable").tolist():
        last, view = split_in[parts[k]], make_view(tuple(boxes[k].tolist()), size_hw, view_px)
        if area[k] and _longer_side(boxes[k]) >= _MIN_SIDE_PX and view.side < _SIMILAR_SIDE * last.view.side:
            planned.append(PlannedView(view, last.class_id, parts[k]))
    return _without_convex(label_map, planned, view_px)


def select_informative_views(planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
    """Return the indices of views that can change the result: not those of convex components.

    Args:
        planned: K views.
        own: ``render_components`` of them, uint8 (K, S, S).
    """
    return [k for k, p in enumerate(planned) if not (p.component and solidity(own[k]) > _CONVEX)]


def render_components(
    label_map: NDArray[np.int32], planned: Sequence[PlannedView], view_px: int
) -> NDArray[np.uint8]:
    """Render the mask of each view's component, connected as in the frame.

    Args:
        label_map: components or parts, int32 (H, W).
        planned: K views.
        view_px: side S of rendered views in pixels.

    Returns:
        uint8 (K, S, S), 0 or 1; all 0 for views of a class.
    """
    own = np.zeros((len(planned), view_px, view_px), np.uint8)
    for k, p in enumerate(planned):
        if p.component:
            mask = (crop_labels(label_map, p.view) == p.component).astype(np.uint8)
            rendered = render_view(mask * np.uint8(255), View(0, 0, p.view.side), view_px, padding=0)
            # a view that shrinks keeps each pixel that the mask touches, so that thin parts stay connected
            own[k] = rendered > (0 if p.view.side > view_px else 127)
    return own


def render_views(
    image: NDArray[np.uint8], components: Instances, planned: Sequence[PlannedView], view_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render ``images`` and ``masks`` of ``RenderedViews`` from a frame uint8 (H, W, 3) BGR."""
    shape = (len(planned), view_px, view_px)
    images, masks = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
    class_of = np.concatenate([[0], components.class_id])
    for k, p in enumerate(planned):
        images[k] = render_view(image, p.view, view_px)
        mask = (class_of == p.class_id).astype(np.uint8)[crop_labels(components.label_map, p.view)]
        masks[k] = render_mask(mask, View(0, 0, p.view.side), view_px)
    return images, masks


def plan_and_render_views(
    image: NDArray[np.uint8], components: Instances, view_px: int, max_views: int = MAX_VIEWS
) -> tuple[list[PlannedView], RenderedViews]:
    """Plan and render the informative views of a frame uint8 (H, W, 3) BGR."""
    planned, own = plan_informative_views(components, view_px)
    planned, own = planned[:max_views], own[:max_views]
    return planned, RenderedViews(*render_views(image, components, planned, view_px), own)


def _longer_side(box_xyxy: NDArray[np.int64]) -> int:
    return int((box_xyxy[2:] - box_xyxy[:2]).max())


def _without_convex(
    label_map: NDArray[np.int32], planned: Sequence[PlannedView], view_px: int
) -> tuple[list[PlannedView], NDArray[np.uint8]]:
    """Remove views of convex components, of which there may be hundreds."""
    of_components = [
        p for p in planned if p.component and not (p.view.side < view_px and _is_convex(label_map, p))
    ]
    planned = of_components[:_MAX_CANDIDATES] + [p for p in planned if not p.component]
    own = render_components(label_map, planned, view_px)
    kept = select_informative_views(planned, own)
    return [planned[k] for k in kept], own[kept]


def _is_convex(label_map: NDArray[np.int32], planned: PlannedView) -> bool:
    """Check at the frame's resolution whether a small component is convex."""
    mask = (crop_labels(label_map, planned.view) == planned.component).astype(np.uint8)
    # components that were found on a coarser grid may have several outlines
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # outlines through pixel centers: the corners of pixels are steps that look like dents
    hull = cv2.convexHull(np.concatenate(outlines))
    return sum(map(cv2.contourArea, outlines)) > _CONVEX * cv2.contourArea(hull)
