"""Frames to instances in overlapping stages: capture, segment, draw, sinks; each in a thread of its own,
results in order."""

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
from types import TracebackType
from typing import Any

from ...errors import InputError, PipelineError, SourceError
from ...instances import Instances
from ..sources.base import Frame, Source
from ..sources.open_source import open_source
from .channel import Channel, Ended
from .options import check_callables, check_options
from .result import Result, Sink
from .stage import Stage
from .stage_functions import (
    backlog,
    check_frame,
    draw_overlay,
    segment_with,
    sink_name,
    takes_all,
    track_with,
)
from .stage_times import StageTimes
from .watch import Watch, watched_sinks
from .worker_threads import Job

_RECENT = 30  # frames
_STOP_SECONDS = 5.0  # a stage that has not returned by then is abandoned: a camera driver may hang forever

_log = logging.getLogger("tfiseg")


class Pipeline:
    """Instances of a source's frames while the next ones are captured and the last ones drawn and written.

    Iterate over it (``for`` or ``async for``), or take ``newest()`` in a loop of your own. It starts with the
    first of these, or with ``start()``; ``with`` stops it cleanly, as does ``close()`` from any thread. An
    error in any stage ends it: what was finished before is still given out, then PipelineError with the
    stage's name is raised.

    Args:
        source: a ``Source``, or what ``open_source`` takes.
        segmenter: frame in, ``Instances`` out: a ``Segmenter`` or any function.
        policy: what happens to frames that come faster than they can be segmented. "latest": the newest frame
            wins, older ones are dropped, nothing queues up, so results never get older than two passes of the
            slowest stage and one of the others (for live sources; the default there).
            "all": none is dropped, the source waits (the default for files). "every_nth": each ``nth``, and
            of those none is dropped.
        nth: with policy "every_nth".
        workers: frames segmented at once. With ``Segmenter(threads=1)`` and as many workers as cores, more
            frames a second than with one worker and all threads, and each takes longer: for files, not for
            live sources.
        tracker: instances in, instances with ids out: a ``Tracker``.
        draw: draw each overlay, in a stage of its own.
        sinks: objects with ``write(result)``, each in a thread of its own behind the other stages: a slow one
            makes nothing older. With "latest" it misses results in the meantime, which are counted, unless it
            has ``takes_all = True``; ``backlog = N`` lets N results wait for it.
        max_frames: stop after so many frames of the source.

    Raises:
        InputError: unknown policy. SourceError: the source can't be opened.

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
        self._watched = watched_sinks(self._sinks, sinks, self._written, self._fail)
        self._asked_at: float | None = None  # time.monotonic() since which the source is asked for a frame
        self._watch = Watch(self._watched, self._silent_for_s, self._is_over, self.source.name, self._fail)
        self._written_counts = dict.fromkeys(self._sinks, 0)
        self._lock = threading.Lock()
        self._started = self._closed = False
        self._stop = threading.Event()
        self._resumed = threading.Event()
        self._resumed.set()
        self._error: tuple[str, BaseException] | None = None
        self._newest: Result | None = None
        self._seen_frames = self._skipped = self._given = self._discarded = 0
        self._stamps: deque[float] = deque(maxlen=_RECENT)
        self.times = StageTimes()

    def _open_channels(self, stage_count: int, workers: int, sinks: Sequence[Sink]) -> None:
        """Make the channels: capture, slot, stages with hand-overs between them, slots of caller and sinks.

        With "latest", frames are dropped only before the first stage and results only behind the last one,
        and few frames are in progress. Otherwise frames would get old between slow stages.
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
                finish=self._finished if is_last else self._timed,
                fail=self._fail,
                discard=self._discard,
            ).threads

    def _is_over(self) -> bool:
        return not any(thread.is_alive() for thread in (*self._threads, *self._sink_threads))

    def _silent_for_s(self) -> float:
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    # -- stages, each in its thread

    def _capture(self) -> None:
        try:
            self._asked_at = time.monotonic()
            for frame in itertools.islice(self.source, self._max_frames):
                self._asked_at = None
                if self._stop.is_set():
                    break
                check_frame(frame, self.source.name)
                self._seen_frames += 1
                if not self.source.is_live:
                    self._resumed.wait()
                if (self.source.is_live and self.paused) or frame.index % self._nth:
                    self._skipped += 1
                else:
                    self._captured.put(frame)
                self._asked_at = time.monotonic()
        except Ended:
            self._discard(1)
        except BaseException as wrong:  # whatever it is, the caller must hear of it
            self._fail("capture", wrong)
        finally:
            self._asked_at = None
            self._captured.end()

    def _timed(self, done: Result, stage: str, ms: float) -> Result:
        known = done.instances.stage_ms
        if stage == "segment" and "network" in known:  # a Segmenter's own times are finer
            return done
        return replace(done, instances=replace(done.instances, stage_ms={**known, stage: ms}))

    def _finished(self, done: Result, stage: str, ms: float) -> Result:
        done = self._timed(done, stage, ms)
        self.times.add({**done.instances.stage_ms, "age": done.age_ms}, len(done.instances))
        self._stamps.append(time.monotonic())
        self._captured.done()
        return done

    def _written(self, done: Result, sink: str, ms: float) -> Result:
        self.times.add_stage(sink, ms)
        self._written_counts[sink] += 1
        return done

    def _discard(self, count: int) -> None:
        with self._lock:
            self._discarded += count

    def _fail(self, stage: str, wrong: BaseException) -> None:
        with self._lock:
            if self._error is None and not self._closed:
                self._error = (stage, wrong)
        self._stop.set()

    # -- what the user calls

    def start(self) -> Pipeline:
        """Start the threads, if that hasn't happened; returns the pipeline itself."""
        with self._lock:
            if self._closed:
                raise InputError("this pipeline is closed: make a new one")
            if not self._started:
                self._started = True
                self.times = StageTimes()
                for thread in (*self._threads, *self._sink_threads, self._watch.job):
                    thread.start()
        return self

    def __iter__(self) -> Iterator[Result]:
        self.start()
        try:
            while True:
                yield self._handed_out(self._out.get())
        except Ended:
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
                    yield self._handed_out(item)
        except Ended:
            self._raise_error()

    def newest(self) -> Result | None:
        """The newest result, at once; None before the first. For loops of one's own, with policy "latest":
        look at its ``age_ms``.

        Raises:
            PipelineError: a stage failed, and this is not a state to drive on in. SourceError: the source has
                ended.
        """
        if self.policy != "latest":
            raise InputError(
                f'newest() needs policy="latest", got "{self.policy}"; open files with realtime=True'
            )
        self.start()
        try:
            arrived = self._out.get_now()
        except Ended:
            self._raise_error()
            raise SourceError(f"{self.source.name} has ended") from None
        if arrived is not None:
            self._newest = self._handed_out(arrived)
        return self._newest

    def pause(self) -> None:
        """Segment no further frame until ``resume()``; a live source's frames are dropped meanwhile, a file
        waits."""
        self._resumed.clear()

    def resume(self) -> None:
        self._resumed.set()

    @property
    def paused(self) -> bool:
        return not self._resumed.is_set()

    def recent_fps(self) -> float:
        """Frames finished a second, over the last ones."""
        stamps = list(self._stamps)
        return (len(stamps) - 1) / max(time.monotonic() - stamps[0], 1e-9) if len(stamps) > 1 else 0.0

    def stats(self) -> dict[str, Any]:
        """Counts so far, of frames: ``captured``; ``dropped`` (before the network); ``skipped`` (by
        every_nth, or while paused); ``finished`` (segmented, tracked and drawn); ``given`` out to the caller;
        ``dropped_results`` (finished, and replaced by a newer one before anybody took them); ``discarded``
        (in hand when it was closed or failed); ``queued``. ``reconnects`` of the source. ``times`` per stage,
        "age" being from capture to finish. ``sinks``: what each has ``written``, and ``dropped`` for being
        too slow.

        When it has stopped, captured = dropped + skipped + finished + discarded.
        """
        return {
            "captured": self._seen_frames,
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
        """Stop all stages and wait for them; callable from any thread, twice too. Whoever iterates gets to
        the end."""
        with self._lock:
            first, self._closed = not self._closed, True
        self._stop.set()
        self._resumed.set()
        self.source.interrupt()
        for channel in self._channels:
            left = channel.close()
            self._discard(left if channel is not self._out else 0)
        for written in self._sinks.values():
            written.end()  # what is finished is still written
        if not self._started:
            self._close_source(first)
            return
        until = time.monotonic() + _STOP_SECONDS
        at_work = [one for one in self._watched if not one.is_stuck]
        for thread in (*self._threads, *(t for one in at_work for t in one.stage.threads)):
            thread.join(max(0.0, until - time.monotonic()))
        self._watch.end()
        self._watch.job.join(_STOP_SECONDS)
        for one in self._watched:
            if any(thread.is_alive() and not thread.is_mine() for thread in one.stage.threads):
                _log.warning(
                    "the sink %s didn't return within %g s: it is left to itself",
                    one.stage.name,
                    _STOP_SECONDS,
                )
        if self._threads[0].is_alive() and not self._threads[0].is_mine():
            _log.warning(
                "%s didn't come back from reading within %g s: it is left to itself",
                self.source.name,
                _STOP_SECONDS,
            )
        else:
            self._close_source(first)

    def _close_source(self, first: bool) -> None:
        if first and self._owns_source:
            self.source.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _sink_threads(self) -> list[Job]:
        return [thread for one in self._watched for thread in one.stage.threads]

    def _handed_out(self, item: Result) -> Result:
        self._given += 1
        return item

    def _raise_error(self) -> None:
        """At the end: wait until the sinks have written all, then tell what failed, if anything did."""
        for one in self._watched:
            one.join()
        if self._error is not None:  # a new one each time: an exception that is raised again grows
            raise PipelineError(*self._error)


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(event.set)
