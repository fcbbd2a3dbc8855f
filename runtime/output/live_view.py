"""``tfiseg view``: live view of a source in a window or in the web viewer."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
from ..sources.files import unreadable_message
from .web_viewer import Viewer

_ESCAPE = 27
_log = logging.getLogger("tfiseg")


def has_window() -> bool:
    """Return whether OpenCV can open a window: it has GUI support, and there is a display."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    return bool(cv2.currentUIFramework())


class FaultTolerantSink:
    """A sink that may fail without ending the pipeline; after an error, it gets no more results."""

    def __init__(self, sink: Any, show_note: Callable[[str], None]) -> None:
        self._sink, self._show_note = sink, show_note
        self.name = sink.name
        self.backlog = getattr(sink, "backlog", 1)
        self.timeout_s = getattr(sink, "timeout_s", SINK_SECONDS)
        self.error: str | None = None
        self._is_stuck = False

    def write(self, result: Result) -> None:
        if self.error is None:
            self._try(lambda: self._sink.write(result))

    def give_up(self, reason: str) -> None:
        """Stop writing. The pipeline calls this if ``write`` does not return."""
        self._is_stuck = True
        self._end(reason)

    def _end(self, reason: object) -> None:
        self.error = f"recording stopped: {reason}"
        _log.warning("%s; the frames recorded before are kept", self.error)
        self._show_note(self.error)

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (OutputError, OSError) as error:
            self._end(error)

    def __enter__(self) -> FaultTolerantSink:
        self._sink.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_stuck:  # closing would also wait
            self._try(lambda: self._sink.__exit__(*error))


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
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Show a source's instances until it ends, Esc or q is pressed in the window, or Ctrl-C.

    Args:
        source: a live source, or a file opened with ``realtime=True``.
        segmenter: the segmenter, whose thresholds and classes the web viewer can change.
        serve: address of the web viewer, see ``Viewer``; None opens a window.
        record: folder in which a new folder, named after the time, gets the overlay, instances.jsonl and
            recording.mcap. An error while recording ends the recording, not the view.
        policy: see ``Pipeline``, as are ``nth``, ``tracker`` and ``max_frames``.
        log: called with the URL of the web viewer and the folder of the recording.

    Returns:
        ``Pipeline.stats()``, ``error``: the error that ended the view, or None, and ``recording``: the error
        that ended the recording, or None.

    Raises:
        InputError: there is no display, the address cannot be used, or the folder is not writable.
    """
    if serve is None and not has_window():
        raise InputError(
            "no window can be opened here: use --serve, or install opencv-python instead of "
            "opencv-python-headless"
        )
    with contextlib.ExitStack() as stack:
        page = (
            stack.enter_context(contextlib.closing(Viewer(serve, segmenter))) if serve is not None else None
        )
        recording = _open_recording(stack, record, source, page, log) if record is not None else None
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
            log(f"live at {page.url}")
        error = _show(pipeline, in_window=page is None)
        if error is None and source.unreadable:
            error = unreadable_message(source)
    return {**pipeline.stats(), "error": error, "recording": recording.error if recording else None}


def _open_recording(
    stack: contextlib.ExitStack, record: Path, source: Source, page: Viewer | None, log: Callable[[str], None]
) -> FaultTolerantSink:
    """Open a recording in a new folder until ``stack`` closes."""
    from .recorder import Recorder

    def show_note(text: str) -> None:
        if page is not None:
            page.note = text

    # the clock may show the same time after a restart, which must not overwrite the recording
    folder = new_folder(record, time.strftime("%Y-%m-%dT%H-%M-%S"))
    recording = stack.enter_context(FaultTolerantSink(Recorder(folder, source), show_note))
    log(f"recording to {folder}")
    return recording


def _show(pipeline: Pipeline, in_window: bool) -> str | None:
    """Show results until the source ends, Esc, q or Ctrl-C; return the error that ended them, if any."""
    try:
        for result in pipeline:
            if in_window and _show_in_window(result):
                break
    except PipelineError as error:
        return str(error)
    except KeyboardInterrupt:
        pass  # the normal end of a live view
    finally:
        if in_window:
            cv2.destroyAllWindows()
    return None


def _show_in_window(result: Result) -> bool:
    """Show a result in the window and return whether Esc or q was pressed."""
    assert result.overlay is not None
    cv2.imshow("tfiseg", result.overlay)
    return (cv2.waitKey(1) & 0xFF) in (_ESCAPE, ord("q"))
