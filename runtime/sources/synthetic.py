"""The synthetic source: cut-outs of a real person that move in front of a wall, with ground truth."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .base import Frame, Source, frame_name

# NASA's portrait of Eileen Collins (public domain), as shipped by scikit-image, cut out
_SPRITE = Path(__file__).parent / "sprites" / "astronaut.png"
_PERSON = 15  # class ID in PASCAL VOC


class SyntheticCamera(Source):
    """An endless source of frames with ``truth_label_map`` and ``truth_class_map``.

    The people overlap, which shape alone often cannot separate.

    Args:
        size_hw: height and width of the frames in pixels.
    """

    fps = 30.0

    def __init__(self, size_hw: tuple[int, int] = (480, 640), people: int = 3, seed: int = 0) -> None:
        super().__init__("synthetic")
        rng = np.random.default_rng(seed)
        height, width = size_hw
        self._size_hw = size_hw
        self._background = _background(rng, size_hw)
        sprite = cv2.imread(str(_SPRITE), cv2.IMREAD_UNCHANGED)
        assert sprite is not None, f"{_SPRITE} belongs to the package"
        self._sprites: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []  # color * alpha, 1 - alpha
        for k in range(people):
            scale = height * rng.uniform(0.3, 0.45) / sprite.shape[0]
            interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            person = cv2.resize(sprite, None, fx=scale, fy=scale, interpolation=interpolation)
            if k % 2:
                person = person[:, ::-1]
            color = person[..., :3].astype(np.float32) * rng.uniform(0.75, 1.1) + rng.uniform(-8, 8, 3)
            alpha = person[..., 3:].astype(np.float32) / 255
            premultiplied = np.asarray(np.clip(color, 0, 255) * alpha, np.float32)
            self._sprites.append((premultiplied, np.asarray(1 - alpha, np.float32)))
        self._sprites.sort(key=lambda sprite: len(sprite[0]))  # near people are large and drawn last
        self._center_x = (np.arange(people) + 0.5) / people * width
        self._amplitude = rng.uniform(0.04, 0.11, people) * width
        self._frequency = rng.uniform(0.02, 0.05, people)  # radians per frame
        self._phase = rng.uniform(0, 2 * np.pi, people)

    def _read(self, index: int) -> Frame:
        began = time.monotonic_ns()
        image = self._background.copy()
        truth = np.zeros(self._size_hw, np.int32)
        height, width = self._size_hw
        for k, (color, transparency) in enumerate(self._sprites):
            offset = self._amplitude[k] * np.sin(self._phase[k] + self._frequency[k] * index)
            x = int(self._center_x[k] + offset) - color.shape[1] // 2
            y = height - color.shape[0] + int(3 * np.sin(0.3 * index + k)) + 3
            x0, x1, y1 = max(0, x), min(width, x + color.shape[1]), min(height, y + color.shape[0])
            if x1 <= x0:
                continue
            visible = (slice(0, y1 - y), slice(x0 - x, x1 - x))
            target = image[y:y1, x0:x1]
            target[:] = target * transparency[visible] + color[visible]
            truth[y:y1, x0:x1][transparency[visible][..., 0] < 0.5] = k + 1
        now = time.monotonic_ns()
        classes = np.where(truth > 0, _PERSON, 0).astype(np.uint8)
        return Frame(
            image,
            index,
            now,
            frame_name(index),
            (now - began) / 1e6,
            truth,
            classes,
            media_time_s=index / self.fps,
        )


def _background(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image of a wall and a floor with smooth noise, without objects."""
    height, width = size_hw
    horizon = int(height * 0.68)
    wall = np.zeros((height, width, 3), np.float32)
    wall[:horizon] = (172, 168, 158)
    wall[horizon:] = (92, 104, 118)
    for octave in (4, 16, 64):
        noise = rng.normal(
            0, 14 / octave**0.5, (max(2, height * octave // 320), max(2, width * octave // 320), 1)
        ).astype(np.float32)
        wall += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(cv2.GaussianBlur(wall, (0, 0), 1.2), 0, 255).astype(np.uint8)
