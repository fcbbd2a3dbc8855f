"""Frame sources: an image, a folder, a video, a camera, a stream, or a synthetic camera, all through ``open_source``."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_URL_SCHEMES = ("http://", "https://", "rtsp://", "rtmp://", "udp://")
_COMPLETE = 0.95  # containers announce frame counts loosely: a video that gives this share of its own count is whole


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Args:
        image: uint8 (H, W, 3) BGR.
        index: position in its source, from 0.
        capture_time_ns: when it was taken (live) or decoded, time.monotonic_ns().
        name: for outputs: a file's name without suffix, or "frame-000012".
        decode_ms: time that reading it took.
        truth_label_map, truth_class_map: int32 and uint8 (H, W), where the source knows them (synthetic).
    """

    image: NDArray[np.uint8]
    index: int = 0
    capture_time_ns: int = 0
    name: str = ""
    decode_ms: float = 0.0
    truth_label_map: NDArray[np.int32] | None = None
    truth_class_map: NDArray[np.uint8] | None = None


class Source:
    """Frames one after another: iterate, and close (or use ``with``).

    ``fps`` is the source's own rate or None; ``is_video`` tells moving pictures from single images; ``frame_count`` is the
    number of frames if it is known beforehand.
    """

    fps: float | None = None
    is_video = True
    frame_count: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def _read(self, index: int) -> Frame | None:
        """The next frame, or None at the end. Subclasses fill this."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the source holds; safe to call twice."""

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            frame = self._read(index)
            if frame is None:
                return
            yield frame
            index += 1

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def frame_name(index: int) -> str:
    return f"frame-{index:06d}"


class ImageFiles(Source):
    """Image files, in the order given."""

    is_video = False

    def __init__(self, name: str, paths: list[Path]) -> None:
        super().__init__(name)
        self.paths = paths
        self.frame_count = len(paths)

    def _read(self, index: int) -> Frame | None:
        if index >= len(self.paths):
            return None
        path = self.paths[index]
        began = time.monotonic_ns()
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError(f"{path} is no image that OpenCV can read: check that it is complete and one of {', '.join(IMAGE_SUFFIXES)}")
        now = time.monotonic_ns()
        return Frame(np.asarray(image, np.uint8), index, now, path.stem, (now - began) / 1e6)


class VideoStream(Source):
    """A video file, a camera or a network stream, through OpenCV."""

    def __init__(self, name: str, capture: cv2.VideoCapture, is_file: bool) -> None:
        super().__init__(name)
        self._capture = capture
        self._is_file = is_file
        self._read_before = False
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 1 <= fps <= 1000 else None
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if is_file and count > 0 else None

    def _read(self, index: int) -> Frame | None:
        if index == 0 and self._read_before and self._is_file:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)  # iterated again: from the start
        self._read_before = True
        began = time.monotonic_ns()
        more, image = self._capture.read()
        if more:
            now = time.monotonic_ns()
            return Frame(np.asarray(image, np.uint8), index, now, frame_name(index), (now - began) / 1e6)
        if not self._is_file:  # a live source never ends by itself
            raise SourceError(f"{self.name} stopped delivering after {index} frames: check its cable, power or network")
        if self.frame_count is not None and index < min(_COMPLETE * self.frame_count, self.frame_count - 2):
            raise SourceError(
                f"{self.name} ends after {index} of the {self.frame_count} frames it announces: the file is damaged or cut off"
            )
        return None

    def close(self) -> None:
        self._capture.release()


def open_source(source: str | int | Path) -> Source:
    """Open a source of frames.

    Args:
        source: an image file; a folder of images or a glob pattern ("shots/*.jpg"); a video file; a camera's index (0 or "0");
            an http, rtsp, rtmp or udp URL; or "synthetic" (a camera that needs no hardware, with known truth).

    Returns:
        Source: iterate over it for ``Frame`` objects; ``close()`` it or use ``with``.

    Raises:
        SourceError: it can't be opened. While iterating: it stopped, or a video ended half way (its frames so far were yielded).

    Example:
        >>> for frame in open_source("synthetic"):
        ...     print(frame.index, frame.image.shape)
        ...     break
    """
    text = str(source)
    if isinstance(source, Integral) or (text.isdecimal() and not Path(text).exists()):
        return _open_camera(int(text))
    if text == "synthetic":
        from .synthetic import SyntheticCamera

        return SyntheticCamera()
    if text.startswith(_URL_SCHEMES):
        capture = _opened(cv2.VideoCapture(text), f"no stream answers at {text}")
        return VideoStream(text, capture, is_file=capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0)
    path = Path(text)
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise SourceError(f"folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        return ImageFiles(path.name, images)
    if glob.has_magic(text) and not path.exists():
        matches = sorted(Path(p) for p in glob.glob(text, recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {text}")
        return ImageFiles("images", matches)
    if not path.exists():
        raise SourceError(
            f"there is no file {path}: a source is an image, a folder, a glob pattern, a video, a camera index, a URL or 'synthetic'"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFiles(path.stem, [path])
    return VideoStream(path.stem, _opened(cv2.VideoCapture(str(path)), f"{path} is no image or video that OpenCV can read"), is_file=True)


def _open_camera(index: int) -> Source:
    message = f"camera {index} can't be opened: check that it is plugged in (`ls /dev/video*`) and that no other program holds it"
    return VideoStream(f"camera-{index}", _opened(cv2.VideoCapture(index), message), is_file=False)


def _opened(capture: cv2.VideoCapture, message: str) -> cv2.VideoCapture:
    if not capture.isOpened():
        capture.release()
        raise SourceError(message)
    return capture


def checked_image(frame: Frame | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture in a frame, checked: uint8 (H, W, 3) with at least one pixel."""
    image = frame.image if isinstance(frame, Frame) else np.asarray(frame)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"a frame must be uint8 (H, W, 3) BGR, got {image.dtype} {image.shape}: "
            "scale floats to 0..255, and cv2.cvtColor(x, cv2.COLOR_GRAY2BGR) makes grey pictures colour"
        )
    if not image.size:
        raise InputError(f"the frame is empty: shape {image.shape}")
    return np.ascontiguousarray(image)
