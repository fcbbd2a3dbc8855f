"""Views: square crops of an image, resized for the instance network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

VIEW_PX = 192  # default of instance networks; the run time grows with its square
GRAY = 127  # padding outside of the image
_MARGIN = 1.25  # side of a view, relative to the longer side of the box
_MARGIN_PX = 16
_MAX_ZOOM = 4.0  # with more, output cells of 4 view pixels would be finer than the image's pixels


@dataclass(frozen=True)
class View:
    """A square of an image, in pixels; it may extend beyond the image."""

    x: int
    y: int
    side: int


def make_view(box_xyxy: tuple[int, int, int, int], size_hw: tuple[int, int], view_px: int = VIEW_PX) -> View:
    """Return the view of a box with a margin, shifted into the image if it fits.

    Args:
        box_xyxy: box in pixels; x1 and y1 are exclusive.
        size_hw: size of the image in pixels.
        view_px: side of the rendered view in pixels, which limits the zoom.
    """
    x0, y0, x1, y1 = box_xyxy
    side = max(int(max(x1 - x0, y1 - y0) * _MARGIN) + _MARGIN_PX, int(np.ceil(view_px / _MAX_ZOOM)))
    corner = []
    for low, high, length in ((x0, x1, size_hw[1]), (y0, y1, size_hw[0])):
        start = (low + high - side) // 2
        if side <= length:
            start = min(max(start, 0), length - side)
        corner.append(start)
    return View(corner[0], corner[1], side)


def render_view(
    image: NDArray[np.uint8], view: View, view_px: int = VIEW_PX, padding: int = GRAY
) -> NDArray[np.uint8]:
    """Crop a view and resize it: by area averages if it shrinks, else bilinearly.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        view: the square to crop.
        view_px: side S of the result in pixels.
        padding: value outside of the image, 0..255.

    Returns:
        uint8 (S, S) or (S, S, 3).
    """
    h, w = image.shape[:2]
    y0, x0 = max(view.y, 0), max(view.x, 0)
    y1, x1 = min(view.y + view.side, h), min(view.x + view.side, w)
    crop = image[y0:y1, x0:x1]
    borders = (y0 - view.y, view.y + view.side - y1, x0 - view.x, view.x + view.side - x1)
    if any(borders):
        crop = np.asarray(
            cv2.copyMakeBorder(crop, *borders, cv2.BORDER_CONSTANT, value=(padding,) * 3), np.uint8
        )
    interpolation = cv2.INTER_AREA if view.side > view_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (view_px, view_px), interpolation=interpolation), np.uint8)


def render_mask(mask: NDArray[np.uint8], view: View, view_px: int = VIEW_PX) -> NDArray[np.uint8]:
    """Render a mask of 0 and 1 in a view, uint8 (S, S), 0 outside of the image."""
    return (render_view(mask * np.uint8(255), view, view_px, padding=0) > 127).astype(np.uint8)


def crop_labels(label_map: NDArray[np.int32], view: View) -> NDArray[np.int32]:
    """Crop a label map without resizing, int32 (side, side), 0 outside of the image."""
    h, w = label_map.shape
    y0, x0, y1, x1 = max(view.y, 0), max(view.x, 0), min(view.y + view.side, h), min(view.x + view.side, w)
    if (y0, x0, y1, x1) == (view.y, view.x, view.y + view.side, view.x + view.side):
        return label_map[y0:y1, x0:x1]
    out = np.zeros((view.side, view.side), np.int32)
    out[y0 - view.y : y1 - view.y, x0 - view.x : x1 - view.x] = label_map[y0:y1, x0:x1]
    return out


def sample_labels(label_map: NDArray[np.int32], view: View, grid_px: int) -> NDArray[np.int32]:
    """Sample a label map at the cell centers of a grid over a view.

    Args:
        label_map: int32 (H, W).
        view: the square that the grid covers.
        grid_px: cells G per side.

    Returns:
        int32 (G, G), 0 outside of the image.
    """
    at = np.floor((np.arange(grid_px) + 0.5) * view.side / grid_px).astype(int)
    return crop_labels(label_map, view)[at][:, at]


def resample_to_box(
    plane: NDArray[np.float32], view: View, box_xyxy: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """Interpolate a map of a view bilinearly at the pixels of a box of the image.

    Args:
        plane: float32 (q, q), covers the view.
        view: square of the image, in pixels.
        box_xyxy: box of the image in pixels; x1 and y1 are exclusive.

    Returns:
        float32 (y1 - y0, x1 - x0).
    """
    x0, y0, x1, y1 = box_xyxy
    zoom = plane.shape[0] / view.side
    to_plane = np.array(
        [[zoom, 0, (x0 - view.x + 0.5) * zoom - 0.5], [0, zoom, (y0 - view.y + 0.5) * zoom - 0.5]], np.float64
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(plane, to_plane, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE),
        np.float32,
    )


def project_labels(
    index: NDArray[np.int64], label: NDArray[np.int64], count: int, size_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the pixels of each label in each row and in each column of a map.

    Args:
        index: positions in the flattened map, int64 (m,).
        label: label at each position, int64 (m,), 1..count.
        count: number of labels n.
        size_hw: size of the map in pixels.

    Returns:
        Pixels per row, int64 (n, H), and per column, int64 (n, W).
    """
    height, width = size_hw
    y, x = np.divmod(index, width)
    rows = np.bincount((label - 1) * height + y, minlength=count * height).reshape(count, height)
    return rows, np.bincount((label - 1) * width + x, minlength=count * width).reshape(count, width)


def projected_boxes(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return boxes xyxy, int64 (n, 4), from ``project_labels``; x1 and y1 are exclusive.

    The box of a label without pixels is the whole map.
    """
    low = [(columns > 0).argmax(1), (rows > 0).argmax(1)]
    high = [
        columns.shape[1] - (columns[:, ::-1] > 0).argmax(1),
        rows.shape[1] - (rows[:, ::-1] > 0).argmax(1),
    ]
    return np.stack([*low, *high], axis=1)


def solidity(mask: NDArray[np.uint8]) -> float:
    """Return the area of a mask divided by the area of its convex hull, 0..1.

    Pixels are squares, so a rectangle has a solidity of 1. So has an empty mask.
    """
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return 1.0
    points = np.concatenate(outlines).reshape(-1, 2)
    corners = np.concatenate([points + step for step in ((0, 0), (1, 0), (0, 1), (1, 1))])
    return float(mask.sum() / cv2.contourArea(cv2.convexHull(corners)))
