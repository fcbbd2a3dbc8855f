"""A pool of threads that pipelines reuse.

New threads are expensive: OpenCV loads its font in each thread that draws a label (25 ms), and glibc gives
each thread memory that the process keeps.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

_IDLE = "idle-tfiseg"
_MAX_IDLE = 16


class Job:
    """A function that runs in a pooled thread, with the interface of ``threading.Thread``."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self.work, self.name = work, name
        self._worker: _Worker | None = None
        self._done = threading.Event()

    def start(self) -> None:
        self._worker = _idle_worker(self.name)
        self._worker.jobs.put(self)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the job is done; does nothing in the job's own thread."""
        if not self.is_current():
            self._done.wait(timeout)

    def is_alive(self) -> bool:
        return self._worker is not None and not self._done.is_set()

    def is_current(self) -> bool:
        """Return whether the calling thread runs this job."""
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
                keep = sum(map(len, [*_idle.values()])) < _MAX_IDLE
                if keep:  # before end(): a caller that waits for it may start the next job at once
                    _idle.setdefault(job.name, []).append(self)
            finally:
                job.end()
            if not keep:
                return
            del job  # it references the pipeline and its frames


_idle: dict[str, list[_Worker]] = {}  # by job name, so that the thread with the loaded font draws again
os.register_at_fork(after_in_child=_idle.clear)  # threads do not survive a fork


def _idle_worker(name: str) -> _Worker:
    try:
        return _idle[name].pop()
    except LookupError:
        return _Worker()
