"""Playback of files and synthetic frames in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .base import DEFAULT_FPS, Frame, Source


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
        self._source, self._uses_media_time = source, fps is None
        self._interrupted = threading.Event()
        self.fps = fps or source.fps or DEFAULT_FPS
        self.is_video, self.frame_count = source.is_video, source.frame_count

    @property
    def unreadable(self) -> Sequence[str]:  # type: ignore[override]
        """Error messages of the image files that cannot be read."""
        return self._source.unreadable

    def __iter__(self) -> Iterator[Frame]:
        self._interrupted.clear()
        began_ns, first_s = time.monotonic_ns(), None
        for frame in self._source:
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
        self._source.interrupt()

    def close(self) -> None:
        self._source.close()
