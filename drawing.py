"""Drawing instances over a frame: translucent masks, outlines, labels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .instances import Instances

_ALPHA = 0.42
_GOLDEN_RATIO = 0.618033988749895  # steps of it around the colour wheel keep neighbours apart
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_REFERENCE_PX = 640  # picture width at which lines are one pixel and text is 0.42 high
_LABELLED = 0.15  # of a picture: more labels hide more than they say


def instance_colours(count: int) -> NDArray[np.uint8]:
    """Colour of each instance 1..count, BGR (count + 1, 3); row 0 is black. The same number always has the
    same colour."""
    return colours_of_ids(np.arange(count + 1))


def colours_of(instances: Instances) -> NDArray[np.uint8]:
    """Colour of each instance by its number in the label map, BGR (n + 1, 3): tracked ones keep theirs from
    frame to frame."""
    if instances.track_id is None:
        return instance_colours(len(instances))
    return colours_of_ids(np.concatenate([np.zeros(1, np.int32), instances.track_id]))


def colours_of_ids(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colour of each id (n,), BGR (n, 3); 0 is black. The same id always has the same colour."""
    hue = (ids * _GOLDEN_RATIO) % 1.0
    value = 255 - 45 * (ids // 7 % 2)
    hsv = np.stack([hue * 179, np.full(len(ids), 190), value], axis=1).astype(np.uint8)
    colours = np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0], np.uint8)
    colours[ids == 0] = 0
    return colours


def draw_instances(image: NDArray[np.uint8], instances: Instances) -> NDArray[np.uint8]:
    """The picture uint8 (H, W, 3) BGR with every instance drawn over it, as a new array."""
    if image.shape[:2] != instances.label_map.shape:
        raise InputError(
            f"the frame is {image.shape[:2]}, its instances are {instances.label_map.shape}: draw them on their own frame"
        )
    view = image.copy()
    if not len(instances):
        return view
    colours = colours_of(instances)
    label = instances.label_map
    scale = max(1.0, image.shape[1] / _REFERENCE_PX)
    thickness = max(1, round(scale))
    for i in range(len(instances)):
        x0, y0, x1, y1 = instances.box_xyxy[i].astype(int)
        inside = label[y0:y1, x0:x1] == i + 1
        spot = view[y0:y1, x0:x1]
        tint = cv2.addWeighted(spot, 1 - _ALPHA, np.full_like(spot, colours[i + 1]), _ALPHA, 0)
        cv2.copyTo(tint, inside.astype(np.uint8), spot)
    for i in range(len(instances)):
        colour = [int(c) for c in colours[i + 1]]
        cv2.drawContours(view, instances.polygon(i), -1, colour, thickness, cv2.LINE_AA)
    for i in _labelled(instances, scale):
        _draw_label(view, instances, i, colours[i + 1], scale)
    return view


def _labelled(instances: Instances, scale: float) -> list[int]:
    """The largest instances, as many as there is room for labels; large ones last: they are read first."""
    room, kept = _LABELLED * instances.label_map.size, list[int]()
    for i in np.argsort(-instances.area, kind="stable").tolist():
        x0, _, x1, _ = instances[i].box_xyxy
        _, width, height, base = _label(instances, i, scale)
        if x1 - x0 < width // 3:  # a label much wider than its object hides more than it says
            continue
        room -= (width + 4) * (height + base + 2)
        if kept and room < 0:
            break
        kept.append(i)
    return kept[::-1]


def _label(instances: Instances, index: int, scale: float) -> tuple[str, int, int, int]:
    """Text, and its width, height and depth in pixels."""
    one = instances[index]
    text = f"{one.title} {one.score:.2f}" if one.score < 1 else one.title
    (width, height), base = cv2.getTextSize(text, _FONT, 0.42 * scale, 1)
    return text, width, height, base


def _draw_label(
    view: NDArray[np.uint8], instances: Instances, index: int, colour: NDArray[np.uint8], scale: float
) -> None:
    text, width, height, base = _label(instances, index, scale)
    x0, y0 = (int(v) for v in instances[index].box_xyxy[:2])
    x = min(max(0, x0), max(0, view.shape[1] - width - 4))
    y = max(y0, height + base + 2)
    cv2.rectangle(view, (x, y - height - base - 2), (x + width + 4, y), [int(c) for c in colour], -1)
    luma = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]
    ink = (0, 0, 0) if luma > 110 else (255, 255, 255)
    cv2.putText(
        view, text, (x + 2, y - base), _FONT, 0.42 * scale, ink, max(1, round(scale * 0.8)), cv2.LINE_AA
    )
