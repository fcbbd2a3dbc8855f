"""Composites of object shapes for fitting the split rule: touching silhouettes of known objects.

No instance label is used. The shapes are ellipses, and connected components of class maps that look like one
object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..semantic.data import IGNORE, full_confidence, load_pictures

Mask = NDArray[np.uint8]

_MIN_CONFIDENCE = 0.72
_MIN_SOLIDITY = 0.35
_MIN_AREA_PX = 900
_SINGLE = 0.8  # share of composites with a single object, which the rule must not split
_ELLIPSES = 0.2  # share of the others with round shapes (cells, fruit, balls) instead of photographed objects


@dataclass(frozen=True)
class Shape:
    """An object's silhouette: ``mask`` uint8 0/1; ``at_bottom``: cut off by the image's lower edge."""

    mask: Mask
    class_id: int
    at_bottom: bool


def shape_bank(images: Path, semantic: Path, confidence: Path) -> list[Shape]:
    """Collect components of class maps that look like single objects.

    They are complete, or cut off by the lower image border only.
    """
    bank = []
    for picture in load_pictures(images, semantic, confidence):
        h, w = picture.semantic.shape
        confidence_map = full_confidence(picture)
        for class_id in np.unique(picture.semantic):
            if class_id in (0, IGNORE):
                continue
            _, labels, stats, _ = cv2.connectedComponentsWithStats(
                (picture.semantic == class_id).astype(np.uint8), connectivity=8
            )
            for i in range(1, len(stats)):
                x, y, bw, bh, area = stats[i]
                if area < _MIN_AREA_PX or x <= 1 or y <= 1 or x + bw >= w - 1:
                    continue
                mask = (labels[y : y + bh, x : x + bw] == i).astype(np.uint8)
                hull = cv2.contourArea(cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32)))
                if (
                    area < _MIN_SOLIDITY * hull
                    or confidence_map[y : y + bh, x : x + bw][mask > 0].mean() < 255 * _MIN_CONFIDENCE
                ):
                    continue
                bank.append(Shape(mask, int(class_id), bool(y + bh >= h - 1)))
    return bank


def _rescale_mask(mask: Mask, zoom: float, rng: np.random.Generator, turn_degrees: float) -> Mask:
    h, w = mask.shape
    angle = rng.uniform(-turn_degrees, turn_degrees)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1.0)
    turn[0] *= zoom * stretch
    turn[1] *= zoom
    corners = turn[:, :2] @ np.array([[0, w, 0, w], [0, 0, h, h]]) + turn[:, 2:]
    low, high = corners.min(1), corners.max(1)
    turn[:, 2] -= low
    size = tuple(int(np.ceil(s)) + 1 for s in high - low)
    out = cv2.warpAffine(mask * 255, turn, size, flags=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        out = out[:, ::-1]
    out = (out > 127).astype(np.uint8)
    ys, xs = np.nonzero(out)
    if not len(ys):
        return np.ones((2, 2), np.uint8)
    return np.ascontiguousarray(out[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])


def ellipse(rng: np.random.Generator, diameter: float) -> Mask:
    """Return an irregular ellipse in its bounding box."""
    aspect = np.exp(rng.uniform(0, 0.6))
    a, b = max(2.0, diameter / 2 * aspect**0.5), max(2.0, diameter / 2 / aspect**0.5)
    side = int(2 * max(a, b)) + 5
    angle = rng.uniform(0, np.pi)
    yy, xx = np.mgrid[:side, :side] - side / 2
    u, v = xx * np.cos(angle) + yy * np.sin(angle), -xx * np.sin(angle) + yy * np.cos(angle)
    theta = np.arctan2(v, u)
    wobble = sum(rng.uniform(0, 0.06) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    out = ((u / a) ** 2 + (v / b) ** 2 < (1 + wobble) ** 2).astype(np.uint8)
    ys, xs = np.nonzero(out)
    return np.ascontiguousarray(out[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])


def _paste(canvas: NDArray[np.int32], mask: Mask, y: int, x: int, number: int, behind: bool) -> None:
    h, w = canvas.shape
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + mask.shape[0], h), min(x + mask.shape[1], w)
    if y1 <= y0 or x1 <= x0:
        return
    part = mask[y0 - y : y1 - y, x0 - x : x1 - x] > 0
    spot = canvas[y0:y1, x0:x1]
    spot[part & (spot == 0) if behind else part] = number


def composite(bank: Sequence[Shape], rng: np.random.Generator, side_px: int = 320) -> NDArray[np.int32]:
    """Draw a composite: int32 (S, S), 0 = background, 1.. = objects of one class."""
    canvas = np.zeros((side_px, side_px), np.int32)
    size = side_px * np.exp(rng.uniform(np.log(0.12), np.log(0.9)))  # longer side of the first object
    first = bank[int(rng.integers(len(bank)))]
    same_class = [s for s in bank if s.class_id == first.class_id]
    single = rng.random() < _SINGLE
    ellipses = not single and rng.random() < _ELLIPSES
    count = 1
    if not single:
        count = int(rng.integers(2, 13)) if ellipses else 2 + min(4, int(rng.geometric(0.6)) - 1)
    upright = rng.random() < 0.7
    for k in range(1, count + 1):
        if ellipses:
            mask = ellipse(rng, size * 0.5 * np.exp(rng.normal(0, 0.2)))
        else:
            shape = first if k == 1 or rng.random() < 0.15 else same_class[rng.integers(len(same_class))]
            zoom = size / max(shape.mask.shape) * np.exp(rng.normal(0, 0.2))
            mask = _rescale_mask(shape.mask, zoom, rng, 8 if upright else 40)
        mh, mw = mask.shape
        ys, xs = np.nonzero(canvas)
        if k == 1 or not len(ys) or rng.random() < 0.1:
            y = int(rng.integers(-mh // 4, max(1, side_px - 3 * mh // 4)))
            x = int(rng.integers(-mw // 4, max(1, side_px - 3 * mw // 4)))
            if k == 1 and not ellipses and first.at_bottom:
                y = side_px - mh
        else:
            y, x = _find_position(canvas, mask, ys, xs, upright and not ellipses, rng)
        _paste(canvas, mask, y, x, k, behind=rng.random() < 0.4)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.5, 0.25, 0.15, 0.1]))):
        _occlude(canvas, bank, rng)
    if rng.random() < 0.4:
        _roughen(canvas, rng)
    if rng.random() < 0.15:  # an ignored band between objects, as in hand-made class maps
        inner = cv2.erode(canvas.astype(np.float32), np.ones((3, 3)))
        outer = cv2.dilate(canvas.astype(np.float32), np.ones((3, 3)))
        canvas[(inner != outer) & (inner > 0)] = 0
    return canvas


def _find_position(
    canvas: NDArray[np.int32],
    mask: Mask,
    ys: NDArray[np.int64],
    xs: NDArray[np.int64],
    upright: bool,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Move a mask towards the objects of a canvas until it overlaps them; returns its position (y, x)."""
    mh, mw = mask.shape
    k = rng.integers(len(ys))
    target_y, target_x = float(ys[k]) - mh / 2, float(xs[k]) - mw / 2
    if upright:  # people and animals stand side by side
        target_y = ys.max() + 1 - mh + rng.normal(0, 0.12) * mh
        angle = rng.choice([0.0, np.pi]) + rng.normal(0, 0.15)
    else:
        angle = rng.uniform(0, 2 * np.pi)
    target = rng.choice([0.002, 0.02, 0.06, 0.15]) * mask.sum()
    reach = float(np.hypot(*canvas.shape))
    for distance in np.arange(reach, -reach / 2, -2.0):
        y = round(target_y + distance * float(np.sin(angle)))
        x = round(target_x + distance * float(np.cos(angle)))
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + mh, canvas.shape[0]), min(x + mw, canvas.shape[1])
        if y1 <= y0 or x1 <= x0:
            continue
        overlap = int((mask[y0 - y : y1 - y, x0 - x : x1 - x] * (canvas[y0:y1, x0:x1] > 0)).sum())
        if overlap >= target:
            return y, x
    return int(target_y), int(target_x)


def _occlude(canvas: NDArray[np.int32], bank: Sequence[Shape], rng: np.random.Generator) -> None:
    """Hide a part behind an object of another class: a bar or another shape."""
    side = canvas.shape[0]
    if rng.random() < 0.5:
        cover = np.zeros(canvas.shape, np.uint8)
        start, end = rng.integers(0, side, 2), rng.integers(0, side, 2)
        cv2.line(cover, start.tolist(), end.tolist(), 1, int(rng.integers(2, max(3, side // 12))))
        canvas[cover > 0] = 0
    else:
        shape = bank[int(rng.integers(len(bank)))]
        mask = _rescale_mask(shape.mask, side * rng.uniform(0.1, 0.4) / max(shape.mask.shape), rng, 30)
        y = int(rng.integers(0, side)) - mask.shape[0] // 2
        x = int(rng.integers(0, side)) - mask.shape[1] // 2
        _paste(canvas, mask, y, x, 0, behind=False)


def _roughen(canvas: NDArray[np.int32], rng: np.random.Generator) -> None:
    """Make outlines irregular, like predicted ones: each pixel takes a value from its neighborhood."""
    side = canvas.shape[0]
    strength = rng.uniform(0.5, 3.0)
    coarse = max(2, side // int(rng.integers(4, 16)))
    shift = [
        cv2.resize(rng.normal(0, strength, (coarse, coarse)).astype(np.float32), (side, side))
        for _ in range(2)
    ]
    yy, xx = np.mgrid[:side, :side].astype(np.float32)
    moved = cv2.remap(canvas.astype(np.float32), xx + shift[0], yy + shift[1], cv2.INTER_NEAREST)
    canvas[:] = moved.astype(np.int32)
