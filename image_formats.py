"""What is wrong with an image file: formats that are not supported, and JPEG data that end early."""

from __future__ import annotations

from typing import BinaryIO

from .errors import InputError

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
