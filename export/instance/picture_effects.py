"""Effects on the pictures of composites: fill a class's pixels, change the light, imitate a camera."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..semantic.data import Picture

Canvas = NDArray[np.float32]  # (S, S, 3) BGR


def emptied_of(picture: Picture, class_id: int) -> NDArray[np.uint8]:
    """The picture with the class's pixels filled from around them."""
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


def change_light(colours: Canvas, rng: np.random.Generator) -> Canvas:
    """Another light: contrast, brightness, tint; sometimes nearly grey."""
    strength = rng.uniform(0.15, 1)
    colours = (
        (colours - 128) * (1 + strength * rng.uniform(-0.35, 0.35)) + 128 + strength * rng.uniform(-35, 35)
    )
    colours = colours * (1 + strength * rng.uniform(-0.15, 0.15, 3)).astype(np.float32)
    if rng.random() < 0.15:
        colours = colours * 0.3 + colours.mean(2, keepdims=True) * 0.7
    return colours.astype(np.float32)


def photographed(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, blur, noise, grey, JPEG over the whole composite, so that nothing tells pasted from real."""
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
