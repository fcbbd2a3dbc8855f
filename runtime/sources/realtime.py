"""Playback of files and synthetic frames in real time, and a slide show of photos."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat

from .base import DEFAULT_FPS, Frame, Source

_PHOTO_SECONDS = 2.0
_SLIDE_FPS = 5.0  # so that a window stays responsive, and changed settings show at once


class Realtime(Source):
    """A live source that plays another source in real time.

    The capture time of each frame is the time at which it is due, even if it is read later.

    Args:
        source: a file, a folder or the synthetic source.
        fps: frames per second; None for the media times or the frame rate of the source.
    """

    is_live = True

    def __init__(self, source: Source, fps: float | None = None) -> None:
        super().__init__(source.name)
        self.source, self._uses_media_time = source, fps is None
        self._interrupted = threading.Event()
        self.fps = fps or source.fps or DEFAULT_FPS
        self.is_video, self.frame_count = source.is_video, source.frame_count

    @property
    def unreadable(self) -> Sequence[str]:  # type: ignore[override]
        """Error messages of the image files that cannot be read."""
        return self.source.unreadable

    def __iter__(self) -> Iterator[Frame]:
        self._interrupted.clear()
        began_ns, first_s = time.monotonic_ns(), None
        for frame in self.source:
            assert self.fps is not None
            due_s = frame.index / self.fps
            if self._uses_media_time and frame.media_time_s is not None:
                first_s = frame.media_time_s if first_s is None else first_s
                due_s = frame.media_time_s - first_s
            due_ns = began_ns + round(due_s * 1e9)
            if self._interrupted.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
                return
            yield replace(frame, capture_time_ns=due_ns)

    def interrupt(self) -> None:
        self._interrupted.set()
        self.source.interrupt()

    def close(self) -> None:
        self.source.close()


class SlideShow(Realtime):
    """A live source that shows each photo for two seconds, and the last one until it is interrupted.

    A photo is repeated as a new frame five times per second. ``frame_count`` is the number of photos.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source, _SLIDE_FPS)

    def __iter__(self) -> Iterator[Frame]:
        self._interrupted.clear()
        for index, photo in enumerate(self._repeated_photos()):
            yield replace(photo, index=index, capture_time_ns=time.monotonic_ns())
            if self._interrupted.wait(1 / _SLIDE_FPS):
                return

    def _repeated_photos(self) -> Iterator[Frame]:
        photo = None
        for photo in self.source:
            yield from repeat(photo, round(_PHOTO_SECONDS * _SLIDE_FPS))
        if photo is not None:
            yield from repeat(photo)
