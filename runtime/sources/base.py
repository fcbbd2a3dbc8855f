"""What every frame source gives and is: ``Frame`` and ``Source``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...images import MAX_SIDE_PX

DEFAULT_FPS = 30.0  # assumed if a source has no frame rate


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
        file_name: of an image file: its path relative to the folder that was opened; else "".
        media_time_s: seconds from the start of a video at which it is shown; None: the source has no such
            clock.
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


class Source:
    """Frames one after another: iterate, and close (or use ``with``).

    ``fps`` is the source's own rate or None; ``is_video`` tells moving pictures from single images;
    ``frame_count`` is the number of frames if it is known beforehand; ``is_live`` says that frames come when
    they come, whether anybody is ready or not; ``reconnects`` counts how often it was lost and found again;
    ``unreadable`` holds a message for each image file that could not be read.
    """

    fps: float | None = None
    is_video = True
    is_live = False
    frame_count: int | None = None
    reconnects = 0
    unreadable: Sequence[str] = ()

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


def checked_image(frame: Frame | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture in a frame, checked: uint8 (H, W, 3) with at least one pixel."""
    image = frame.image if isinstance(frame, Frame) else np.asarray(frame)
    if not isinstance(image, np.ndarray):
        raise InputError(f"a frame must be uint8 (H, W, 3) BGR, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            f"a frame must be uint8 (H, W, 3) BGR, got {image.dtype} {image.shape}: "
            "scale floats to 0..255, and cv2.cvtColor(x, cv2.COLOR_GRAY2BGR) makes grey pictures colour"
        )
    if not image.size:
        raise InputError(f"the frame is empty: shape {image.shape}")
    if max(image.shape) > MAX_SIDE_PX:
        raise InputError(
            f"a frame must have at most {MAX_SIDE_PX} pixels along each side, got {image.shape}: crop or "
            "scale it"
        )
    return np.ascontiguousarray(image)
