"""Paste objects on a canvas and in its label map; draw cells."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..neck.composites import ellipse
from .picture_effects import Canvas

Label = NDArray[np.int32]  # (S, S), 0 = nothing, 1.. = objects, OTHER_CLASS

OTHER_CLASS = -1  # label of objects of another class
_MIN_VISIBLE = 0.2  # minimum visible share of each object


def place(
    label: Label, shape_hw: tuple[int, ...], at_bottom: bool, crowd: bool, rng: np.random.Generator
) -> tuple[int, int]:
    """Choose the upper left corner (x, y) of a new object: next to another one, or anywhere."""
    h, w = shape_hw
    height, width = label.shape
    present = np.unique(label[label > 0])
    if not len(present) or (not crowd and rng.random() < 0.6):
        cx, cy = rng.uniform(0.15, 0.85) * width, rng.uniform(0.3, 0.8) * height
    else:
        x, y, bw, bh = cv2.boundingRect((label == rng.choice(present)).astype(np.uint8))
        angle = (
            rng.choice([0.0, np.pi]) + rng.normal(0, 0.35)
            if rng.random() < 0.7
            else rng.uniform(0, 2 * np.pi)
        )
        reach = rng.uniform(0.25, 0.62)  # 0.5: the boxes touch
        cx = x + bw / 2 + np.cos(angle) * (bw + w) * reach
        cy = y + bh / 2 + np.sin(angle) * (bh + h) * reach
        if abs(np.cos(angle)) > 0.7 and rng.random() < 0.5:  # side by side on one ground
            cy = y + bh + rng.normal(0, 0.06) * bh - h / 2
        cx, cy = np.clip(cx, 0.02 * width, 0.98 * width), np.clip(cy, 0.05 * height, 0.98 * height)
    if at_bottom and rng.random() < 0.8:
        cy = max(cy, height - h / 2 + 1)
    return int(cx - w / 2), int(cy - h / 2)


def paste(
    canvas: Canvas,
    label: Label,
    colors: Canvas,
    opacity: NDArray[np.float32],
    x: int,
    y: int,
    number: int,
    behind: bool,
    rng: np.random.Generator,
) -> None:
    """Blend in an object as ``number``, unless too little of it or of another one would remain visible.

    Args:
        canvas, label: changed in place.
        colors, opacity: the object, (h, w, 3) and (h, w) in [0, 1].
        x, y: its upper left corner.
        number: its label; ``OTHER_CLASS`` for an occluder.
        behind: place it behind other objects.
        rng: random numbers.
    """
    h, w = opacity.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, label.shape[1]), min(y + h, label.shape[0])
    if x1 - x0 < 3 or y1 - y0 < 3:
        return
    colors, opacity = colors[y0 - y : y1 - y, x0 - x : x1 - x], opacity[y0 - y : y1 - y, x0 - x : x1 - x]
    spot, here = canvas[y0:y1, x0:x1], label[y0:y1, x0:x1]
    solid = opacity > 0.5
    behind = behind and number > 0
    visible = solid & (here == 0) if behind else solid
    if number > 0 and visible.sum() < max(_MIN_VISIBLE * solid.sum(), 25):
        return
    if not behind:
        hidden = np.bincount(here[solid & (here > 0)], minlength=1)
        for k in np.flatnonzero(hidden):
            left = int((label == k).sum()) - int(hidden[k])
            if left < max(_MIN_VISIBLE * (left + hidden[k]), 25):
                return
    if solid.any():  # adapt to the background's light
        colors = colors + np.float32(rng.uniform(0, 0.4)) * (spot.mean((0, 1)) - colors[solid].mean(0))
    soft = cv2.GaussianBlur(opacity, (0, 0), float(rng.uniform(0.3, 1.2))) if rng.random() < 0.8 else opacity
    if rng.random() < 0.5:
        soft = np.clip(soft * 1.4 - 0.4, 0, 1)  # without the fringe from its original background
    if behind:
        soft = soft * (1 - cv2.GaussianBlur((here != 0).astype(np.float32), (0, 0), 0.6))
    spot += soft[..., None] * (colors - spot)
    here[visible] = number


def draw_cells(canvas_px: int, rng: np.random.Generator) -> tuple[Canvas, Label]:
    """Draw round objects on a plain background, brighter or darker than it: cells, fruit, coins."""
    ground, color = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    if rng.random() < 0.5:  # gray, like many microscope images
        ground, color = np.full(3, ground.mean()), np.full(3, color.mean())
    size = canvas_px * float(np.exp(rng.uniform(np.log(0.1), np.log(0.35))))
    canvas = np.empty((canvas_px, canvas_px, 3), np.float32)
    canvas[:] = ground
    canvas += cv2.resize(rng.normal(0, 12, (4, 4, 1)).astype(np.float32), (canvas_px, canvas_px))[..., None]
    label = np.zeros((canvas_px, canvas_px), np.int32)
    for _ in range(int(rng.integers(2, 16))):
        shape = ellipse(rng, size * float(np.exp(rng.normal(0, 0.25)))).astype(np.float32)
        h, w = shape.shape
        # closer to the background's color near the outline
        rise = cv2.GaussianBlur(np.pad(shape, 2), (0, 0), max(0.8, 0.12 * size))[2:-2, 2:-2]
        texture = cv2.resize(rng.normal(0, 14, (max(2, h // 6), max(2, w // 6))).astype(np.float32), (w, h))
        tint = color + rng.normal(0, 14, 3)
        shade = float(rng.uniform(0.3, 1)) * (rise - 1)[..., None] * (tint - ground)
        x, y = place(label, shape.shape, False, True, rng)
        colors = (tint + shade + texture[..., None]).astype(np.float32)
        paste(canvas, label, colors, shape, x, y, int(label.max()) + 1, rng.random() < 0.5, rng)
    return canvas, label
