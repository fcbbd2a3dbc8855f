"""What is wrong with an image file: formats that are not supported, and data that end early."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image

from .errors import InputError
from .file_end import missing_bytes

_UNSUPPORTED_FORMATS = {  # name -> first bytes of the file, or its brands
    "HEIC": (b"heic", b"heix", b"mif1", b"msf1", b"hevc"),
    "a raw photo": (b"crx ", b"FUJIFILM", b"IIRO", b"IIU\0"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "OpenEXR": (b"\x76\x2f\x31\x01",),
    "Radiance HDR": (b"#?",),
    "PFM": (b"PF", b"Pf"),
    "a Photoshop file": (b"8BPS",),
    "SVG": (b"<svg", b"<?xml"),
    "PDF": (b"%PDF",),
}
_PREVIEW_FORMATS = ("MPO",)  # phones add smaller or gain map images to a photo
_MAX_PAGES = 10_000
_NEW_SUBFILE_TYPE, _SMALLER_OR_MASK = 254, 1 | 4  # a TIFF tag, and its flags
_DATA_TAGS = ((273, 279), (324, 325))  # TIFF tags of offsets and lengths: of strips, and of tiles
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_VIDEO_STARTS = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba")  # Matroska and WebM, MPEG


def check_jpeg(stream: BinaryIO, name: str) -> None:
    """Raise InputError if JPEG data end early: Pillow then fills the image with gray, without an error."""
    import av

    stream.seek(0)
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    try:
        decoder.decode(av.Packet(stream.read()))
    except av.error.InvalidDataError as error:
        raise InputError(
            f"{name} is truncated or damaged (JPEG data end early): get a complete copy"
        ) from error
    except av.FFmpegError:
        pass  # FFmpeg doesn't support all variants


def check_frames(image: Image.Image, stream: BinaryIO, name: str) -> int:
    """Return the number of frames or pages of an image file that is open and not yet decoded.

    Smaller copies of the image, which photos and TIFF files may contain, do not count.

    Raises:
        InputError: the file ends early, so that frames or pages are missing.
    """
    if image.format in _PREVIEW_FORMATS or not getattr(image, "is_animated", False):
        return 1
    try:
        if image.format == "TIFF":
            count, missing = _count_pages(image, stream.seek(0, os.SEEK_END))
        else:  # Pillow's WebP and AVIF decoders refuse truncated files
            count, missing = image.n_frames, missing_bytes(stream)  # type: ignore[attr-defined]
    except Exception as error:  # Pillow raises errors of any class for damaged content
        raise InputError(
            f"{name} is truncated or damaged (a later frame or page can't be found: {error}): get a complete "
            "copy"
        ) from error
    if missing:
        raise InputError(
            f"{name} is truncated or damaged (of its frames or pages, at least {missing} bytes are missing): "
            "get a complete copy"
        )
    return int(count)


def _count_pages(image: Image.Image, size: int) -> tuple[int, int]:
    """Return the number of pages of a TIFF without smaller copies, and of bytes that the file lacks."""
    count, end = 0, 0
    for page in range(min(image.n_frames, _MAX_PAGES)):  # type: ignore[attr-defined]
        image.seek(page)
        tags = image.tag_v2  # type: ignore[attr-defined]
        count += not int(tags.get(_NEW_SUBFILE_TYPE, 0)) & _SMALLER_OR_MASK
        for offsets, lengths in _DATA_TAGS:
            pairs = zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
            end = max([end, *(offset + length for offset, length in pairs)])
    image.seek(0)
    return count, max(0, end - size)


def is_16_bit_color(image: Image.Image) -> bool:
    """Return whether a color image, not yet decoded, has 16 bits per channel; Pillow keeps the high bytes."""
    raw_modes = [str(tile.args) for tile in getattr(image, "tile", ())]
    is_deep = any("RGB;16" in mode or "RGBA;16" in mode or "65535" in mode for mode in raw_modes)
    return is_deep and image.mode in ("RGB", "RGBA")


def describe_format(stream: BinaryIO) -> str:
    """Return the format of a file that Pillow does not support, and a fix, as the end of a sentence."""
    stream.seek(0)
    head = stream.read(16)
    for name, signatures in _UNSUPPORTED_FORMATS.items():
        if head.startswith(signatures) or (head[4:8] == b"ftyp" and head[8:12] in signatures):
            return f": {name} is not supported, convert it to JPEG or PNG"
    if head.startswith(_TIFF_STARTS):
        return (
            ": it is a truncated TIFF, one with colors in floats, or a raw photo; convert it to JPEG or PNG"
        )
    is_movie = head[4:8] == b"ftyp" and head[8:11] != b"avi"  # the brands of AVIF images begin with "avi"
    if is_movie or head.startswith(_VIDEO_STARTS) or (head[:4], head[8:]) == (b"RIFF", b"AVI LIST"):
        return ": it looks like a video, which tfiseg.open_source and `tfiseg run` read frame by frame"
    return ": check that it is complete, or convert it to JPEG or PNG"
