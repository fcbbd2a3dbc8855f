"""Finders, functions from a picture to instances: ours and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...instances import Instances
from ...plugins.operator import cluster
from ...plugins.settings import MIN_AREA_PX, Split
from ..refine.refiner import Refiner
from ..segmenter import Segmenter
from .evaluation_set import EvalPicture

OURS = "ours"
_SHIPPED = "shipped"
_CALIBRATED = "calibrated-components"
# split, and whether the model's score calibration is used
_BASELINES: dict[str, tuple[Split, bool]] = {
    "components": (0.0, False),
    "shape": ("auto", False),
    _CALIBRATED: (0.0, True),
}
BASELINES = (*_BASELINES, _SHIPPED)
# PASCAL VOC's class names -> those of COCO, both without spaces
_SAME_CLASS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}

Find = Callable[[EvalPicture], Instances]


def truth_finders(
    names: dict[int, str], split: Split, refiner: Refiner | None, against: Sequence[str], min_area: int | None
) -> dict[str, Find]:
    """Return the finders on true class maps, ours first.

    Args:
        split: split of our finder, without a refiner.
        min_area: minimum area in pixels of all finders; default: that of the refiner, else 25.
    """
    _check_baselines(against)
    if _CALIBRATED in against:
        raise InputError(
            f"{_CALIBRATED} needs a model with score calibration (`tfiseg train score`) and --semantic model"
        )
    labels = _labels(names)

    def min_area_of(refiner: Refiner | None) -> int:
        return min_area if min_area is not None else MIN_AREA_PX if refiner is None else refiner.min_area

    def by_shape(split: Split) -> Find:
        minimum = min_area_of(refiner)
        return lambda picture: cluster(picture.semantic, split=split, min_area=minimum, class_names=labels)

    def by_refiner(refiner: Refiner) -> Find:
        minimum = min_area_of(refiner)

        def find(picture: EvalPicture) -> Instances:
            component_minimum = min(MIN_AREA_PX, minimum)
            components = cluster(picture.semantic, split=0.0, min_area=component_minimum, class_names=labels)
            found = refiner(picture.image, components)
            return found.select(found.area >= minimum)

        return find

    finders = {OURS: by_shape(split) if refiner is None else by_refiner(refiner)}
    for name in against:
        if name == _SHIPPED:
            finders[name] = by_refiner(Refiner(threads=(refiner and refiner.threads) or 0))
        else:
            finders[name] = by_shape(_BASELINES[name][0])
    return finders


def model_finders(
    names: dict[int, str], segmenter: Segmenter, against: Sequence[str]
) -> tuple[dict[str, Find], set[int]]:
    """Return the finders on pictures, ours first, and the set's class IDs that the model knows."""
    _check_baselines(against)
    if _SHIPPED in against:
        raise InputError(
            f"{_SHIPPED} compares instance networks on true class maps: it needs --semantic truth"
        )
    if _CALIBRATED in against and segmenter.score_rule is None:
        raise InputError(f"{_CALIBRATED} needs a model with score calibration: run `tfiseg train score`")
    labels, lookup = _labels(names), _ids_in_set(names, segmenter)

    def convert_classes(find: Callable[[NDArray[np.uint8]], Instances]) -> Find:
        def find_converted(picture: EvalPicture) -> Instances:
            found = find(picture.image)
            class_id = lookup[found.class_id].astype(np.int32)
            return replace(
                found, class_id=class_id, semantic_map=lookup[found.semantic_map], class_names=labels
            )

        return find_converted

    def by_shape(split: Split, calibrated: bool) -> Find:
        return convert_classes(lambda image: segmenter.by_shape(image, split, calibrated))

    finders = {OURS: convert_classes(segmenter), **{name: by_shape(*_BASELINES[name]) for name in against}}
    return finders, {int(c) for c in np.unique(lookup) if c}


def _check_baselines(against: Sequence[str]) -> None:
    unknown = [name for name in against if name not in BASELINES]
    if unknown:
        raise InputError(f"unknown baseline {', '.join(unknown)}: must be one of {', '.join(BASELINES)}")


def _labels(names: dict[int, str]) -> list[str]:
    return [names.get(i, f"class {i}") for i in range(max(names) + 1)]


def _ids_in_set(names: dict[int, str], segmenter: Segmenter) -> NDArray[np.uint8]:
    """Return the set's class ID of each class ID of the model, by name, uint8 (256,); 0 if unknown."""
    ids = {_canonical_name(v): k for k, v in names.items()}
    lookup = np.zeros(256, np.uint8)
    for model_id, name in enumerate(segmenter.class_names):
        lookup[model_id] = ids.get(_canonical_name(name), 0) if model_id else 0
    if not lookup.any():
        model_names, set_names = ", ".join(segmenter.class_names[1:]), ", ".join(names.values())
        raise InputError(
            f"the model's classes ({model_names}) and the set's ({set_names}) have no name in common"
        )
    return lookup


def _canonical_name(name: str) -> str:
    joined = name.replace(" ", "").lower()
    return _SAME_CLASS.get(joined, joined)
