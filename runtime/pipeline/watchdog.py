"""A watchdog that detects sinks and sources that do not return."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import OutputError
from .channel import Channel
from .stage import Stage
from .stage_functions import write_to
from .worker_threads import Job

SINK_SECONDS = 10.0  # default of a sink's ``timeout_s``
SOURCE_SECONDS = 10.0  # without a frame, after which a warning is logged
_CHECK_SECONDS = 0.25

_log = logging.getLogger("tfiseg")


@dataclass
class WatchedSink:
    """A sink with its stage."""

    sink: Any  # the user's object
    stage: Stage
    channel: Channel[Any]  # the results that wait for it
    is_stuck: bool = False  # whether ``write`` exceeded its timeout

    @property
    def timeout_s(self) -> float:
        """Maximum seconds for one ``write``."""
        return float(getattr(self.sink, "timeout_s", SINK_SECONDS))

    def join(self) -> None:
        """Wait until the sink has written everything, or is stuck."""
        for thread in self.stage.threads:
            while thread.is_alive() and not thread.is_current() and not self.is_stuck:
                thread.join(_CHECK_SECONDS)


def watch_sinks(
    channels: Mapping[str, Channel[Any]],
    sinks: Sequence[Any],
    finish: Callable[[Any, str, float], Any],
    fail: Callable[[str, BaseException], None],
) -> list[WatchedSink]:
    """Create a stage for each sink.

    Args:
        channels: name of each sink -> the channel of its results.
        finish: see ``Stage``.
        fail: see ``Stage``.
    """
    watched = []
    for (name, channel), sink in zip(channels.items(), sinks, strict=True):
        stage = Stage(name, write_to(sink), channel, [], finish=finish, fail=fail, discard=lambda _: None)
        watched.append(WatchedSink(sink, stage, channel))
    return watched


class Watchdog:
    """A thread that watches the sinks and the source of a pipeline.

    Args:
        sinks: a stuck sink with ``give_up(reason)`` gets that call and no more results. Any other stuck sink
            fails the pipeline.
        silent_s: returns the seconds since the current read of the source began; 0 if there is none.
        is_over: returns whether all threads of the pipeline have ended.
    """

    def __init__(
        self,
        sinks: Sequence[WatchedSink],
        silent_s: Callable[[], float],
        is_over: Callable[[], bool],
        source_name: str,
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self._sinks, self._silent_s, self._is_over = sinks, silent_s, is_over
        self._source_name, self._fail = source_name, fail
        self._ended = threading.Event()
        self._warned = False
        self.job = Job(self._run, "tfiseg-watchdog")

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_CHECK_SECONDS) and not self._is_over():
            for sink in self._sinks:
                since = sink.stage.busy_since
                if since is not None and not sink.is_stuck and time.monotonic() - since > sink.timeout_s:
                    self._give_up(sink)
            silent_s = self._silent_s()
            if silent_s > SOURCE_SECONDS and not self._warned:
                _log.warning("%s has given no frame for %.0f s; waiting for it", self._source_name, silent_s)
            self._warned = silent_s > SOURCE_SECONDS

    def _give_up(self, sink: WatchedSink) -> None:
        reason = f"it did not return for {sink.timeout_s:g} s"
        sink.is_stuck = True
        if hasattr(sink.sink, "give_up"):
            sink.sink.give_up(reason)
            sink.channel.abandon()
            return
        self._fail(sink.stage.name, OutputError(f"{reason}; set timeout_s on the sink if it needs more time"))
        sink.channel.close()
