"""``open_source``: one function for every kind of source."""

from __future__ import annotations

import glob
import re
from numbers import Integral
from pathlib import Path

from ...errors import InputError, SourceError
from ...files import printable
from ...images import IMAGE_SUFFIXES, image_paths, text_without_secrets, without_secrets
from .base import Source
from .cameras import csi_pipeline, open_camera, open_gstreamer
from .files import ImageFiles
from .live_stream import CameraRequest, LiveStream
from .network import URL_SCHEMES, StreamCapture, open_stream
from .realtime import Realtime
from .synthetic import SyntheticCamera
from .video import VideoFile, open_file

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MOVING_SUFFIXES = (".gif",)  # alone they are videos; in a folder, the first frame counts
_CSI, _GSTREAMER = "csi://", "gst:"


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
    wanted = CameraRequest(size_wh, fps, pixel_format)
    opened_source = _open(str(source), isinstance(source, Integral), wanted)
    if opened_source.is_live:
        return opened_source
    if realtime:
        wanted = CameraRequest(size_wh, None, pixel_format)
    if wanted:
        opened_source.close()
        raise InputError(f"size, fps and pixel format are asked of cameras, and {opened_source.name} is none")
    return Realtime(opened_source, fps) if realtime else opened_source


def _open(text: str, is_number: bool, wanted: CameraRequest) -> Source:
    if is_number or (text.isdecimal() and not Path(text).exists()):
        return open_camera(int(text), wanted)
    if text.startswith(_CSI):
        sensor = text.removeprefix(_CSI) or "0"
        if not sensor.isdecimal():
            raise SourceError(f"a CSI camera is called {_CSI}NUMBER, got {_spoken(text)}")
        return open_gstreamer(f"csi-{sensor}", csi_pipeline(int(sensor), wanted), wanted)
    if text.startswith(_GSTREAMER):
        return open_gstreamer("gstreamer", text.removeprefix(_GSTREAMER).strip(), wanted)
    if text == "synthetic":
        return SyntheticCamera()
    if (address := _URL.match(text)) is not None:
        scheme = address[1].lower()  # FFmpeg knows them in lower case only
        return _open_address(scheme + text[len(scheme) :], scheme)
    path = Path(text)
    if path.is_char_device():  # /dev/video0, and the names that udev gives: they stay when indices don't
        return open_camera(text, wanted)
    if path.is_dir():
        images = image_paths(path)
        if not images:
            raise SourceError(f"folder {printable(text)} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        return ImageFiles(path.name, images, path)
    if glob.has_magic(text) and not path.exists():
        matches = sorted(p for m in glob.glob(text, recursive=True) if not (p := Path(m)).is_dir())
        if not matches:
            raise SourceError(f"nothing matches {_spoken(text)}")
        return ImageFiles("images", matches)
    if not path.exists():
        raise SourceError(
            f"there is no file {_spoken(text)}: a source is an image, a folder, a glob pattern, a video, a "
            "camera index, a URL or 'synthetic'"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() not in _MOVING_SUFFIXES:
        return ImageFiles(path.stem, [path], path.parent)
    return VideoFile(path.stem, lambda: open_file(path))


def _spoken(text: str) -> str:
    """What was given, for messages: it may be an address with a password and without a scheme."""
    return printable(text_without_secrets(text))


def _open_address(url: str, scheme: str) -> Source:
    name = without_secrets(url)
    if scheme not in URL_SCHEMES:
        raise SourceError(f"can't open {name}: expected an address that begins with {', '.join(URL_SCHEMES)}")
    reader = open_stream(url)
    if reader.is_finite:
        return VideoFile(name, lambda: open_stream(url), reader)
    return LiveStream(name, lambda: StreamCapture(open_stream(url)), capture=StreamCapture(reader))
