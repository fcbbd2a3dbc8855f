"""Small images for tests, and their encodings."""

import io

import cv2
import numpy as np
from PIL import Image

# 2 x 3 pixels BGR: blue, green, red; black, white, gray
TINY = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [9, 9, 9]]], np.uint8)
SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60))


def as_pil(bgr) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))


def encoded(image, form, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
