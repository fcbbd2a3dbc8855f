"""Contact sheets of the training data, to be checked before a long training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...drawing import instance_colors
from ...errors import InputError
from .bank import Bank, render_object
from .composites import Composer

_COLUMNS = 12
_ROWS = 6
_UNKNOWN = (0, 0, 255)

Image = NDArray[np.uint8]


def bank_sheet(
    bank: Bank, view_px: int, path: Path, indices: Sequence[int] | None = None, seed: int = 0
) -> None:
    """Write up to 72 random objects of the bank, or of ``indices``, with everything else darkened."""
    chosen = list(range(len(bank.objects))) if indices is None else list(indices)
    np.random.default_rng(seed).shuffle(chosen)
    cells = []
    for k in chosen[: _COLUMNS * _ROWS]:
        o = bank.objects[k]
        image, mask = render_object(bank, o, view_px)
        cell = np.where(mask[..., None] > 0, image, image // 4)
        cells.append(draw_caption(cell, f"{o.class_id}{'' if o.whole else ' in place'}"))
    write_sheet(cells, _COLUMNS, path)


def composite_sheet(composer: Composer, path: Path, first: int = 0) -> None:
    """Write 36 composites, each next to its mask: one color per object, red where the object is unknown."""
    cells = []
    for k in range(_COLUMNS * _ROWS // 2):
        composite = composer(first + k)
        colors = instance_colors(max(1, int(composite.owner.max())) + 1)
        painted = np.where(
            (composite.owner < 0)[..., None],
            np.array(_UNKNOWN, np.uint8),
            colors[np.maximum(composite.owner, 0)],
        )
        shown = np.where(composite.mask[..., None] > 0, painted, composite.image // 4)
        cells += [draw_caption(composite.image, str(composite.class_id)), shown.astype(np.uint8)]
    write_sheet(cells, _COLUMNS, path)


def draw_caption(cell: Image, text: str) -> Image:
    """Return the cell with a line of text at the bottom."""
    out = np.ascontiguousarray(cell, np.uint8)
    cv2.putText(
        out, text, (3, out.shape[0] - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 255, 255), 1, cv2.LINE_AA
    )
    return out


def write_sheet(cells: list[Image], columns: int, path: Path) -> None:
    """Write cells of one size in rows, as JPEG or PNG; without cells, write nothing.

    Raises:
        InputError: the file cannot be written.
    """
    if not cells:
        return
    blank = np.zeros_like(cells[0])
    cells = cells + [blank] * (-len(cells) % columns)
    rows = [np.hstack(cells[k : k + columns]) for k in range(0, len(cells), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.vstack(rows)):
        raise InputError(f"cannot write {path}: is the disk full?")
