"""Image files and video files."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np

from ...errors import SourceError
from .base import Frame, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageFiles(Source):
    """Image files, in the order given."""

    is_video = False

    def __init__(self, name: str, paths: list[Path]) -> None:
        super().__init__(name)
        self.paths = paths
        self.frame_count = len(paths)

    def _read(self, index: int) -> Frame | None:
        if index >= len(self.paths):
            return None
        path = self.paths[index]
        began = time.monotonic_ns()
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError(
                f"{path} is no image that OpenCV can read: check that it is complete and one of {', '.join(IMAGE_SUFFIXES)}"
            )
        now = time.monotonic_ns()
        return Frame(np.asarray(image, np.uint8), index, now, path.stem, (now - began) / 1e6)
