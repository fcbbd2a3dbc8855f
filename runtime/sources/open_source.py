"""``open_source``, which opens every type of source."""

from __future__ import annotations

import glob
import os
import re
from numbers import Integral
from pathlib import Path

from ...errors import InputError, SourceError, TfisegError
from ...files import path_of_file_url, printable
from ...images import IMAGE_SUFFIXES, image_paths, strip_secrets, strip_secrets_from_text
from .base import Source
from .cameras import csi_pipeline, open_camera, open_gstreamer
from .files import ImageAtUrl, ImageFiles
from .live_stream import CameraRequest, LiveStream
from .network import URL_SCHEMES, StreamCapture, open_stream
from .realtime import Realtime
from .synthetic import SyntheticCamera
from .video import VideoFile, open_file

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_ANIMATED_SUFFIXES = (".gif",)  # a single file is a video; in a folder, the first frame is taken
_MAX_CAMERA = 2**31 - 1  # OpenCV's indices have 32 bits
_MAX_NAME = 200  # characters of a source in an error
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
            GStreamer pipeline with one appsink; a file, http, rtsp, rtmp, udp, tcp or srt URL; or "synthetic"
            (people in front of a wall, with ground truth).
        size_wh: requested width and height of a camera, in pixels. The log "tfiseg" and the source's
            ``description`` state the format that the camera delivers.
        fps: requested frames per second of a camera; with ``realtime``, the frame rate.
        pixel_format: requested FourCC of a camera, such as "MJPG".
        realtime: play a file, a folder or the synthetic source at its own speed (or ``fps``), as a live
            source.

    Returns:
        A ``Source``: iterate over it for ``Frame`` objects; ``close()`` it or use ``with``.

    Raises:
        SourceError: the source cannot be opened. A damaged video raises it after its last frame. Cameras and
            streams that are lost are reopened instead.
        InputError: a camera option is out of range, the source is no camera, or ``source`` has another type.

    Example:
        >>> for frame in open_source("synthetic"):
        ...     print(frame.index, frame.image.shape)
        ...     break
    """
    _check_type(source)
    if source == "":
        raise SourceError("the source is empty: name an image, a folder, a video, a camera index or a URL")
    request = CameraRequest(size_wh, fps, pixel_format)
    try:
        opened = _open(str(source), isinstance(source, Integral), request)
    except TfisegError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"can't open {_printable_source(str(source))[:_MAX_NAME]}: {reason}") from error
    if opened.is_live:
        return opened
    if realtime:
        request = CameraRequest(size_wh, None, pixel_format)
    if request:
        opened.close()
        raise InputError(f"size, fps and pixel format are options of cameras, and {opened.name} is no camera")
    return Realtime(opened, fps) if realtime else opened


def _check_type(source: object) -> None:
    is_number = isinstance(source, Integral) and not isinstance(source, bool)
    if is_number or isinstance(source, str | os.PathLike):
        return
    hint = ""
    if hasattr(source, "__iter__") or hasattr(source, "read"):
        hint = ": subclass tfiseg.Source for frames of your own, or call a Segmenter with each image"
    raise InputError(
        f"a source must be a path, a camera index, a URL or another text, got {type(source).__name__}{hint}"
    )


def _open(text: str, is_number: bool, request: CameraRequest) -> Source:
    if is_number or (text.isdecimal() and not Path(text).exists()):
        if int(text) > _MAX_CAMERA:
            raise SourceError(f"there is no camera {text}, and no file of that name")
        return open_camera(int(text), request)
    if text.startswith(_CSI):
        sensor = text.removeprefix(_CSI) or "0"
        if not sensor.isdecimal():
            raise SourceError(f"a CSI camera must be {_CSI}NUMBER, got {_printable_source(text)}")
        return open_gstreamer(f"csi-{sensor}", csi_pipeline(int(sensor), request), request)
    if text.startswith(_GSTREAMER):
        return open_gstreamer("gstreamer", text.removeprefix(_GSTREAMER).strip(), request)
    if text == "synthetic":
        return SyntheticCamera()
    if (address := _URL.match(text)) is not None:
        scheme = address[1].lower()  # FFmpeg accepts lower case only
        if scheme == "file":
            return _open(path_of_file_url(text), False, request)
        return _open_address(scheme + text[len(scheme) :], scheme)
    path = Path(text)
    if path.is_char_device():  # /dev/video0, or a persistent name from udev
        return open_camera(text, request)
    if path.is_dir():
        images = image_paths(path)
        if not images:
            raise SourceError(f"folder {printable(text)} contains no image ({', '.join(IMAGE_SUFFIXES)})")
        return ImageFiles(path.name, images, path, searched=True)
    if glob.has_magic(text) and not path.exists():
        matches = sorted(p for m in glob.glob(text, recursive=True) if not (p := Path(m)).is_dir())
        if not matches:
            raise SourceError(f"nothing matches {_printable_source(text)}")
        return ImageFiles("images", matches, searched=True)
    if not path.exists():
        raise SourceError(
            f"there is no file {_printable_source(text)}: a source is an image, a folder, a glob pattern, a "
            "video, a camera index, a URL or 'synthetic'"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() not in _ANIMATED_SUFFIXES:
        return ImageFiles(path.stem, [path], path.parent)
    return VideoFile(path.stem, lambda: open_file(path))


def _printable_source(text: str) -> str:
    """Return the source for messages; it may be an address with a password and without a scheme."""
    return printable(strip_secrets_from_text(text))


def _open_address(url: str, scheme: str) -> Source:
    name = strip_secrets(url)
    if scheme not in URL_SCHEMES:
        raise SourceError(f"can't open {name}: the URL scheme must be one of file, {', '.join(URL_SCHEMES)}")
    reader = open_stream(url)
    if reader.is_image:  # FFmpeg would ignore its rotation, and does not decode all variants
        reader.close()
        return ImageAtUrl(url)
    if reader.is_finite:
        return VideoFile(name, lambda: open_stream(url), reader)
    return LiveStream(name, lambda: StreamCapture(open_stream(url)), capture=StreamCapture(reader))
