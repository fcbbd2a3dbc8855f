"""Mask refinement: move outlines to where the instance network predicts them.

A class map is as coarse as the grid of its network, and worse where the network is uncertain. In a view of a
component, the instance network predicts which pixels belong to the object that the mask marks. Pixels near
the outline are added or removed accordingly. No instance is created or split.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ...plugins.operator import cluster
from ...plugins.settings import MAX_SIDE
from ..networks.instance_session import InstanceSession
from .partition import Label, instances_from_labels, nearest_label
from .view import View, resample_to_box
from .view_planning import MAX_VIEWS, PlannedView, plan_mask_views, render_views

# (view, class ID) -> probability that each pixel belongs to the component, float32 (q, q)
Foregrounds = dict[tuple[View, int], NDArray[np.float32]]

_REACH, _MIN_REACH_PX = 0.15, 8  # how far outlines move, relative to the component's longer side
# probabilities below which pixels are removed and above which they are added: the gap between them keeps
# good masks unchanged (chosen on composites)
REMOVE_BELOW, ADD_ABOVE = 0.4, 0.6
_CERTAIN = 2.0  # for pixels of components without a view: above every probability


@dataclass(frozen=True)
class _Zone:
    """A component and its surroundings.

    Attributes:
        window: rows and columns of the frame.
        foreground: probability that each pixel belongs to the component, float32 (h, w).
        own: the component, bool (h, w).
        interior: pixels too far from the outline to be removed, bool (h, w).
        near: pixels near enough to be added, and not nearer to another component of the class, bool (h, w).
    """

    window: tuple[slice, slice]
    foreground: NDArray[np.float32]
    own: NDArray[np.bool_]
    interior: NDArray[np.bool_]
    near: NDArray[np.bool_]


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
    new = [p for p in planned if (p.view, p.class_id) not in known]
    views, masks = render_views(image, components, new, session.outline_px)
    network_began = time.perf_counter()
    predicted: Iterable[NDArray[np.float32]] = session.foreground(views, masks) if new else []
    network_ended = time.perf_counter()
    maps = dict(zip(((p.view, p.class_id) for p in new), predicted, strict=True)) | known
    label_map = update_masks(
        instances.label_map, components, [(p, maps[p.view, p.class_id]) for p in planned]
    )
    found = instances_from_labels(label_map, replace(instances, label_map=label_map))
    network_ms = (network_ended - network_began) * 1e3
    stages = {
        "outlines": (time.perf_counter() - began) * 1e3 - network_ms,
        "instance network": instances.stage_ms.get("instance network", 0.0) + network_ms,
    }
    return replace(found, stage_ms={**instances.stage_ms, **stages})


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
    label_map: Label, components: Instances, foregrounds: Sequence[tuple[PlannedView, NDArray[np.float32]]]
) -> Label:
    """Add and remove pixels near the outlines of instances.

    Where two components claim a pixel, the more certain one gets it. Islands that do not touch the component
    are ignored. A component without any foreground loses only pixels that others claim. An instance that
    would lose all its pixels keeps its mask.

    Args:
        label_map: instances, int32 (H, W), 0 = background; labels may have gaps. Each instance lies in one
            component or in several.
        components: connected components of the frame.
        foregrounds: views of components, each with the probability that its pixels belong to the component,
            float32 (q, q) in [0, 1].

    Returns:
        The changed label map, int32 (H, W).
    """
    zones = [_make_zone(components, planned, foreground) for planned, foreground in foregrounds]
    highest = (components.label_map > 0) * np.float32(_CERTAIN)
    for zone in zones:
        highest[zone.window][zone.own] = zone.foreground[zone.own]
    out = label_map.copy()
    for zone in zones:
        if not (zone.foreground[zone.own] > REMOVE_BELOW).any():
            continue
        before, after, best = label_map[zone.window], out[zone.window], highest[zone.window]
        claimed = np.where(
            zone.own,
            zone.interior | (zone.foreground > REMOVE_BELOW),
            zone.near & (zone.foreground > np.maximum(best, ADD_ABOVE)),
        )
        count, islands = cv2.connectedComponents(claimed.astype(np.uint8), connectivity=8)
        touches = np.bincount(islands[zone.own], minlength=count) > 0
        touches[0] = False
        kept = touches[islands]
        after[zone.own & ~kept & (after == before)] = 0  # not if another component has claimed it already
        added = kept & ~zone.own
        if added.any():
            after[added] = _nearest(np.where(zone.own, before, 0))[added]
            best[added] = zone.foreground[added]
    remaining = np.bincount(out.ravel(), minlength=int(label_map.max(initial=0)) + 1)[1:]
    for lost in np.flatnonzero(remaining == 0) + 1:  # or a gap
        out[label_map == lost] = lost
    return out


def _make_zone(components: Instances, planned: PlannedView, foreground: NDArray[np.float32]) -> _Zone:
    height, width = components.label_map.shape
    view = planned.view
    x0, y0, x1, y1 = components.box_xyxy[planned.component - 1].astype(int).tolist()
    reach = max(_MIN_REACH_PX, int(_REACH * max(x1 - x0, y1 - y0)))
    x0, y0 = max(x0 - reach, view.x, 0), max(y0 - reach, view.y, 0)
    x1, y1 = min(x1 + reach, view.x + view.side, width), min(y1 + reach, view.y + view.side, height)
    window = (slice(y0, y1), slice(x0, x1))
    labels = components.label_map[window]
    own = labels == planned.component
    # one box filter gives dilation and erosion, and its time does not depend on the reach
    kernel = (2 * reach + 1, 2 * reach + 1)
    neighbors = cv2.boxFilter(
        own.astype(np.uint8), cv2.CV_32F, kernel, normalize=False, borderType=cv2.BORDER_REPLICATE
    )
    near, interior = neighbors > 0.5, neighbors > kernel[0] * kernel[1] - 0.5
    others = components.class_id == planned.class_id
    others &= (components.box_xyxy[:, :2] < (x1, y1)).all(1) & (components.box_xyxy[:, 2:] > (x0, y0)).all(1)
    others[planned.component - 1] = False
    if others.any():
        other = np.concatenate([[False], others])[labels]
        if other.any():  # pixels between components of a class belong to the nearest one
            near &= _nearest(np.where(other | own, labels, 0)) == planned.component
    return _Zone(window, resample_to_box(foreground, view, (x0, y0, x1, y1)), own, interior, near)


def _nearest(labels: Label) -> Label:
    """Return the nearest label of each pixel; 0 = no label, and at least one pixel has one."""
    highest = labels.max()
    if (labels[labels > 0] == highest).all():
        return np.full_like(labels, highest)
    return nearest_label(labels)[0]
