"""``Frame``, and the base class of all sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...images import MAX_SIDE_PX

DEFAULT_FPS = 30.0  # assumed if a source has no frame rate


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """One image of a source.

    Args:
        image: uint8 (H, W, 3) BGR.
        index: position in the source, from 0; a ``Pipeline`` counts the frames of a source that sets none.
        capture_time_ns: time.monotonic_ns() of the capture (live sources) or of the decoding; 0: the time at
            which a ``Pipeline`` reads the frame.
        name: name in outputs: a file name without suffix, or "frame-000012".
        decode_ms: milliseconds to read the image.
        truth_label_map: ground truth of the synthetic source, int32 (H, W); otherwise None.
        truth_class_map: ground truth of the synthetic source, uint8 (H, W); otherwise None.
        file_name: path of an image file relative to the opened folder; "" if the image is no file.
        media_time_s: seconds from the start of a video; None if the source has no such clock.
    """

    image: NDArray[np.uint8]
    index: int = 0
    capture_time_ns: int = 0
    name: str = ""
    decode_ms: float = 0.0
    truth_label_map: NDArray[np.int32] | None = None
    truth_class_map: NDArray[np.uint8] | None = None
    file_name: str = ""
    media_time_s: float | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, np.shape(self.image)[1::-1]))
        return f"<Frame {self.index} {self.name!r}: {size} pixels>"


class Source:
    """A sequence of frames: iterate over it, and close it (or use ``with``).

    Subclasses implement ``_read``. Later stages of a pipeline still read the image of a frame, so its memory
    must not change: copy the image if a camera's library uses the same buffer again.

    Attributes:
        name: name in outputs and messages, without secrets.
        fps: frames per second, or None if unknown.
        is_video: whether the frames are a video rather than single images.
        is_live: whether frames arrive in real time, whether or not they are read.
        frame_count: number of frames, or None if unknown.
        reconnects: number of times that the source was lost and reopened.
        unreadable: an error message for each image file that cannot be read.
    """

    fps: float | None = None
    is_video = True
    is_live = False
    frame_count: int | None = None
    reconnects = 0
    unreadable: Sequence[str] = ()
    name = "source"

    def __init__(self, name: str) -> None:
        self.name = name

    def _read(self, index: int) -> Frame | None:
        """Return the next frame, or None at the end."""
        raise NotImplementedError(f"{type(self).__name__} must implement _read(index), which returns a Frame")

    def close(self) -> None:
        """Release all resources; safe to call twice."""

    def interrupt(self) -> None:
        """End an iteration that waits for a frame; any thread may call this."""

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

    def __exit__(self, *_: object) -> None:
        self.close()


def frame_name(index: int) -> str:
    """Return the name of a frame that is no file."""
    return f"frame-{index:06d}"


def check_image(frame: Frame | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image of a frame as a contiguous array; raises InputError if it is no uint8 (H, W, 3)."""
    image = frame.image if isinstance(frame, Frame) else np.asarray(frame)
    if not isinstance(image, np.ndarray):
        raise InputError(f"a frame must be uint8 (H, W, 3) BGR, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"a frame must be uint8 (H, W, 3) BGR, got {image.dtype} {image.shape}: "
            "scale floats to 0..255, and convert gray images by cv2.cvtColor(x, cv2.COLOR_GRAY2BGR)"
        )
    if not image.size:
        raise InputError(f"the frame is empty: shape {image.shape}")
    if max(image.shape) > MAX_SIDE_PX:
        raise InputError(
            f"a frame must have at most {MAX_SIDE_PX} pixels along each side, got {image.shape}: crop or "
            "resize it"
        )
    return np.ascontiguousarray(image)
