"""Running pipelines, which are closed before the interpreter exits.

Python ends daemon threads at its exit. A thread that is inside a network's C++ code then aborts the process,
so that a program that never closed its pipeline would lose its exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol


class _Closable(Protocol):
    def close(self) -> None: ...


_running: weakref.WeakSet[_Closable] = weakref.WeakSet()


def close_at_exit(pipeline: _Closable) -> None:
    """Close a pipeline when the interpreter exits."""
    _running.add(pipeline)


def no_longer_running(pipeline: _Closable) -> None:
    """Forget a pipeline that has been closed."""
    _running.discard(pipeline)


def _close_all() -> None:
    with contextlib.ExitStack() as stack:  # an error of one, such as of its source, leaves none running
        for pipeline in list(_running):
            stack.callback(pipeline.close)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_running.clear)  # threads do not survive a fork
