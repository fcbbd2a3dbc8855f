"""What one stage of a pipeline hands to the next: a bounded queue whose writer waits, or a slot where the
newest wins."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ended(Exception):
    """Nothing comes any more: the writer has ended and all is taken, or the channel was closed."""


class Channel(Generic[T]):
    """A queue between two threads.

    Args:
        capacity: items that may lie here.
        newest_wins: where it is full, the oldest makes room and counts as dropped; else the writer waits.
        most_under_way: ``get`` waits while so many items that were taken aren't ``done``; None: any number
            may be.
    """

    def __init__(
        self, capacity: int = 1, newest_wins: bool = False, most_under_way: int | None = None
    ) -> None:
        self._capacity = capacity
        self._newest_wins = newest_wins
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False
        self._listeners: list[Callable[[], None]] = []
        self._most_under_way, self._under_way = most_under_way, 0
        self.dropped = 0

    def put(self, item: T) -> None:
        """Lay an item here; raises Ended if nobody will take it."""
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
                raise Ended
            self._items.append(item)
            self._tell()

    def get(self) -> T:
        """The oldest item, waited for; raises Ended."""
        with self._changed:
            while not self._items or (
                self._most_under_way is not None and self._under_way >= self._most_under_way
            ):
                if self._ended and not self._items:
                    raise Ended
                self._changed.wait()
            self._under_way += 1
            return self._taken()

    def done(self) -> None:
        """An item that was taken is through."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def get_now(self) -> T | None:
        """The oldest item, or None where there is none yet; raises Ended."""
        with self._changed:
            if self._items:
                return self._taken()
            if self._ended:
                raise Ended
            return None

    def _taken(self) -> T:
        item = self._items.popleft()
        self._changed.notify_all()
        return item

    def end(self) -> None:
        """The writer is done; what lies here can still be taken."""
        with self._changed:
            self._ended = True
            self._tell()

    def close(self) -> int:
        """End at once; returns how many items lay here and go to nobody."""
        with self._changed:
            left = len(self._items)
            self._items.clear()
            self._ended = True
            self._tell()
            return left

    def abandon(self) -> None:
        """From now on, what is put here is dropped: nobody takes it, and its writer goes on."""
        with self._changed:
            self._abandoned = True
            self.dropped += len(self._items)
            self._items.clear()
            self._tell()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call once, from the writer's thread, when something arrives or the channel ends; at once if that is
        so already."""
        with self._changed:
            if not (self._items or self._ended):
                self._listeners.append(listener)
                return
        listener()

    def _tell(self) -> None:
        self._changed.notify_all()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def __len__(self) -> int:
        return len(self._items)
