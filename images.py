"""Pictures of every kind to uint8 (H, W, 3) BGR: the one reader of image files, and what users hand in.

Rules of reading:
    orientation: EXIF orientation is applied, in every format that has it.
    16-bit: the high byte of each value. 32-bit integers are taken as 16-bit ones, 0..65535.
    float: values 0..1 are multiplied by 255, values up to 255 are rounded; others are an error.
    palette, CMYK, grey: converted. Alpha: the stored colors count, transparency is ignored.
    several frames or pages: the first.
    color profiles: ignored.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from .arrays import as_numpy, is_tensor
from .errors import InputError
from .files import printable

# formats of Pillow that are read; others run programs (EPS) or are no pictures
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF", "PPM", "HEIF")
_READ_SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .gif .webp .avif .jp2 .j2k .jpx .tif .tiff .ppm .pgm .pbm "
    ".pnm"
)
# pictures that need another program: in a folder they are named as unreadable, not passed over
_OTHER_SUFFIXES = ".heic .heif .hif .jxl .exr .hdr .psd .dng .cr2 .cr3 .nef .arw .raf .orf .rw2"
IMAGE_SUFFIXES = tuple(f"{_READ_SUFFIXES} {_OTHER_SUFFIXES}".split())
MAX_PIXELS = 1 << 27  # 134 megapixels; reading takes up to 7 bytes a pixel
MAX_SIDE_PX = 32_767  # of a label map
MAX_PIXELS_VARIABLE = "TFISEG_MAX_PIXELS"
COLORS = ("rgb", "bgr")
_MAX_BYTES = 1 << 30  # of a file or download
_DOWNLOAD_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_URL_SCHEMES = ("http://", "https://", "file://")
_ORIENTATIONS = {  # EXIF value -> (transpose first, then flip: OpenCV's code)
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
_KINDS_LEFT_OUT = {  # by how the file begins, or by its brand
    "HEIC": (b"heic", b"heix", b"mif1", b"msf1", b"hevc"),
    "a TIFF with colors in floats, or a raw photo,": (b"II*\0", b"MM\0*", b"IIRO", b"IIU\0"),
    "a raw photo": (b"crx ", b"FUJIFILM"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "OpenEXR": (b"\x76\x2f\x31\x01",),
    "Radiance HDR": (b"#?",),
    "PFM": (b"PF", b"Pf"),
    "a Photoshop file": (b"8BPS",),
    "SVG": (b"<svg", b"<?xml"),
    "PDF": (b"%PDF",),
}
_VIDEO_STARTS = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba")  # Matroska and WebM, MPEG
_AUTHORITY_END, _QUERY = re.compile(r"[/?#]"), re.compile(r"[?#]")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"']+")
_PASSWORD_IN_TEXT = re.compile(
    r"\b([\w-]*(?:user-id|user-pw|passw(?:or)?d|passphrase|token|secret|api-?key))=(\"[^\"]*\"|'[^']*'|\S+)",
    re.IGNORECASE,
)
_USER_AT_HOST = re.compile(r"^[^\s/@:]+:[^\s@]*@")  # an address without a scheme
_pillow_limit = threading.Lock()

Picture = NDArray[np.uint8]


def read_image(
    source: str | os.PathLike[str] | bytes, *, name: str = "", max_pixels: int | None = None
) -> Picture:
    """Read an image file; see the rules at the top of this module.

    Args:
        source: a path, with any bytes in its name, or the bytes of a file.
        name: what errors call it; default: the path.
        max_pixels: larger pictures are refused before they are decoded; default: the environment variable
            TFISEG_MAX_PIXELS, else 134,217,728.

    Returns:
        uint8 (H, W, 3) BGR.

    Raises:
        InputError: there is no such file, it is no image that can be read, it is cut off or damaged, or it is
            larger than ``max_pixels``. The message names the file.
    """
    name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else printable(os.fspath(source)))
    with _stream_of(source, name) as stream:
        return _bgr_of(_decoded(stream, name, max_pixels), name)


def read_map(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a class map or label map with its values as stored.

    Returns:
        uint8, uint16 or int32 (H, W), of a palette image its indices; or (H, W, C) where the file has colors.

    Raises:
        InputError: as ``read_image``.
    """
    name = printable(os.fspath(path))
    with _stream_of(path, name) as stream:
        image = _decoded(stream, name, None)
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def image_paths(folder: Path) -> list[Path]:
    """The image files of a folder by suffix, sorted; without hidden files (".NAME") and folders."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
    )


def to_bgr(picture: Any, color: str | None = None) -> Picture:
    """Convert a picture of any kind to BGR.

    Args:
        picture: a path, an http, https or file URL, the bytes of an image file; a PIL image of any mode;
            numpy uint8 (H, W, 3), or (H, W) grey; a torch tensor uint8 (H, W, C) or (C, H, W) with 1 or 3
            channels, or (H, W) grey, on any device.
        color: order of the channels of arrays and tensors, "rgb" or "bgr"; default: "bgr" for numpy, as
            OpenCV has it, and "rgb" for torch, as torchvision has it.

    Returns:
        uint8 (H, W, 3) BGR in host memory; a numpy BGR picture is not copied.

    Raises:
        InputError: the picture can't be read, or is of another kind, shape or dtype.
    """
    check_color(color)
    if is_tensor(picture):
        return np.asarray(tensor_to_bgr(picture, color).cpu().numpy())
    is_file = isinstance(picture, str | os.PathLike | bytes)
    if color is not None and (is_file or isinstance(picture, Image.Image)):
        raise InputError(f"color={color!r} is for arrays and tensors: files and PIL images know their own")
    if isinstance(picture, str) and picture.lower().startswith(_URL_SCHEMES):
        return _read_url(picture)
    if is_file:
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return _bgr_of(_loaded(picture, "the PIL image"), "the PIL image")
    array = as_numpy(picture, "the picture")
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
            return np.asarray(cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2BGR), np.uint8)
        if array.ndim == 3 and array.shape[2] == 3:
            return np.asarray(cv2.cvtColor(array, cv2.COLOR_RGB2BGR)) if color == "rgb" else array
    raise InputError(
        f"a picture must be uint8 (H, W, 3) BGR or (H, W) grey, got {array.dtype} {array.shape}: "
        "scale floats to 0..255, drop an alpha channel, and give a batch as a list"
    )


def check_color(color: str | None) -> None:
    if color is not None and color not in COLORS:
        raise InputError(f"color must be one of {', '.join(COLORS)}, got {color!r}")


def tensor_to_bgr(tensor: Any, color: str | None = None) -> Any:
    """Convert a torch tensor, see ``to_bgr``, to a contiguous tensor uint8 (H, W, 3) BGR on its device."""
    check_color(color)
    shape = tuple(tensor.shape)
    if str(tensor.dtype) != "torch.uint8" or len(shape) not in (2, 3) or not tensor.numel():
        raise InputError(
            f"a tensor must be uint8 (H, W, C), (C, H, W) or (H, W), got {tensor.dtype} {shape}: "
            "scale floats to 0..255 and use .to(torch.uint8); give a batch as list(tensor)"
        )
    tensor = tensor.detach()
    if len(shape) == 2:
        return tensor[..., None].expand(-1, -1, 3).contiguous()
    first, last = shape[0] in (1, 3), shape[2] in (1, 3)
    if first == last:
        raise InputError(
            f"can't tell whether a tensor {shape} is (H, W, C) or (C, H, W) with 1 or 3 channels: "
            "drop an alpha channel, and give tiny pictures as numpy arrays"
        )
    pixels = tensor.permute(1, 2, 0) if first else tensor
    if pixels.shape[2] == 1:
        return pixels.expand(-1, -1, 3).contiguous()
    return (pixels if color == "bgr" else pixels.flip(-1)).contiguous()


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment: for names, messages and files.

    A password may hold what ends an authority in a valid URL ("/", "?", "#"): where a user and a password may
    stand, all up to the last "@" is taken out.
    """
    scheme, mark, rest = url.partition("://")
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    if "@" in authority or ":" in authority:
        rest = rest.rpartition("@")[2]
    return scheme + mark + _QUERY.split(rest, maxsplit=1)[0]


def text_without_secrets(text: str) -> str:
    """Return a text without passwords and without the secrets of addresses (``without_secrets``)."""
    text = _URL_IN_TEXT.sub(lambda found: without_secrets(found[0]), text)
    text = _PASSWORD_IN_TEXT.sub(lambda found: f"{found[1]}=...", text)
    return _USER_AT_HOST.sub("", text)


# -- files


@contextlib.contextmanager
def _stream_of(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[BinaryIO]:
    """The file or bytes, checked for what would hang or fill the memory."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
            raise InputError(f"{name} is no image: it is {kind}")
        if not status.st_size:
            raise InputError(f"{name} is no image that can be read: it is empty")
        if status.st_size > _MAX_BYTES:
            raise InputError(
                f"{name} is no image that can be read: it has {status.st_size} bytes, limit {_MAX_BYTES}"
            )
        stream = open(source, "rb")  # noqa: SIM115 - closed below; opened here, so that errors are this file's
    except FileNotFoundError:
        dead = " (a link that leads nowhere)" if os.path.islink(source) else ""
        raise InputError(f"there is no file {name}{dead}") from None
    except (OSError, ValueError) as wrong:
        raise InputError(f"can't read {name}: {getattr(wrong, 'strerror', None) or wrong}") from wrong
    with stream:
        yield stream


def _decoded(stream: BinaryIO, name: str, max_pixels: int | None) -> Image.Image:
    try:
        with _pillow_limit:  # Pillow's own limit is global; ours is checked next, before anything is decoded
            theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                Image.init()
                image = Image.open(stream, formats=[f for f in _FORMATS if f in Image.OPEN])
            finally:
                Image.MAX_IMAGE_PIXELS = theirs
    except UnidentifiedImageError:
        raise InputError(f"{name} is no image that can be read{_kind_of(stream)}") from None
    except Exception as wrong:  # Pillow's formats raise errors of any class on damaged headers
        raise InputError(
            f"{name} is no image that can be read ({_reason(wrong)}): it is cut off or damaged"
        ) from wrong
    limit = _pixel_limit() if max_pixels is None else max_pixels
    width, height = image.size
    if max(width, height) > MAX_SIDE_PX:
        raise InputError(
            f"{name} has {width}x{height} pixels, expected at most {MAX_SIDE_PX} along each side: crop or "
            "scale it"
        )
    if width * height > limit:
        raise InputError(
            f"{name} has {width}x{height} pixels, more than the limit of {limit}: if you trust the file, "
            f"set {MAX_PIXELS_VARIABLE}={width * height}"
        )
    return _loaded(image, name)


def _kind_of(stream: BinaryIO) -> str:
    """What a file that Pillow doesn't know is, as the end of a sentence."""
    stream.seek(0)
    head = stream.read(16)
    for kind, starts in _KINDS_LEFT_OUT.items():
        if head.startswith(starts) or (head[4:8] == b"ftyp" and head[8:12] in starts):
            return f": {kind} is not supported, convert it to JPEG or PNG"
    movie = head[4:8] == b"ftyp" and head[8:11] != b"avi"  # AVIF's brands begin so
    if movie or head.startswith(_VIDEO_STARTS) or (head[:4], head[8:]) == (b"RIFF", b"AVI LIST"):
        return ": it looks like a video, which tfiseg.open_source and `tfiseg run` read frame by frame"
    return ": check that it is complete, or convert it to JPEG or PNG"


def _pixel_limit() -> int:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if text and not text.isdecimal():
        raise InputError(f"{MAX_PIXELS_VARIABLE} must be a number of pixels, got {text!r}")
    return int(text) if text else MAX_PIXELS


def _loaded(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception as wrong:  # as above
        raise InputError(f"{name} is cut off or damaged ({_reason(wrong)}): get a complete copy") from wrong
    return image


def _reason(wrong: Exception) -> str:
    return str(wrong) or type(wrong).__name__


def _bgr_of(image: Image.Image, name: str) -> Picture:
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image)
        pixels = cv2.cvtColor(
            _unit_bytes(grey, name) if image.mode == "F" else _high_bytes(grey, name), cv2.COLOR_GRAY2BGR
        )
    else:
        try:
            if image.mode in ("La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA" if image.mode != "La" else "LA")
            grey_too = image.mode in ("1", "L", "LA")
            plain = np.asarray(image.convert("L" if grey_too else "RGB"))
        except (ValueError, OSError) as wrong:
            raise InputError(
                f"{name} has colors of kind {image.mode}, which can't be converted ({wrong})"
            ) from wrong
        pixels = cv2.cvtColor(plain, cv2.COLOR_GRAY2BGR if grey_too else cv2.COLOR_RGB2BGR)
    return _upright(np.asarray(pixels, np.uint8), image)


def _high_bytes(grey: NDArray[Any], name: str) -> Picture:
    if grey.min() < 0 or grey.max() > 65_535:
        raise InputError(
            f"{name} has values from {grey.min()} to {grey.max()}: expected 0..65535, scale it first"
        )
    return (grey >> 8).astype(np.uint8)


def _unit_bytes(grey: NDArray[Any], name: str) -> Picture:
    low, high = float(grey.min()), float(grey.max())
    if not 0 <= low <= high <= 255:  # so written that NaN fails, too
        raise InputError(
            f"{name} has float values from {low} to {high}: expected 0..1 or 0..255, scale it first"
        )
    return np.rint(grey * 255 if high <= 1 else grey).astype(np.uint8)


def _upright(pixels: Picture, image: Image.Image) -> Picture:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data turns no picture away: it is read as it is stored
        orientation = None
    if orientation not in _ORIENTATIONS:
        return pixels
    transpose, flip = _ORIENTATIONS[orientation]
    turned = cv2.transpose(pixels) if transpose else pixels
    return np.asarray(turned if flip is None else cv2.flip(turned, flip), np.uint8)


# -- addresses


def _read_url(url: str) -> Picture:
    try:
        parts, name = urlsplit(url), without_secrets(url)
    except ValueError as wrong:
        raise InputError(f"can't get a picture from a URL that is malformed: {wrong}") from None
    if parts.scheme.lower() == "file":
        if parts.netloc not in ("", "localhost"):
            raise InputError(
                f"{name} names the machine {parts.netloc}: file URLs are of this machine, file:///PATH"
            )
        return read_image(os.fsdecode(unquote_to_bytes(parts.path)))
    until, chunks, size = time.monotonic() + _DOWNLOAD_SECONDS, [], 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "tfiseg"})
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            while chunk := answer.read1(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                if size > _MAX_BYTES or time.monotonic() > until:
                    raise InputError(
                        f"{name} is too large or too slow: limits are {_MAX_BYTES} bytes and "
                        f"{_DOWNLOAD_SECONDS:.0f} s"
                    )
            announced = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as wrong:
        raise InputError(f"can't get {name}: the server says {wrong.code} {wrong.reason}") from None
    except (OSError, ValueError, OverflowError, HTTPException) as wrong:  # URLError is an OSError
        raise InputError(f"can't get {name}: {getattr(wrong, 'reason', None) or _reason(wrong)}") from None
    if announced and announced.isdecimal() and size < int(announced):
        raise InputError(f"can't get {name}: {size} of {announced} bytes came")
    return read_image(b"".join(chunks), name=name)
