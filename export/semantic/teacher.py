"""A teacher network's class probabilities of training pictures, for ``tfiseg train semantic --teacher``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError
from ...files import write_whole
from ...runtime.networks.multi_scale import MultiScaleSession
from ...runtime.networks.onnx_session import OnnxSession
from .data import Picture

_GRID = 64  # cells along each side of a picture
_SCALES = (1.0, 1.5)  # with mirror images, what labels are made with (docs/experiments/input-resolution.md)


def teach(pictures: Sequence[Picture], teacher: Path, classes: int, cache: Path) -> list[Picture]:
    """Add a teacher's class probabilities to pictures.

    It sees each picture whole, in overlapping windows, which show small objects larger, and mirrored.

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
    session = MultiScaleSession(OnnxSession(teacher), _SCALES, flip=True)
    if (theirs := len(session.info.class_names)) != classes:
        raise InputError(f"the teacher {teacher} has {theirs} classes, expected {classes}")
    shape = (len(pictures), _GRID, _GRID, classes)
    key = {
        "teacher": sha256(teacher.read_bytes()).hexdigest(),
        "pictures": [[p.name, crc32(p.image.tobytes())] for p in pictures],
        "shape": shape,
    }
    text = json.dumps(key)
    beside = cache.with_suffix(".json")
    if not (cache.exists() and beside.exists() and beside.read_text() == text):
        beside.unlink(missing_ok=True)  # an interrupted run must not pass for a complete one
        found = np.lib.format.open_memmap(cache, "w+", np.uint8, shape)
        for row, picture in zip(found, tqdm(pictures, desc="teacher", mininterval=5), strict=True):
            row[:] = _probability(session, picture.image)
        found.flush()
        write_whole(beside, text.encode())
    known = np.load(cache, mmap_mode="r")
    return [replace(p, teacher=row) for p, row in zip(pictures, known, strict=True)]


def _probability(session: MultiScaleSession, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 (g, g, C), 255 = certain."""
    logits = session.infer(image)["logits"][0].transpose(1, 2, 0)
    odds = np.exp(logits - logits.max(2, keepdims=True))
    mean = cv2.resize(odds / odds.sum(2, keepdims=True), (_GRID, _GRID), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.rint(255 * mean), np.uint8)
