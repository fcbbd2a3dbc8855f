"""Where results go: overlays (PNG or mp4) and instances.jsonl, in one folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, OutputError
from ...files import FolderLock, overwrite, printable, writable_folder
from ...instances import Instances
from ...schema import to_json
from ..pipeline.result import Result
from ..sources.base import DEFAULT_FPS, Frame, Source
from .mp4 import Mp4Writer

WRITE_SECONDS = 60.0  # for one frame: a memory card may pause for seconds
_MAX_NAME_BYTES = 200  # of the 255 that a file system allows; "-overlay.png" and numbers are added


def frame_record(frame: Frame, instances: Instances) -> dict[str, Any]:
    """One line of instances.jsonl."""
    return {
        "frame": frame.index,
        "name": printable(frame.name),
        **({"file_name": printable(frame.file_name)} if frame.file_name else {}),
        "capture_time_ns": frame.capture_time_ns,
        "media_time_s": None if frame.media_time_s is None else round(frame.media_time_s, 6),
        "size_hw": list(instances.label_map.shape),
        "stage_ms": {k: round(v, 3) for k, v in instances.stage_ms.items()},
        "instances": [
            {
                **({} if one.track_id is None else {"track_id": one.track_id}),
                "class_id": one.class_id,
                "class": one.class_name,
                "score": round(one.score, 4),
                "box_xyxy": [round(v, 1) for v in one.box_xyxy],
                "area": one.area,
                "segmentation": instances.rle(one.index),
            }
            for one in instances
        ],
    }


class RunWriter:
    """Writes a run's outputs into a folder, as a pipeline's sink; whenever it stops, what was done is on disk
    and readable.

    Videos give ``NAME-overlay.mp4``, images one ``NAME-overlay.png`` each; every frame a line in
    ``instances.jsonl``.

    Raises:
        InputError: the folder can't be written to. OutputError: a result can't be written.
    """

    name = "write"
    takes_all = True
    timeout_s = WRITE_SECONDS

    def __init__(self, out: str | Path, source: Source) -> None:
        self.folder = writable_folder(out)
        self.lock = FolderLock(self.folder)
        self.source = source
        self.overlay_path: Path | None = None
        self._lines: TextIO | None = None
        self._video: Mp4Writer | None = None
        self._first_ns = 0
        self._names: dict[str, int] = {}

    def __enter__(self) -> RunWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lock)
            try:
                self._lines = open(self.folder / "instances.jsonl", "w")
            except OSError as wrong:
                raise _cannot_write(self.folder / "instances.jsonl", wrong) from wrong
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lines is not None:
                self._lines.close()  # writes again what a full disk refused
        except OSError as wrong:
            raise _cannot_write(self.folder / "instances.jsonl", wrong) from wrong
        finally:
            try:
                if self._video is not None:
                    self._video.close()
            finally:
                self.lock.__exit__()

    def write(self, result: Result) -> None:
        """Add one frame: its record and its overlay."""
        if self._lines is None or self._lines.closed:
            raise OutputError(
                f"{printable(str(self.folder))} is not open for writing: use `with` around all frames"
            )
        if result.overlay is None:
            raise InputError("results without overlays can't be written: use Pipeline(draw=True)")
        try:
            self._lines.write(to_json(frame_record(result.frame, result.instances)) + "\n")
            self._lines.flush()
        except OSError as wrong:
            raise _cannot_write(Path(self._lines.name), wrong) from wrong
        if self.source.is_video:
            self._write_video(result.frame, result.overlay)
        else:
            self._write_image(result.frame, result.overlay)

    @property
    def overlays(self) -> str | None:
        """Path of the overlay, or a pattern where there are several; None before the first frame."""
        if len(self._names) > 1:
            return printable(str(self.folder / "*-overlay.png"))
        return printable(str(self.overlay_path)) if self.overlay_path else None

    def _unused(self, name: str) -> str:
        """The name, or NAME-2, ... where a.jpg and a.png lie in one folder."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else self._unused(f"{name}-{count}")

    def _write_image(self, frame: Frame, view: NDArray[np.uint8]) -> None:
        self.overlay_path = self.folder / f"{self._unused(shortened(frame.name))}-overlay.png"
        try:  # OpenCV's own writer takes no names that aren't valid text
            self.overlay_path.write_bytes(cv2.imencode(".png", view)[1].tobytes())
        except OSError as wrong:
            raise _cannot_write(self.overlay_path, wrong) from wrong

    def _write_video(self, frame: Frame, view: NDArray[np.uint8]) -> None:
        fps = self.source.fps or DEFAULT_FPS
        if self._video is None:
            self.overlay_path = self.folder / f"{shortened(safe_name(self.source.name))}-overlay.mp4"
            self._first_ns = frame.capture_time_ns
            self._video = Mp4Writer(self.overlay_path, (view.shape[1], view.shape[0]), fps)
        # a live source's frames are as far apart as they were captured, whatever was dropped in between
        seconds = frame.index / fps if frame.media_time_s is None else frame.media_time_s
        if self.source.is_live:
            seconds = (frame.capture_time_ns - self._first_ns) / 1e9
        self._video.write(view, seconds)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole; raises OutputError."""
    path = folder / "summary.json"
    try:
        overwrite(path, to_json(summary, indent=1).encode() + b"\n")
    except OSError as wrong:
        raise _cannot_write(path, wrong) from wrong


def _cannot_write(path: Path, wrong: OSError) -> OutputError:
    return OutputError(f"can't write {printable(str(path))}: {wrong.strerror or wrong}")


def shortened(name: str) -> str:
    """A name of at most 200 bytes: with what is added to it, a file system still takes it."""
    content = os.fsencode(name)
    return name if len(content) <= _MAX_NAME_BYTES else content[:_MAX_NAME_BYTES].decode("utf-8", "ignore")


def safe_name(name: str) -> str:
    """A source's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "source"
