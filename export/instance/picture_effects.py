"""Image effects for composites: erase a class, change the light, imitate a camera."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..semantic.data import Picture

Canvas = NDArray[np.float32]  # (S, S, 3) BGR


def erase_class(picture: Picture, class_id: int) -> NDArray[np.uint8]:
    """Return the image with the class's pixels filled with surrounding colors."""
    reach = 0.05 * max(picture.semantic.shape)
    known = cv2.erode((picture.semantic != class_id).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(
        np.float32
    )
    if not known.any():
        return np.full_like(picture.image, picture.image.mean())
    image = picture.image.astype(np.float32)
    filled, weight = (
        cv2.GaussianBlur(image * known[..., None], (0, 0), reach),
        cv2.GaussianBlur(known, (0, 0), reach),
    )
    mean = image[known > 0].mean(0)
    around = np.where(weight[..., None] > 1e-3, filled / np.maximum(weight, 1e-3)[..., None], mean)
    return np.where(known[..., None] > 0, image, around).astype(np.uint8)


def change_light(colors: Canvas, rng: np.random.Generator) -> Canvas:
    """Change contrast, brightness and tint at random; sometimes make it nearly gray."""
    strength = rng.uniform(0.15, 1)
    colors = (
        (colors - 128) * (1 + strength * rng.uniform(-0.35, 0.35)) + 128 + strength * rng.uniform(-35, 35)
    )
    colors = colors * (1 + strength * rng.uniform(-0.15, 0.15, 3)).astype(np.float32)
    if rng.random() < 0.15:
        colors = colors * 0.3 + colors.mean(2, keepdims=True) * 0.7
    return colors.astype(np.float32)


def imitate_camera(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply random exposure, blur, noise and JPEG artifacts, which hide differences of pasted objects."""
    canvas = canvas * np.float32(rng.uniform(0.8, 1.2)) + np.float32(rng.uniform(-15, 15))
    if rng.random() < 0.25:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.3))), np.float32)
    if rng.random() < 0.3:
        canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(1, 8))
    if rng.random() < 0.08:
        canvas = np.repeat(canvas.mean(2, keepdims=True), 3, 2)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 90))]
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR), np.uint8)
    return image
