"""Contact sheet of the training data of instance heads."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ...drawing import instance_colors
from ..instance.contact_sheets import write_sheet
from .composites import FrameComposer

_CELLS_COUNT = 24
_CELL_HW = (180, 240)


def frame_sheet(composer: FrameComposer, path: Path) -> None:
    """Write composites next to their colored objects as a JPEG; raises InputError if that fails."""
    cells = []
    for number in range(_CELLS_COUNT):
        composite = composer(number)
        colors = instance_colors(len(composite.class_id) + 1)
        painted = cv2.addWeighted(composite.image, 0.4, colors[composite.owner], 0.6, 0)
        overlay = np.where((composite.owner > 0)[..., None], painted, composite.image).astype(np.uint8)
        pair = [
            cv2.resize(x, _CELL_HW[::-1], interpolation=cv2.INTER_AREA) for x in (composite.image, overlay)
        ]
        cells.append(np.asarray(np.hstack(pair), np.uint8))
    write_sheet(cells, 4, path)
