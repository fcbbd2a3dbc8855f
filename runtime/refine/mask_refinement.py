"""Mask refinement: move outlines to where the instance network predicts them.

A class map is as coarse as the grid of its network, and worse where the network is uncertain. In a view of a
component, the instance network predicts which pixels belong to the object that the mask marks. Pixels near
the outline are added or removed accordingly. No instance is created or split. The rule is in
plugins/reference_mask_refinement.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ...plugins import mask_refinement as native
from ...plugins.operator import cluster
from ...plugins.problem import TABLE_COLUMNS, Clustering
from ...plugins.settings import MAX_SIDE
from ..networks.instance_session import InstanceSession
from .partition import instances_from_labels
from .view import View
from .view_planning import MAX_VIEWS, PlannedView, plan_mask_views, render_views

# (view, class ID) -> probability that each pixel belongs to the component, float32 (q, q)
Foregrounds = dict[tuple[View, int], NDArray[np.float32]]


def refine_masks(
    session: InstanceSession,
    image: NDArray[np.uint8],
    instances: Instances,
    known: Foregrounds,
    max_views: int = MAX_VIEWS,
    threads: int | None = None,
) -> Instances:
    """Refine the masks of the instances of an image.

    Args:
        session: the instance network.
        image: uint8 (H, W, 3) BGR.
        instances: of the image; components under 20 px are not changed.
        known: foreground maps that were predicted already.
        max_views: maximum number of components to refine, largest first.
        threads: CPU threads; default: all that the process may use.

    Raises:
        ModelError: the network has no output ``foreground``.
    """
    session.check_mask_refinement()
    began = time.perf_counter()
    class_of = np.concatenate([[0], instances.class_id]).astype(np.uint8)
    components = _components(class_of[instances.label_map], instances, threads)
    planned = plan_mask_views(components, session.view_px, max_views)
    if not planned:
        return instances
    reused, new = _split_by_known(planned, known)
    views, masks = render_views(image, components, new, session.outline_px)
    network_began = time.perf_counter()
    predicted: Iterable[NDArray[np.float32]] = session.foreground(views, masks) if new else []
    network_ended = time.perf_counter()
    foregrounds = [(p, known[p.view, p.class_id]) for p in reused] + list(zip(new, predicted, strict=True))
    found = update_masks(instances, components, foregrounds, threads)
    network_ms = (network_ended - network_began) * 1e3
    stages = {
        "outlines": (time.perf_counter() - began) * 1e3 - network_ms,
        "instance network": instances.stage_ms.get("instance network", 0.0) + network_ms,
    }
    return replace(found, stage_ms={**instances.stage_ms, **stages})


def _split_by_known(
    planned: Sequence[PlannedView], known: Foregrounds
) -> tuple[list[PlannedView], list[PlannedView]]:
    """Separate the views whose foreground map is known from the others, as csrc/mask_views.h does."""
    first: dict[tuple[View, int], PlannedView] = {}
    for p in planned:
        first.setdefault((p.view, p.class_id), p)
    reused = [first[key] for key in known if key in first]
    return reused, [p for p in planned if p not in reused]


def _components(class_map: NDArray[np.uint8], instances: Instances, threads: int | None) -> Instances:
    """Return the connected components of a class map of any size."""
    if max(class_map.shape) <= MAX_SIDE:
        found: Instances = cluster(class_map, split=0.0, min_area=0, threads=threads)
        return found
    labels, count = np.zeros(class_map.shape, np.int32), 0
    for class_id in np.unique(instances.class_id).tolist():  # images larger than the operator's grid
        own = cv2.connectedComponents((class_map == class_id).astype(np.uint8), connectivity=8)[1]
        labels[own > 0] = own[own > 0] + count
        count = int(labels.max(initial=0))
    return instances_from_labels(labels, replace(instances, track_id=None))


def update_masks(
    instances: Instances,
    components: Instances,
    foregrounds: Sequence[tuple[PlannedView, NDArray[np.float32]]],
    threads: int | None = None,
) -> Instances:
    """Add and remove pixels near the outlines of instances.

    Args:
        instances: of a frame. Each one lies in one component or in several.
        components: connected components of the frame.
        foregrounds: views of components, each with the probability that its pixels belong to the component,
            float32 (q, q) in [0, 1]. If two predict a pixel equally, the earlier view counts.
        threads: CPU threads; default: all that the process may use.

    Returns:
        The instances with other masks, numbered in the order of their first pixels.
    """
    views = [(p.view.x, p.view.y, p.view.side, p.class_id, p.component) for p, _ in foregrounds]
    refined = native.refine_masks(
        native.PredictedMasks(
            np.ascontiguousarray(instances.label_map),
            instance_table(instances),
            np.ascontiguousarray(components.label_map),
            instance_table(components),
            np.array(views, np.int32),
            [np.asarray(foreground, np.float32) for _, foreground in foregrounds],
        ),
        threads,
    )
    return with_refined_masks(instances, refined)


def part_numbers(parts: Clustering, instances: Instances) -> NDArray[np.int32]:
    """Return the number of the instance that each part belongs to.

    Args:
        parts: n parts, a batch of one frame.
        instances: each one consists of parts.

    Returns:
        int32 (n + 1,), by the part's label; 0: no instance.
    """
    label_map, table = parts.label_map[0], parts.table[0]
    numbers = np.zeros(len(table) + 1, np.int32)
    for label, (x0, y0, x1) in enumerate(table[:, 2:5].astype(int).tolist(), 1):
        x = x0 + int(np.argmax(label_map[y0, x0:x1] == label))  # a pixel of the part
        numbers[label] = instances.label_map[y0, x]
    return numbers


def with_refined_masks(instances: Instances, refined: native.RefinedMasks) -> Instances:
    """Return instances with other masks, also in ``semantic_map``; classes and scores stay.

    A pixel that no instance has any more becomes background.
    """
    source, table = refined.instance_of - 1, refined.table
    was = np.concatenate([[0], refined.instance_of]).astype(np.int32)[refined.label_map]
    class_id = instances.class_id[source]
    class_of = np.concatenate([[0], class_id]).astype(np.uint8)
    moved = np.flatnonzero(was != instances.label_map)
    semantic_map = instances.semantic_map.copy()
    semantic_map.flat[moved] = class_of[refined.label_map.flat[moved]]
    return replace(
        instances,
        label_map=refined.label_map,
        semantic_map=semantic_map,
        class_id=class_id,
        track_id=None if instances.track_id is None else instances.track_id[source],
        score=instances.score[source],
        box_xyxy=table[:, 2:6].copy(),
        area=table[:, 6].astype(np.int32),
        centroid_xy=table[:, 7:9].copy(),
    )


def instance_table(instances: Instances) -> NDArray[np.float32]:
    """Return the columns of the operator's table that mask refinement reads, float32 (n, 10)."""
    table = np.zeros((len(instances), len(TABLE_COLUMNS)), np.float32)
    table[:, 0], table[:, 1], table[:, 2:6] = instances.class_id, instances.score, instances.box_xyxy
    return table
