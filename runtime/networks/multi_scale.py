"""Test-time augmentation: several passes over each frame.

The passes process windows (scales, tiles) and mirror images. They are too slow for live video.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .session import Session

MAX_SCALE = 8.0
_STEP = 2 / 3  # of a window, to the next one: neighbors overlap by at least a third

Logits = NDArray[np.float32]


class MultiScaleSession:
    """A network whose logits are averaged over several passes.

    Args:
        scales: 1: the whole frame; 1.5: overlapping windows of two thirds of its longer side.
        flip: also process mirror images, with twice the passes.
        finer: factor by which the result has more rows and columns than the network's grid for a frame.

    Raises:
        InputError: see ``checked_scales``.
    """

    def __init__(self, session: Session, scales: Sequence[float], flip: bool, finer: int = 1) -> None:
        self._session = session
        self._scales = checked_scales(scales)
        self._flip = flip
        self._finer = finer
        self.path = session.path
        self.info = session.info

    def has(self, output: str) -> bool:
        """Return True for logits only: maps of instance heads cannot be averaged."""
        return output == "logits"

    def infer(self, image: NDArray[np.uint8]) -> dict[str, Logits]:
        """Return averaged logits of an image.

        Args:
            image: uint8 (H, W, 3) BGR.

        Returns:
            "logits": float32 (1, C, h, w), with ``finer`` times the network's grid for the whole image.
        """
        # without scale 1, this pass only gives the size of the grid
        whole = self._infer_flipped(image) if 1 in self._scales else self._session.infer(image)["logits"][0]
        grid_hw = (self._finer * whole.shape[1], self._finer * whole.shape[2])
        if self._finer > 1:
            whole = np.stack([cv2.resize(p, grid_hw[::-1], interpolation=cv2.INTER_LINEAR) for p in whole])
        passes = [whole if s == 1 else self._infer_windows(image, s, grid_hw) for s in self._scales]
        return {"logits": np.mean(passes, axis=0, dtype=np.float32, keepdims=True)}

    def close(self) -> None:
        self._session.close()

    def _infer_flipped(self, image: NDArray[np.uint8]) -> Logits:
        logits = self._session.infer(image)["logits"][0]
        if not self._flip:
            return logits
        mirrored = self._session.infer(np.ascontiguousarray(image[:, ::-1]))["logits"][0]
        return (logits + mirrored[..., ::-1]) / np.float32(2)

    def _infer_windows(self, image: NDArray[np.uint8], scale: float, grid_hw: tuple[int, int]) -> Logits:
        """Average windows on the frame's grid; weights grow with the distance from borders."""
        height, width = image.shape[:2]
        total = np.zeros((len(self.info.class_names), *grid_hw), np.float32)
        weight = np.zeros(grid_hw, np.float32)
        for y, x, h, w in windows((height, width), scale):
            rows, at_y, row_weight = _cells(y, h, height, grid_hw[0])
            columns, at_x, column_weight = _cells(x, w, width, grid_hw[1])
            if not len(at_y) or not len(at_x):
                continue  # narrower than a cell: its neighbors show the same
            try:
                logits = self._infer_flipped(np.ascontiguousarray(image[y : y + h, x : x + w]))
            except InputError as wrong:  # an engine supports some frame sizes only
                raise InputError(f"a window of this frame at scale {scale:g}: {wrong}") from wrong
            map_x, map_y = np.meshgrid(at_x * logits.shape[2] - 0.5, at_y * logits.shape[1] - 0.5)
            window_weight = np.outer(row_weight, column_weight)
            planes = np.stack(
                [
                    cv2.remap(p, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                    for p in logits
                ]
            )
            total[:, rows, columns] += planes * window_weight
            weight[rows, columns] += window_weight
        return np.asarray(total / weight, np.float32)


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Return scales as floats. Raises InputError if there is none, or one is not in 1..8."""
    try:
        numbers = tuple(float(s) for s in scales)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(1 <= s <= MAX_SCALE for s in numbers):
        raise InputError(f"scales must be numbers from 1 to {MAX_SCALE:g}, got {scales!r}")
    return numbers


def windows(size_hw: tuple[int, int], scale: float) -> list[tuple[int, int, int, int]]:
    """Return (y, x, height, width) of the windows that cover a frame at a scale, row by row."""
    side = int(np.ceil(max(size_hw) / scale))
    starts = []
    for length in size_hw:
        more = int(np.ceil(max(0, length - side) / (side * _STEP)))
        starts.append(np.linspace(0, max(0, length - side), more + 1).round().astype(int).tolist())
    h, w = min(size_hw[0], side), min(size_hw[1], side)
    return [(y, x, h, w) for y in starts[0] for x in starts[1]]


def _cells(
    start: int, length: int, frame_length: int, cells: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Return the cells with centers in a window, their positions (0..1) and weights."""
    centers = (np.arange(cells) + 0.5) * frame_length / cells
    first, last = np.searchsorted(centers, [start, start + length])
    centers = centers[first:last]
    weight = np.minimum(centers - start, start + length - centers) + 1
    return slice(first, last), ((centers - start) / length).astype(np.float32), weight.astype(np.float32)
