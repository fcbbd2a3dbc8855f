"""Where results go: overlays (PNG or mp4) and instances.jsonl, in one folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import OutputError
from ...files import printable, writable_folder
from ...instances import Instances
from ..pipeline.result import Result
from ..sources.base import USUAL_FPS, Frame, Source
from .mp4 import Mp4Writer

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

    def __init__(self, out: str | Path, source: Source) -> None:
        self.folder = writable_folder(out)
        self.source = source
        self.overlay_path: Path | None = None
        self._lines: TextIO | None = None
        self._video: Mp4Writer | None = None
        self._first_ns = 0
        self._names: dict[str, int] = {}

    def __enter__(self) -> RunWriter:
        self._lines = open(self.folder / "instances.jsonl", "w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lines is not None:
                self._lines.close()  # writes again what a full disk refused
        except OSError as wrong:
            raise OutputError(f"can't write {self.folder / 'instances.jsonl'}: {wrong.strerror}") from wrong
        finally:
            if self._video is not None:
                self._video.close()

    def write(self, result: Result) -> None:
        """Add one frame: its record and its overlay."""
        assert self._lines is not None, "use `with RunWriter(...) as writer`"
        assert result.overlay is not None, "the pipeline must draw"
        try:
            self._lines.write(json.dumps(frame_record(result.frame, result.instances)) + "\n")
            self._lines.flush()
        except OSError as wrong:
            raise OutputError(f"can't write {self._lines.name}: {wrong.strerror}") from wrong
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
            raise OutputError(f"can't write {printable(str(self.overlay_path))}: {wrong.strerror}") from wrong

    def _write_video(self, frame: Frame, view: NDArray[np.uint8]) -> None:
        fps = self.source.fps or USUAL_FPS
        if self._video is None:
            self.overlay_path = self.folder / f"{shortened(safe_name(self.source.name))}-overlay.mp4"
            self._first_ns = frame.capture_time_ns
            self._video = Mp4Writer(self.overlay_path, (view.shape[1], view.shape[0]), fps)
        # a live source's frames are as far apart as they were captured, whatever was dropped in between
        seconds = frame.index / fps if frame.media_time_s is None else frame.media_time_s
        if self.source.is_live:
            seconds = (frame.capture_time_ns - self._first_ns) / 1e9
        self._video.write(view, seconds)


def shortened(name: str) -> str:
    """A name of at most 200 bytes: with what is added to it, a file system still takes it."""
    content = os.fsencode(name)
    return name if len(content) <= _MAX_NAME_BYTES else content[:_MAX_NAME_BYTES].decode("utf-8", "ignore")


def safe_name(name: str) -> str:
    """A source's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "source"
