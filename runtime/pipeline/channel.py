"""Channels between pipeline stages: a bounded queue that blocks the writer, or a slot for the newest item."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelEnded(Exception):
    """The channel is closed, or its writer has finished and no item is left."""


class Channel(Generic[T]):
    """A queue between two threads.

    Args:
        newest_wins: drop the oldest item if the channel is full; otherwise the writer waits.
        max_in_progress: maximum number of items between ``get`` and ``done``; None for no limit.
    """

    def __init__(
        self, capacity: int = 1, newest_wins: bool = False, max_in_progress: int | None = None
    ) -> None:
        self._capacity = capacity
        self._newest_wins = newest_wins
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False
        self._listeners: list[Callable[[], None]] = []
        self._max_in_progress, self._in_progress = max_in_progress, 0
        self.dropped = 0

    def put(self, item: T) -> None:
        """Queue an item, or raise ChannelEnded."""
        with self._changed:
            while len(self._items) >= self._capacity and not (self._ended or self._abandoned):
                if self._newest_wins:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._abandoned:
                self.dropped += 1
                return
            if self._ended:
                raise ChannelEnded
            self._items.append(item)
            self._notify()

    def get(self) -> T:
        """Wait for the oldest item and return it, or raise ChannelEnded."""
        with self._changed:
            while not self._items or (
                self._max_in_progress is not None and self._in_progress >= self._max_in_progress
            ):
                if self._ended and not self._items:
                    raise ChannelEnded
                self._changed.wait()
            self._in_progress += 1
            return self._pop()

    def done(self) -> None:
        """Mark one item as processed."""
        with self._changed:
            self._in_progress -= 1
            self._changed.notify_all()

    def get_now(self) -> T | None:
        """Return the oldest item, or None if there is none yet; raise ChannelEnded at the end."""
        with self._changed:
            if self._items:
                return self._pop()
            if self._ended:
                raise ChannelEnded
            return None

    def _pop(self) -> T:
        item = self._items.popleft()
        self._changed.notify_all()
        return item

    def end(self) -> None:
        """Accept no further items; queued items can still be taken."""
        with self._changed:
            self._ended = True
            self._notify()

    def close(self) -> int:
        """End at once and return the number of discarded items."""
        with self._changed:
            left = len(self._items)
            self._items.clear()
            self._ended = True
            self._notify()
            return left

    def abandon(self) -> None:
        """Drop all queued and future items, so that the writer never waits."""
        with self._changed:
            self._abandoned = True
            self.dropped += len(self._items)
            self._items.clear()
            self._notify()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call the listener once, as soon as an item is available or the channel has ended.

        It is called from the writer's thread, or immediately from this one.
        """
        with self._changed:
            if not (self._items or self._ended):
                self._listeners.append(listener)
                return
        listener()

    def _notify(self) -> None:
        self._changed.notify_all()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def __len__(self) -> int:
        return len(self._items)
