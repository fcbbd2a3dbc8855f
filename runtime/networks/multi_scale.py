"""Several passes of a network over each frame: windows of it, each scaled to the network's input size
(multi-scale inference, tiles), and mirror images. For photos and labels rather than live video.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .session import Session

MAX_SCALE = 8.0
_STEP = 2 / 3  # of a window, to the next one: neighbours overlap by a third at least

Logits = NDArray[np.float32]


class MultiScaleSession:
    """The mean of a network's logits over several looks at a frame.

    Args:
        session: the network.
        scales: 1 is the whole frame; 1.5 windows of two thirds of its longer side, which overlap.
        flip: mirror images as well: twice the passes.
        finer: the result's grid has this many times the rows and columns that the network has for a frame.

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
        """Class maps are averaged; of instance heads, which tell of neighbours, there is no mean."""
        return output == "logits"

    def infer(self, image: NDArray[np.uint8]) -> dict[str, Logits]:
        """Return logits float32 (1, C, h, w) of one picture uint8 (H, W, 3) BGR, on the grid that the network
        has for the whole of it, or on a finer one."""
        # without scale 1, this pass only tells the grid
        whole = self._look(image) if 1 in self._scales else self._session.infer(image)["logits"][0]
        grid_hw = (self._finer * whole.shape[1], self._finer * whole.shape[2])
        if self._finer > 1:
            whole = np.stack([cv2.resize(p, grid_hw[::-1], interpolation=cv2.INTER_LINEAR) for p in whole])
        looks = [whole if s == 1 else self._closer(image, s, grid_hw) for s in self._scales]
        return {"logits": np.mean(looks, axis=0, dtype=np.float32, keepdims=True)}

    def close(self) -> None:
        self._session.close()

    def _look(self, image: NDArray[np.uint8]) -> Logits:
        logits = self._session.infer(image)["logits"][0]
        if not self._flip:
            return logits
        mirrored = self._session.infer(np.ascontiguousarray(image[:, ::-1]))["logits"][0]
        return (logits + mirrored[..., ::-1]) / np.float32(2)

    def _closer(self, image: NDArray[np.uint8], scale: float, grid_hw: tuple[int, int]) -> Logits:
        """Windows' logits on the frame's grid; where they overlap, the one counts more whose edge is further
        away."""
        height, width = image.shape[:2]
        total, weight = (
            np.zeros((len(self.info.class_names), *grid_hw), np.float32),
            np.zeros(grid_hw, np.float32),
        )
        for y, x, h, w in windows((height, width), scale):
            rows, at_y, row_weight = _cells(y, h, height, grid_hw[0])
            columns, at_x, column_weight = _cells(x, w, width, grid_hw[1])
            if not len(at_y) or not len(at_x):
                continue  # narrower than a cell: its neighbours show the same
            try:
                logits = self._look(np.ascontiguousarray(image[y : y + h, x : x + w]))
            except InputError as wrong:  # an engine takes frames of some sizes only
                raise InputError(f"a window of this frame at scale {scale:g}: {wrong}") from wrong
            map_x, map_y = np.meshgrid(at_x * logits.shape[2] - 0.5, at_y * logits.shape[1] - 0.5)
            its = np.outer(row_weight, column_weight)
            planes = np.stack(
                [
                    cv2.remap(p, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                    for p in logits
                ]
            )
            total[:, rows, columns] += planes * its
            weight[rows, columns] += its
        return np.asarray(total / weight, np.float32)


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as a tuple of floats; raises InputError where one isn't in 1..8, or there is none."""
    try:
        numbers = tuple(float(s) for s in scales)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(1 <= s <= MAX_SCALE for s in numbers):
        raise InputError(f"scales must be numbers from 1 to {MAX_SCALE:g}, got {scales!r}")
    return numbers


def windows(size_hw: tuple[int, int], scale: float) -> list[tuple[int, int, int, int]]:
    """(y, x, height, width) of the windows that cover a frame at this scale, row by row."""
    side = int(np.ceil(max(size_hw) / scale))
    starts = []
    for length in size_hw:
        more = int(np.ceil(max(0, length - side) / (side * _STEP)))
        starts.append(np.linspace(0, max(0, length - side), more + 1).round().astype(int).tolist())
    h, w = min(size_hw[0], side), min(size_hw[1], side)
    return [(y, x, h, w) for y in starts[0] for x in starts[1]]


def _cells(
    start: int, length: int, of: int, cells: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Which of a frame's cells have their centre in a window, where in it, 0..1, and their weights, above
    0."""
    centres = (np.arange(cells) + 0.5) * of / cells
    first, last = np.searchsorted(centres, [start, start + length])
    centres = centres[first:last]
    weight = np.minimum(centres - start, start + length - centres) + 1
    return slice(first, last), ((centres - start) / length).astype(np.float32), weight.astype(np.float32)
