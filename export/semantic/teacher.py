"""A teacher network's class probabilities of training pictures, for ``tfiseg train semantic --teacher``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError
from ...files import write_whole
from ...runtime.networks.onnx_session import OnnxSession
from .data import Picture

_GRID = 64  # cells along each side of a picture
_TILE_SHARE = 0.625  # of a picture's sides: four tiles overlap by a fifth of the picture
_FEATHER = 0.12  # share of a tile along its cut sides where its weight falls to 0

Floats = NDArray[np.float32]


def teach(pictures: Sequence[Picture], teacher: Path, classes: int, cache: Path) -> list[Picture]:
    """Add a teacher's class probabilities to pictures.

    It sees each picture whole, mirrored, and in four overlapping tiles, which show small objects larger.

    Args:
        pictures: pictures without a teacher.
        teacher: ONNX network in tfiseg's format with the class ids of the training.
        classes: number of classes.
        cache: file name ``NAME.npy`` that keeps the probabilities (88 KB a picture with 21 classes). Beside
            it lies a list of the pictures. Both are read instead of running the teacher, if they fit.

    Raises:
        InputError: the teacher has another number of classes.
        ModelError: it can't be opened.
    """
    session = OnnxSession(teacher)
    if (theirs := len(session.info.class_names)) != classes:
        raise InputError(f"the teacher {teacher} has {theirs} classes, expected {classes}")
    shape = (len(pictures), _GRID, _GRID, classes)
    key = {
        "teacher": sha256(teacher.read_bytes()).hexdigest(),
        "pictures": [p.name for p in pictures],
        "shape": shape,
    }
    text = json.dumps(key)
    beside = cache.with_suffix(".json")
    if not (cache.exists() and beside.exists() and beside.read_text() == text):
        found = np.lib.format.open_memmap(cache, "w+", np.uint8, shape)
        for row, picture in zip(found, tqdm(pictures, desc="teacher", mininterval=5), strict=True):
            row[:] = _probability(session, picture.image)
        found.flush()
        write_whole(beside, text.encode())
    known = np.load(cache, mmap_mode="r")
    return [replace(p, teacher=row) for p, row in zip(pictures, known, strict=True)]


def _probability(session: OnnxSession, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 (g, g, C): the mean of all views, 255 = certain."""
    whole = (0.0, 0.0, 1.0, 1.0)
    total = _look(session, image, whole) + _look(session, image[:, ::-1], whole)[:, ::-1]
    weight = np.full((_GRID, _GRID, 1), 2, np.float32)
    tiles, covered = np.zeros_like(total), np.zeros_like(weight)
    for tile, trust in _tiles():
        tiles += trust * _look(session, image, tile)
        covered += trust
    mean = (total + tiles / np.maximum(covered, 1e-6)) / (weight + 1)
    return np.asarray(np.rint(255 * mean), np.uint8)


def _tiles() -> Iterator[tuple[tuple[float, float, float, float], Floats]]:
    """Yield four tiles (y0, x0, y1, x1) as shares of the picture, and their weight (g, g, 1)."""
    at = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    low, high = 1 - _TILE_SHARE, _TILE_SHARE
    first, last = np.clip((high - at) / _FEATHER, 0, 1), np.clip((at - low) / _FEATHER, 0, 1)
    sides = (((0.0, high), first), ((low, 1.0), last))
    for (y0, y1), rows in sides:
        for (x0, x1), columns in sides:
            yield (y0, x0, y1, x1), np.asarray(rows[:, None] * columns, np.float32)[..., None]


def _look(session: OnnxSession, image: NDArray[np.uint8], tile: tuple[float, float, float, float]) -> Floats:
    """Return the class probabilities of a tile in the picture's grid, float32 (g, g, C), repeated outside."""
    h, w = image.shape[:2]
    y0, x0, y1, x1 = tile
    rows, columns = slice(round(y0 * h), round(y1 * h)), slice(round(x0 * w), round(x1 * w))
    logits = session.infer(np.ascontiguousarray(image[rows, columns]))["logits"][0].transpose(1, 2, 0)
    odds = np.exp(logits - logits.max(2, keepdims=True))
    lh, lw = odds.shape[:2]
    at = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    y, x = (at - y0) / (y1 - y0) * lh - 0.5, (at - x0) / (x1 - x0) * lw - 0.5
    grid_x, grid_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    sampled = cv2.remap(
        odds / odds.sum(2, keepdims=True), grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(sampled, np.float32)
