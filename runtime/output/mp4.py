"""A writer of MP4 files that stay readable if the process is killed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import OutputError

if TYPE_CHECKING:
    from av import VideoFrame

# the index is written first and each frame is a fragment, so that all frames can be read after a kill -9 or a
# full disk
_CONTAINER = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
_ENCODER = {"preset": "veryfast", "tune": "zerolatency", "crf": "21"}
_KEYFRAME_EVERY = 30
_CLOCK = Fraction(1, 90_000)
_BOX_HEADER_BYTES = 8  # length and type


def _rate(fps: float) -> Fraction:
    """Return the frame rate as a fraction, a hint for players: each frame has its own time."""
    return max(Fraction(fps).limit_denominator(1001 if fps >= 1 else 100_000), Fraction(1, 100_000))


def _truncate_incomplete_frame(path: Path) -> None:
    """Truncate a file after its last complete frame."""
    with path.open("r+b") as file:
        size, at, complete = path.stat().st_size, 0, 0
        while at + _BOX_HEADER_BYTES <= size:
            file.seek(at)
            header = file.read(_BOX_HEADER_BYTES)
            length = int.from_bytes(header[:4], "big")
            if length < _BOX_HEADER_BYTES or at + length > size:
                break
            at += length
            complete = complete if header[4:] == b"moof" else at  # the frame follows its moof
        file.truncate(complete)


class Mp4Writer:
    """A writer of H.264 MP4 files; use it in a ``with`` block.

    Args:
        path: path of the file, which is overwritten.
        size_wh: size of the video in pixels. Frames of another size are resized.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, size_wh: tuple[int, int], fps: float) -> None:
        import av

        self.path = path
        self._size_wh = size_wh
        self._errors = av.error.FFmpegError
        try:
            self._container = av.open(str(path), "w", format="mp4", container_options=_CONTAINER)
            self._stream = self._container.add_stream("libx264", rate=_rate(fps), options=_ENCODER)
            self._stream.width, self._stream.height = (s + s % 2 for s in size_wh)  # yuv420p needs even sizes
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.gop_size = _KEYFRAME_EVERY
            self._stream.codec_context.time_base = _CLOCK
            self._container.start_encoding()
        except (OSError, av.error.FFmpegError) as error:
            raise OutputError(f"can't write {path}: {error}") from error
        self._to_frame = av.VideoFrame.from_ndarray
        self._last = -1
        self._has_failed = False

    def write(self, picture: NDArray[np.uint8], seconds: float) -> None:
        """Add an image, uint8 (H, W, 3) BGR, at this time in seconds."""
        width, height = self._size_wh
        if picture.shape[1::-1] != (width, height):
            picture = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
        if width % 2 or height % 2:
            picture = np.asarray(
                cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8
            )
        frame = self._to_frame(picture, format="bgr24")
        self._last = frame.pts = max(self._last + 1, round(seconds / _CLOCK))
        frame.time_base = _CLOCK
        self._mux(frame)

    def _mux(self, frame: VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (OSError, self._errors) as error:
            self._has_failed = True
            raise OutputError(f"can't write {self.path}: {error}") from error

    def close(self) -> None:
        """Flush the encoder and close the file."""
        try:
            self._mux(None)
        finally:
            self._container.close()
            if self._has_failed and Path(self.path).is_file():
                _truncate_incomplete_frame(Path(self.path))

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
