"""Check that an exported network predicts the same classes as the original.

The original's input is prepared by OpenCV and numpy, independently of the exported graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...calibration.frames import sample_frames
from ...errors import InputError, ModelError
from ...runtime.sources.synthetic import SyntheticCamera
from ..frame_graph import PixelFormat

MIN_AGREEMENT = 0.995
PHOTOS = 24
_SYNTHETIC_HW = ((480, 640), (720, 1280), (640, 480), (300, 300))
_WRONG = (0, 0, 255)

Labels = Callable[[NDArray[np.uint8]], NDArray[np.int64]]


@dataclass(frozen=True)
class Agreement:
    """Share of pixels with the same label, over several photos."""

    # minimum, mean: over the photos
    minimum: float
    mean: float
    photos: int
    worst: str  # name of the photo with the minimum
    # share of the pixels of each label that occurs; with only one, agreement proves nothing
    shares: dict[int, float]

    @property
    def labels(self) -> int:
        """Number of different labels."""
        return len(self.shares)


def check_frames(photos: str | Path | None) -> Sequence[tuple[str, NDArray[np.uint8]]] | Frames:
    """Return up to 24 frames of a source, or 4 synthetic ones: (name, uint8 (H, W, 3) BGR)."""
    if photos is None:
        cameras = (SyntheticCamera(size_hw, people=2 + k, seed=k) for k, size_hw in enumerate(_SYNTHETIC_HW))
        return [(f"synthetic {k}", next(iter(camera)).image) for k, camera in enumerate(cameras)]
    return Frames(photos)


class Frames:
    """A sample of a source, decoded on access."""

    def __init__(self, source: str | Path) -> None:
        self._sample = sample_frames(source, PHOTOS)

    def __len__(self) -> int:
        return len(self._sample)

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        return iter(zip(self._sample.names, self._sample, strict=True))


def network_input(image: NDArray[np.uint8], size_hw: tuple[int, int], pixels: PixelFormat) -> NDArray[Any]:
    """Convert a frame uint8 (H, W, 3) BGR to (1, 3, h, w) or (1, h, w, 3), float32 or uint8."""
    h, w = size_hw
    double = cv2.resize(image.astype(np.float32), (2 * w, 2 * h), interpolation=cv2.INTER_LINEAR)
    x = double.reshape(h, 2, w, 2, 3).mean((1, 3))
    if pixels.rgb:
        x = x[..., ::-1]
    scaled = ((x * pixels.scale - pixels.mean) / pixels.std).astype(np.float32)
    x = np.rint(x).astype(np.uint8) if pixels.uint8 else scaled
    return np.ascontiguousarray(x[None] if pixels.layout == "NHWC" else x.transpose(2, 0, 1)[None])


def labels_of(
    scores: NDArray[Any],
    size_hw: tuple[int, ...] | None = None,
    class_axis: int | None = 1,
    threshold: float = 0.0,
    corner_aligned: bool = False,
) -> NDArray[np.int64]:
    """Return the class of every pixel from scores that are upsampled bilinearly.

    Args:
        scores: float (1, C, h, w) or (1, h, w, C), or a class map. With one channel, class 1 is above
            ``threshold``.
        size_hw: size of the result; default: size of the scores.
        class_axis: 1 or 3; 0 = no class axis and one channel; None = a class map.
        corner_aligned: upsample with align_corners=True.

    Returns:
        int64 (h, w).
    """
    if class_axis is None:
        return scores.reshape([side for side in scores.shape if side > 1]).astype(np.int64)
    maps = np.moveaxis(scores, class_axis, 1)[0] if class_axis else scores
    h, w = size_hw or maps.shape[1:]
    labels = np.zeros((h, w), np.int64)
    best = np.full((h, w), threshold, np.float32)
    for k, one in enumerate(np.asarray(maps, np.float32)):
        fine = upsample(one, (h, w), corner_aligned)
        if len(maps) == 1:
            return (fine > threshold).astype(np.int64)
        higher = (fine > best) | (k == 0)
        labels[higher], best[higher] = k, fine[higher]
    return labels


def upsample(
    values: NDArray[np.float32], size_hw: tuple[int, ...], corner_aligned: bool = False
) -> NDArray[np.float32]:
    """Resize (h, w) bilinearly, with half-pixel centers or aligned corners."""
    h, w = size_hw
    if not corner_aligned:
        return np.asarray(cv2.resize(np.ascontiguousarray(values), (w, h), interpolation=cv2.INTER_LINEAR))
    # OpenCV has no such resize, and its remap rounds positions to 1/32 pixel
    rows, columns = (_corner_weights(grid, side) for grid, side in zip(values.shape, (h, w), strict=True))
    return np.asarray(rows @ values @ columns.T)


def _corner_weights(grid: int, side: int) -> NDArray[np.float32]:
    """Return weights (side, grid) that interpolate ``grid`` values with aligned corners."""
    at = np.linspace(0, grid - 1, side)
    low = np.minimum(at.astype(int), max(grid - 2, 0))
    weights = np.zeros((side, grid), np.float32)
    weights[np.arange(side), low] = 1 - (at - low)
    weights[np.arange(side), np.minimum(low + 1, grid - 1)] += at - low
    return weights


def compare_labels(
    original: Labels, exported: Labels, frames: Any, picture: Path, quiet: bool = False
) -> Agreement:
    """Compare two networks' labels frame by frame.

    Args:
        original, exported: map a frame uint8 (H, W, 3) BGR to labels int64 (h, w).
        frames: from ``check_frames``.
        picture: path for the worst frame with wrong pixels in red; written if the check fails.

    Raises:
        ModelError: the labels agree on less than 99.5 % of the pixels of a frame.
    """
    if not len(frames):
        raise InputError("no photos to check the export on")
    shares: list[tuple[float, str]] = []
    label_counts: Counter[int] = Counter()
    pixels = 0
    for name, image in tqdm(frames, desc="check", unit="photo", disable=quiet):
        actual, expected = exported(image), original(image)
        wrong = actual != expected
        values, counts = np.unique(expected, return_counts=True)
        label_counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        pixels += expected.size
        shares.append((float(1 - wrong.mean()), name))
        if shares[-1] == min(shares):
            worst = image, wrong
    minimum, name = min(shares)
    if minimum < MIN_AGREEMENT:
        image, wrong = worst
        small = cv2.resize(image, wrong.shape[::-1], interpolation=cv2.INTER_AREA) // 2
        small[wrong] = _WRONG
        message = (
            f"the exported network agrees with the original on {minimum:.2%} of the pixels of {name}, "
            f"expected {MIN_AGREEMENT:.1%}"
        )
        raise ModelError(
            f"{message}: {picture} shows where, in red" if cv2.imwrite(str(picture), small) else message
        )
    mean = float(np.mean([share for share, _ in shares]))
    return Agreement(
        minimum, mean, len(shares), name, {k: n / pixels for k, n in sorted(label_counts.items())}
    )
