"""Conversion of image files, arrays, tensors and PIL images to uint8 (H, W, 3) BGR.

Rules for image files:
    orientation: EXIF orientation is applied in every format.
    16-bit: the high byte of each value, with a warning below 12 bits, and an error if all would be black.
        32-bit integers are treated as 16-bit integers, 0..65535.
    float: values in 0..1 are multiplied by 255, values up to 255 are rounded, and others are an error.
    palette, CMYK, gray: converted. Alpha: ignored.
    several frames or pages: the first one, with a warning; if later ones are truncated, an error.
    color profiles: ignored.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from .arrays import as_numpy, is_tensor, picture_problem
from .errors import InputError
from .files import path_of_file_url, printable
from .image_formats import check_frames, check_jpeg, describe_format, is_16_bit_color

# formats of Pillow; others run programs (EPS) or are no images
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "TIFF", "PPM", "HEIF")
_READ_SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .gif .webp .avif .jp2 .j2k .jpx .tif .tiff .ppm .pgm .pbm "
    ".pnm"
)
# unsupported images, which are reported as unreadable instead of ignored in a folder
_UNSUPPORTED_SUFFIXES = ".heic .heif .hif .jxl .exr .hdr .psd .dng .cr2 .cr3 .nef .arw .raf .orf .rw2"
IMAGE_SUFFIXES = tuple(f"{_READ_SUFFIXES} {_UNSUPPORTED_SUFFIXES}".split())
MAX_PIXELS = 1 << 27  # 134 megapixels; reading takes up to 7 bytes per pixel
MAX_SIDE_PX = 32_767  # of a label map
MAX_PIXELS_VARIABLE = "TFISEG_MAX_PIXELS"
COLORS = ("rgb", "bgr")
_MAX_BYTES = 1 << 30  # of a file or download
_MIN_HIGHEST_VALUE = 4096  # of 16-bit images: lower values are those of 12-bit cameras, or of a dark scene
_DOWNLOAD_SECONDS = 60.0
_RESPONSE_SECONDS = 10.0
_URL_SCHEMES = ("http://", "https://", "file://")
_ORIENTATIONS = {  # EXIF value -> whether to transpose first, and OpenCV's flip code
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
_AUTHORITY_END, _QUERY = re.compile(r"[/?#]"), re.compile(r"[?#]")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"']+")
_PASSWORD_IN_TEXT = re.compile(
    r"\b([\w-]*(?:user-id|user-pw|passw(?:or)?d|passphrase|token|secret|api-?key))=(\"[^\"]*\"|'[^']*'|\S+)",
    re.IGNORECASE,
)
_USER_AT_HOST = re.compile(r"^[^\s/@:]+:[^\s@]*@")  # a URL without a scheme
_pillow_limit = threading.Lock()
_log = logging.getLogger("tfiseg")

Picture = NDArray[np.uint8]


def read_image(
    source: str | os.PathLike[str] | bytes, *, name: str = "", max_pixels: int | None = None
) -> Picture:
    """Read an image file by the rules at the top of this module.

    Args:
        source: a path, or the bytes of a file.
        name: name of the image in errors; default: the path.
        max_pixels: maximum number of pixels, checked before decoding; default: the environment variable
            TFISEG_MAX_PIXELS, else 134,217,728.

    Returns:
        uint8 (H, W, 3) BGR.

    Raises:
        InputError: the file is missing, is no readable image, is truncated or damaged, or is too large.
    """
    name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else printable(os.fspath(source)))
    with _open_stream(source, name) as stream:
        return _pil_to_bgr(_decode(stream, name, max_pixels), name)


def read_map(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read the stored values of a class map or label map.

    Returns:
        uint8, uint16 or int32 (H, W), the indices of a palette image; or (H, W, C) of a color image.

    Raises:
        InputError: see ``read_image``.
    """
    name = printable(os.fspath(path))
    with _open_stream(path, name) as stream:
        image = _decode(stream, name, None)
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def image_paths(folder: Path) -> list[Path]:
    """Return the image files of a folder by suffix, sorted, except hidden files (".NAME")."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
    )


def to_bgr(picture: Any, color: str | None = None) -> Picture:
    """Convert an image of any supported type to BGR.

    Args:
        picture: a path, an http, https or file URL, or the bytes of an image file; a PIL image of any mode;
            a NumPy array, uint8 (H, W, 3), or (H, W) gray; or a torch tensor on any device, uint8 (H, W, C)
            or (C, H, W) with 1 or 3 channels, or (H, W) gray.
        color: channel order of arrays and tensors, "rgb" or "bgr"; default: "bgr" for NumPy, as in OpenCV,
            and "rgb" for torch, as in torchvision.

    Returns:
        uint8 (H, W, 3) BGR in host memory; a NumPy BGR image is not copied.

    Raises:
        InputError: the image cannot be read, or has an unsupported type, shape or dtype.
    """
    check_color(color)
    if is_tensor(picture):
        return np.asarray(tensor_to_bgr(picture, color).cpu().numpy())
    is_file = isinstance(picture, str | os.PathLike | bytes)
    if color is not None and (is_file or isinstance(picture, Image.Image)):
        raise InputError(f"color={color!r} is for arrays and tensors: omit it for files and PIL images")
    if isinstance(picture, str) and picture.lower().startswith(_URL_SCHEMES):
        return _read_url(picture)
    if is_file:
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return _pil_to_bgr(_load(picture, "the PIL image"), "the PIL image")
    array = as_numpy(picture, "the picture")
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
            return np.asarray(cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2BGR), np.uint8)
        if array.ndim == 3 and array.shape[2] == 3:
            return np.asarray(cv2.cvtColor(array, cv2.COLOR_RGB2BGR)) if color == "rgb" else array
    raise InputError(
        f"an image must be uint8 (H, W, 3) BGR or (H, W) gray, got {picture_problem(picture, array)}"
    )


def check_color(color: str | None) -> None:
    """Raise InputError for an unknown channel order."""
    if color is not None and color not in COLORS:
        raise InputError(f"color must be one of {', '.join(COLORS)}, got {color!r}")


def tensor_to_bgr(tensor: Any, color: str | None = None) -> Any:
    """Convert a torch tensor (see ``to_bgr``) to a contiguous uint8 (H, W, 3) BGR tensor on its device."""
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
            "drop an alpha channel, and pass tiny images as NumPy arrays"
        )
    pixels = tensor.permute(1, 2, 0) if first else tensor
    if pixels.shape[2] == 1:
        return pixels.expand(-1, -1, 3).contiguous()
    return (pixels if color == "bgr" else pixels.flip(-1)).contiguous()


def strip_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment.

    If the URL may have a password, everything up to the last "@" is removed, because passwords may contain
    "/", "?" or "#".
    """
    scheme, mark, rest = url.partition("://")
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    if "@" in authority or ":" in authority:
        rest = rest.rpartition("@")[2]
    return scheme + mark + _QUERY.split(rest, maxsplit=1)[0]


def strip_secrets_from_text(text: str) -> str:
    """Return a text without passwords and without the secrets of URLs (see ``strip_secrets``)."""
    text = _URL_IN_TEXT.sub(lambda found: strip_secrets(found[0]), text)
    text = _PASSWORD_IN_TEXT.sub(lambda found: f"{found[1]}=...", text)
    return _USER_AT_HOST.sub("", text)


# -- files


@contextlib.contextmanager
def _open_stream(source: str | os.PathLike[str] | bytes, name: str) -> Iterator[BinaryIO]:
    """Open a file, unless it would block or is too large, or bytes."""
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
        stream = open(source, "rb")  # noqa: SIM115 - closed below; the handlers here are only for open()
    except FileNotFoundError:
        broken = " (a broken link)" if os.path.islink(source) else ""
        raise InputError(f"there is no file {name}{broken}") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {name}: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        yield stream


def _decode(stream: BinaryIO, name: str, max_pixels: int | None) -> Image.Image:
    try:
        with _pillow_limit:  # Pillow's limit is global; ours is checked below, before decoding
            pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                Image.init()
                image = Image.open(stream, formats=[f for f in _FORMATS if f in Image.OPEN])
            finally:
                Image.MAX_IMAGE_PIXELS = pillow_limit
    except UnidentifiedImageError:
        raise InputError(f"{name} is no image that can be read{describe_format(stream)}") from None
    except Exception as error:  # Pillow raises errors of any class for damaged headers
        raise InputError(
            f"{name} is no image that can be read ({_reason(error)}): it is truncated or damaged"
        ) from error
    limit = _pixel_limit() if max_pixels is None else max_pixels
    width, height = image.size
    if max(width, height) > MAX_SIDE_PX:
        raise InputError(
            f"{name} has {width}x{height} pixels, expected at most {MAX_SIDE_PX} along each side: crop or "
            "resize it"
        )
    if width * height > limit:
        raise InputError(
            f"{name} has {width}x{height} pixels, more than the limit of {limit}: if you trust the file, "
            f"set {MAX_PIXELS_VARIABLE}={width * height}"
        )
    frames, has_16_bits = check_frames(image, stream, name), is_16_bit_color(image)
    loaded = _load(image, name)
    if has_16_bits:
        _warn_of_dark_values(256 * int(np.asarray(loaded)[..., :3].max()), name)
    if image.format in ("JPEG", "MPO"):
        check_jpeg(stream, name)
    if frames > 1:
        _log.warning("%s has %d frames or pages; only the first is used", name, frames)
    return loaded


def _pixel_limit() -> int:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if text and not text.isdecimal():
        raise InputError(f"{MAX_PIXELS_VARIABLE} must be a number of pixels, got {text!r}")
    return int(text) if text else MAX_PIXELS


def _load(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # Pillow raises errors of any class for damaged content
        raise InputError(f"{name} is truncated or damaged ({_reason(error)}): get a complete copy") from error
    return image


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _pil_to_bgr(image: Image.Image, name: str) -> Picture:
    if image.mode.startswith(("I", "F")):
        gray = np.asarray(image)
        pixels = cv2.cvtColor(
            _float_to_bytes(gray, name) if image.mode == "F" else _high_bytes(gray, name), cv2.COLOR_GRAY2BGR
        )
    else:
        try:
            if image.mode in ("La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA" if image.mode != "La" else "LA")
            is_gray = image.mode in ("1", "L", "LA")
            converted = np.asarray(image.convert("L" if is_gray else "RGB"))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{name} has the color mode {image.mode}, which can't be converted ({error})"
            ) from error
        pixels = cv2.cvtColor(converted, cv2.COLOR_GRAY2BGR if is_gray else cv2.COLOR_RGB2BGR)
    return _apply_orientation(np.asarray(pixels, np.uint8), image)


def _high_bytes(gray: NDArray[Any], name: str) -> Picture:
    low, high = int(gray.min()), int(gray.max())
    if low < 0 or high > 65_535:
        raise InputError(f"{name} has values from {low} to {high}: expected 0..65535, scale it first")
    if 0 < high < 256:
        raise InputError(
            f"{name} has 16-bit values from {low} to {high}, which would all be black: if they are 8-bit "
            "values, save it with 8 bits per channel"
        )
    _warn_of_dark_values(high, name)
    return (gray >> 8).astype(np.uint8)


def _warn_of_dark_values(high: int, name: str) -> None:
    if high < _MIN_HIGHEST_VALUE:
        _log.warning("%s is dark: its 16-bit values end below %d; scale 10 or 12 bits first", name, high + 1)


def _float_to_bytes(gray: NDArray[Any], name: str) -> Picture:
    low, high = float(gray.min()), float(gray.max())
    if not 0 <= low <= high <= 255:  # also refuses NaN
        raise InputError(
            f"{name} has float values from {low} to {high}: expected 0..1 or 0..255, scale it first"
        )
    return np.rint(gray * 255 if high <= 1 else gray).astype(np.uint8)


def _apply_orientation(pixels: Picture, image: Image.Image) -> Picture:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data is ignored
        orientation = None
    if orientation not in _ORIENTATIONS:
        return pixels
    transpose, flip = _ORIENTATIONS[orientation]
    rotated = cv2.transpose(pixels) if transpose else pixels
    return np.asarray(rotated if flip is None else cv2.flip(rotated, flip), np.uint8)


# -- URLs


def _read_url(url: str) -> Picture:
    try:
        parts, name = urlsplit(url), strip_secrets(url)
    except ValueError as error:
        raise InputError(f"can't get an image: the URL is malformed: {error}") from None
    if parts.scheme.lower() == "file":
        return read_image(path_of_file_url(url))
    until, chunks, size = time.monotonic() + _DOWNLOAD_SECONDS, [], 0
    try:
        user, _, host = parts.netloc.rpartition("@")
        address = parts._replace(netloc=host).geturl()
        request = urllib.request.Request(address, headers={"User-Agent": "tfiseg"})
        if user:  # not for the server that a redirection names
            encoded = b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {encoded}")
        with urllib.request.urlopen(request, timeout=_RESPONSE_SECONDS) as response:
            while chunk := response.read1(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                if size > _MAX_BYTES or time.monotonic() > until:
                    raise InputError(
                        f"{name} is too large or too slow: the limits are {_MAX_BYTES} bytes and "
                        f"{_DOWNLOAD_SECONDS:.0f} s"
                    )
            announced = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise InputError(f"can't get {name}: the server returned {error.code} {error.reason}") from None
    except (OSError, ValueError, OverflowError, HTTPException) as error:  # URLError is an OSError
        raise InputError(f"can't get {name}: {getattr(error, 'reason', None) or _reason(error)}") from None
    if announced and announced.isdecimal() and size < int(announced):
        raise InputError(f"can't get {name}: received {size} of {announced} bytes")
    return read_image(b"".join(chunks), name=name)
