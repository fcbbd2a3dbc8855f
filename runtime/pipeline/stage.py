"""A pipeline stage: threads that process the items of one channel and pass them on in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .channel import Channel, ChannelEnded
from .worker_threads import Job


class Stage:
    """A function that worker threads apply to each item of a channel.

    Args:
        targets: channels that each get every result, in the order of the items.
        finish: called in order with each result, the stage's name and the time in ms; returns the result that
            is passed on.
        is_last: count a result as finished even if no target accepts it.
        fail: called with the stage's name and the error of ``work`` or ``finish``. Later items are discarded.
        discard: called with the number of items that are not passed on.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Any], Any],
        source: Channel[Any],
        targets: Sequence[Channel[Any]],
        *,
        workers: int = 1,
        is_last: bool = False,
        finish: Callable[[Any, str, float], Any],
        fail: Callable[[str, BaseException], None],
        discard: Callable[[int], None],
    ) -> None:
        self.name = name
        self._work, self._source, self._targets = work, source, targets
        self._finish, self._fail, self._discard = finish, fail, discard
        self._take_lock = threading.Lock()
        self._turn = threading.Condition()
        self._taken = self._passed_on = 0
        self._failed = False
        self._is_last = is_last
        self._running = workers
        self.busy_since: float | None = None  # time.monotonic(); only valid with one worker
        names = [f"tfiseg-{name}" + (f"-{k}" if k else "") for k in range(workers)]
        self.threads = [Job(self._run, n) for n in names]

    def _run(self) -> None:
        try:
            while True:
                with self._take_lock:
                    item = self._source.get()
                    ticket = self._taken
                    self._taken += 1
                error: BaseException | None = None
                began, self.busy_since = time.perf_counter(), time.monotonic()
                try:
                    item = self._work(item)
                except BaseException as raised:  # the caller gets every error
                    error = raised
                self.busy_since = None
                self._pass_on(ticket, item, error, (time.perf_counter() - began) * 1e3)
        except ChannelEnded:
            pass
        finally:
            with self._turn:
                self._running -= 1
                last = not self._running
            if last:
                self._discard(self._source.close())
                for target in self._targets:
                    target.end()

    def _pass_on(self, ticket: int, result: Any, error: BaseException | None, ms: float) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._passed_on == ticket)
        unfinished = 1
        try:
            if error is None and not self._failed:
                try:
                    result = self._finish(result, self.name, ms)
                except Exception as raised:  # not a Result
                    error = raised
            if error is not None and not self._failed:
                self._failed = True
                self._fail(self.name, error)
            if self._failed:
                self._discard(self._source.close())
                raise ChannelEnded
            unfinished = 0 if self._is_last else 1
            for target in self._targets:
                target.put(result)
        except ChannelEnded:
            self._discard(unfinished)
            raise
        finally:
            with self._turn:
                self._passed_on += 1
                self._turn.notify_all()
