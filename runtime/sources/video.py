"""Captures of OpenCV: video files, and what all captures share."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from ...errors import SourceError
from ...files import printable
from .base import Frame, Source, frame_name

_log = logging.getLogger("tfiseg")

_RELEASE_SECONDS = 1.0
_COMPLETE = (
    0.95  # containers announce frame counts loosely: a video that gives this share of its own count is whole
)


class VideoFile(Source):
    """A video file, or one behind an address, through OpenCV."""

    def __init__(self, name: str, capture: cv2.VideoCapture) -> None:
        super().__init__(name)
        self._capture = capture
        self._in_use = threading.Lock()
        self._read_before = False
        self.fps = fps_of(capture)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 else None

    def _read(self, index: int) -> Frame | None:
        with self._in_use:
            if index == 0 and self._read_before:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)  # iterated again: from the start
            self._read_before = True
            began = time.monotonic_ns()
            more, image = self._capture.read()
        if more:
            now = time.monotonic_ns()
            return Frame(np.asarray(image, np.uint8), index, now, frame_name(index), (now - began) / 1e6)
        if self.frame_count is not None and index < min(_COMPLETE * self.frame_count, self.frame_count - 2):
            raise SourceError(
                f"{self.name} ends after {index} of the {self.frame_count} frames it announces: the file is damaged or cut off"
            )
        return None

    def close(self) -> None:
        release(self._capture, self._in_use, self.name)


def release(capture: cv2.VideoCapture, in_use: threading.Lock, name: str) -> None:
    """Release a capture, unless another thread hangs in it: that would end the process."""
    if in_use.acquire(timeout=_RELEASE_SECONDS):
        capture.release()
        in_use.release()
    else:
        _log.warning("%s hangs in reading: it is left open", name)


def fps_of(capture: cv2.VideoCapture) -> float | None:
    """The rate that a capture names, if it can be one."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 1 <= fps <= 1000 else None


def capture_of(path: Path) -> cv2.VideoCapture:
    """Open a file by OpenCV, whatever the bytes of its name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # a name that isn't UTF-8 ends the process inside OpenCV
        try:
            with open(path, "rb") as file:
                return cv2.VideoCapture(f"/dev/fd/{file.fileno()}")
        except OSError as wrong:
            raise SourceError(f"can't read {printable(str(path))}: {wrong.strerror}") from wrong
    return cv2.VideoCapture(str(path))


def opened(capture: cv2.VideoCapture, message: str) -> cv2.VideoCapture:
    """The capture, if it is open; else SourceError with this message."""
    if not capture.isOpened():
        capture.release()
        raise SourceError(message)
    return capture
