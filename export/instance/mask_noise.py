"""Perturb class masks like predicted ones: rough, coarse, eroded, dilated, with holes or gaps."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.refine.partition import nearest_label

Mask = NDArray[np.uint8]
Label = NDArray[np.int32]

_REACH_PX = 10.0  # mask pixels further than this from every object have no known object
_GAPS = 0.2  # share of masks with an ignored band between objects, as in hand-made class maps


def perturb_mask(label: Label, rng: np.random.Generator, zoom: float = 1.0) -> Mask:
    """Return a perturbed class mask of objects.

    Args:
        label: int32 (S, S), 0 = none.
        rng: random numbers.
        zoom: size of the faults relative to a view of 160 px; faults grow with the view.

    Returns:
        uint8 (S, S) 0/1.
    """
    mask = (label > 0).astype(np.uint8)
    kind = rng.random()
    if kind < 0.3:
        return _cut_gaps(label, mask, rng) if rng.random() < _GAPS / 0.3 else mask
    if kind < 0.55:
        mask = _roughen(mask, zoom, rng)
    elif kind < 0.85:
        mask = _resample(mask, zoom, rng)
    else:
        size = round(int(rng.integers(1, 4)) * zoom) * 2 + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        mask = np.asarray((cv2.erode if rng.random() < 0.5 else cv2.dilate)(mask, kernel), np.uint8)
    if rng.random() < 0.2:
        mask = _punch_holes(mask, zoom, rng)
    return mask


def _cut_gaps(label: Label, mask: Mask, rng: np.random.Generator) -> Mask:
    numbers = label.astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(numbers, kernel) != cv2.erode(numbers, kernel)
    between = edge & (cv2.erode(numbers, kernel) > 0)
    return np.where(between if rng.random() < 0.5 else edge, 0, mask).astype(np.uint8)


def smooth_noise(shape_hw: tuple[int, ...], scale_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise, normal at grid points ``scale_px`` apart and interpolated between them."""
    h, w = shape_hw
    coarse = rng.standard_normal((max(2, int(h / scale_px)), max(2, int(w / scale_px))), np.float32)
    return np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)


def _roughen(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Shift the outline by a pixel or two."""
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3)
    return (
        distance + smooth_noise(mask.shape, zoom * rng.uniform(3, 12), rng) * zoom * rng.uniform(0.5, 2.5)
        > 0.5
    ).astype(np.uint8)


def _resample(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Sample at a stride of 4 to 14 px, add noise, interpolate: thin parts vanish, neighbors merge."""
    h, w = mask.shape
    stride = zoom * float(np.exp(rng.uniform(np.log(4), np.log(14))))
    grid = (max(4, round(w / stride)), max(4, round(h / stride)))
    soft = cv2.resize(mask.astype(np.float32), grid, interpolation=cv2.INTER_AREA)
    soft = soft + rng.standard_normal(soft.shape, np.float32) * np.float32(rng.uniform(0, 0.12))
    soft = cv2.resize(soft, (w, h), interpolation=cv2.INTER_LINEAR) + smooth_noise(
        mask.shape, zoom * rng.uniform(15, 50), rng
    ) * np.float32(rng.uniform(0, 0.2))
    return (soft > rng.uniform(0.3, 0.6)).astype(np.uint8)


def blur_mask(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Sample on a grid of 4 to 28 px at a random phase, half of the time blurred, with noise.

    Small components of coarse class maps look like this in their views.
    """
    h, w = mask.shape
    stride = zoom * float(np.exp(rng.uniform(np.log(4), np.log(28))))
    grid = (max(4, round(w / stride)), max(4, round(h / stride)))
    dx, dy = rng.uniform(-0.5, 0.5, 2) * stride
    soft = _shift(mask.astype(np.float32), dx, dy)
    if rng.random() < 0.5:
        soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), stride * float(rng.uniform(0.2, 0.7))), np.float32)
    coarse = np.asarray(cv2.resize(soft, grid, interpolation=cv2.INTER_AREA), np.float32)
    coarse = coarse + rng.standard_normal(coarse.shape, np.float32) * np.float32(rng.uniform(0, 0.15))
    soft = _shift(
        np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR), np.float32), -dx, -dy
    )
    soft = soft + smooth_noise(mask.shape, zoom * rng.uniform(15, 50), rng) * np.float32(rng.uniform(0, 0.25))
    return (soft > rng.uniform(0.3, 0.65)).astype(np.uint8)


def _shift(plane: NDArray[np.float32], dx: float, dy: float) -> NDArray[np.float32]:
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return np.asarray(
        cv2.warpAffine(plane, shift, plane.shape[::-1], borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def _punch_holes(mask: Mask, zoom: float, rng: np.random.Generator) -> Mask:
    """Remove patches, as if a network had predicted another class there."""
    return np.where(
        smooth_noise(mask.shape, zoom * rng.uniform(10, 40), rng) > rng.uniform(1.0, 2.0), 0, mask
    ).astype(np.uint8)


def assign_owners(label: Label, mask: Mask) -> Label:
    """Return the object of each mask pixel: the nearest within 10 px, -1 = none, 0 = outside of the mask."""
    if not label.any():
        return -mask.astype(np.int32)
    nearest, distance = nearest_label(label)
    owner = np.where(distance <= _REACH_PX, nearest, -1)
    return np.where(mask > 0, owner, 0).astype(np.int32)
