"""Frame sources: an image, a folder, a video, a camera, a stream, or a synthetic camera, all through
``open_source``."""

from __future__ import annotations

import glob
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, SourceError

if TYPE_CHECKING:
    from .cameras import Wanted

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_URL_SCHEMES = ("http://", "https://", "rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://")
_CSI, _GSTREAMER = "csi://", "gst:"
_RELEASE_SECONDS = 1.0
USUAL_FPS = 30.0  # where a source names no rate of its own
_COMPLETE = (
    0.95  # containers announce frame counts loosely: a video that gives this share of its own count is whole
)

_log = logging.getLogger("tfiseg")


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

    ``fps`` is the source's own rate or None; ``is_video`` tells moving pictures from single images;
    ``frame_count`` is the number of frames if it is known beforehand; ``is_live`` says that frames come when
    they come, whether anybody is ready or not; ``reconnects`` counts how often it was lost and found again.
    """

    fps: float | None = None
    is_video = True
    is_live = False
    frame_count: int | None = None
    reconnects = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def _read(self, index: int) -> Frame | None:
        """The next frame, or None at the end. Subclasses fill this."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the source holds; safe to call twice."""

    def interrupt(self) -> None:
        """From another thread: end the iteration, if it is waiting for a lost source, soon."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            raise SourceError(
                f"{path} is no image that OpenCV can read: check that it is complete and one of {', '.join(IMAGE_SUFFIXES)}"
            )
        now = time.monotonic_ns()
        return Frame(np.asarray(image, np.uint8), index, now, path.stem, (now - began) / 1e6)


class VideoFile(Source):
    """A video file, or one behind an address, through OpenCV."""

    def __init__(self, name: str, capture: cv2.VideoCapture) -> None:
        super().__init__(name)
        self._capture = capture
        self._in_use = threading.Lock()
        self._read_before = False
        self.fps = fps_of(capture)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 else None

    def _read(self, index: int) -> Frame | None:
        with self._in_use:
            if index == 0 and self._read_before:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)  # iterated again: from the start
            self._read_before = True
            began = time.monotonic_ns()
            more, image = self._capture.read()
        if more:
            now = time.monotonic_ns()
            return Frame(np.asarray(image, np.uint8), index, now, frame_name(index), (now - began) / 1e6)
        if self.frame_count is not None and index < min(_COMPLETE * self.frame_count, self.frame_count - 2):
            raise SourceError(
                f"{self.name} ends after {index} of the {self.frame_count} frames it announces: the file is damaged or cut off"
            )
        return None

    def close(self) -> None:
        release(self._capture, self._in_use, self.name)


def release(capture: cv2.VideoCapture, in_use: threading.Lock, name: str) -> None:
    """Release a capture, unless another thread hangs in it: that would end the process."""
    if in_use.acquire(timeout=_RELEASE_SECONDS):
        capture.release()
        in_use.release()
    else:
        _log.warning("%s hangs in reading: it is left open", name)


def open_source(
    source: str | int | Path,
    *,
    size_wh: tuple[int, int] | None = None,
    fps: float | None = None,
    pixel_format: str | None = None,
    realtime: bool = False,
) -> Source:
    """Open a source of frames.

    Args:
        source: an image file; a folder of images or a glob pattern ("shots/*.jpg"); a video file; a camera's
            index (0 or "0") or device ("/dev/v4l/by-id/..."); "csi://0", a Jetson's CSI camera; "gst:" and a
            GStreamer pipeline that ends in an appsink; an http, rtsp, rtmp, udp, tcp or srt URL; or
            "synthetic" (a camera that needs no hardware, with known truth).
        size_wh, fps, pixel_format: what a camera is asked for: pixels, frames per second, a FourCC such as
            "MJPG". What it really gives is said in the log "tfiseg" and by its ``description``.
        realtime: play a file, a folder or the synthetic camera at its own pace (or ``fps``), as if it were
            live.

    Returns:
        Source: iterate over it for ``Frame`` objects; ``close()`` it or use ``with``.

    Raises:
        SourceError: it can't be opened. While iterating: a video ended half way (its frames so far were
            yielded). Cameras and streams that are lost are looked for until they are back. InputError: what
            is asked for is no camera's.

    Example:
        >>> for frame in open_source("synthetic"):
        ...     print(frame.index, frame.image.shape)
        ...     break
    """
    from .cameras import Realtime, Wanted

    wanted = Wanted(size_wh, fps, pixel_format)
    opened_source = _open(str(source), isinstance(source, Integral), wanted)
    if opened_source.is_live:
        return opened_source
    if realtime:
        wanted = Wanted(size_wh, None, pixel_format)
    if wanted:
        opened_source.close()
        raise InputError(f"size, fps and pixel format are asked of cameras, and {opened_source.name} is none")
    return Realtime(opened_source, fps) if realtime else opened_source


def _open(text: str, is_number: bool, wanted: Wanted) -> Source:
    from .cameras import LiveStream, csi_pipeline, open_camera, open_gstreamer, open_stream

    if is_number or (text.isdecimal() and not Path(text).exists()):
        return open_camera(int(text), wanted)
    if text.startswith(_CSI):
        sensor = text.removeprefix(_CSI) or "0"
        if not sensor.isdecimal():
            raise SourceError(f"a CSI camera is called {_CSI}NUMBER, got {text}")
        return open_gstreamer(f"csi-{sensor}", csi_pipeline(int(sensor), wanted), wanted)
    if text.startswith(_GSTREAMER):
        return open_gstreamer("gstreamer", text.removeprefix(_GSTREAMER).strip(), wanted)
    if text == "synthetic":
        from .synthetic import SyntheticCamera

        return SyntheticCamera()
    if text.startswith(_URL_SCHEMES):
        capture = open_stream(text)
        name = without_secrets(text)
        if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
            return VideoFile(name, capture)
        return LiveStream(name, lambda: open_stream(text), capture=capture)
    path = Path(text)
    if path.is_char_device():  # /dev/video0, and the names that udev gives: they stay when indices don't
        return open_camera(text, wanted)
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
    return VideoFile(
        path.stem, opened(cv2.VideoCapture(str(path)), f"{path} is no image or video that OpenCV can read")
    )


def without_secrets(url: str) -> str:
    """A URL without user, password and query: for names, messages and files."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fps_of(capture: cv2.VideoCapture) -> float | None:
    """The rate that a capture names, if it can be one."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 1 <= fps <= 1000 else None


def opened(capture: cv2.VideoCapture, message: str) -> cv2.VideoCapture:
    """The capture, if it is open; else SourceError with this message."""
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
