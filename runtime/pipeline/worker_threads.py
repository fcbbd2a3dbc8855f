"""Threads that wait for the next pipeline when theirs has ended.

A fresh thread costs more than its start: OpenCV loads its font in each that draws a label (25 ms), and glibc
gives it a share of memory that stays with the process. With threads that are kept, the hundredth start takes
what the second took.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

_IDLE = "idle-tfiseg"
_MOST_IDLE = 16


class Job:
    """Work in a kept thread: as much of ``threading.Thread`` as a pipeline needs."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self.work, self.name = work, name
        self._worker: _Worker | None = None
        self._done = threading.Event()

    def start(self) -> None:
        self._worker = _idle_worker(self.name)
        self._worker.jobs.put(self)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is done; the thread that does it doesn't."""
        if not self.is_mine():
            self._done.wait(timeout)

    def is_alive(self) -> bool:
        return self._worker is not None and not self._done.is_set()

    def is_mine(self) -> bool:
        """Whether the calling thread is the one that does this."""
        return (
            self._worker is not None and self._worker.thread is threading.current_thread() and self.is_alive()
        )

    def end(self) -> None:
        self._done.set()


class _Worker:
    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=_IDLE, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            job = self.jobs.get()
            self.thread.name = job.name
            try:
                job.work()
                self.thread.name = _IDLE
                kept = sum(map(len, [*_idle.values()])) < _MOST_IDLE
                if kept:
                    _idle.setdefault(job.name, []).append(
                        self
                    )  # before the end is told: whoever waits for it may start the next at once
            finally:
                job.end()
            if not kept:
                return
            del job  # it holds the pipeline, and with it frames


_idle: dict[str, list[_Worker]] = {}  # by what they did: the thread that drew draws again
os.register_at_fork(after_in_child=_idle.clear)  # a fork takes none of them along


def _idle_worker(name: str) -> _Worker:
    try:
        return _idle[name].pop()
    except LookupError:
        return _Worker()
