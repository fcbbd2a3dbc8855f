"""Contact sheets: pictures with true and predicted instances side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ...drawing import instance_colors
from ...instances import Instances
from .evaluation_set import EvalPicture
from .metrics import PanopticCounts

_SHEET_CELL_HW = (220, 300)


def contact_sheet(cases: Sequence[tuple[PanopticCounts, EvalPicture, Instances]]) -> NDArray[np.uint8]:
    """Return an image of pairs of true (left) and predicted (right) instances, two pairs per row."""
    cells = []
    for counts, picture, found in cases:
        numbers, truth = np.unique(picture.truth, return_inverse=True)
        colored = instance_colors(len(numbers))[truth.reshape(picture.truth.shape)]
        painted = cv2.addWeighted(picture.image, 0.4, colored, 0.6, 0)
        left = np.where((picture.truth > 0)[..., None], painted, picture.image)
        pair = np.hstack([_fit(left.astype(np.uint8)), _fit(found.draw(picture.image))])
        text = (
            f"{picture.name}: {counts.true_positives} correct, {counts.false_positives} false, "
            f"{counts.false_negatives} missed"
        )
        pair[:17] //= 4  # a dark strip behind the text
        cv2.putText(pair, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(pair)
    if len(cells) % 2:
        cells.append(np.zeros_like(cells[0]))
    return np.vstack([np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)])


def _fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = _SHEET_CELL_HW
    scale = min(height / image.shape[0], width / image.shape[1])
    size_wh = tuple(max(1, int(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
    cell = np.zeros((height, width, 3), np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    return cell
