"""Partition of a frame's components into parts, and the instances that the parts make."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from .view import View, project_labels, projected_boxes, resample_to_box
from .view_planning import PlannedView

Label = NDArray[np.int32]


@dataclass(frozen=True)
class PartitionSnapshot:
    """The state of a ``Partition`` of n parts.

    Arrays of length n + 1 are indexed by label; 0 is the background.

    Attributes:
        label_map: int32 (H, W), 0..n.
        areas: pixels of each part, int64 (n + 1,).
        component_of: component of each part, int64 (n + 1,).
        origin_of: component of the class map that contains each part, int64 (n + 1,).
        class_of: class of each part, int32 (n + 1,).
    """

    label_map: Label
    areas: NDArray[np.int64]
    component_of: NDArray[np.int64]
    origin_of: NDArray[np.int64]
    class_of: NDArray[np.int32]


class Partition:
    """The parts of a frame's n components: at first, one part per component.

    ``label_map`` int32 (H, W) holds the parts.

    Args:
        components: connected components of the class map, or the parts of its crowds.
        origins: component of the class map that contains each component, int64 (n + 1,), 0 first; default:
            each component is one of the class map.
    """

    def __init__(self, components: Instances, origins: NDArray[np.int64] | None = None) -> None:
        self.components = components
        self.origins = np.arange(len(components) + 1) if origins is None else origins
        self.label_map: Label = components.label_map.copy()
        self.component_of = list(range(len(components) + 1))

    def snapshot(self) -> PartitionSnapshot:
        """Return the current parts."""
        component_of = np.asarray(self.component_of)
        areas = np.bincount(self.label_map.ravel(), minlength=len(component_of))
        class_of = np.concatenate([[0], self.components.class_id])[component_of]
        return PartitionSnapshot(self.label_map, areas, component_of, self.origins[component_of], class_of)

    def split(self, planned: PlannedView, labels: Label) -> list[int]:
        """Split the component or part that a view shows.

        The largest label keeps the part's number; the others get new ones.

        Args:
            planned: the view.
            labels: labels of the view, int32 (S, S), 0 = background.

        Returns:
            The numbers of all resulting parts; empty if there are fewer than two labels.
        """
        count = np.bincount(labels.ravel(), minlength=1)
        count[0] = 0
        present = np.flatnonzero(count)
        if len(present) < 2:
            return []
        component, view = self.component_of[planned.component], planned.view
        x0, y0, x1, y1 = self.components.box_xyxy[component - 1].astype(int).tolist()
        x0, y0 = max(x0, view.x), max(y0, view.y)
        x1, y1 = min(x1, view.x + view.side), min(y1, view.y + view.side)
        label_at = upsample_labels(labels, present, view, (x0, y0, x1, y1))
        window = self.label_map[y0:y1, x0:x1]
        own = window == planned.component
        parts = [planned.component]
        for label in present[present != count.argmax()]:
            mask = own & (label_at == label)
            if mask.any():
                parts.append(len(self.component_of))
                window[mask] = parts[-1]
                self.component_of.append(component)
        return parts


def nearest_label(labels: Label) -> tuple[Label, NDArray[np.float32]]:
    """Return the nearest label of each pixel, and its distance in pixels.

    Args:
        labels: int32 (H, W), 0 = no label; at least one pixel has a label.

    Returns:
        Labels int32 (H, W), and distances float32 (H, W).
    """
    inside = labels > 0
    distance, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_zone = np.zeros(int(nearest.max()) + 1, np.int32)
    of_zone[nearest[inside]] = labels[inside]
    return of_zone[nearest], np.asarray(distance, np.float32)


def upsample_labels(
    labels: Label, present: NDArray[np.intp], view: View, box_xyxy: tuple[int, int, int, int]
) -> Label:
    """Return the labels of a view at the pixels of a box of the image.

    Each pixel gets the label with the largest bilinear weight, so outlines are smoother than with nearest
    neighbors.

    Args:
        labels: int32 (S, S), 0 = no label.
        present: the labels that occur.
        view: square of the image, in pixels.
        box_xyxy: box of the image in pixels; x1 and y1 are exclusive.

    Returns:
        int32 (y1 - y0, x1 - x0).
    """
    x0, y0, x1, y1 = box_xyxy
    filled, _ = nearest_label(labels)
    best = np.full((y1 - y0, x1 - x0), -1, np.float32)
    winner = np.zeros((y1 - y0, x1 - x0), np.int32)
    for label in present:
        weight = resample_to_box((filled == label).astype(np.float32), view, box_xyxy)
        higher = weight > best
        best[higher] = weight[higher]
        winner[higher] = label
    return winner


def instances_from_labels(label_map: Label, components: Instances) -> Instances:
    """Make instances from a label map whose labels may have gaps.

    Args:
        label_map: int32 (H, W), 0 = background.
        components: give class and track ID (of the largest overlap) and score (mean over pixels).

    Returns:
        Instances, numbered in the order of their first pixels.
    """
    index = np.flatnonzero(label_map)
    label, component = label_map.ravel()[index], components.label_map.ravel()[index]
    first = np.full(int(label.max(initial=0)) + 1, index.size)
    # in reverse order, the last write to a label is its first pixel: no sorting of pixels
    first[label[::-1]] = np.arange(index.size)[::-1]
    n = int((first < index.size).sum())
    rank = np.zeros(len(first), np.int32)
    rank[np.argsort(first, kind="stable")[:n]] = np.arange(1, n + 1)
    height, width = label_map.shape
    ranks = rank[label].astype(np.int64)
    rows, columns = project_labels(index, ranks, n, (height, width))
    stride = len(components) + 1
    overlap = np.bincount(ranks * stride + component, minlength=(n + 1) * stride)
    overlap = overlap.reshape(n + 1, stride)[1:, 1:]
    source = overlap.argmax(1) if n else np.zeros(0, np.intp)
    area = rows.sum(1)
    count = np.maximum(area, 1)
    return replace(
        components,
        label_map=rank[label_map],
        class_id=components.class_id[source],
        track_id=None if components.track_id is None else components.track_id[source],
        score=(overlap @ components.score.astype(np.float64) / count).astype(np.float32),
        box_xyxy=projected_boxes(rows, columns).astype(np.float32),
        area=area.astype(np.int32),
        centroid_xy=np.stack(
            [(columns @ np.arange(width)) / count, (rows @ np.arange(height)) / count], axis=1
        ).astype(np.float32),
    )
