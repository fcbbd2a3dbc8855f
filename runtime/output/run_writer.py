"""A sink that writes overlays (PNG or MP4) and instances.jsonl into a folder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
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
from ..sources.files import ImageFiles
from .mp4 import Mp4Writer

WRITE_SECONDS = 60.0  # timeout for one frame: a memory card may pause for seconds
_RECORDS, _OVERLAY = "instances.jsonl", "-overlay.png"
_log = logging.getLogger("tfiseg")
_MAX_NAME_BYTES = 200  # file systems allow 255; a number and "-overlay.png" are appended


def frame_record(frame: Frame, instances: Instances) -> dict[str, Any]:
    """Return one line of instances.jsonl: ``Instances.to_dict()``, rounded, and the names of the frame."""
    return {
        "frame_index": frame.index,
        "name": printable(frame.name),
        **({"file_name": printable(frame.file_name)} if frame.file_name else {}),
        "capture_time_ns": frame.capture_time_ns,
        "media_time_s": None if frame.media_time_s is None else round(frame.media_time_s, 6),
        "size_hw": list(instances.label_map.shape),
        "stage_ms": {k: round(v, 3) for k, v in instances.stage_ms.items()},
        "instances": [_rounded(instance.to_dict()) for instance in instances],
    }


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    boxes = {name: [round(v, 1) for v in record[name]] for name in ("box_xyxy", "centroid_xy")}
    return record | boxes | {"score": round(record["score"], 4)}


def output_folder(out: str | Path, source: Source) -> Path:
    """Create the output folder and exclude overlays of an earlier run; raises InputError."""
    folder = writable_folder(out)
    if isinstance(source, ImageFiles) and source.searched:
        overlays = {path for path in source.paths if path.name.endswith(_OVERLAY) and _is_in(path, folder)}
        if overlays and not (folder / _RECORDS).exists():
            raise InputError(
                f"overlays may overwrite the image {printable(str(min(overlays)))}, which lies in the output "
                "folder: name another one with --out"
            )
        source.paths = [path for path in source.paths if path not in overlays]
        if overlays and not source.paths:
            raise InputError(
                f"all images of {printable(source.name)} are overlays of an earlier run: name another source"
            )
        if overlays:
            _log.warning(
                "%d overlays of an earlier run in %s are not segmented", len(overlays), printable(str(folder))
            )
    return folder


def _is_in(path: Path, folder: Path) -> bool:
    return path.parent.resolve() == folder.resolve()


class RunWriter:
    """A sink that writes overlays and records into a folder; use it in a ``with`` block.

    It writes ``NAME-overlay.mp4`` for a video or ``NAME-overlay.png`` for each image, and one line per frame
    into ``instances.jsonl``. The files of finished frames are readable even after a kill.

    Raises:
        InputError: see ``output_folder``.
        OutputError: a result cannot be written.
    """

    name = "write"
    takes_all = True
    timeout_s = WRITE_SECONDS

    def __init__(self, out: str | Path, source: Source) -> None:
        self.folder = output_folder(out, source)
        self.lock = FolderLock(self.folder)
        self.source = source
        self.overlay_path: Path | None = None
        self._lines: TextIO | None = None
        self._video: Mp4Writer | None = None
        self._first_ns = 0
        self.frame_count = self.instance_count = 0  # that are written
        self._names: dict[str, int] = {}

    def __enter__(self) -> RunWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lock)
            try:
                self._lines = open(self.folder / _RECORDS, "w")
            except OSError as error:
                raise _write_error(self.folder / _RECORDS, error) from error
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._lines is not None:
                self._lines.close()  # raises again if the disk is full
        except OSError as cause:
            raise _write_error(self.folder / _RECORDS, cause) from cause
        finally:
            try:
                if self._video is not None:
                    self._video.close()
            finally:
                self.lock.__exit__()

    def write(self, result: Result) -> None:
        """Write the record and the overlay of one frame."""
        if self._lines is None or self._lines.closed:
            raise OutputError(
                f"{printable(str(self.folder))} is not open for writing: use the writer in a `with` block"
            )
        if result.overlay is None:
            raise InputError("the result has no overlay: use Pipeline(draw=True)")
        try:
            self._lines.write(to_json(frame_record(result.frame, result.instances)) + "\n")
            self._lines.flush()
        except OSError as error:
            raise _write_error(Path(self._lines.name), error) from error
        self.frame_count += 1
        self.instance_count += len(result.instances)
        if self.source.is_video:
            self._write_video(result.frame, result.overlay)
        else:
            self._write_image(result.frame, result.overlay)

    @property
    def overlays(self) -> str | None:
        """Path of the overlay, or a pattern if there are several; None before the first frame."""
        if len(self._names) > 1:
            return printable(str(self.folder / f"*{_OVERLAY}"))
        return printable(str(self.overlay_path)) if self.overlay_path else None

    def _unique_name(self, name: str) -> str:
        """Return the name, or NAME-2 and so on if an earlier image has it, like a.png after a.jpg."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else self._unique_name(f"{name}-{count}")

    def _write_image(self, frame: Frame, overlay: NDArray[np.uint8]) -> None:
        self.overlay_path = self.folder / f"{self._unique_name(shorten_name(frame.name))}{_OVERLAY}"
        try:  # cv2.imwrite refuses names that are not valid UTF-8
            self.overlay_path.write_bytes(cv2.imencode(".png", overlay)[1].tobytes())
        except OSError as error:
            raise _write_error(self.overlay_path, error) from error

    def _write_video(self, frame: Frame, overlay: NDArray[np.uint8]) -> None:
        fps = self.source.fps or DEFAULT_FPS
        if self._video is None:
            self.overlay_path = self.folder / f"{shorten_name(safe_name(self.source.name))}-overlay.mp4"
            self._first_ns = frame.capture_time_ns
            self._video = Mp4Writer(self.overlay_path, (overlay.shape[1], overlay.shape[0]), fps)
        # frames of live sources have their capture times, because frames between them may be dropped
        seconds = frame.index / fps if frame.media_time_s is None else frame.media_time_s
        if self.source.is_live:
            seconds = (frame.capture_time_ns - self._first_ns) / 1e9
        self._video.write(overlay, seconds)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json completely, or raise OutputError."""
    path = folder / "summary.json"
    try:
        overwrite(path, to_json(summary, indent=1).encode() + b"\n")
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"can't write {printable(str(path))}: {error.strerror or error}")


def shorten_name(name: str) -> str:
    """Return the name cut to 200 bytes, so that file systems allow it with a suffix."""
    content = os.fsencode(name)
    return name if len(content) <= _MAX_NAME_BYTES else content[:_MAX_NAME_BYTES].decode("utf-8", "ignore")


def safe_name(name: str) -> str:
    """Return a source's name as a valid part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "source"
