"""The interface of captures, which live sources read: that of ``cv2.VideoCapture``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

import cv2

from ...errors import SourceError

_RELEASE_SECONDS = 1.0

_log = logging.getLogger("tfiseg")


class Capture(Protocol):
    """An open camera or stream: ``cv2.VideoCapture``, or a class with its interface."""

    def read(self) -> tuple[bool, Any]: ...
    def grab(self) -> bool: ...
    def get(self, property_id: int, /) -> float: ...
    def release(self) -> None: ...
    def getBackendName(self) -> str: ...


def close_unused(close: Callable[[], None], in_use: threading.Lock, name: str) -> None:
    """Close a capture unless another thread is reading it, which would crash the process.

    ``close`` must look the capture up: while it waits, the other thread may open a new one.
    """
    if in_use.acquire(timeout=_RELEASE_SECONDS):
        close()
        in_use.release()
    else:
        _log.warning("reading %s does not return; it is left open", name)


def fps_of(capture: Capture) -> float | None:
    """Return the frame rate of a capture, or None if the value is not plausible."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0 < fps <= 1000 else None


def require_open(capture: cv2.VideoCapture, message: str) -> cv2.VideoCapture:
    """Return the capture if it is open; otherwise raise SourceError with this message."""
    if not capture.isOpened():
        capture.release()
        raise SourceError(message)
    return capture
