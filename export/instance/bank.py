"""Bank of single objects from class maps, the material of composites. It needs no instance labels.

A connected component of a class map counts as one object if the map is confident, the shape is solid, and the
image border does not cut it. The lower border may cut, because people stand there. Training later removes the
groups that remain (``train.py``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...runtime.refine.view import make_view, render_mask, render_view, solidity
from ..semantic.data import IGNORE, Picture, full_confidence, load_pictures

LONG_SIDE_PX = 400  # composites of whole images have 384 px; for views, train.py passes 2.5 times their side
_MIN_CONFIDENCE = 0.6
_MIN_SOLIDITY = 0.45  # area over convex hull
_MIN_SOLIDITY_IN_PLACE = 0.4  # of an object that stays in its own image
_CONVEX, _DENT = 0.9, 0.05  # median solidity of a convex class, and how much lower that of a group is
_MIN_SIDE = 0.075  # side of an object over the image's long side; smaller ones become blurred when pasted
_SPLIT_SHARE = 0.12
_MIN_AREA_PX = 100  # for classes without larger objects, e.g. cells


@dataclass(frozen=True)
class BankObject:
    """An object in its image: ``box_xywh`` in pixels, ``mask`` uint8 (h, w) 0/1 inside the box."""

    picture: int
    class_id: int
    box_xywh: tuple[int, int, int, int]
    mask: NDArray[np.uint8]
    at_bottom: bool  # the lower image border cuts it
    whole: bool  # no other border cuts it, so it may be pasted elsewhere
    isolated: bool  # the only component of its class in its image
    single: bool = False  # the image is known to show one object


@dataclass(frozen=True)
class Bank:
    """Images, reduced in size, and their objects.

    ``label_maps`` holds the teacher's instances of each image, int32 (H, W), if there was a teacher.
    """

    pictures: Sequence[Picture]
    objects: Sequence[BankObject]
    label_maps: Sequence[NDArray[np.int32]] | None = None

    def without(self, dropped: set[int]) -> Bank:
        """Return the bank without the objects of these indices."""
        return replace(self, objects=[o for i, o in enumerate(self.objects) if i not in dropped])


def shrink(picture: Picture, long_side_px: int = LONG_SIDE_PX) -> Picture:
    """Return the image with a long side of at most ``long_side_px``."""
    h, w = picture.semantic.shape
    zoom = long_side_px / max(h, w)
    if zoom >= 1:
        return picture
    size = (max(1, round(w * zoom)), max(1, round(h * zoom)))
    image = cv2.resize(picture.image, size, interpolation=cv2.INTER_AREA)
    semantic = cv2.resize(picture.semantic, size, interpolation=cv2.INTER_NEAREST)
    return Picture(
        picture.name, np.asarray(image, np.uint8), np.asarray(semantic, np.uint8), picture.confidence
    )


def _load_cutouts(images: Path, cutouts: Path, given: Sequence[Picture]) -> list[Picture]:
    """Load images with class maps of one object each; their class IDs follow those of ``given``."""
    highest = _highest_class(given)
    pictures = load_pictures(images, cutouts)
    count = highest + _highest_class(pictures)
    if count >= IGNORE:
        raise InputError(
            f"{cutouts} and the class maps have {count} classes together, expected at most {IGNORE - 1}"
        )
    return [
        replace(p, semantic=np.where(p.semantic > 0, p.semantic + np.uint8(highest), 0).astype(np.uint8))
        for p in pictures
    ]


def _highest_class(pictures: Sequence[Picture]) -> int:
    """Return the highest class ID in the class maps."""
    return max((int(p.semantic[p.semantic != IGNORE].max(initial=0)) for p in pictures), default=0)


def find_objects(
    pictures: Sequence[Picture], single: Container[str] = (), long_side_px: int = LONG_SIDE_PX
) -> list[BankObject]:
    """Return the components that look like single objects.

    ``single`` holds the names of images that are known to show one object.
    """
    found = [o for i, p in enumerate(pictures) for o in _find_components(p, i, p.name in single)]
    area = {
        c: np.median([o.mask.sum() for o in found if o.class_id == c and o.whole] or [0])
        for c in {o.class_id for o in found}
    }
    min_area = {c: min((_MIN_SIDE * long_side_px) ** 2, max(_MIN_AREA_PX, float(a))) for c, a in area.items()}
    return [o for o in found if o.mask.sum() >= min_area[o.class_id]]


def _find_components(picture: Picture, index: int, single: bool) -> list[BankObject]:
    """Return the confident, solid components of one image, of any size."""
    found, sure = [], full_confidence(picture)
    for class_id in np.unique(picture.semantic):
        if class_id in (0, IGNORE):
            continue
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            (picture.semantic == class_id).astype(np.uint8), connectivity=8
        )
        isolated = int((stats[1:, cv2.CC_STAT_AREA] >= _MIN_AREA_PX).sum()) == 1
        for i in np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= _MIN_AREA_PX) + 1:
            o = make_object(sure, index, int(class_id), labels == i)
            if o is not None:
                found.append(replace(o, isolated=isolated, single=single))
    return found


def make_object(
    sure: NDArray[np.uint8], index: int, class_id: int, pixels: NDArray[np.bool_]
) -> BankObject | None:
    """Return the object of these pixels (H, W) of image ``index``; None if it is uncertain or not solid."""
    height, width = pixels.shape
    x, y, w, h = cv2.boundingRect(pixels.astype(np.uint8))
    mask = pixels[y : y + h, x : x + w].astype(np.uint8)
    if sure[y : y + h, x : x + w][mask > 0].mean() < 255 * _MIN_CONFIDENCE:
        return None
    filled = mask.sum() / max(
        1.0, cv2.contourArea(cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32)))
    )
    if filled < _MIN_SOLIDITY_IN_PLACE:
        return None
    cut_below, cut_elsewhere = y + h >= height - 1, x <= 1 or y <= 1 or x + w >= width - 1
    return BankObject(
        index,
        class_id,
        (x, y, w, h),
        mask,
        cut_below,
        not cut_elsewhere and bool(filled >= _MIN_SOLIDITY),
        isolated=False,
    )


def build_bank(
    images: Path,
    semantic: Path,
    confidence: Path | None = None,
    cutouts: Path | None = None,
    long_side_px: int = LONG_SIDE_PX,
    more: Sequence[Path] = (),
) -> Bank:
    """Build the bank of a folder of images and class maps.

    Args:
        images: folder of ``NAME.jpg|png``.
        semantic: folder of ``NAME.png``, uint8 class maps of the images' size, 0 = background, 255 = ignore.
        confidence: folder of ``NAME.png``, uint8 of any size; default: all class maps are certain.
        cutouts: folder of ``NAME.png``, class maps of one object each (``cutouts.py``). They replace the
            class maps of these images. Their class IDs follow the highest one of the class maps.
        long_side_px: maximum long side; longer images are reduced to it.
        more: further folders, see ``load_pictures``.

    Returns:
        The bank.

    Raises:
        InputError: no class map has a component that rendered like one object.
    """
    given = {p.name: p for p in load_pictures(images, semantic, confidence, more)}
    single = (
        {p.name: p for p in _load_cutouts(images, cutouts, [*given.values()])} if cutouts is not None else {}
    )
    pictures = [shrink(p, long_side_px) for _, p in sorted((given | single).items())]
    objects = find_objects(pictures, single, long_side_px)
    if not any(o.whole for o in objects):
        raise InputError(
            f"{semantic}: no class map has a component that could be one whole object, expected at least one "
            f"(of {_MIN_AREA_PX} px or more, solid, not cut by the image border)"
        )
    return Bank(pictures, objects)


def remove_dented_objects(bank: Bank) -> Bank:
    """Return the bank without objects with dents if their class is convex, like cells: they are groups."""
    solidities = [solidity(o.mask) for o in bank.objects]
    by_class: dict[int, list[float]] = {}
    for value, o in zip(solidities, bank.objects, strict=True):
        by_class.setdefault(o.class_id, []).append(value)
    median = {c: float(np.median(values)) for c, values in by_class.items()}
    dented = [
        median[o.class_id] > _CONVEX and value < median[o.class_id] - _DENT
        for value, o in zip(solidities, bank.objects, strict=True)
    ]
    return bank.without(set(np.flatnonzero(dented).tolist()))


def render_object(bank: Bank, o: BankObject, view_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render the view of one object: image uint8 (S, S, 3), and its mask uint8 (S, S) 0/1."""
    picture = bank.pictures[o.picture]
    height, width = picture.semantic.shape
    x, y, w, h = o.box_xywh
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = o.mask
    view = make_view((x, y, x + w, y + h), (height, width), view_px)
    return render_view(picture.image, view, view_px), render_mask(mask, view, view_px)


def render_batches(
    bank: Bank, view_px: int, size: int
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield the views of all objects in batches: index of the first object, images, masks."""
    for start in range(0, len(bank.objects), size):
        rendered = [render_object(bank, o, view_px) for o in bank.objects[start : start + size]]
        views, masks = (np.stack(arrays) for arrays in zip(*rendered, strict=True))
        yield start, views, masks


def is_split(area: NDArray[np.integer[Any]]) -> bool:
    """Return whether an object with parts of these areas is a group: its second largest has over 12 %."""
    return len(area) > 1 and bool(np.sort(area)[-2] > _SPLIT_SHARE * area.sum())


def bank_digest(bank: Bank) -> str:
    """Return a digest of the objects' images, classes and boxes, 16 hex digits."""
    objects = [(bank.pictures[o.picture].name, o.class_id, *map(int, o.box_xywh)) for o in bank.objects]
    return hashlib.sha256(repr(objects).encode()).hexdigest()[:16]


def bank_summary(bank: Bank) -> str:
    """Return one line with the number of objects of each class."""
    count = Counter(o.class_id for o in bank.objects if o.whole)
    classes = ", ".join(f"{c}: {n}" for c, n in sorted(count.items()))
    return (
        f"{len(bank.objects)} objects in {len(bank.pictures)} images, {sum(count.values())} of them "
        f"whole (class: objects {classes})"
    )
