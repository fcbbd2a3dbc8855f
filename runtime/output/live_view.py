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
from ..pipeline.pipeline import Pipeline
from ..pipeline.result import Result, Sink
from ..pipeline.tracker import Tracker
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


class MayFail:
    """A sink that may fail without stopping the rest: it then says so, once, and takes nothing more."""

    def __init__(self, sink: Any, note: Callable[[str], None]) -> None:
        self._sink, self._note = sink, note
        self.name = sink.name
        self.backlog = getattr(sink, "backlog", 1)
        self.error: str | None = None

    def write(self, result: Result) -> None:
        if self.error is None:
            self._try(lambda: self._sink.write(result))

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (OutputError, OSError) as wrong:
            self.error = f"recording stopped: {wrong}"
            _log.warning("%s; what was recorded until then is kept", self.error)
            self._note(self.error)

    def __enter__(self) -> MayFail:
        self._sink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            "no window can be opened here: serve a page with --serve, or put opencv-python in place of opencv-python-headless"
        )
    error: str | None = None
    with contextlib.ExitStack() as stack:
        page = Viewer(serve, segmenter) if serve is not None else None
        if page is not None:
            stack.callback(page.close)
        sinks: list[Sink] = []
        recording: MayFail | None = None
        if record is not None:
            from .recorder import Recorder

            def note(text: str) -> None:
                if page is not None:
                    page.note = text

            folder = record / time.strftime(
                "%Y-%m-%dT%H-%M-%S"
            )  # a program that starts again must not write over what it recorded
            recording = stack.enter_context(MayFail(Recorder(folder, source), note))
            say(f"recording to {folder}")
            sinks.append(recording)
        if page is not None:
            sinks.append(page)
        pipeline = stack.enter_context(
            Pipeline(
                source,
                segmenter,
                policy=policy,
                nth=nth,
                tracker=tracker,
                draw=True,
                sinks=sinks,
                max_frames=max_frames,
            )
        )
        if page is not None:
            page.attach(pipeline)
            page.start()
            say(f"live at {page.url}")
        try:
            for result in pipeline:
                if page is None and _shown_and_left(result):
                    break
        except PipelineError as stopped:
            error = str(stopped)
        except KeyboardInterrupt:
            pass  # that is how a live view ends
        finally:
            if page is None:
                cv2.destroyAllWindows()
    return {**pipeline.stats(), "error": error, "recording": recording.error if recording else None}


def _shown_and_left(result: Result) -> bool:
    """Show a result in the window; whether Esc or q was pressed."""
    assert result.overlay is not None
    cv2.imshow("tfiseg", result.overlay)
    return (cv2.waitKey(1) & 0xFF) in (_ESCAPE, ord("q"))
