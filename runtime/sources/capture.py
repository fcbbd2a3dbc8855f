"""What live sources read from: captures, with the interface of ``cv2.VideoCapture``."""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol

import cv2

from ...errors import SourceError

_RELEASE_SECONDS = 1.0

_log = logging.getLogger("tfiseg")


class Capture(Protocol):
    """An open camera or stream: ``cv2.VideoCapture``, or a class that behaves like it."""

    def read(self) -> tuple[bool, Any]: ...
    def grab(self) -> bool: ...
    def get(self, which: int, /) -> float: ...
    def release(self) -> None: ...
    def getBackendName(self) -> str: ...


def release(capture: Any, in_use: threading.Lock, name: str) -> None:
    """Release a capture, unless another thread hangs in it: that would end the process."""
    if in_use.acquire(timeout=_RELEASE_SECONDS):
        capture.release()
        in_use.release()
    else:
        _log.warning("%s hangs in reading: it is left open", name)


def fps_of(capture: Capture) -> float | None:
    """The rate that a capture names, if it can be one."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0 < fps <= 1000 else None


def opened(capture: cv2.VideoCapture, message: str) -> cv2.VideoCapture:
    """The capture, if it is open; else SourceError with this message."""
    if not capture.isOpened():
        capture.release()
        raise SourceError(message)
    return capture
