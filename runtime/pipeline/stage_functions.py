"""The work of each stage of a pipeline, as functions from item to item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...errors import InputError, SourceError
from ...instances import Instances
from ..sources.base import USUAL_FPS, Frame, Source
from .result import Result, Sink


def check_frame(frame: object, source_name: str) -> None:
    """Raise SourceError for what a user's source gives instead of a ``Frame``."""
    if not isinstance(frame, Frame):
        raise SourceError(f"{source_name} gave {type(frame).__name__}, expected tfiseg.Frame")


def _checked(found: object, by: str) -> Instances:
    if not isinstance(found, Instances):
        raise InputError(f"the {by} returned {type(found).__name__}, expected tfiseg.Instances")
    return found


def segment_with(segmenter: Callable[[Frame], Instances]) -> Callable[[Frame], Result]:
    def segment(frame: Frame) -> Result:
        # a function of the user's may know nothing of frames and times
        found = _checked(segmenter(frame), "segmenter")
        times = {**found.stage_ms}
        return Result(
            frame,
            replace(
                found,
                frame_index=frame.index,
                capture_time_ns=frame.capture_time_ns,
                media_time_s=frame.media_time_s,
                stage_ms=times,
            ),
        )

    return segment


def track_with(tracker: Callable[[Instances], Instances], source: Source) -> Callable[[Result], Result]:
    """A file's frames are decoded when there is time: what moves in it moves by its own clock."""
    fps = source.fps or USUAL_FPS

    def track(result: Result) -> Result:
        if source.is_live:
            return replace(result, instances=_checked(tracker(result.instances), "tracker"))
        frame = result.frame
        own_s = frame.index / fps if frame.media_time_s is None else frame.media_time_s
        timed = replace(result.instances, capture_time_ns=1 + round(own_s * 1e9), media_time_s=own_s)
        tracked = replace(
            _checked(tracker(timed), "tracker"),
            capture_time_ns=frame.capture_time_ns,
            media_time_s=frame.media_time_s,
        )
        return replace(result, instances=tracked)

    return track


def draw_overlay(result: Result) -> Result:
    return replace(result, overlay=result.instances.draw(result.frame))


def write_to(sink: Sink) -> Callable[[Result], Result]:
    def write(result: Result) -> Result:
        sink.write(result)
        return result

    return write


def sink_name(sink: Sink, k: int, sinks: Sequence[Sink]) -> str:
    """Return the name of sink number ``k``, with a number if other sinks have the same name."""
    names = [str(getattr(s, "name", type(s).__name__)) for s in sinks]
    return names[k] if names.count(names[k]) == 1 else f"{names[k]}-{k + 1}"


def takes_all(sink: Sink) -> bool:
    """Tell whether a sink gets every result, even with policy "latest"."""
    return bool(getattr(sink, "takes_all", False))


def backlog(sink: Sink) -> int:
    """Return how many results may wait for a sink."""
    return int(getattr(sink, "backlog", 1))
