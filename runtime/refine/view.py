"""Views: square crops of a picture, zoomed to a fixed size, in which the instance network looks at one
class."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

VIEW_PX = 192  # unless an instance network says otherwise; its time goes with the square
GREY = 127  # outside of the picture
_MARGIN = 1.25  # side of a view over the longer side of what it shows
_MARGIN_PX = 16
_MAX_ZOOM = 4.0  # beyond, cells of 4 view pixels would be finer than the picture's


@dataclass(frozen=True)
class View:
    """A square of the picture: upper left corner and side in pixels; it may reach beyond the picture."""

    x: int
    y: int
    side: int


def view_of(box_xyxy: tuple[int, int, int, int], size_hw: tuple[int, int], view_px: int = VIEW_PX) -> View:
    """The view that shows a box (x1, y1 exclusive) with some margin, shifted to lie inside the picture where
    it can."""
    x0, y0, x1, y1 = box_xyxy
    side = max(int(max(x1 - x0, y1 - y0) * _MARGIN) + _MARGIN_PX, int(np.ceil(view_px / _MAX_ZOOM)))
    corner = []
    for low, high, length in ((x0, x1, size_hw[1]), (y0, y1, size_hw[0])):
        start = (low + high - side) // 2
        if side <= length:
            start = min(max(start, 0), length - side)
        corner.append(start)
    return View(corner[0], corner[1], side)


def cut(
    picture: NDArray[np.uint8], view: View, view_px: int = VIEW_PX, outside: int = GREY
) -> NDArray[np.uint8]:
    """What the view shows, uint8 (S, S) or (S, S, 3): averaged where it shrinks, bilinear where it grows."""
    h, w = picture.shape[:2]
    y0, x0 = max(view.y, 0), max(view.x, 0)
    y1, x1 = min(view.y + view.side, h), min(view.x + view.side, w)
    inside = picture[y0:y1, x0:x1]
    beyond = (y0 - view.y, view.y + view.side - y1, x0 - view.x, view.x + view.side - x1)
    if any(beyond):
        inside = np.asarray(
            cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT, value=(outside, outside, outside)),
            np.uint8,
        )
    shrinks = view.side > view_px
    return np.asarray(
        cv2.resize(inside, (view_px, view_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
        np.uint8,
    )


def cut_mask(mask: NDArray[np.uint8], view: View, view_px: int = VIEW_PX) -> NDArray[np.uint8]:
    """A 0/1 mask in the view, uint8 (S, S) 0/1; outside of the picture 0."""
    return (cut(mask * np.uint8(255), view, view_px, outside=0) > 127).astype(np.uint8)


def window(label_map: NDArray[np.int32], view: View) -> NDArray[np.int32]:
    """A label map in the view at its own resolution, int32 (side, side); outside of the picture 0."""
    h, w = label_map.shape
    y0, x0, y1, x1 = max(view.y, 0), max(view.x, 0), min(view.y + view.side, h), min(view.x + view.side, w)
    if (y0, x0, y1, x1) == (view.y, view.x, view.y + view.side, view.x + view.side):
        return label_map[y0:y1, x0:x1]
    out = np.zeros((view.side, view.side), np.int32)
    out[y0 - view.y : y1 - view.y, x0 - view.x : x1 - view.x] = label_map[y0:y1, x0:x1]
    return out


def sample(label_map: NDArray[np.int32], view: View, grid_px: int) -> NDArray[np.int32]:
    """A label map at the centres of a grid over the view, int32 (g, g); outside of the picture 0."""
    at = np.floor((np.arange(grid_px) + 0.5) * view.side / grid_px).astype(int)
    return window(label_map, view)[at][:, at]


def at_pixels(
    plane: NDArray[np.float32], view: View, box_xyxy: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """A map (q, q) of the view at the pixels of a box of the picture, interpolated, float32 (h, w)."""
    x0, y0, x1, y1 = box_xyxy
    zoom = plane.shape[0] / view.side
    to_plane = np.array(
        [[zoom, 0, (x0 - view.x + 0.5) * zoom - 0.5], [0, zoom, (y0 - view.y + 0.5) * zoom - 0.5]], np.float64
    )
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(plane, to_plane, (x1 - x0, y1 - y0), flags=how, borderMode=cv2.BORDER_REPLICATE),
        np.float32,
    )


def extents(
    at: NDArray[np.int64], number: NDArray[np.int64], count: int, size_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of the labels 1..count in each row of a map, int64 (count, H), and each column (count, W); the
    pixel ``at[i]`` of the flattened map has label ``number[i]``."""
    height, width = size_hw
    y, x = np.divmod(at, width)
    rows = np.bincount((number - 1) * height + y, minlength=count * height).reshape(count, height)
    return rows, np.bincount((number - 1) * width + x, minlength=count * width).reshape(count, width)


def boxes_of(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes (n, 4), x1 and y1 exclusive, of ``extents``; of a label without a pixel it is the whole map."""
    low = [(columns > 0).argmax(1), (rows > 0).argmax(1)]
    high = [
        columns.shape[1] - (columns[:, ::-1] > 0).argmax(1),
        rows.shape[1] - (rows[:, ::-1] > 0).argmax(1),
    ]
    return np.stack([*low, *high], axis=1)


def solidity(mask: NDArray[np.uint8]) -> float:
    """Area over that of the convex hull; pixels are squares, so a rectangle has 1, and so has nothing."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return 1.0
    points = np.concatenate(outlines).reshape(-1, 2)
    corners = np.concatenate([points + step for step in ((0, 0), (1, 0), (0, 1), (1, 1))])
    return float(mask.sum() / cv2.contourArea(cv2.convexHull(corners)))
