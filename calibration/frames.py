"""A seeded sample of frames, for calibration and accuracy checks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import InputError
from ..images import read_image
from ..runtime.sources.files import ImageFiles
from ..runtime.sources.open_source import open_source

FRAMES = 128
_LIVE_FRAMES = 600  # number of frames to sample from if a source has no known length
_LOSSLESS = (cv2.IMWRITE_PNG_COMPRESSION, 1)


class FrameSample(Sequence[NDArray[np.uint8]]):
    """Frames of a source, uint8 (H, W, 3) BGR each, decoded on access.

    They are stored as paths, or compressed without loss."""

    def __init__(self, source: str, kept: Sequence[Path | NDArray[np.uint8]], names: Sequence[str]) -> None:
        self.source = source
        self._kept = list(kept)
        self.names = list(names)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:  # type: ignore[override]
        kept = self._kept[index]
        if not isinstance(kept, Path):
            return np.asarray(cv2.imdecode(kept, cv2.IMREAD_COLOR), np.uint8)
        try:
            return read_image(kept)
        except InputError as wrong:
            raise InputError(f"{wrong}; or remove it from {self.source}") from None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[i] for i in range(len(self)))

    def part(self, start: int, stop: int | None = None) -> FrameSample:
        """Return frames start..stop-1 of the sample."""
        return FrameSample(self.source, self._kept[start:stop], self.names[start:stop])

    def sha256(self) -> str:
        """Return a digest of the frames' data, the key of a calibration cache."""
        digest = hashlib.sha256()
        for kept in self._kept:
            digest.update(kept.read_bytes() if isinstance(kept, Path) else kept.tobytes())
        return digest.hexdigest()


def sample_frames(source: str | Path, count: int = FRAMES, seed: int = 0, quiet: bool = True) -> FrameSample:
    """Draw a random sample of a source's frames; the same seed gives the same sample.

    Args:
        source: a folder of images, an image, a glob pattern, a video, or any other source of
            ``open_source``. If its length is unknown, the sample comes from its first 600 frames.
        count: maximum number of frames.

    Raises:
        SourceError: the source can't be opened, or holds no image.
        InputError: count is below 1.
    """
    if count < 1:
        raise InputError(f"expected a count of at least 1 frame, got {count}")
    rng = np.random.default_rng(seed)
    with open_source(source) as frames:
        if isinstance(frames, ImageFiles):
            paths = [frames.paths[i] for i in rng.permutation(len(frames.paths))[:count]]
            return FrameSample(str(source), paths, [p.stem for p in paths])
        total = frames.frame_count or _LIVE_FRAMES
        wanted = set(rng.permutation(total)[:count].tolist())
        kept: list[NDArray[np.uint8]] = []
        names: list[str] = []
        for frame in tqdm(frames, total=total, unit="frame", desc="reading", disable=quiet):
            if frame.index in wanted:
                kept.append(np.asarray(cv2.imencode(".png", frame.image, _LOSSLESS)[1], np.uint8).ravel())
                names.append(frame.name)
            if frame.index + 1 >= total or len(kept) == len(wanted):
                break
    order = rng.permutation(len(kept))
    return FrameSample(str(source), [kept[i] for i in order], [names[i] for i in order])
