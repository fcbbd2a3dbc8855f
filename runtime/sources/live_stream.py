"""Cameras and streams that are reopened when they are lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import cv2
import numpy as np

from ...errors import InputError, SourceError
from .base import DEFAULT_FPS, Frame, Source, frame_name
from .capture import Capture, close_unused, fps_of

_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 8.0  # between attempts to reopen a source; doubled each time
_BUFFERED_AFTER_S = 0.2  # after opening, buffers contain old frames
# a frame is new if reading it takes at least this share of the frame interval, several times in a row
_NEW_SHARE, _NEW_IN_A_ROW = 0.5, 2

_LATE_S = 1.0  # time in buffers that is logged once

_log = logging.getLogger("tfiseg")


@dataclass(frozen=True)
class CameraRequest:
    """The requested format of a camera; None keeps the camera's default. Raises InputError."""

    size_wh: tuple[int, int] | None = None  # width and height in pixels, at least 1
    fps: float | None = None  # frames per second, above 0
    pixel_format: str | None = None  # a FourCC such as "MJPG" or "YUYV"

    def __post_init__(self) -> None:
        size_wh = self.size_wh
        is_pair = isinstance(size_wh, Sequence) and len(size_wh) == 2
        if size_wh is not None and not (is_pair and all(isinstance(side, Integral) for side in size_wh)):
            raise InputError(
                f"the camera size must be two integers, (width, height) in pixels, got {size_wh!r}"
            )
        if size_wh is not None and min(size_wh) < 1:
            raise InputError(f"the camera size must be at least 1 x 1 px, got {size_wh[0]} x {size_wh[1]}")
        if self.fps is not None and not (isinstance(self.fps, Real) and 0 < self.fps < float("inf")):
            fps = f"{self.fps:g}" if isinstance(self.fps, Real) else repr(self.fps)
            raise InputError(f"the camera fps must be above 0, got {fps}")
        if self.pixel_format is not None and not (
            isinstance(self.pixel_format, str) and len(self.pixel_format) == 4
        ):
            raise InputError(
                f'the pixel format must be a FourCC such as "MJPG" or "YUYV", got {self.pixel_format!r}'
            )

    def __bool__(self) -> bool:
        return self != CameraRequest()


class LiveStream(Source):
    """A camera or stream that is reopened when it is lost, with increasing delays.

    The logger "tfiseg" reports the format that the source delivers, losses, and reconnections.

    Args:
        opener: opens the capture, or raises SourceError.
        request: the requested format; the log warns if the source delivers another one.
    """

    is_live = True

    def __init__(
        self,
        name: str,
        opener: Callable[[], Capture],
        request: CameraRequest | None = None,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(name)
        self._opener = opener
        self._capture = capture or opener()
        self._opened = time.monotonic()
        self._in_use = threading.Lock()
        self._interrupted = threading.Event()
        self.description, differs = describe_capture(name, self._capture, request or CameraRequest())
        (_log.warning if differs else _log.info)("%s", self.description)
        self.fps = fps_of(self._capture)
        self._has_time_stamps = self._capture.getBackendName() == "V4L2"
        self._warned_late = False

    def __iter__(self) -> Iterator[Frame]:
        self._interrupted.clear()
        if time.monotonic() - self._opened > _BUFFERED_AFTER_S:
            self._skip_buffered()
        return super().__iter__()

    def _skip_buffered(self) -> None:
        """Skip frames that arrived before the iteration, for example while a network was loaded."""
        interval, new = 1 / (self.fps or DEFAULT_FPS), 0
        with self._in_use:
            max_buffered = round((time.monotonic() - self._opened) / interval)
            for _ in range(max_buffered + _NEW_IN_A_ROW):
                began = time.monotonic()
                if not self._capture.grab():
                    return
                # grab() decodes compressed streams, so a single slow frame may be an old one
                new = new + 1 if time.monotonic() - began > _NEW_SHARE * interval else 0
                if new == _NEW_IN_A_ROW:
                    return

    def _read(self, index: int) -> Frame | None:
        while not self._interrupted.is_set():
            with self._in_use:
                began = time.monotonic_ns()
                is_read, image = self._capture.read()
                now = time.monotonic_ns()
                capture_ns = self._capture_time_ns(now) if is_read else now
            if is_read:
                return Frame(
                    np.asarray(image, np.uint8), index, capture_ns, frame_name(index), (now - began) / 1e6
                )
            if getattr(self._capture, "ended", False):  # a pipeline that plays a file
                return None
            self._reopen(index)
        return None

    def _capture_time_ns(self, now_ns: int) -> int:
        """Return the capture time of the last frame on the monotonic clock.

        V4L2 drivers give the time at which the transfer ended. Network streams give the time in buffers.
        """
        if self._has_time_stamps:
            stamp_ns = int(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if 0 <= now_ns - stamp_ns < 2_000_000_000:  # otherwise the driver uses another clock
                return stamp_ns
        lag_s = getattr(self._capture, "lag_s", 0.0)
        if lag_s > _LATE_S and not self._warned_late:
            self._warned_late = True
            _log.warning(
                "a frame of %s is %.1f s old when it is read: the network delayed it, or the stream sends "
                "more than this machine reads. Request fewer or smaller frames, or decode in hardware "
                "(gst:PIPELINE)",
                self.name,
                lag_s,
            )
        return now_ns - int(lag_s * 1e9)

    def _reopen(self, frames: int) -> None:
        with self._in_use:
            self._capture.release()
        lost, wait = time.monotonic(), _FIRST_WAIT_S
        lost_after = "%s stopped delivering after %d frames (cable, power, network?); it will be reopened"
        _log.warning(lost_after, self.name, frames)
        while not self._interrupted.wait(wait):
            try:
                with self._in_use:
                    self._capture = self._opener()
            except SourceError as error:
                wait = min(2 * wait, _MAX_WAIT_S)
                _log.info("%s; next attempt in %g s", error, wait)
                continue
            self.reconnects += 1
            self._warned_late = False
            _log.warning("%s is back after %.1f s", self.name, time.monotonic() - lost)
            return

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        close_unused(lambda: self._capture.release(), self._in_use, self.name)


def describe_capture(name: str, capture: Capture, request: CameraRequest) -> tuple[str, bool]:
    """Return a sentence about the format that a source delivers, and whether it differs from the request."""
    width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    fps = capture.get(cv2.CAP_PROP_FPS)
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    text = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24))
    pixel_format = text if text.isprintable() and code > 0 else None
    format_text = (
        f"{width}x{height}"
        + (f" at {fps:g} frames/s" if fps > 0 else "")
        + (f", {pixel_format}" if pixel_format else "")
    )
    missing = []
    if request.size_wh not in (None, (width, height)):
        missing.append("{}x{}".format(*(request.size_wh or ())))
    if request.fps is not None and abs(request.fps - fps) > 0.5:
        missing.append(f"{request.fps:g} frames/s")
    if request.pixel_format not in (None, pixel_format):
        missing.append(f"{request.pixel_format}")
    difference = f"; it does not deliver the requested {', '.join(missing)}" if missing else ""
    return f"{name} delivers {format_text} by {capture.getBackendName()}{difference}", bool(missing)
