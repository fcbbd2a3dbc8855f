"""Class masks as networks draw them: rough, coarse, eroded, swollen, holed, cut apart."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.refine.partition import nearest_label

Mask = NDArray[np.uint8]
Label = NDArray[np.int32]

_REACH_PX = 10.0  # mask pixels further than this from every object belong to none
_GAPS = 0.2  # share of true masks with an ignored band between objects, as hand-made class maps have


def spoil(label: Label, rng: np.random.Generator, zoom: float = 1.0) -> Mask:
    """A class mask, uint8 (S, S) 0/1, of the objects in ``label`` (0 = none), with the faults of a real one,
    ``zoom`` times as large as in a view of 160 px: the larger a view, the larger a photo's faults are in
    it."""
    mask = (label > 0).astype(np.uint8)
    kind = rng.random()
    if kind < 0.3:
        return _with_gaps(label, mask, rng) if rng.random() < _GAPS / 0.3 else mask
    if kind < 0.55:
        mask = _rough(mask, zoom, rng)
    elif kind < 0.85:
        mask = _coarse(mask, zoom, rng)
    else:
        size = round(int(rng.integers(1, 4)) * zoom) * 2 + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        mask = np.asarray((cv2.erode if rng.random() < 0.5 else cv2.dilate)(mask, kernel), np.uint8)
    if rng.random() < 0.2:
        mask = _holed(mask, zoom, rng)
    return mask


def _with_gaps(label: Label, mask: Mask, rng: np.random.Generator) -> Mask:
    numbers = label.astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(numbers, kernel) != cv2.erode(numbers, kernel)
    between = edge & (cv2.erode(numbers, kernel) > 0)
    return np.where(between if rng.random() < 0.5 else edge, 0, mask).astype(np.uint8)


def smooth_noise(shape_hw: tuple[int, ...], scale_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of unit spread."""
    h, w = shape_hw
    coarse = rng.standard_normal((max(2, int(h / scale_px)), max(2, int(w / scale_px))), np.float32)
    return np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def _rough(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """The outline wanders by a pixel or two."""
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3)
    return (
        distance + smooth_noise(mask.shape, zoom * rng.uniform(3, 12), rng) * zoom * rng.uniform(0.5, 2.5)
        > 0.5
    ).astype(np.uint8)


def _coarse(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Seen at a stride of 4 to 14 pixels with an unsure mind, then interpolated: thin parts go, neighbours
    fuse."""
    h, w = mask.shape
    stride = zoom * float(np.exp(rng.uniform(np.log(4), np.log(14))))
    grid = (max(4, round(w / stride)), max(4, round(h / stride)))
    soft = cv2.resize(mask.astype(np.float32), grid, interpolation=cv2.INTER_AREA)
    soft = soft + rng.standard_normal(soft.shape, np.float32) * np.float32(rng.uniform(0, 0.12))
    soft = cv2.resize(soft, (w, h), interpolation=cv2.INTER_LINEAR) + smooth_noise(
        mask.shape, zoom * rng.uniform(15, 50), rng
    ) * np.float32(rng.uniform(0, 0.2))
    return (soft > rng.uniform(0.3, 0.6)).astype(np.uint8)


def blurred(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Seen on a grid of 4 to 28 pixels, which lies anywhere, out of focus in half of the cases, with an
    unsure mind: what small components of coarse class maps look like in their views."""
    h, w = mask.shape
    stride = zoom * float(np.exp(rng.uniform(np.log(4), np.log(28))))
    grid = (max(4, round(w / stride)), max(4, round(h / stride)))
    dx, dy = rng.uniform(-0.5, 0.5, 2) * stride
    soft = _moved(mask.astype(np.float32), dx, dy)
    if rng.random() < 0.5:
        soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), stride * float(rng.uniform(0.2, 0.7))), np.float32)
    coarse = np.asarray(cv2.resize(soft, grid, interpolation=cv2.INTER_AREA), np.float32)
    coarse = coarse + rng.standard_normal(coarse.shape, np.float32) * np.float32(rng.uniform(0, 0.15))
    soft = _moved(
        np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR), np.float32), -dx, -dy
    )
    soft = soft + smooth_noise(mask.shape, zoom * rng.uniform(15, 50), rng) * np.float32(rng.uniform(0, 0.25))
    return (soft > rng.uniform(0.3, 0.65)).astype(np.uint8)


def _moved(plane: NDArray[np.float32], dx: float, dy: float) -> NDArray[np.float32]:
    by = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return np.asarray(
        cv2.warpAffine(plane, by, plane.shape[::-1], borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def _holed(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Parts that the network takes for something else."""
    return np.where(
        smooth_noise(mask.shape, zoom * rng.uniform(10, 40), rng) > rng.uniform(1.0, 2.0), 0, mask
    ).astype(np.uint8)


def owners(label: Label, mask: Mask) -> Label:
    """The object of each mask pixel: its own, or the nearest within 10 px; -1 beyond, 0 outside of the
    mask."""
    if not label.any():
        return -mask.astype(np.int32)
    nearest, distance = nearest_label(label)
    owner = np.where(distance <= _REACH_PX, nearest, -1)
    return np.where(mask > 0, owner, 0).astype(np.int32)
