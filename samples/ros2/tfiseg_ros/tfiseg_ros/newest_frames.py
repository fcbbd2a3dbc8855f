"""A slot per camera that keeps the newest frame, with exact counts. Independent of ROS."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class FrameCounts:
    """Frame counts of one camera: ``received`` = ``dropped`` + ``taken`` + one waiting frame, if any."""

    received: int = 0
    dropped: int = 0
    taken: int = 0


class NewestFrames:
    """Slots between the thread that receives frames and the thread that segments them.

    A new frame replaces the waiting frame of its camera, which counts as dropped. Cameras take turns, so that
    a fast camera does not block a slow one.

    Args:
        count: number of cameras.
    """

    def __init__(self, count: int) -> None:
        self.counts: Sequence[FrameCounts] = [FrameCounts() for _ in range(count)]
        self._slots: list[Any] = [None] * count
        self._turn = 0  # the camera to check first
        self._changed = threading.Condition()
        self._closed = False

    def put(self, camera: int, frame: Any) -> None:
        """Put the newest frame of a camera, without waiting. After ``close``, it counts as dropped."""
        with self._changed:
            counts = self.counts[camera]
            counts.received += 1
            if self._closed:
                counts.dropped += 1
                return
            counts.dropped += self._slots[camera] is not None
            self._slots[camera] = frame
            self._changed.notify()

    def take(self) -> tuple[int, Any] | None:
        """Wait for a frame and return (camera, frame), or None after ``close``."""
        with self._changed:
            while not self._closed:
                for step in range(len(self._slots)):
                    camera = (self._turn + step) % len(self._slots)
                    if (frame := self._slots[camera]) is not None:
                        self._slots[camera] = None
                        self.counts[camera].taken += 1
                        self._turn = camera + 1
                        return camera, frame
                self._changed.wait()
            return None

    def close(self) -> None:
        """End ``take``; waiting frames count as dropped."""
        with self._changed:
            self._closed = True
            for camera, frame in enumerate(self._slots):
                self.counts[camera].dropped += frame is not None
                self._slots[camera] = None
            self._changed.notify_all()

    def reopen(self) -> None:
        """Accept frames again; counts continue."""
        with self._changed:
            self._closed = False
