"""Notices sinks and sources that don't return, so that nobody waits for them for ever."""

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

SINK_SECONDS = 10.0  # for one result; a sink may say otherwise: ``timeout_s``
SOURCE_SECONDS = 10.0  # without a frame, after which the log says so
_CHECK_SECONDS = 0.25

_log = logging.getLogger("tfiseg")


@dataclass
class WatchedSink:
    """A sink and what it takes from.

    Args:
        sink: the user's object.
        stage: its thread. channel: what lies there for it.
    """

    sink: Any
    stage: Stage
    channel: Channel[Any]
    is_stuck: bool = False

    @property
    def timeout_s(self) -> float:
        """Seconds that one ``write`` may take."""
        return float(getattr(self.sink, "timeout_s", SINK_SECONDS))

    def join(self) -> None:
        """Wait until it has written all, or is stuck."""
        for thread in self.stage.threads:
            while thread.is_alive() and not thread.is_mine() and not self.is_stuck:
                thread.join(_CHECK_SECONDS)


def watched_sinks(
    channels: Mapping[str, Channel[Any]],
    sinks: Sequence[Any],
    written: Callable[[Any, str, float], Any],
    fail: Callable[[str, BaseException], None],
) -> list[WatchedSink]:
    """Make a stage for each sink.

    Args:
        channels: what lies there for each sink, by its name.
        sinks: the user's objects, in the same order.
        written, fail: see ``finish`` and ``fail`` of ``Stage``.
    """
    watched = []
    for (name, channel), sink in zip(channels.items(), sinks, strict=True):
        stage = Stage(name, write_to(sink), channel, [], finish=written, fail=fail, discard=lambda _: None)
        watched.append(WatchedSink(sink, stage, channel))
    return watched


class Watch:
    """Looks after sinks and the source of a pipeline from a thread of its own.

    Args:
        sinks: a sink that is stuck fails the pipeline; one with ``give_up(reason)`` is told instead, and the
            rest goes on without it.
        silent_for_s: seconds since the source was asked for a frame; 0 while it isn't.
        is_over: whether all threads of the pipeline have ended.
        source_name: for the log.
        fail: called with the sink's name and an error.
    """

    def __init__(
        self,
        sinks: Sequence[WatchedSink],
        silent_for_s: Callable[[], float],
        is_over: Callable[[], bool],
        source_name: str,
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self._sinks, self._silent_for_s, self._is_over = sinks, silent_for_s, is_over
        self._source_name, self._fail = source_name, fail
        self._ended = threading.Event()
        self._said = False
        self.job = Job(self._run, "tfiseg-watch")

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_CHECK_SECONDS) and not self._is_over():
            for one in self._sinks:
                since = one.stage.busy_since
                if since is not None and not one.is_stuck and time.monotonic() - since > one.timeout_s:
                    self._give_up(one)
            silent_s = self._silent_for_s()
            if silent_s > SOURCE_SECONDS and not self._said:
                _log.warning("%s has given no frame for %.0f s; waiting for it", self._source_name, silent_s)
            self._said = silent_s > SOURCE_SECONDS

    def _give_up(self, one: WatchedSink) -> None:
        reason = f"it did not return for {one.timeout_s:g} s"
        one.is_stuck = True
        if hasattr(one.sink, "give_up"):
            one.sink.give_up(reason)
            one.channel.abandon()
            return
        self._fail(one.stage.name, OutputError(f"{reason}: a sink may take longer if it has timeout_s"))
        one.channel.close()
