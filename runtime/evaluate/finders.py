"""Ways to find a picture's instances: ours and the baselines that it is compared with."""

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
# split, and whether the model's own score rule is used
_BASELINES: dict[str, tuple[Split, bool]] = {
    "components": (0.0, False),
    "shape": ("auto", False),
    _CALIBRATED: (0.0, True),
}
BASELINES = (*_BASELINES, _SHIPPED)
# PASCAL's names -> COCO's, both without spaces: sets and networks name the same classes in either way
_SAME_CLASS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}

Find = Callable[[EvalPicture], Instances]


def truth_finders(
    names: dict[int, str],
    split: Split,
    refiner: Refiner | None,
    against: Sequence[str],
    min_area: int | None,
) -> dict[str, Find]:
    """Return the ways to find instances in true class maps, ours first.

    Args:
        names: of the set's classes, by id.
        split: of ours, without a refiner.
        refiner: refines connected components instead.
        against: baselines.
        min_area: of ours and the baselines, in pixels; default: what the refiner's network was made for, else
            25.
    """
    _check_baselines(against)
    if _CALIBRATED in against:
        raise InputError(
            f"{_CALIBRATED} needs a model with a score rule (`tfiseg train score`) and --semantic model"
        )
    labels = _labels(names)

    def min_area_of(one: Refiner | None) -> int:
        return min_area if min_area is not None else MIN_AREA_PX if one is None else one.min_area

    def by_shape(ratio: Split) -> Find:
        least = min_area_of(refiner)
        return lambda picture: cluster(picture.semantic, split=ratio, min_area=least, class_names=labels)

    def by_refiner(one: Refiner) -> Find:
        least = min_area_of(one)

        def find(picture: EvalPicture) -> Instances:
            small_too = min(MIN_AREA_PX, least)
            components = cluster(picture.semantic, split=0.0, min_area=small_too, class_names=labels)
            found = one(picture.image, components)
            return found.select(found.area >= least)

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
    """Return the ways to find instances in pictures, ours first, and the class ids of the set that the model
    knows.

    Args:
        names: of the set's classes, by id.
        segmenter: ours; baselines cluster its class maps.
        against: baselines.
    """
    _check_baselines(against)
    if _SHIPPED in against:
        raise InputError(
            f"{_SHIPPED} compares instance networks on true class maps: it needs --semantic truth"
        )
    if _CALIBRATED in against and segmenter.score_rule is None:
        raise InputError(f"{_CALIBRATED} needs a model with a score rule: `tfiseg train score` adds one")
    labels, lookup = _labels(names), _ids_in_set(names, segmenter)

    def in_set_classes(find: Callable[[NDArray[np.uint8]], Instances]) -> Find:
        def find_in(picture: EvalPicture) -> Instances:
            found = find(picture.image)
            class_id = lookup[found.class_id].astype(np.int32)
            return replace(
                found, class_id=class_id, semantic_map=lookup[found.semantic_map], class_names=labels
            )

        return find_in

    def by_shape(ratio: Split, calibrated: bool) -> Find:
        return in_set_classes(lambda image: segmenter.by_shape(image, ratio, calibrated))

    finders = {OURS: in_set_classes(segmenter), **{name: by_shape(*_BASELINES[name]) for name in against}}
    return finders, {int(c) for c in np.unique(lookup) if c}


def _check_baselines(against: Sequence[str]) -> None:
    unknown = [name for name in against if name not in BASELINES]
    if unknown:
        raise InputError(f"unknown baseline {', '.join(unknown)}: there are {', '.join(BASELINES)}")


def _labels(names: dict[int, str]) -> list[str]:
    return [names.get(i, f"class {i}") for i in range(max(names) + 1)]


def _ids_in_set(names: dict[int, str], segmenter: Segmenter) -> NDArray[np.uint8]:
    """Return the set's class id for each class id of the model, by name, uint8 (256,); unknown = 0."""
    ids = {_canonical(v): k for k, v in names.items()}
    lookup = np.zeros(256, np.uint8)
    for id_of_model, name in enumerate(segmenter.class_names):
        lookup[id_of_model] = ids.get(_canonical(name), 0) if id_of_model else 0
    if not lookup.any():
        ours, theirs = ", ".join(segmenter.class_names[1:]), ", ".join(names.values())
        raise InputError(f"the model's classes ({ours}) and the set's ({theirs}) have no name in common")
    return lookup


def _canonical(name: str) -> str:
    joined = name.replace(" ", "").lower()
    return _SAME_CLASS.get(joined, joined)
