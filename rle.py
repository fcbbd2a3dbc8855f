"""COCO's encodings of masks (RLE) and boxes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_rle(
    crop: NDArray[np.bool_], offset_xy: tuple[int, int], size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Encode a mask as COCO RLE without computing the full mask.

    Args:
        crop: bool (h, w), the mask inside a box.
        offset_xy: upper left corner of the box in pixels.
        size_hw: (H, W) of the image.

    Returns:
        ``{"size": [H, W], "counts": str}``, as pycocotools reads and writes it.
    """
    (height, width), (x0, y0) = size_hw, offset_xy
    rows = crop.shape[0]
    padded = np.zeros((crop.shape[1], rows + 2), np.int8)
    padded[:, 1:-1] = crop.T  # COCO's runs follow the columns
    steps = np.diff(padded, axis=1).ravel()  # 1 at the start of a run, -1 after its end
    starts, ends = (
        (x0 + at // (rows + 1)) * height + y0 + at % (rows + 1)
        for at in (np.flatnonzero(steps == 1), np.flatnonzero(steps == -1))
    )
    has_gap = starts[1:] != ends[:-1]  # a run may continue from the bottom to the top of the next column
    starts = starts[np.append(True, has_gap)[: len(starts)]]
    ends = ends[np.append(has_gap, True)[: len(ends)]]
    counts = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0, append=height * width)
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
    """Return the module ``pycocotools.mask``, or None if it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        return None
    return mask


def compress_counts(counts: list[int]) -> str:
    """Compress run lengths to COCO's string, like rleToString in cocoapi's maskApi.c.

    The string has the differences to the run before the previous one, six bits per character.
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


def coco_annotation(instance: Mapping[str, Any], annotation_id: int, image_id: int) -> dict[str, Any]:
    """Return the record of an instance as an annotation of a COCO dataset."""
    x0, y0, x1, y1 = instance["box_xyxy"]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": instance["class_id"],
        "segmentation": instance["segmentation"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": instance["area"],
        "iscrowd": 0,
        "score": instance["score"],
        **({"track_id": instance["track_id"]} if "track_id" in instance else {}),
    }
