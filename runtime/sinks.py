"""Where results go: overlays (PNG or mp4), instances.jsonl and a summary of stage times, in one folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..instances import Instances
from .sources import Frame, Source

_DEFAULT_FPS = 30.0  # of an overlay whose source names no rate of its own


def writable_folder(path: str | Path) -> Path:
    """The folder, made if need be and tried by writing to it; raises InputError before any work is lost."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tfiseg-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as wrong:
        raise InputError(f"can't write to the output folder {folder} ({wrong.strerror}): name another one with --out") from wrong
    return folder


def frame_record(frame: Frame, instances: Instances) -> dict[str, Any]:
    """One line of instances.jsonl."""
    return {
        "frame": frame.index,
        "name": frame.name,
        "capture_time_ns": frame.capture_time_ns,
        "size_hw": list(instances.label_map.shape),
        "stage_ms": {k: round(v, 3) for k, v in instances.stage_ms.items()},
        "instances": [
            {
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


class StageTimes:
    """Times of every stage of every frame, and their summary."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}
        self._began = time.perf_counter()
        self.frames = 0
        self.instances = 0

    def add(self, stage_ms: dict[str, float], instances: int) -> None:
        for stage, ms in stage_ms.items():
            self._samples.setdefault(stage, []).append(ms)
        self.frames += 1
        self.instances += instances

    def summary(self) -> dict[str, Any]:
        """frames, instances, fps of the whole loop, and p50 / p99 milliseconds per stage."""
        seconds = time.perf_counter() - self._began
        stages = {
            stage: {"p50_ms": round(float(np.percentile(v, 50)), 3), "p99_ms": round(float(np.percentile(v, 99)), 3)}
            for stage, v in self._samples.items()
        }
        return {"frames": self.frames, "instances": self.instances, "fps": round(self.frames / max(seconds, 1e-9), 2), "stages": stages}


class RunWriter:
    """Writes a run's outputs into a folder; whenever it stops, what was done is on disk and readable.

    Videos give ``NAME-overlay.mp4``, images one ``NAME-overlay.png`` each; every frame a line in ``instances.jsonl``.
    """

    def __init__(self, out: str | Path, source: Source) -> None:
        self.folder = writable_folder(out)
        self.source = source
        self.overlay_path: Path | None = None
        self._lines: TextIO | None = None
        self._video: cv2.VideoWriter | None = None
        self._video_size: tuple[int, int] | None = None
        self._names: dict[str, int] = {}

    def __enter__(self) -> RunWriter:
        self._lines = open(self.folder / "instances.jsonl", "w")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._video is not None:
            self._video.release()  # writes the index, without which players refuse the file
        if self._lines is not None:
            self._lines.close()

    def write(self, frame: Frame, instances: Instances, view: NDArray[np.uint8]) -> None:
        """Add one frame: its record and its overlay."""
        assert self._lines is not None, "use `with RunWriter(...) as writer`"
        self._lines.write(json.dumps(frame_record(frame, instances)) + "\n")
        self._lines.flush()
        if self.source.is_video:
            self._write_video(view)
        else:
            self.overlay_path = self.folder / f"{self._unused(frame.name)}-overlay.png"
            if not cv2.imwrite(str(self.overlay_path), view):
                raise InputError(f"can't write {self.overlay_path}: is the disk full?")

    @property
    def overlays(self) -> str | None:
        """Path of the overlay, or a pattern where there are several; None before the first frame."""
        if len(self._names) > 1:
            return str(self.folder / "*-overlay.png")
        return str(self.overlay_path) if self.overlay_path else None

    def _unused(self, name: str) -> str:
        """The name, or NAME-2, ... where a.jpg and a.png lie in one folder."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else self._unused(f"{name}-{count}")

    def _write_video(self, view: NDArray[np.uint8]) -> None:
        size = (view.shape[1], view.shape[0])
        if self._video is None:
            self.overlay_path = self.folder / f"{self.source.name.replace('/', '_').replace(':', '_')}-overlay.mp4"
            fourcc = cv2.VideoWriter.fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(self.overlay_path), fourcc, self.source.fps or _DEFAULT_FPS, size)
            self._video_size = size
            if not self._video.isOpened():
                raise InputError(f"OpenCV can't write {self.overlay_path}: this build has no mp4 encoder")
        if size != self._video_size:
            view = np.asarray(cv2.resize(view, self._video_size), np.uint8)
        self._video.write(view)
