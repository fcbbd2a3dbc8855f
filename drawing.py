"""Drawing instances over a picture: translucent masks, outlines, labels. Takes plain arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError

ALPHA = 0.42  # opacity of masks
_GOLDEN_RATIO = 0.618033988749895  # steps of it around the colour wheel keep neighbours apart
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_REFERENCE_PX = 640  # picture width at which lines are one pixel and text is 0.42 high
_LABELLED = 0.15  # of a picture: more labels hide more than they say


def instance_colors(count: int, track_id: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
    """Return the colour of each instance by its number in the label map.

    Args:
        count: number of instances n.
        track_id: integer (n,), persistent ids; tracked instances keep their colour from frame to frame.

    Returns:
        uint8 (n + 1, 3) BGR; row 0 is black. The same number, or track id, always has the same colour.
    """
    if track_id is None:
        return colours_of_ids(np.arange(count + 1))
    return colours_of_ids(np.concatenate([np.zeros(1, np.int32), track_id]))


def colours_of_ids(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colour of each id (n,), BGR (n, 3); 0 is black. The same id always has the same colour."""
    hue = (ids * _GOLDEN_RATIO) % 1.0
    value = 255 - 45 * (ids // 7 % 2)
    hsv = np.stack([hue * 179, np.full(len(ids), 190), value], axis=1).astype(np.uint8)
    colours = np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0], np.uint8)
    colours[ids == 0] = 0
    return colours


def outlines_of(mask: NDArray[np.bool_], offset_xy: tuple[int, int] = (0, 0)) -> list[NDArray[np.int32]]:
    """Return the outer outlines of a mask bool (h, w), largest first: int32 (k, 2) xy pixels each.

    ``offset_xy``: pixel of the picture at which the mask begins.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [np.asarray(c, np.int32).reshape(-1, 2) + np.array(offset_xy, np.int32) for c in found]
    return sorted(outlines, key=lambda c: -cv2.contourArea(c))


def draw_instances(
    image: NDArray[np.uint8],
    label_map: NDArray[np.int32],
    box_xyxy: NDArray[np.float32],
    labels: Sequence[str] = (),
    *,
    colours: NDArray[np.uint8] | None = None,
    alpha: float = ALPHA,
    outline: bool = True,
) -> NDArray[np.uint8]:
    """Draw instances over a picture.

    Args:
        image: uint8 (H, W, 3) BGR; it is not changed.
        label_map: int32 (H, W); 0 = no instance, 1..n = the instance of that row plus one.
        box_xyxy: float32 (n, 4), pixels, upper ends exclusive.
        labels: n texts, such as "person 0.98"; none: no labels. Labels that find no room are left out.
        colours: uint8 (n + 1, 3) BGR, by number in the label map; default: ``instance_colors(n)``.
        alpha: opacity of the masks in [0, 1]; 0 = outlines and labels only.
        outline: draw outlines.

    Returns:
        uint8 (H, W, 3) BGR, a new array.

    Raises:
        InputError: picture and label map differ in size, ``alpha`` is outside [0, 1], or the number of labels
            is not n.
    """
    count = len(box_xyxy)
    if image.shape[:2] != label_map.shape:
        raise InputError(
            f"the frame is {image.shape[:2]}, its instances are {label_map.shape}: draw them on their own "
            "frame"
        )
    if not 0 <= alpha <= 1:  # so written that NaN fails, too
        raise InputError(f"alpha must lie in 0..1, got {alpha}")
    if len(labels) not in (0, count):
        raise InputError(f"labels must be one text for each of {count} instances, got {len(labels)}")
    overlay = image.copy()
    if not count:
        return overlay
    colours = instance_colors(count) if colours is None else colours
    boxes = box_xyxy.astype(int)
    scale = max(1.0, image.shape[1] / _REFERENCE_PX)
    crops = [label_map[y0:y1, x0:x1] == i + 1 for i, (x0, y0, x1, y1) in enumerate(boxes)]
    if alpha:
        for (x0, y0, x1, y1), crop, colour in zip(boxes, crops, colours[1:], strict=True):
            spot = overlay[y0:y1, x0:x1]
            tint = cv2.addWeighted(spot, 1 - alpha, np.full_like(spot, colour), alpha, 0)
            cv2.copyTo(tint, crop.astype(np.uint8), spot)
    if outline:
        thickness = max(1, round(scale))
        for (x0, y0, _, _), crop, colour in zip(boxes, crops, colours[1:].tolist(), strict=True):
            cv2.drawContours(overlay, outlines_of(crop, (x0, y0)), -1, colour, thickness, cv2.LINE_AA)
    if labels:
        _draw_labels(overlay, boxes, [int(crop.sum()) for crop in crops], labels, colours[1:], scale)
    return overlay


def _draw_labels(
    overlay: NDArray[np.uint8],
    boxes: NDArray[np.intp],
    areas: Sequence[int],
    labels: Sequence[str],
    colours: NDArray[np.uint8],
    scale: float,
) -> None:
    """Label the largest instances, as many as there is room for; large ones last: they are read first."""
    room, kept = _LABELLED * overlay.shape[0] * overlay.shape[1], list[int]()
    # OpenCV ends the process on a text that isn't valid UTF-8, such as a class name with a lone surrogate
    texts = [text.encode("utf-8", "replace").decode() for text in labels]
    sizes = [cv2.getTextSize(text, _FONT, 0.42 * scale, 1) for text in texts]
    for i in np.argsort(-np.asarray(areas), kind="stable").tolist():
        (width, height), base = sizes[i]
        if (
            boxes[i, 2] - boxes[i, 0] < width // 3
        ):  # a label much wider than its object hides more than it says
            continue
        room -= (width + 4) * (height + base + 2)
        if kept and room < 0:
            break
        kept.append(i)
    for i in kept[::-1]:
        (width, height), base = sizes[i]
        x = min(max(0, int(boxes[i, 0])), max(0, overlay.shape[1] - width - 4))
        y = max(int(boxes[i, 1]), height + base + 2)
        colour = [int(c) for c in colours[i]]
        cv2.rectangle(overlay, (x, y - height - base - 2), (x + width + 4, y), colour, -1)
        luma = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]
        ink = (0, 0, 0) if luma > 110 else (255, 255, 255)
        thickness = max(1, round(scale * 0.8))
        cv2.putText(overlay, texts[i], (x + 2, y - base), _FONT, 0.42 * scale, ink, thickness, cv2.LINE_AA)
