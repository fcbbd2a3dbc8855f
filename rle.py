"""COCO run-length encoding (RLE) of masks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_rle(
    crop: NDArray[np.bool_], offset_xy: tuple[int, int], size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Encode a mask as COCO RLE, without making the whole mask.

    Args:
        crop: bool (h, w), the mask inside a box.
        offset_xy: upper left corner of the box in pixels.
        size_hw: (H, W) of the picture.

    Returns:
        ``{"size": [H, W], "counts": str}``, as pycocotools reads and writes it.
    """
    (height, width), (x0, y0) = size_hw, offset_xy
    columns = crop.T  # COCO runs go down the columns
    padded = np.zeros((columns.shape[0], height), np.uint8)
    padded[:, y0 : y0 + columns.shape[1]] = columns
    edges = np.flatnonzero(np.diff(padded.ravel(), prepend=0, append=0)) + x0 * height
    counts = np.diff(edges, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    size = [int(height), int(width)]
    coco = _pycocotools()
    if coco is None:
        return {"size": size, "counts": compress_counts(counts.tolist())}
    packed = coco.frPyObjects({"size": size, "counts": counts.tolist()}, *size)["counts"]
    return {"size": size, "counts": packed.decode("ascii")}


@functools.cache
def _pycocotools() -> Any:
    """The module ``pycocotools.mask``, or None where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        return None
    return mask


def compress_counts(counts: list[int]) -> str:
    """Compress run lengths into COCO's string: differences to the last run but one, six bits a character.

    The same as cocoapi's rleToString (maskApi.c), for machines without pycocotools.
    """
    out = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            out.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(out)
