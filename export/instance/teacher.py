"""What an earlier instance network makes of the pictures to learn from: groups that it splits teach the next
one, as real groups and as further single objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...plugins.operator import cluster
from ...runtime.refine.refiner import Refiner
from ..semantic.data import sure_of
from .bank import Bank, BankObject, object_of

_SPLIT_SHARE = 0.12
_LEAST_AREA_PX = 64
PHOTOS_LONE_ODDS = 6.5
_LEAST_ODDS, _MOST_ODDS = 0.2, 20.0  # a network that can't part a class tells lone objects only


@dataclass(frozen=True)
class Told:
    """Instances of one picture: ``label_map`` int32 (H, W), 0 = none, 1..n, and ``class_id`` int32 (n,)."""

    label_map: NDArray[np.int32]
    class_id: NDArray[np.int32]


def tell_instances(bank: Bank, refiner: Refiner, quiet: bool = False) -> list[Told]:
    """What the instance network makes of the class map of each picture of a bank."""
    told = []
    for picture in tqdm(bank.pictures, desc="instances to learn from", disable=quiet):
        found = refiner(picture.image, cluster(picture.semantic, split=0.0, min_area=refiner.min_area))
        told.append(Told(found.label_map, found.class_id))
    return told


def with_groups(bank: Bank, told: Sequence[Told]) -> Bank:
    """The bank with the pieces of each group in place of the group; where a group stands, its pieces are
    known."""
    least = {
        c: min(int(o.mask.sum()) for o in bank.objects if o.class_id == c)
        for c in {o.class_id for o in bank.objects}
    }
    objects: list[BankObject] = []
    for o in bank.objects:
        count = _counted(o, told)
        if not _is_group(count):
            objects.append(o)
            continue
        if o.single:  # it should be one: either the cutout or the network is wrong
            continue
        label_map, sure = told[o.picture].label_map, sure_of(bank.pictures[o.picture])
        for number in np.flatnonzero(count[1:] >= least[o.class_id]) + 1:
            piece = object_of(sure, o.picture, o.class_id, label_map == number)
            if piece is not None:
                objects.append(piece)
    return replace(bank, objects=objects, told=[t.label_map for t in told])


def lone_odds(bank: Bank) -> float:
    """Of a bank's components that shape could part, those of several regions: how many are one object for
    each that is several, as an earlier network told. Photos: 6.5, which few components hardly change; nuclei,
    which are convex: 0.3."""
    assert bank.told is not None
    lone, groups = PHOTOS_LONE_ODDS, 1.0
    for picture, told in zip(bank.pictures, bank.told, strict=True):
        components = cluster(picture.semantic, split=0.0, min_area=_LEAST_AREA_PX)
        regions = cluster(picture.semantic, split=1.0, min_area=0).label_map
        for number in range(1, len(components) + 1):
            its = components.label_map == number
            if len(np.unique(regions[its])) > 1:
                group = _is_group(np.bincount(told[its], minlength=1))
                lone, groups = lone + (not group), groups + group
    return min(max(lone / groups, _LEAST_ODDS), _MOST_ODDS)


def single_objects(bank: Bank, told: Sequence[Told]) -> Bank:
    """The bank without objects of which the instance network made several."""
    return bank.without({k for k, o in enumerate(bank.objects) if _is_group(_counted(o, told))})


def _counted(o: BankObject, told: Sequence[Told]) -> NDArray[np.int64]:
    """How many of an object's pixels belong to each instance, 0 = none."""
    x, y, w, h = o.box_xywh
    return np.bincount(told[o.picture].label_map[y : y + h, x : x + w][o.mask > 0], minlength=1)


def _is_group(count: NDArray[np.int64]) -> bool:
    """Whether an object's pixels, counted by instance (0 = none), are several objects: more than 12 % of them
    are not the largest's."""
    return bool(count.sum() - count.max() > _SPLIT_SHARE * count.sum())
