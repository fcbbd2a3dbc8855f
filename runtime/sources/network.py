"""Network streams: opened with limits on their silence, named without secrets."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Any

import cv2

from ...errors import SourceError
from ...images import without_secrets
from .base import DEFAULT_FPS
from .decoding import VideoReader, open_container, upright_bgr

URL_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_TIMEOUT_S = 5.0  # for opening, and for each read
# who waited for some of the last frames, for this part of a frame's interval, has read all that was sent
_RECENT, _WAITED_FOR, _WAIT = 8, 3, 0.25
_STALL_S, _STALL = 0.5, 4  # a longer wait, also over the usual ones, is the network's: what comes then is old


def open_stream(url: str) -> VideoReader:
    """Open a network stream or file, with limits on how long it may keep silent.

    Raises:
        SourceError: nothing answers, or what comes is no video. The message holds no password.
    """
    from av.error import FFmpegError, HTTPClientError, HTTPError, InvalidDataError

    shown = without_secrets(url)
    # cameras drop packets over UDP: TCP first, as OpenCV has it
    options = {"rtsp_flags": "prefer_tcp"} if url.lower().startswith("rtsp") else {}
    try:
        container = open_container(url, shown, options=options, timeout=(_TIMEOUT_S, _TIMEOUT_S))
    except FFmpegError as error:  # their own texts hold the URL
        if isinstance(error, HTTPError | HTTPClientError):
            raise SourceError(f"{shown} refuses to answer: {error.strerror}") from None
        if isinstance(error, InvalidDataError):
            raise SourceError(f"what {shown} sends is no video that can be read") from None
        raise SourceError(f"no stream answers at {shown}") from None
    return VideoReader(container, shown, low_latency=True)


class StreamCapture:
    """A network stream with the interface of ``cv2.VideoCapture``.

    ``lag_s`` says how long the last frame had lain in buffers: of a stream that is read more slowly than it
    sends, or after the network stood still, old frames would be taken for new ones. It is measured by the
    stream's own clock, since frames were last waited for.
    """

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader
        self.lag_s = 0.0
        self._least_s: float | None = None  # this machine's clock minus the stream's, when caught up
        self._waits_s: deque[float] = deque(maxlen=_RECENT)
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
        ahead_s = time.monotonic() - self._reader.time_of(frame)
        if self._least_s is None or self._caught_up(waited_s):
            self._least_s = ahead_s
        self._least_s = min(self._least_s, ahead_s)
        self.lag_s = ahead_s - self._least_s

    def _caught_up(self, waited_s: float) -> bool:
        waits = self._waits_s
        if len(waits) >= _WAITED_FOR and waited_s > max(_STALL_S, _STALL * median(waits)):
            waits.clear()
        else:
            waits.append(waited_s)
        least_s = _WAIT / (self._reader.fps or DEFAULT_FPS)
        return waited_s > least_s and sum(wait > least_s for wait in waits) >= _WAITED_FOR

    def get(self, which: int, /) -> float:
        return float(self._values.get(which, 0))

    def release(self) -> None:
        self._reader.close()

    def getBackendName(self) -> str:
        return "FFMPEG"
