"""A bank of single objects, cut out of class maps: what composites are made of. No instance label is used.

A connected component of a class map is taken for one object if the map is sure of it, its shape is solid
enough, and the picture's edge doesn't cut it (but for the lower edge, where people stand). Groups that slip
through are found later, by the network itself (``train.py``: self-cleaning).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...runtime.refine.view import make_view, render_mask, render_view, solidity
from ..semantic.data import IGNORE, Picture, load_pictures, sure_of

# frame mode shows whole pictures, at 384; what is cut out for views is shrunk to 2.5 of their sides
# (train.py)
LONG_SIDE_PX = 400
_MIN_CONFIDENCE = 0.6
_MIN_SOLIDITY = 0.45  # area over convex hull
_MIN_SOLIDITY_IN_PLACE = 0.4  # of an object that stays in its own picture
_CONVEX, _DENT = 0.9, 0.05  # median solidity of a convex class; how much less a group of them has
_LEAST_SIDE = (
    0.075  # of an object, over the long side that pictures are shrunk to: smaller ones are pasted blurred
)
_SPLIT_SHARE = 0.12
_LEAST_AREA_PX = 100  # where a class has nothing larger: cells


@dataclass(frozen=True)
class BankObject:
    """One object in its picture: ``box_xywh`` in pixels, ``mask`` uint8 (h, w) 0/1 inside the box."""

    picture: int
    class_id: int
    box_xywh: tuple[int, int, int, int]
    mask: NDArray[np.uint8]
    at_bottom: bool  # the picture's lower edge cuts it
    whole: bool  # no edge cuts it, or the lower one only: it may be pasted elsewhere
    lone: bool  # the only component of its class in its picture
    single: bool = False  # its photo is known to show one object


@dataclass(frozen=True)
class Bank:
    """Pictures, shrunk, and the objects found in them; ``told``: instances of each picture, int32 (H, W),
    where an earlier network told them."""

    pictures: Sequence[Picture]
    objects: Sequence[BankObject]
    told: Sequence[NDArray[np.int32]] | None = None

    def without(self, dropped: set[int]) -> Bank:
        """The bank without the objects of these indices."""
        return replace(self, objects=[o for i, o in enumerate(self.objects) if i not in dropped])


def shrunk(picture: Picture, long_side_px: int = LONG_SIDE_PX) -> Picture:
    """The picture at most so long."""
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


def _cut_out(images: Path, cutouts: Path, given: Sequence[Picture]) -> list[Picture]:
    """Pictures with the class maps of their one objects."""
    highest = _highest_class(given)
    pictures = load_pictures(images, cutouts)
    most = highest + _highest_class(pictures)
    if most >= IGNORE:
        raise InputError(
            f"{cutouts} and the class maps have {most} classes together, at most {IGNORE - 1} fit"
        )
    return [
        replace(p, semantic=np.where(p.semantic > 0, p.semantic + np.uint8(highest), 0).astype(np.uint8))
        for p in pictures
    ]


def _highest_class(pictures: Sequence[Picture]) -> int:
    """The highest class id in the pictures' class maps."""
    return max((int(p.semantic[p.semantic != IGNORE].max(initial=0)) for p in pictures), default=0)


def objects_in(
    pictures: Sequence[Picture], single: Container[str] = (), long_side_px: int = LONG_SIDE_PX
) -> list[BankObject]:
    """What is taken for one object in these pictures, at most so long; ``single``: names of those that are
    known to show one."""
    found = [o for i, p in enumerate(pictures) for o in _components(p, i, p.name in single)]
    area = {
        c: np.median([o.mask.sum() for o in found if o.class_id == c and o.whole] or [0])
        for c in {o.class_id for o in found}
    }
    least = {
        c: min((_LEAST_SIDE * long_side_px) ** 2, max(_LEAST_AREA_PX, float(a))) for c, a in area.items()
    }
    return [o for o in found if o.mask.sum() >= least[o.class_id]]


def _components(picture: Picture, index: int, single: bool) -> list[BankObject]:
    """Confident, solid components of one picture, of any size."""
    found, sure = [], sure_of(picture)
    for class_id in np.unique(picture.semantic):
        if class_id in (0, IGNORE):
            continue
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            (picture.semantic == class_id).astype(np.uint8), connectivity=8
        )
        lone = int((stats[1:, cv2.CC_STAT_AREA] >= _LEAST_AREA_PX).sum()) == 1
        for i in np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= _LEAST_AREA_PX) + 1:
            its = object_of(sure, index, int(class_id), labels == i)
            if its is not None:
                found.append(replace(its, lone=lone, single=single))
    return found


def object_of(
    sure: NDArray[np.uint8], index: int, class_id: int, pixels: NDArray[np.bool_]
) -> BankObject | None:
    """The object made of these pixels (H, W) of picture ``index``, not lone; None where the class map isn't
    ``sure`` (``sure_of``) or it isn't solid."""
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
    bottom, elsewhere = y + h >= height - 1, x <= 1 or y <= 1 or x + w >= width - 1
    return BankObject(
        index,
        class_id,
        (x, y, w, h),
        mask,
        bottom,
        not elsewhere and bool(filled >= _MIN_SOLIDITY),
        lone=False,
    )


def build_bank(
    images: Path,
    semantic: Path,
    confidence: Path | None = None,
    cutouts: Path | None = None,
    long_side_px: int = LONG_SIDE_PX,
    more: Sequence[Path] = (),
) -> Bank:
    """The bank of a folder of pictures and class maps.

    Args:
        images: ``NAME.jpg|png``, BGR.
        semantic: ``NAME.png``, uint8 class map of the picture's size, 0 = background, 255 = ignore.
        confidence: ``NAME.png``, 0..255, any size; default: all maps are sure.
        cutouts: ``NAME.png``, class maps that are sure and show one object each (``cutouts.py``): of pictures
            without a class map, or in place of it. Their class ids are counted from the highest of the class
            maps on, so that none is taken for another.
        long_side_px: longer pictures are shrunk to it.
        more: further folders, see ``load_pictures``.

    Raises:
        InputError: no class map holds a component that looks like one object.
    """
    given = {p.name: p for p in load_pictures(images, semantic, confidence, more)}
    single = {p.name: p for p in _cut_out(images, cutouts, [*given.values()])} if cutouts is not None else {}
    pictures = [shrunk(p, long_side_px) for _, p in sorted((given | single).items())]
    objects = objects_in(pictures, single, long_side_px)
    if not any(o.whole for o in objects):
        raise InputError(
            f"{semantic}: no class map holds a component that could be one whole object (at least "
            f"{_LEAST_AREA_PX} px, solid, uncut by "
            "the picture's edge): composites can't be made of it"
        )
    return Bank(pictures, objects)


def typical(bank: Bank) -> Bank:
    """The bank without the dented objects of a class that is convex, as cells and fruit are: those are
    groups."""
    shape = [solidity(o.mask) for o in bank.objects]
    by_class: dict[int, list[float]] = {}
    for value, o in zip(shape, bank.objects, strict=True):
        by_class.setdefault(o.class_id, []).append(value)
    usual = {c: float(np.median(values)) for c, values in by_class.items()}
    dented = [
        usual[o.class_id] > _CONVEX and value < usual[o.class_id] - _DENT
        for value, o in zip(shape, bank.objects, strict=True)
    ]
    return bank.without(set(np.flatnonzero(dented).tolist()))


def object_view(bank: Bank, o: BankObject, view_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a view of one object shows: image uint8 (S, S, 3), and its mask uint8 (S, S) 0/1."""
    picture = bank.pictures[o.picture]
    height, width = picture.semantic.shape
    x, y, w, h = o.box_xywh
    its = np.zeros((height, width), np.uint8)
    its[y : y + h, x : x + w] = o.mask
    view = make_view((x, y, x + w, y + h), (height, width), view_px)
    return render_view(picture.image, view, view_px), render_mask(its, view, view_px)


def is_split(area: NDArray[np.integer[Any]]) -> bool:
    """Whether an object whose pieces have these areas is taken for a group: the second largest is more than
    12 % of it."""
    return len(area) > 1 and bool(np.sort(area)[-2] > _SPLIT_SHARE * area.sum())


def bank_digest(bank: Bank) -> str:
    """Which objects these are, 16 hex digits."""
    objects = [(bank.pictures[o.picture].name, o.class_id, *map(int, o.box_xywh)) for o in bank.objects]
    return hashlib.sha256(repr(objects).encode()).hexdigest()[:16]


def bank_summary(bank: Bank) -> str:
    """One line: how many objects of which class."""
    count = Counter(o.class_id for o in bank.objects if o.whole)
    classes = ", ".join(f"{c}: {n}" for c, n in sorted(count.items()))
    return (
        f"{len(bank.objects)} objects in {len(bank.pictures)} pictures, {sum(count.values())} of them "
        f"whole (class: objects {classes})"
    )
