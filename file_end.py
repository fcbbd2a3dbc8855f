"""Detection of videos and animations that end early, or that another video follows, by their structure.

Formats for recording and streaming announce no length, so a decoder reads what is left of a truncated file
without an error. In other formats, a decoder reads only the first of several videos in one file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

_MP4_BOXES = frozenset(
    b"ftyp moov moof mdat mfra free skip wide uuid styp sidx ssix prft emsg meta meco pdin pnot udta".split()
)
_TO_END_OF_FILE, _LARGE_SIZE = 0, 1  # MP4: special values of a box's size
_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_FLV_START, _FLV_TAGS = b"FLV\1", (8, 9, 18)  # audio, video, script data
_ASF_START = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_TS_PACKETS = {0: 188, 4: 192}  # position of the first sync byte -> bytes per packet (192: with a time code)
_TS_SYNC = 0x47


class _EndOfFile(Exception):
    """A file ends where its structure does not."""

    def __init__(self, missing: int = 1) -> None:
        self.missing = missing  # at least so many bytes


class _SecondFile(Exception):
    """Another file of the same format begins inside a file."""

    def __init__(self, at: int) -> None:
        self.at = at


class FileEnd(NamedTuple):
    """What is wrong with the end of a file."""

    # number of bytes that are missing at least; 0 for a complete file, and for a format whose structure is
    # not known here
    missing: int = 0
    # position in bytes of a second video that decoders do not read, as in MP4 files joined by ``cat``; None
    # if there is none, and for a format whose decoders read all videos
    second_at: int | None = None


def file_end(file: BinaryIO) -> FileEnd:
    """Follow the structure of a file that is open for reading to its end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    walk = _walk_of(file.read(200))
    try:
        if walk is not None:
            walk(file, size)
    except _EndOfFile as end:
        return FileEnd(missing=end.missing)
    except _SecondFile as second:
        return FileEnd(second_at=second.at)
    return FileEnd()


def missing_bytes(file: BinaryIO) -> int:
    """Return how many bytes at least are missing at the end of a file, see ``FileEnd``."""
    return file_end(file).missing


def _walk_of(head: bytes) -> Callable[[BinaryIO, int], None] | None:
    """Return the function that walks through files with this beginning, or None."""
    if head[4:8] in _MP4_BOXES:
        return _walk_mp4
    if head.startswith(_EBML):
        return _walk_matroska
    if head.startswith(_FLV_START):
        return _walk_flv
    if head.startswith(_ASF_START):
        return _walk_asf
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _walk_gif
    if head.startswith(_PNG_START):
        return _walk_png
    if head.startswith(b"\xff\xd8\xff"):
        return _check_motion_jpeg
    for first, length in _TS_PACKETS.items():
        if len(head) > first + length and head[first] == head[first + length] == _TS_SYNC:
            return lambda file, size: _require(size, size + -size % length)
    return None


def _require(size: int, end: int) -> None:
    if end > size:
        raise _EndOfFile(end - size)


def _read(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise _EndOfFile(count - len(content))
    return content


def _walk_mp4(file: BinaryIO, size: int) -> None:
    at, has_index = 0, False
    while at < size:
        file.seek(at)
        header = file.read(16)
        if not header.strip(b"\0"):
            return  # padding
        _require(at + len(header), at + 8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if kind not in _MP4_BOXES or length == _TO_END_OF_FILE:
            return  # other data after the video, or a box as long as the file
        if has_index and kind in (b"ftyp", b"moov"):
            raise _SecondFile(at)
        has_index |= kind == b"moov"
        if length == _LARGE_SIZE:
            length = int.from_bytes(header[8:], "big")
        at += max(length, 8)
        _require(size, at)


def _walk_matroska(file: BinaryIO, size: int) -> None:
    at = 0
    while at < size:
        file.seek(at)
        first = _read(file, 1)
        name = first + _read(file, 8 - first[0].bit_length())
        width = 9 - _read(file, 1)[0].bit_length()  # of the element's size
        if not first[0] or width > 8:
            return  # no EBML
        file.seek(-1, os.SEEK_CUR)
        length = int.from_bytes(_read(file, width), "big") & ((1 << 7 * width) - 1)
        at = file.tell()
        if length == (1 << 7 * width) - 1:  # unknown: its children follow
            if name not in (_SEGMENT, _CLUSTER):
                return
        else:
            at += length
            _require(size, at)


def _walk_flv(file: BinaryIO, size: int) -> None:
    at = int.from_bytes(_read_at(file, 5, 4), "big") + 4
    while at < size:
        file.seek(at)
        header = file.read(11)
        if header.startswith(_FLV_START):
            raise _SecondFile(at)
        if header[0] & 31 not in _FLV_TAGS:
            return  # padding or other data
        _require(at + len(header), at + 11)
        at += 11 + int.from_bytes(header[1:4], "big") + 4
        _require(size, at)


def _walk_asf(file: BinaryIO, size: int) -> None:
    at, length = 0, 1
    while length and at + 24 <= size:  # a live recording has no length
        header = _read_at(file, at, 24)
        if header.startswith(_ASF_START) and at > 0:
            raise _SecondFile(at)
        length = int.from_bytes(header[16:], "little")
        at += length


def _read_at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return _read(file, count)


def _walk_gif(file: BinaryIO, size: int) -> None:
    screen = _read_at(file, 6, 7)
    _skip_color_table(file, screen[4])
    while True:
        block = _read(file, 1)
        if block == b"\x21":  # an extension
            _read(file, 1)
        elif block == b"\x2c":  # an image
            _skip_color_table(file, _read(file, 9)[8])
            _read(file, 1)
        else:
            return  # the end marker, or other data
        while (length := _read(file, 1)[0]) != 0:
            _read(file, length)


def _skip_color_table(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        _read(file, 3 << (flags & 7) + 1)


def _walk_png(file: BinaryIO, size: int) -> None:
    at, kind = len(_PNG_START), b""
    while kind != _PNG_END:
        header = _read_at(file, at, 8)
        kind = header[4:]
        at += 12 + int.from_bytes(header[:4], "big")
        _require(size, at)


def _check_motion_jpeg(file: BinaryIO, size: int) -> None:
    tail = _read_at(file, max(0, size - 64), min(64, size)).rstrip(b"\0")
    if not tail.endswith(b"\xff\xd9"):
        raise _EndOfFile(2)
