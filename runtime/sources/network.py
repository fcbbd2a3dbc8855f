"""Network streams: opened with limits on their silence, named without secrets."""

from __future__ import annotations

import cv2

from ...images import without_secrets
from .video import opened

_NETWORK_TIMEOUT_MS = 5000


def open_stream(url: str) -> cv2.VideoCapture:
    """A network stream or file, with limits on how long it may keep silent."""
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        _NETWORK_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        _NETWORK_TIMEOUT_MS,
    ]
    return opened(
        cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts), f"no stream answers at {without_secrets(url)}"
    )
