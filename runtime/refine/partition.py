"""Components of a frame parted into pieces, as the operator cut them in their views, and the table of
instances that pieces make."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from .view import View, at_pixels, boxes_of, extents
from .view_planning import PlannedView

Label = NDArray[np.int32]


@dataclass(frozen=True)
class Placed:
    """The pieces of a frame: ``label_map`` int32 (H, W), 0 = none; by number from 0 on, (n + 1,), ``areas``,
    ``component_of``, ``family_of`` (see ``Parted``) and ``class_of``."""

    label_map: Label
    areas: NDArray[np.int64]
    component_of: NDArray[np.int64]
    family_of: NDArray[np.int64]
    class_of: NDArray[np.int32]


class Parted:
    """The pieces of a frame: ``label_map`` int32 (H, W), at first the components; ``component_of`` each
    number, 0 = none. ``families``: int64 (n + 1,), of each component's number, from 0 on: those of one family
    were one in the class map; default: none were."""

    def __init__(self, components: Instances, families: NDArray[np.int64] | None = None) -> None:
        self.components = components
        self.families = np.arange(len(components) + 1) if families is None else families
        self.label_map: Label = components.label_map.copy()
        self.component_of = list(range(len(components) + 1))

    def placed(self) -> Placed:
        of_piece = np.asarray(self.component_of)
        areas = np.bincount(self.label_map.ravel(), minlength=len(of_piece))
        class_of = np.concatenate([[0], self.components.class_id])[of_piece]
        return Placed(self.label_map, areas, of_piece, self.families[of_piece], class_of)

    def cut(self, planned: PlannedView, labels: Label) -> list[int]:
        """Part a component, or a piece of one, as its own view's labels int32 (S, S), 0 = none, say. The
        largest part keeps the number, the others get new ones; returns the numbers of all, none where there
        was nothing to part."""
        count = np.bincount(labels.ravel(), minlength=1)
        count[0] = 0
        parts = np.flatnonzero(count)
        if len(parts) < 2:
            return []
        component, view = self.component_of[planned.component], planned.view
        x0, y0, x1, y1 = self.components.box_xyxy[component - 1].astype(int).tolist()
        x0, y0, x1, y1 = (
            max(x0, view.x),
            max(y0, view.y),
            min(x1, view.x + view.side),
            min(y1, view.y + view.side),
        )
        of_pixel = enlarged_labels(labels, parts, view, (x0, y0, x1, y1))
        spot = self.label_map[y0:y1, x0:x1]
        own = spot == planned.component
        numbers = [planned.component]
        for part in parts[parts != count.argmax()]:
            its = own & (of_pixel == part)
            if its.any():
                numbers.append(len(self.component_of))
                spot[its] = numbers[-1]
                self.component_of.append(component)
        return numbers


def nearest_label(labels: Label) -> tuple[Label, NDArray[np.float32]]:
    """The nearest label of each pixel of an int32 map (H, W) in which some are labelled, 0 = not, and its
    distance in pixels."""
    inside = labels > 0
    distance, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_zone = np.zeros(int(nearest.max()) + 1, np.int32)
    of_zone[nearest[inside]] = labels[inside]
    return of_zone[nearest], np.asarray(distance, np.float32)


def enlarged_labels(
    labels: Label, parts: NDArray[np.intp], view: View, box_xyxy: tuple[int, int, int, int]
) -> Label:
    """Labels of the grid at the pixels of a box: of all parts the one that, interpolated, has most weight;
    smooth where nearest is not."""
    x0, y0, x1, y1 = box_xyxy
    filled, _ = nearest_label(labels)
    best = np.full((y1 - y0, x1 - x0), -1, np.float32)
    winner = np.zeros((y1 - y0, x1 - x0), np.int32)
    for part in parts:
        weight = at_pixels((filled == part).astype(np.float32), view, box_xyxy)
        higher = weight > best
        best[higher] = weight[higher]
        winner[higher] = part
    return winner


def instances_of(label_map: Label, components: Instances) -> Instances:
    """Instances of a label map with gaps, numbered by first pixel; class, score and track id from the
    components that they are made of."""
    at = np.flatnonzero(label_map)
    given, component = label_map.ravel()[at], components.label_map.ravel()[at]
    first = np.full(int(given.max(initial=0)) + 1, at.size)
    first[given[::-1]] = np.arange(at.size)[
        ::-1
    ]  # the last one written is a label's first pixel; no sorting of pixels
    n = int((first < at.size).sum())
    rank = np.zeros(len(first), np.int32)
    rank[np.argsort(first, kind="stable")[:n]] = np.arange(1, n + 1)
    height, width = label_map.shape
    which = rank[given].astype(np.int64)
    rows, columns = extents(at, which, n, (height, width))
    made_of = np.bincount(
        which * (len(components) + 1) + component, minlength=(n + 1) * (len(components) + 1)
    )
    made_of = made_of.reshape(n + 1, len(components) + 1)[1:, 1:]
    most = made_of.argmax(1) if n else np.zeros(0, np.intp)
    area = rows.sum(1)
    count = np.maximum(area, 1)
    return replace(
        components,
        label_map=rank[label_map],
        class_id=components.class_id[most],
        track_id=None if components.track_id is None else components.track_id[most],
        score=(made_of @ components.score.astype(np.float64) / count).astype(np.float32),
        box_xyxy=boxes_of(rows, columns).astype(np.float32),
        area=area.astype(np.int32),
        centroid_xy=np.stack(
            [(columns @ np.arange(width)) / count, (rows @ np.arange(height)) / count], axis=1
        ).astype(np.float32),
    )
