"""Outlines drawn anew: what a class map says roughly, the instance network has seen closely (mask
refinement).

A class map is as coarse as its network's grid, and off by more where the network is unsure. In the view of
each component the instance network also says which pixels belong to what the mask shows; pixels near the
outline go or come by that. No instance is made or parted, however they were found.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ...plugins.operator import cluster
from ...plugins.settings import MAX_SIDE
from ..networks.instance_session import InstanceSession
from .partition import Label, instances_of, nearest_label
from .view import View, at_pixels
from .view_planning import MAX_VIEWS, PlannedView, component_views, shown

Foregrounds = dict[
    tuple[View, int], NDArray[np.float32]
]  # (view, class id) -> float32 (q, q), how likely its pixels belong to the class

_REACH, _LEAST_REACH_PX = (
    0.15,
    8,
)  # beyond a component, of its longer side: what its view shows with some margin
GOES, COMES = (
    0.4,
    0.6,
)  # probabilities of belonging: a mask that is good already stays as it is (chosen on composites)
_CERTAIN = 2.0  # of pixels whose component wasn't looked at: above any probability


@dataclass(frozen=True)
class _Zone:
    """A component's surroundings: ``spot``, of the frame; ``foreground`` float32, how likely each pixel
    belongs to it; ``own`` bool, the component, ``deep`` bool, what of it lies too far inside to go; ``near``
    bool, what is near enough to come, and no nearer to another of its class."""

    spot: tuple[slice, slice]
    foreground: NDArray[np.float32]
    own: NDArray[np.bool_]
    deep: NDArray[np.bool_]
    near: NDArray[np.bool_]


def outlined(
    session: InstanceSession,
    image: NDArray[np.uint8],
    instances: Instances,
    known: Foregrounds,
    max_views: int = MAX_VIEWS,
    threads: int | None = None,
) -> Instances:
    """Instances of a picture uint8 (H, W, 3) BGR with outlines as the instance network sees them in views of
    their components, the largest first; those under 20 px stay as they are. ``known``: what it said of views
    already."""
    session.check_outlines()
    began = time.perf_counter()
    class_of = np.concatenate([[0], instances.class_id]).astype(np.uint8)
    components = _components(class_of[instances.label_map], instances, threads)
    planned = component_views(components, session.view_px, max_views)
    if not planned:
        return instances
    new = [p for p in planned if (p.view, p.class_id) not in known]
    views, masks = shown(image, components, new, session.outline_px)
    asked = time.perf_counter()
    told = (
        dict(zip(((p.view, p.class_id) for p in new), session.foreground(views, masks), strict=True))
        if new
        else {}
    )
    answered = time.perf_counter()
    told |= known
    label_map = redrawn(instances.label_map, components, [(p, told[p.view, p.class_id]) for p in planned])
    found = instances_of(label_map, replace(instances, label_map=label_map))
    ms = (asked - began + time.perf_counter() - answered) * 1e3
    stages = {
        "outlines": ms,
        "instance network": instances.stage_ms.get("instance network", 0.0) + (answered - asked) * 1e3,
    }
    return replace(found, stage_ms={**instances.stage_ms, **stages})


def _components(class_map: NDArray[np.uint8], instances: Instances, threads: int | None) -> Instances:
    """Connected components of the instances' class map, as ``cluster(class_map, split=0)`` finds them."""
    if max(class_map.shape) <= MAX_SIDE:
        found: Instances = cluster(class_map, split=0.0, min_area=0, threads=threads)
        return found
    labels, count = np.zeros(class_map.shape, np.int32), 0
    for class_id in np.unique(instances.class_id).tolist():  # photos of more than the operator's grid takes
        own = cv2.connectedComponents((class_map == class_id).astype(np.uint8), connectivity=8)[1]
        labels[own > 0] = own[own > 0] + count
        count = int(labels.max(initial=0))
    return instances_of(labels, replace(instances, track_id=None))


def redrawn(
    pieces: Label, components: Instances, seen: Sequence[tuple[PlannedView, NDArray[np.float32]]]
) -> Label:
    """Pieces with the outlines that views of their components show.

    Args:
        pieces: int32 (H, W), numbers with gaps, 0 = none; each lies in one component or in several.
        components: of the frame.
        seen: views of components, each with how likely its pixels belong to what the mask shows, float32 (q,
            q) in [0, 1].

    Returns:
        The pieces, int32 (H, W): without pixels near their outlines that don't belong, with those around that
        do. Of two components that want a pixel the one has it that is surer; islands are no outlines, so what
        doesn't touch the component stays away. A component of which nothing belongs stays as it was, but for
        what others want; a piece of which nothing would be left stays as it was.
    """
    zones = [_zone(components, planned, foreground) for planned, foreground in seen]
    surest = (components.label_map > 0) * np.float32(_CERTAIN)
    for zone in zones:
        surest[zone.spot][zone.own] = zone.foreground[zone.own]
    out = pieces.copy()
    for zone in zones:
        if not (zone.foreground[zone.own] > GOES).any():
            continue
        before, after, best = pieces[zone.spot], out[zone.spot], surest[zone.spot]
        wanted = np.where(
            zone.own,
            zone.deep | (zone.foreground > GOES),
            zone.near & (zone.foreground > np.maximum(best, COMES)),
        )
        count, islands = cv2.connectedComponents(wanted.astype(np.uint8), connectivity=8)
        touches = np.bincount(islands[zone.own], minlength=count) > 0
        touches[0] = False
        kept = touches[islands]
        after[zone.own & ~kept & (after == before)] = 0  # unless another component has it by now
        added = kept & ~zone.own
        if added.any():
            after[added] = _nearest(np.where(zone.own, before, 0))[added]
            best[added] = zone.foreground[added]
    left = np.bincount(out.ravel(), minlength=int(pieces.max(initial=0)) + 1)[1:]
    for lost in np.flatnonzero(left == 0) + 1:  # or a gap
        out[pieces == lost] = lost
    return out


def _zone(components: Instances, planned: PlannedView, foreground: NDArray[np.float32]) -> _Zone:
    height, width = components.label_map.shape
    view = planned.view
    x0, y0, x1, y1 = components.box_xyxy[planned.component - 1].astype(int).tolist()
    reach = max(_LEAST_REACH_PX, int(_REACH * max(x1 - x0, y1 - y0)))
    x0, y0 = max(x0 - reach, view.x, 0), max(y0 - reach, view.y, 0)
    x1, y1 = min(x1 + reach, view.x + view.side, width), min(y1 + reach, view.y + view.side, height)
    spot = (slice(y0, y1), slice(x0, x1))
    there = components.label_map[spot]
    own = there == planned.component
    # dilation and erosion at once, whose time doesn't grow with the reach
    window = (2 * reach + 1, 2 * reach + 1)
    filled = cv2.boxFilter(
        own.astype(np.uint8), cv2.CV_32F, window, normalize=False, borderType=cv2.BORDER_REPLICATE
    )
    near, deep = filled > 0.5, filled > window[0] * window[1] - 0.5
    beside = components.class_id == planned.class_id
    beside &= (components.box_xyxy[:, :2] < (x1, y1)).all(1) & (components.box_xyxy[:, 2:] > (x0, y0)).all(1)
    beside[planned.component - 1] = False
    if beside.any():  # whose is what lies between?
        others = np.concatenate([[False], beside])[there]
        if others.any():
            near &= _nearest(np.where(others | own, there, 0)) == planned.component
    return _Zone(spot, at_pixels(foreground, view, (x0, y0, x1, y1)), own, deep, near)


def _nearest(labels: Label) -> Label:
    """The nearest label of each pixel, 0 = not labelled; at least one is."""
    highest = labels.max()
    if (labels[labels > 0] == highest).all():
        return np.full_like(labels, highest)
    return nearest_label(labels)[0]
