"""Class probabilities of a teacher network, for ``tfiseg train semantic --teacher``."""

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

_GRID = 64  # cells along each side of an image
_SCALES = (1.0, 1.5)  # and mirror images, as for pseudo-labels (docs/experiments/input-resolution.md)


def add_teacher(pictures: Sequence[Picture], teacher: Path, classes: int, cache: Path) -> list[Picture]:
    """Add a teacher's class probabilities to images.

    The teacher runs with test-time augmentation: whole images, overlapping windows, and mirror images.

    Args:
        teacher: ONNX network in tfiseg's format with the class IDs of the training.
        cache: path ``NAME.npy`` for the probabilities (88 KB per image with 21 classes), with a list of the
            images in ``NAME.json``. If both match, the teacher does not run.

    Raises:
        InputError: the teacher has another number of classes.
        ModelError: the teacher cannot be opened.
    """
    session = MultiScaleSession(OnnxSession(teacher), _SCALES, flip=True)
    if (count := len(session.info.class_names)) != classes:
        raise InputError(f"the teacher {teacher} has {count} classes, expected {classes}")
    shape = (len(pictures), _GRID, _GRID, classes)
    key = {
        "teacher": sha256(teacher.read_bytes()).hexdigest(),
        "pictures": [[p.name, crc32(p.image.tobytes())] for p in pictures],
        "shape": shape,
    }
    text = json.dumps(key)
    key_file = cache.with_suffix(".json")
    if not (cache.exists() and key_file.exists() and key_file.read_text() == text):
        key_file.unlink(missing_ok=True)  # an interrupted run must not look complete
        rows = np.lib.format.open_memmap(cache, "w+", np.uint8, shape)
        for row, picture in zip(rows, tqdm(pictures, desc="teacher", mininterval=5), strict=True):
            row[:] = _probability(session, picture.image)
        rows.flush()
        write_whole(key_file, text.encode())
    probabilities = np.load(cache, mmap_mode="r")
    return [replace(p, teacher=row) for p, row in zip(pictures, probabilities, strict=True)]


def _probability(session: MultiScaleSession, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class probabilities of an image, uint8 (g, g, C), 255 = certain."""
    logits = session.infer(image)["logits"][0].transpose(1, 2, 0)
    odds = np.exp(logits - logits.max(2, keepdims=True))
    mean = cv2.resize(odds / odds.sum(2, keepdims=True), (_GRID, _GRID), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.rint(255 * mean), np.uint8)
