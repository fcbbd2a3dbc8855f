"""Drawing of instances over an image: translucent masks, outlines and labels. Takes plain arrays only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError

ALPHA = 0.42  # opacity of masks
_GOLDEN_RATIO = 0.618033988749895  # steps of this size on the color wheel give distinct colors
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_REFERENCE_PX = 640  # image width at which lines are one pixel wide and the font scale is 0.42
_MAX_LABEL_SHARE = 0.15  # of the image's area


def instance_colors(count: int, track_id: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
    """Return the color of each instance by its number in the label map.

    Args:
        track_id: integer (n,), track IDs; tracked instances keep their color from frame to frame.

    Returns:
        uint8 (n + 1, 3) BGR; row 0 is black. The same number, or track ID, always has the same color.
    """
    if track_id is None:
        return colors_of_ids(np.arange(count + 1))
    return colors_of_ids(np.concatenate([np.zeros(1, np.int32), track_id]))


def colors_of_ids(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the color of each ID (n,), uint8 (n, 3) BGR; that of ID 0 is black."""
    hue = (ids * _GOLDEN_RATIO) % 1.0
    value = 255 - 45 * (ids // 7 % 2)
    hsv = np.stack([hue * 179, np.full(len(ids), 190), value], axis=1).astype(np.uint8)
    colors = np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0], np.uint8)
    colors[ids == 0] = 0
    return colors


def outlines_of(mask: NDArray[np.bool_], offset_xy: tuple[int, int] = (0, 0)) -> list[NDArray[np.int32]]:
    """Return the outer outlines of a mask, largest first.

    Args:
        mask: bool (h, w).
        offset_xy: position of the mask's upper left corner in the image, in pixels.

    Returns:
        Outlines, int32 (k, 2) each, xy in pixels of the image.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [np.asarray(c, np.int32).reshape(-1, 2) + np.array(offset_xy, np.int32) for c in found]
    return sorted(outlines, key=lambda c: -cv2.contourArea(c))


def draw_instances(
    image: NDArray[np.uint8],
    label_map: NDArray[np.int32],
    box_xyxy: NDArray[np.float32],
    labels: Iterable[object] = (),
    *,
    colors: NDArray[np.uint8] | None = None,
    alpha: float = ALPHA,
    outline: bool = True,
) -> NDArray[np.uint8]:
    """Draw instances over an image.

    Args:
        image: uint8 (H, W, 3) BGR; it is not changed.
        label_map: int32 (H, W); 0 = no instance, 1..n = instance of row 0..n-1.
        box_xyxy: float32 (n, 4), pixels, upper ends exclusive.
        labels: n texts, such as "person 0.98", or none. Labels without enough space are omitted.
        colors: uint8 (n + 1, 3) BGR, by number in the label map; default: ``instance_colors(n)``.
        alpha: opacity of the masks in [0, 1]; 0 = outlines and labels only.

    Returns:
        uint8 (H, W, 3) BGR, a new array.

    Raises:
        InputError: image and label map differ in size, ``alpha`` is outside [0, 1], or the number of labels
            is not n.
    """
    count = len(box_xyxy)
    if image.shape[:2] != label_map.shape:
        raise InputError(
            f"the frame is {image.shape[:2]}, its instances are {label_map.shape}: draw them on their own "
            "frame"
        )
    if not (isinstance(alpha, Real) and 0 <= alpha <= 1):  # also refuses NaN
        raise InputError(f"alpha must be in 0..1, got {alpha!r}")
    texts = _texts_of(labels, count)
    overlay = image.copy()
    if not count:
        return overlay
    colors = instance_colors(count) if colors is None else colors
    boxes = box_xyxy.astype(int)
    scale = max(1.0, image.shape[1] / _REFERENCE_PX)
    crops = [label_map[y0:y1, x0:x1] == i + 1 for i, (x0, y0, x1, y1) in enumerate(boxes)]
    if alpha:
        for (x0, y0, x1, y1), crop, color in zip(boxes, crops, colors[1:], strict=True):
            target = overlay[y0:y1, x0:x1]
            tint = cv2.addWeighted(target, 1 - alpha, np.full_like(target, color), alpha, 0)
            cv2.copyTo(tint, crop.astype(np.uint8), target)
    if outline:
        thickness = max(1, round(scale))
        for (x0, y0, _, _), crop, color in zip(boxes, crops, colors[1:].tolist(), strict=True):
            cv2.drawContours(overlay, outlines_of(crop, (x0, y0)), -1, color, thickness, cv2.LINE_AA)
    if texts:
        _draw_labels(overlay, boxes, [int(crop.sum()) for crop in crops], texts, colors[1:], scale)
    return overlay


def _texts_of(labels: Any, count: int) -> list[str]:
    """Return labels as texts. Raises InputError if they are neither none nor one for each instance."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):  # the letters of a text are no labels
        raise InputError(f"labels must be one text for each of {count} instances, got {labels!r}")
    texts = [str(label) for label in labels]
    if len(texts) not in (0, count):
        raise InputError(f"labels must be one text for each of {count} instances, got {len(texts)}")
    return texts


def _draw_labels(
    overlay: NDArray[np.uint8],
    boxes: NDArray[np.intp],
    areas: Sequence[int],
    labels: Sequence[str],
    colors: NDArray[np.uint8],
    scale: float,
) -> None:
    """Label the largest instances that have enough space, the largest one on top."""
    free_px, drawn = _MAX_LABEL_SHARE * overlay.shape[0] * overlay.shape[1], list[int]()
    # OpenCV crashes on a text that is not valid UTF-8, such as a class name with a lone surrogate
    texts = [text.encode("utf-8", "replace").decode() for text in labels]
    sizes = [cv2.getTextSize(text, _FONT, 0.42 * scale, 1) for text in texts]
    for i in np.argsort(-np.asarray(areas), kind="stable").tolist():
        (width, height), base = sizes[i]
        if boxes[i, 2] - boxes[i, 0] < width // 3:  # a label much wider than its object hides other objects
            continue
        free_px -= (width + 4) * (height + base + 2)
        if drawn and free_px < 0:
            break
        drawn.append(i)
    for i in drawn[::-1]:
        (width, height), base = sizes[i]
        x = min(max(0, int(boxes[i, 0])), max(0, overlay.shape[1] - width - 4))
        y = max(int(boxes[i, 1]), height + base + 2)
        color = [int(c) for c in colors[i]]
        cv2.rectangle(overlay, (x, y - height - base - 2), (x + width + 4, y), color, -1)
        luma = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
        text_color = (0, 0, 0) if luma > 110 else (255, 255, 255)
        thickness, origin = max(1, round(scale * 0.8)), (x + 2, y - base)
        cv2.putText(overlay, texts[i], origin, _FONT, 0.42 * scale, text_color, thickness, cv2.LINE_AA)
