"""``tfiseg view``: a source live in a window, or on a web page of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from ...errors import InputError, OutputError, PipelineError
from ...files import new_folder
from ..pipeline.pipeline import Pipeline
from ..pipeline.result import Result
from ..pipeline.tracker import Tracker
from ..pipeline.watchdog import SINK_SECONDS
from ..segmenter import Segmenter
from ..sources.base import Source
from .web_viewer import Viewer

_ESCAPE = 27
_log = logging.getLogger("tfiseg")


def has_window() -> bool:
    """Whether OpenCV can open a window here: it is built with one, and there is a display."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    return bool(cv2.currentUIFramework())


class FaultTolerantSink:
    """A sink that may fail without stopping the rest: it then says so, once, and takes nothing more."""

    def __init__(self, sink: Any, note: Callable[[str], None]) -> None:
        self._sink, self._note = sink, note
        self.name = sink.name
        self.backlog = getattr(sink, "backlog", 1)
        self.timeout_s = getattr(sink, "timeout_s", SINK_SECONDS)
        self.error: str | None = None
        self._is_stuck = False

    def write(self, result: Result) -> None:
        if self.error is None:
            self._try(lambda: self._sink.write(result))

    def give_up(self, reason: str) -> None:
        """Called by the pipeline where ``write`` doesn't return: the rest goes on without it."""
        self._is_stuck = True
        self._end(reason)

    def _end(self, reason: object) -> None:
        self.error = f"recording stopped: {reason}"
        _log.warning("%s; what was recorded until then is kept", self.error)
        self._note(self.error)

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (OutputError, OSError) as wrong:
            self._end(wrong)

    def __enter__(self) -> FaultTolerantSink:
        self._sink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_stuck:  # else closing would wait for it, too
            self._try(lambda: self._sink.__exit__(kind, error, trace))


def view(
    source: Source,
    segmenter: Segmenter,
    *,
    serve: str | None = None,
    record: Path | None = None,
    policy: str | None = None,
    nth: int = 1,
    tracker: Tracker | None = None,
    max_frames: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Show a source's instances until it ends, Esc or q is pressed in the window, or Ctrl-C.

    Args:
        source: live, or played at its own pace.
        segmenter: its thresholds and classes can be changed from the page.
        serve: address of the page, see ``Viewer``; None: a window.
        record: folder in which a folder named by the time gets overlay, instances.jsonl and recording.mcap. A
            disk that fills up ends the recording, not the view.
        policy, nth, max_frames: see ``Pipeline``.
        tracker: adds persistent track IDs.
        say: told where the page is.

    Returns:
        The pipeline's counts and times, and ``error``: what ended it, or None; ``recording``: what ended the
        recording, or None.

    Raises:
        InputError: no window can be opened here, the address can't be served at, or the folder can't be
            written to.
    """
    if serve is None and not has_window():
        raise InputError(
            "no window can be opened here: serve a page with --serve, or put opencv-python in place of "
            "opencv-python-headless"
        )
    with contextlib.ExitStack() as stack:
        page = (
            stack.enter_context(contextlib.closing(Viewer(serve, segmenter))) if serve is not None else None
        )
        recording = _recording(stack, record, source, page, say) if record is not None else None
        pipeline = stack.enter_context(
            Pipeline(
                source,
                segmenter,
                policy=policy,
                nth=nth,
                tracker=tracker,
                draw=True,
                sinks=[sink for sink in (recording, page) if sink is not None],
                max_frames=max_frames,
            )
        )
        if page is not None:
            page.attach(pipeline)
            page.start()
            say(f"live at {page.url}")
        error = _show(pipeline, in_window=page is None)
    return {**pipeline.stats(), "error": error, "recording": recording.error if recording else None}


def _recording(
    stack: contextlib.ExitStack, record: Path, source: Source, page: Viewer | None, say: Callable[[str], None]
) -> FaultTolerantSink:
    """Open a recording in a new folder until ``stack`` closes."""
    from .recorder import Recorder

    def note(text: str) -> None:
        if page is not None:
            page.note = text

    # a program that restarts must not overwrite its recording, whatever its clock says
    folder = new_folder(record, time.strftime("%Y-%m-%dT%H-%M-%S"))
    recording = stack.enter_context(FaultTolerantSink(Recorder(folder, source), note))
    say(f"recording to {folder}")
    return recording


def _show(pipeline: Pipeline, in_window: bool) -> str | None:
    """Show results until the source ends, Esc, q or Ctrl-C; returns the error that ended them, if any."""
    try:
        for result in pipeline:
            if in_window and _shown_and_left(result):
                break
    except PipelineError as stopped:
        return str(stopped)
    except KeyboardInterrupt:
        pass  # that is how a live view ends
    finally:
        if in_window:
            cv2.destroyAllWindows()
    return None


def _shown_and_left(result: Result) -> bool:
    """Show a result in the window; whether Esc or q was pressed."""
    assert result.overlay is not None
    cv2.imshow("tfiseg", result.overlay)
    return (cv2.waitKey(1) & 0xFF) in (_ESCAPE, ord("q"))
