"""Network streams, with timeouts, and with names that contain no secrets."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Any

import cv2

from ...errors import SourceError
from ...images import strip_secrets
from .base import DEFAULT_FPS
from .decoding import VideoReader, open_container, upright_bgr

URL_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_TIMEOUT_S = 5.0  # for opening, and for each read
# buffers are empty if at least 3 of the last 8 reads waited for this share of the frame interval
_RECENT_READS, _MIN_WAITS, _WAIT_SHARE = 8, 3, 0.25
# a longer wait, in seconds and in medians, is a stall of the network: the next frames are old
_STALL_S, _STALL_RATIO = 0.5, 4


def open_stream(url: str) -> VideoReader:
    """Open a network stream, or a file at a URL, with timeouts; raises SourceError without a password."""
    from av.error import FFmpegError, HTTPClientError, HTTPError, InvalidDataError

    shown = strip_secrets(url)
    # TCP first, as in OpenCV, because cameras drop packets over UDP
    options = {"rtsp_flags": "prefer_tcp"} if url.lower().startswith("rtsp") else {}
    try:
        container = open_container(url, shown, options=options, timeout=(_TIMEOUT_S, _TIMEOUT_S))
    except FFmpegError as error:  # its message contains the URL
        if isinstance(error, HTTPError | HTTPClientError):
            raise SourceError(f"{shown} refuses to answer: {error.strerror}") from None
        if isinstance(error, InvalidDataError):
            raise SourceError(f"{shown} sends no video that can be read") from None
        raise SourceError(f"no stream answers at {shown}") from None
    return VideoReader(container, shown, low_latency=True)


class StreamCapture:
    """A network stream with the interface of ``cv2.VideoCapture``.

    ``lag_s`` is the time that the last frame spent in buffers, because the stream is read more slowly than it
    is sent or the network stalled. It is measured by the stream's clock, since the buffers were last empty.
    """

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader
        self.lag_s = 0.0
        self._min_offset_s: float | None = None  # this machine's clock minus the stream's, with empty buffers
        self._waits_s: deque[float] = deque(maxlen=_RECENT_READS)
        self._frames = reader.frames()
        code = reader.codec if len(reader.codec) == 4 else ""
        self._values = {
            cv2.CAP_PROP_FRAME_WIDTH: reader.size_wh[0],
            cv2.CAP_PROP_FRAME_HEIGHT: reader.size_wh[1],
            cv2.CAP_PROP_FPS: reader.fps or 0.0,
            cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*code) if code else 0,
        }

    def read(self) -> tuple[bool, Any]:
        frame = self._next()
        return frame is not None, None if frame is None else upright_bgr(frame)

    def grab(self) -> bool:
        return self._next() is not None

    def _next(self) -> Any:
        before_s = self._reader.waited_s
        frame = next(self._frames, None)
        if frame is not None:
            self._measure_lag(frame, self._reader.waited_s - before_s)
        return frame

    def _measure_lag(self, frame: Any, waited_s: float) -> None:
        offset_s = time.monotonic() - self._reader.time_of(frame)
        if self._min_offset_s is None or self._buffers_are_empty(waited_s):
            self._min_offset_s = offset_s
        self._min_offset_s = min(self._min_offset_s, offset_s)
        self.lag_s = offset_s - self._min_offset_s

    def _buffers_are_empty(self, waited_s: float) -> bool:
        waits = self._waits_s
        if len(waits) >= _MIN_WAITS and waited_s > max(_STALL_S, _STALL_RATIO * median(waits)):
            waits.clear()
        else:
            waits.append(waited_s)
        min_wait_s = _WAIT_SHARE / (self._reader.fps or DEFAULT_FPS)
        return waited_s > min_wait_s and sum(wait > min_wait_s for wait in waits) >= _MIN_WAITS

    def get(self, property_id: int, /) -> float:
        return float(self._values.get(property_id, 0))

    def release(self) -> None:
        self._reader.close()

    def getBackendName(self) -> str:
        return "FFMPEG"
