"""Functions that the stages of a pipeline apply to each item."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...errors import InputError, SourceError
from ...instances import Instances
from ..sources.base import DEFAULT_FPS, Frame, Source
from .result import Result, Sink

_MAX_FUTURE_NS = 100_000_000  # a capture time may be ahead by as much: clocks of cameras are not exact


def checked_frame(frame: object, number: int, source_name: str) -> Frame:
    """Return a frame of a user's source with an index and a capture time.

    Args:
        frame: what the source gave.
        number: of the frame, from 0.
        source_name: for errors.

    Raises:
        SourceError: it is no ``Frame``, or its capture time lies in the future. Its age would be negative,
            and a robot would take old masks for new ones.
    """
    if not isinstance(frame, Frame):
        raise SourceError(f"{source_name} gave {type(frame).__name__}, expected tfiseg.Frame")
    now = time.monotonic_ns()
    ahead_ns = frame.capture_time_ns - now
    if ahead_ns > _MAX_FUTURE_NS:
        raise SourceError(
            f"{source_name} gave a frame whose capture time is {ahead_ns / 1e9:.3g} s in the future: "
            "capture_time_ns must be of time.monotonic_ns(), not of time.time_ns()"
        )
    if not frame.capture_time_ns:
        frame = replace(frame, capture_time_ns=now)
    return replace(frame, index=number) if number and not frame.index else frame


def _check_instances(value: object, function: str) -> Instances:
    if not isinstance(value, Instances):
        raise InputError(f"the {function} returned {type(value).__name__}, expected tfiseg.Instances")
    return value


def segment_with(segmenter: Callable[[Frame], Instances]) -> Callable[[Frame], Result]:
    """Return the function of the segment stage."""

    def segment(frame: Frame) -> Result:
        instances = _check_instances(segmenter(frame), "segmenter")
        return Result(
            frame,
            replace(  # a user's function may not set these
                instances,
                frame_index=frame.index,
                capture_time_ns=frame.capture_time_ns,
                media_time_s=frame.media_time_s,
                stage_ms={**instances.stage_ms},
            ),
        )

    return segment


def track_with(tracker: Callable[[Instances], Instances], source: Source) -> Callable[[Result], Result]:
    """Return the function of the track stage.

    Frames of files are decoded as fast as possible, so the tracker gets their media time as capture time.
    """
    fps = source.fps or DEFAULT_FPS

    def track(result: Result) -> Result:
        if source.is_live:
            return replace(result, instances=_check_instances(tracker(result.instances), "tracker"))
        frame = result.frame
        media_s = frame.index / fps if frame.media_time_s is None else frame.media_time_s
        timed = replace(result.instances, capture_time_ns=1 + round(media_s * 1e9), media_time_s=media_s)
        tracked = replace(
            _check_instances(tracker(timed), "tracker"),
            capture_time_ns=frame.capture_time_ns,
            media_time_s=frame.media_time_s,
        )
        return replace(result, instances=tracked)

    return track


def draw_overlay(result: Result) -> Result:
    """Return the result with its overlay."""
    return replace(result, overlay=result.instances.draw(result.frame))


def write_to(sink: Sink) -> Callable[[Result], Result]:
    """Return the function of a sink's stage."""

    def write(result: Result) -> Result:
        sink.write(result)
        return result

    return write


def sink_name(sink: Sink, k: int, sinks: Sequence[Sink]) -> str:
    """Return the name of sink number ``k``, with a number if other sinks have the same name."""
    names = [str(getattr(s, "name", type(s).__name__)) for s in sinks]
    return names[k] if names.count(names[k]) == 1 else f"{names[k]}-{k + 1}"


def takes_all(sink: Sink) -> bool:
    """Return whether a sink gets every result, even with policy "latest"."""
    return bool(getattr(sink, "takes_all", False))


def backlog(sink: Sink) -> int:
    """Return the number of results that may wait for a sink."""
    return int(getattr(sink, "backlog", 1))
