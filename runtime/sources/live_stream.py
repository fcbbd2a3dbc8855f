"""Cameras and streams that are opened again whenever they are lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ...errors import InputError, SourceError
from .base import DEFAULT_FPS, Frame, Source, frame_name
from .capture import Capture, fps_of, release

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0  # between attempts to open a lost source again: doubled each time
_WAITED_AFTER_S = 0.2  # opened so long ago, there are frames in a buffer
_AT_ONCE, _NEW_IN_A_ROW = (
    0.5,
    2,
)  # of a frame's interval: what comes quicker lay there; so many that don't are new

_LATE_S = 1.0  # in buffers, after which the log says so, once

_log = logging.getLogger("tfiseg")


@dataclass(frozen=True)
class CameraRequest:
    """What a camera is asked for: width and height in pixels, frames per second, pixel format (a FourCC such
    as "MJPG" or "YUYV")."""

    size_wh: tuple[int, int] | None = None
    fps: float | None = None
    pixel_format: str | None = None

    def __post_init__(self) -> None:
        if self.size_wh is not None and min(self.size_wh) < 1:
            raise InputError(
                f"a camera's size must be at least 1 x 1 px, got {self.size_wh[0]} x {self.size_wh[1]}"
            )
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"a camera's fps must be above 0, got {self.fps:g}")
        if self.pixel_format is not None and len(self.pixel_format) != 4:
            raise InputError(
                f'a pixel format is a FourCC such as "MJPG" or "YUYV", got {self.pixel_format!r}'
            )

    def __bool__(self) -> bool:
        return self != CameraRequest()


class LiveStream(Source):
    """A camera or stream that is opened again whenever it is lost, with growing pauses, and says so in the
    log "tfiseg".

    Args:
        name: of the source.
        opener: opens it; raises SourceError.
        wanted: what was asked of it; where it gives something else, the log says so.
        capture: it, if it is open already.
    """

    is_live = True

    def __init__(
        self,
        name: str,
        opener: Callable[[], Capture],
        wanted: CameraRequest | None = None,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(name)
        self._opener = opener
        self._capture = capture or opener()
        self._opened = time.monotonic()
        self._in_use = threading.Lock()
        self._interrupted = threading.Event()
        self.description, differs = described(name, self._capture, wanted or CameraRequest())
        (_log.warning if differs else _log.info)("%s", self.description)
        self.fps = fps_of(self._capture)
        self._stamps = self._capture.getBackendName() == "V4L2"
        self._told_late = False

    def __iter__(self) -> Iterator[Frame]:
        self._interrupted.clear()
        if time.monotonic() - self._opened > _WAITED_AFTER_S:
            self._skip_what_waited()
        return super().__iter__()

    def _skip_what_waited(self) -> None:
        """Frames that came in while a network was loaded would be taken for new ones: whoever drives by them
        drives by the past."""
        interval, new = 1 / (self.fps or DEFAULT_FPS), 0
        with self._in_use:
            for _ in range(
                round((time.monotonic() - self._opened) / interval) + _NEW_IN_A_ROW
            ):  # no more can have come
                began = time.monotonic()
                if (
                    not self._capture.grab()
                ):  # it decodes where the stream is compressed, so one that takes long may still be old
                    return
                new = new + 1 if time.monotonic() - began > _AT_ONCE * interval else 0
                if new == _NEW_IN_A_ROW:
                    return

    def _read(self, index: int) -> Frame | None:
        while not self._interrupted.is_set():
            with self._in_use:
                began = time.monotonic_ns()
                more, image = self._capture.read()
                now = time.monotonic_ns()
                taken = self._captured_at(now) if more else now
            if more:
                return Frame(
                    np.asarray(image, np.uint8), index, taken, frame_name(index), (now - began) / 1e6
                )
            if getattr(self._capture, "ended", False):  # a pipeline that plays a file
                return None
            self._find_again(index)
        return None

    def _captured_at(self, now_ns: int) -> int:
        """When the picture was taken: V4L2's drivers stamp it on the monotonic clock, which is when its
        transfer ended; of network streams, the time in buffers is known."""
        if self._stamps:
            stamped = int(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if 0 <= now_ns - stamped < 2_000_000_000:  # a driver with another clock is not believed
                return stamped
        lag_s = getattr(self._capture, "lag_s", 0.0)
        if lag_s > _LATE_S and not self._told_late:
            self._told_late = True
            _log.warning(
                "a frame of %s is %.1f s old when it is read, as its age says: the network held it back, or "
                "more is sent than is read here. Then ask for fewer or smaller frames, or decode in hardware "
                "(gstreamer:PIPELINE)",
                self.name,
                lag_s,
            )
        return now_ns - int(lag_s * 1e9)

    def _find_again(self, frames: int) -> None:
        with self._in_use:
            self._capture.release()
        lost, wait = time.monotonic(), _FIRST_WAIT_S
        _log.warning(
            "%s stopped delivering after %d frames (cable, power, network?): it is looked for until it is "
            "back",
            self.name,
            frames,
        )
        while not self._interrupted.wait(wait):
            try:
                with self._in_use:
                    self._capture = self._opener()
            except SourceError as still:
                wait = min(2 * wait, _LONGEST_WAIT_S)
                _log.info("%s; next attempt in %g s", still, wait)
                continue
            self.reconnects += 1
            self._told_late = False
            _log.warning("%s is back after %.1f s", self.name, time.monotonic() - lost)
            return

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        release(self._capture, self._in_use, self.name)


def described(name: str, capture: Capture, wanted: CameraRequest) -> tuple[str, bool]:
    """What a source really gives, as a sentence, and whether it differs from what was asked."""
    width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    fps = capture.get(cv2.CAP_PROP_FPS)
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    text = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24))
    pixel_format = text if text.isprintable() and code > 0 else None
    got = (
        f"{width}x{height}"
        + (f" at {fps:g} frames/s" if fps > 0 else "")
        + (f", {pixel_format}" if pixel_format else "")
    )
    missed = []
    if wanted.size_wh not in (None, (width, height)):
        missed.append("{}x{}".format(*(wanted.size_wh or ())))
    if wanted.fps is not None and abs(wanted.fps - fps) > 0.5:
        missed.append(f"{wanted.fps:g} frames/s")
    if wanted.pixel_format not in (None, pixel_format):
        missed.append(f"{wanted.pixel_format}")
    asked = f"; asked for {', '.join(missed)}, which it doesn't give" if missed else ""
    return f"{name} gives {got} through {capture.getBackendName()}{asked}", bool(missed)
