"""Pseudo-labels: a trained instance network (the teacher) splits groups in the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...plugins.operator import cluster
from ...runtime.refine.refiner import Refiner
from ..semantic.data import full_confidence
from .bank import Bank, BankObject, make_object

_SPLIT_SHARE = 0.12
_MIN_AREA_PX = 64
PHOTO_SINGLE_TO_GROUP_RATIO = 6.5
_MIN_RATIO, _MAX_RATIO = 0.2, 20.0  # a network that cannot separate a class reports single objects only


@dataclass(frozen=True)
class PseudoLabels:
    """Instances that the teacher predicts for one image.

    ``label_map`` is int32 (H, W), 0 = none, 1..n; ``class_id`` is int32 (n,).
    """

    label_map: NDArray[np.int32]
    class_id: NDArray[np.int32]


def predict_pseudo_labels(bank: Bank, refiner: Refiner, quiet: bool = False) -> list[PseudoLabels]:
    """Return the instances that ``refiner`` finds in the class map of each image of a bank."""
    labels = []
    for picture in tqdm(bank.pictures, desc="instances to learn from", disable=quiet):
        found = refiner(picture.image, cluster(picture.semantic, split=0.0, min_area=refiner.min_area))
        labels.append(PseudoLabels(found.label_map, found.class_id))
    return labels


def split_groups(bank: Bank, labels: Sequence[PseudoLabels]) -> Bank:
    """Return the bank with each group replaced by its instances.

    Images known to show one object are dropped if they look like a group: either the cutout or the teacher is
    wrong.
    """
    min_area = {
        c: min(int(o.mask.sum()) for o in bank.objects if o.class_id == c)
        for c in {o.class_id for o in bank.objects}
    }
    objects: list[BankObject] = []
    for o in bank.objects:
        count = _count_pixels(o, labels)
        if not _is_group(count):
            objects.append(o)
            continue
        if o.single:
            continue
        label_map, sure = labels[o.picture].label_map, full_confidence(bank.pictures[o.picture])
        for number in np.flatnonzero(count[1:] >= min_area[o.class_id]) + 1:
            part = make_object(sure, o.picture, o.class_id, label_map == number)
            if part is not None:
                objects.append(part)
    return replace(bank, objects=objects, label_maps=[t.label_map for t in labels])


def single_to_group_ratio(bank: Bank) -> float:
    """Return the number of single objects per group, in 0.2..20, as counted by the teacher.

    Only components that shape alone would split are counted. Photos have about 6.5, images of nuclei 0.3. The
    count starts from 6.5 to 1, so that a few components change little.
    """
    assert bank.label_maps is not None
    single, groups = PHOTO_SINGLE_TO_GROUP_RATIO, 1.0
    for picture, label_map in zip(bank.pictures, bank.label_maps, strict=True):
        components = cluster(picture.semantic, split=0.0, min_area=_MIN_AREA_PX)
        regions = cluster(picture.semantic, split=1.0, min_area=0).label_map
        for number in range(1, len(components) + 1):
            inside = components.label_map == number
            if len(np.unique(regions[inside])) > 1:
                group = _is_group(np.bincount(label_map[inside], minlength=1))
                single, groups = single + (not group), groups + group
    return min(max(single / groups, _MIN_RATIO), _MAX_RATIO)


def remove_groups(bank: Bank, labels: Sequence[PseudoLabels]) -> Bank:
    """Return the bank without the objects that the teacher splits."""
    return bank.without({k for k, o in enumerate(bank.objects) if _is_group(_count_pixels(o, labels))})


def _count_pixels(o: BankObject, labels: Sequence[PseudoLabels]) -> NDArray[np.int64]:
    """Return the number of an object's pixels in each instance, 0 = none."""
    x, y, w, h = o.box_xywh
    return np.bincount(labels[o.picture].label_map[y : y + h, x : x + w][o.mask > 0], minlength=1)


def _is_group(count: NDArray[np.int64]) -> bool:
    """Return whether more than 12 % of an object's pixels lie outside its largest instance."""
    return bool(count.sum() - count.max() > _SPLIT_SHARE * count.sum())
