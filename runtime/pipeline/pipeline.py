"""The pipeline from frames to instances: capture, segment, track, draw and sinks in parallel threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import InputError, PipelineError, SourceError
from ...instances import Instances
from ..sources.base import Frame, Source
from ..sources.open_source import open_source
from .channel import Channel, ChannelEnded
from .options import check_callables, check_options
from .result import Result, Sink
from .running_pipelines import close_at_exit, no_longer_running
from .stage import Stage
from .stage_functions import (
    backlog,
    checked_frame,
    draw_overlay,
    segment_with,
    sink_name,
    takes_all,
    track_with,
)
from .stage_times import StageTimes
from .watchdog import Watchdog, watch_sinks
from .worker_threads import Job

_FPS_FRAMES = 30  # of which recent_fps() is the mean
_STOP_SECONDS = 5.0  # a stage that has not returned by then is abandoned: a camera driver may hang forever

_log = logging.getLogger("tfiseg")


class Pipeline:
    """Segment the frames of a source in overlapping stages, each in its own thread.

    Iterate over the pipeline (``for`` or ``async for``), or call ``newest()`` in your own loop. Either starts
    it, as does ``start()``. Leaving a ``with`` block stops it, as does ``close()`` from any thread. An error
    in a stage ends the pipeline: finished results are still delivered, then PipelineError with the stage's
    name is raised.

    Args:
        source: a ``Source``, or an argument of ``open_source``.
        segmenter: a ``Segmenter``, or any function from ``Frame`` to ``Instances``.
        policy: what happens if frames arrive faster than they are segmented. "latest" (default for live
            sources): the newest frame replaces the older one, which is dropped. A result is never older than
            two passes of the slowest stage and one pass of each other stage. "all" (default for files): the
            source waits. "every_nth": each ``nth`` frame is taken, and taken frames are never dropped.
        nth: interval of policy "every_nth", at least 1.
        workers: frames segmented in parallel, 1..64. One worker per core with ``Segmenter(threads=1)`` gives
            the highest frame rate for files, but each frame takes longer.
        tracker: a ``Tracker``, or any function that adds track IDs to ``Instances``.
        draw: draw overlays, in their own stage.
        sinks: objects with ``write(result)``, each called in its own thread after all other stages. A slow
            sink delays nothing. With "latest" it misses results, which are counted, unless it has
            ``takes_all = True``; with ``backlog = N``, up to N results wait for it.
        max_frames: stop after this number of source frames.

    Raises:
        InputError: an option is out of range.
        SourceError: the source cannot be opened.

    Example:
        >>> with Pipeline("synthetic", Segmenter(refine="frame")) as pipeline:
        ...     for result in pipeline:
        ...         print(result.frame.index, result.age_ms, len(result.instances))
    """

    def __init__(
        self,
        source: Source | str | int | Path,
        segmenter: Callable[[Frame], Instances],
        *,
        policy: str | None = None,
        nth: int = 1,
        workers: int = 1,
        tracker: Callable[[Instances], Instances] | None = None,
        draw: bool = False,
        sinks: Sequence[Sink] = (),
        max_frames: int | None = None,
    ) -> None:
        check_options(policy, nth, workers, max_frames)
        check_callables(segmenter, tracker, sinks)
        self._owns_source = not isinstance(source, Source)
        self.source = source if isinstance(source, Source) else open_source(source)
        self.policy = policy or ("latest" if self.source.is_live else "all")
        self._nth, self._max_frames = nth, max_frames
        stages: list[tuple[str, Callable[[Any], Result]]] = [("segment", segment_with(segmenter))]
        if tracker is not None:
            stages.append(("track", track_with(tracker, self.source)))
        if draw:
            stages.append(("draw", draw_overlay))
        self._open_channels(len(stages), workers, sinks)
        self._threads = [Job(self._capture, "tfiseg-capture"), *self._stage_threads(stages, workers)]
        self._watched = watch_sinks(self._sinks, sinks, self._count_written, self._fail)
        self._reading_since: float | None = None  # time.monotonic() at which the current read began
        self._watchdog = Watchdog(self._watched, self._silent_s, self._is_over, self.source.name, self._fail)
        self._written_counts = dict.fromkeys(self._sinks, 0)
        self._lock = threading.Lock()
        self._started = self._closed = False
        self._stop = threading.Event()
        self._resumed = threading.Event()
        self._resumed.set()
        self._error: tuple[str, BaseException] | None = None
        self._newest: Result | None = None
        self._captured_count = self._skipped = self._given = self._discarded = 0
        self._stamps: deque[float] = deque(maxlen=_FPS_FRAMES)
        self.times = StageTimes()

    def _open_channels(self, stage_count: int, workers: int, sinks: Sequence[Sink]) -> None:
        """Create the channels before, between and after the stages.

        With "latest", only the first and the last channels drop items, and few frames are in progress.
        Otherwise frames would get old between slow stages.
        """
        newest_wins = self.policy == "latest"
        self._captured: Channel[Frame] = Channel(1, newest_wins, workers + 1 if newest_wins else None)
        self._out: Channel[Result] = Channel(1, newest_wins)
        self._sinks = {
            sink_name(sink, k, sinks): Channel[Result](backlog(sink), newest_wins and not takes_all(sink))
            for k, sink in enumerate(sinks)
        }
        between = (Channel[Any]() for _ in range(stage_count - 1))
        self._channels: list[Channel[Any]] = [self._captured, *between, self._out]

    def _stage_threads(
        self, stages: Sequence[tuple[str, Callable[[Any], Result]]], workers: int
    ) -> Iterator[Job]:
        for k, (name, work) in enumerate(stages):
            is_last = k == len(stages) - 1
            yield from Stage(
                name,
                work,
                self._channels[k],
                [*self._sinks.values(), self._out] if is_last else [self._channels[k + 1]],
                workers=1 if k else workers,
                is_last=is_last,
                finish=self._finish if is_last else self._add_time,
                fail=self._fail,
                discard=self._discard,
            ).threads

    def _is_over(self) -> bool:
        return not any(thread.is_alive() for thread in (*self._threads, *self._sink_threads))

    def _silent_s(self) -> float:
        since = self._reading_since
        return 0.0 if since is None else time.monotonic() - since

    # -- called in the threads of the stages

    def _capture(self) -> None:
        try:
            self._reading_since = time.monotonic()
            for given in itertools.islice(self.source, self._max_frames):
                self._reading_since = None
                if self._stop.is_set():
                    break
                frame = checked_frame(given, self._captured_count, self.source.name)
                self._captured_count += 1
                if not self.source.is_live:
                    self._resumed.wait()
                if (self.source.is_live and self.paused) or frame.index % self._nth:
                    self._skipped += 1
                else:
                    self._captured.put(frame)
                self._reading_since = time.monotonic()
        except ChannelEnded:
            self._discard(1)
        except BaseException as error:  # the caller gets every error
            self._fail("capture", error)
        finally:
            self._reading_since = None
            self._captured.end()

    def _add_time(self, result: Result, stage: str, ms: float) -> Result:
        known = result.instances.stage_ms
        if stage == "segment" and "network" in known:  # a Segmenter measures its own steps
            return result
        return replace(result, instances=replace(result.instances, stage_ms={**known, stage: ms}))

    def _finish(self, result: Result, stage: str, ms: float) -> Result:
        result = self._add_time(result, stage, ms)
        self.times.add({**result.instances.stage_ms, "age": result.age_ms}, len(result.instances))
        self._stamps.append(time.monotonic())
        self._captured.done()
        return result

    def _count_written(self, result: Result, sink: str, ms: float) -> Result:
        self.times.add_stage(sink, ms)
        self._written_counts[sink] += 1
        return result

    def _discard(self, count: int) -> None:
        with self._lock:
            self._discarded += count

    def _fail(self, stage: str, error: BaseException) -> None:
        with self._lock:
            if self._error is None and not self._closed:
                self._error = (stage, error)
        self._stop.set()

    # -- called by the user

    def start(self) -> Pipeline:
        """Start the threads unless they run already, and return the pipeline."""
        with self._lock:
            if self._closed:
                raise InputError("this pipeline is closed: create a new one")
            if not self._started:
                self._started = True
                self.times = StageTimes()
                close_at_exit(self)
                for thread in (*self._threads, *self._sink_threads, self._watchdog.job):
                    thread.start()
        return self

    def __iter__(self) -> Iterator[Result]:
        self.start()
        try:
            while True:
                yield self._count_given(self._out.get())
        except ChannelEnded:
            self._raise_error()

    async def __aiter__(self) -> AsyncIterator[Result]:
        self.start()
        loop = asyncio.get_running_loop()
        try:
            while True:
                item = self._out.get_now()
                if item is None:
                    arrived = asyncio.Event()
                    self._out.on_change(functools.partial(_set_from_thread, loop, arrived))
                    await arrived.wait()
                else:
                    yield self._count_given(item)
        except ChannelEnded:
            self._raise_error()

    def newest(self) -> Result | None:
        """Return the newest result immediately; needs policy "latest".

        Returns:
            The newest result, or None before the first one. The same result is returned until a newer one is
            finished, so check its ``age_ms``.

        Raises:
            InputError: the policy is not "latest".
            PipelineError: a stage failed.
            SourceError: the source has ended.
        """
        if self.policy != "latest":
            raise InputError(
                f'newest() needs policy="latest", got "{self.policy}"; open files with realtime=True'
            )
        self.start()
        try:
            arrived = self._out.get_now()
        except ChannelEnded:
            self._raise_error()
            raise SourceError(f"{self.source.name} has ended") from None
        if arrived is not None:
            self._newest = self._count_given(arrived)
        return self._newest

    def pause(self) -> None:
        """Stop segmenting until ``resume()``. Frames of live sources are skipped; files wait."""
        self._resumed.clear()

    def resume(self) -> None:
        """Continue after ``pause()``."""
        self._resumed.set()

    @property
    def paused(self) -> bool:
        """Whether the pipeline is paused."""
        return not self._resumed.is_set()

    def recent_fps(self) -> float:
        """Return the frames finished per second, over the last 30 frames."""
        stamps = list(self._stamps)
        return (len(stamps) - 1) / max(time.monotonic() - stamps[0], 1e-9) if len(stamps) > 1 else 0.0

    def stats(self) -> dict[str, Any]:
        """Return the counts and times so far.

        Returns:
            Numbers of frames: ``captured``; ``dropped`` before the network; ``skipped`` by every_nth or a
            pause; ``finished`` by all stages; ``given`` to the caller; ``dropped_results``, replaced by a
            newer result; ``discarded`` on closing or failure; ``queued``. ``sinks``: results ``written`` and
            ``dropped`` per sink. ``reconnects`` of the source. ``times``: milliseconds per stage, and "age"
            from capture to finish. After the end, captured = dropped + skipped + finished + discarded.
        """
        return {
            "captured": self._captured_count,
            "dropped": self._captured.dropped,
            "skipped": self._skipped,
            "finished": self.times.frames,
            "given": self._given,
            "dropped_results": self._out.dropped,
            "discarded": self._discarded,
            "queued": sum(map(len, self._channels)),
            "sinks": {
                name: {"written": self._written_counts[name], "dropped": c.dropped}
                for name, c in self._sinks.items()
            },
            "reconnects": self.source.reconnects,
            "times": self.times.summary(),
        }

    def close(self) -> None:
        """Stop all stages and wait for them. Any thread may call this, more than once; loops end."""
        with self._lock:
            first, self._closed = not self._closed, True
        no_longer_running(self)
        self._stop.set()
        self._resumed.set()
        self.source.interrupt()
        for channel in self._channels:
            left = channel.close()
            self._discard(left if channel is not self._out else 0)
        for channel_to_sink in self._sinks.values():
            channel_to_sink.end()  # finished results are still written
        if not self._started:
            self._close_source(first)
            return
        until = time.monotonic() + _STOP_SECONDS
        working = [sink for sink in self._watched if not sink.is_stuck]
        for thread in (*self._threads, *(t for sink in working for t in sink.stage.threads)):
            thread.join(max(0.0, until - time.monotonic()))
        self._watchdog.end()
        self._watchdog.job.join(_STOP_SECONDS)
        abandoned = "%s did not return within %g s; its thread is abandoned"
        for sink in self._watched:
            if any(thread.is_alive() and not thread.is_current() for thread in sink.stage.threads):
                _log.warning(abandoned, f"sink {sink.stage.name}", _STOP_SECONDS)
        if self._threads[0].is_alive() and not self._threads[0].is_current():
            _log.warning(abandoned, f"reading {self.source.name}", _STOP_SECONDS)
        else:
            self._close_source(first)

    def _close_source(self, first: bool) -> None:
        if first and self._owns_source:
            self.source.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _sink_threads(self) -> list[Job]:
        return [thread for sink in self._watched for thread in sink.stage.threads]

    def _count_given(self, result: Result) -> Result:
        self._given += 1
        return result

    def _raise_error(self) -> None:
        """Wait until the sinks have written everything, then raise the first error, if any."""
        for sink in self._watched:
            sink.join()
        if self._error is not None:  # a new exception each time: the traceback of one raised again grows
            raise PipelineError(*self._error)


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
        loop.call_soon_threadsafe(event.set)
