"""``tfiseg train score``: how likely an instance of a network is an object, fitted on photos and class maps.
Needs onnx and torch.

The instance network tells the objects of each photo from its class map; the network to be fitted then looks
at crops of the photo, and each instance that it finds either is one of them (same class, IoU > 0.5) or is
not. No instance label is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import helper
from tqdm import tqdm

from ...errors import InputError
from ...instances import Instances
from ...plugins.operator import cluster
from ...runtime.evaluate.metrics import PanopticCounts, panoptic_counts
from ...runtime.map_clusterer import MIN_CALIBRATED_SCORE, MIN_SCORE
from ...runtime.networks.model_info import METADATA_KEY
from ...runtime.networks.model_variants import WITHOUT_HEADS
from ...runtime.object_score import FEATURES, probability_of, score_features
from ...runtime.refine.refiner import Refiner
from ...runtime.segmenter import Segmenter
from ..engine.build import read_network
from ..model_file import round_to_float32, write_whole_model
from .data import Picture, load_pictures

_HELD_EVERY = 10  # each tenth photo is kept apart
_LEAST = 50  # instances of either kind, below which a rule means nothing
_CROPPED, _LEAST_SIDE, _ZOOM = (
    0.6,
    0.6,
    (0.8, 1.4),
)  # share of photos that are cropped, to what share of their sides; zoom of all
_LIGHT, _MOST_NOISE = (0.7, 1.3), 8.0
_RIDGE = 1e-4  # of the mean loss: only so that a feature that never varies has a weight

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreFit:
    """``rule``: a weight for each feature of an instance, and a bias. ``seen`` instances, ``objects`` among
    them. On photos kept apart: PQ by the mean class probability, and by the rule."""

    rule: list[float]
    seen: int
    objects: int
    held_quality: tuple[float, float]


@dataclass(frozen=True)
class _Looked:
    """One crop: features (n, 3), IoU with an object (0: none), mean class probability (n,), and how many
    objects were missed."""

    features: Floats
    iou: Floats
    probability: Floats
    missed: int


def fit_score_rule(
    segmenter: Segmenter,
    pictures: list[Picture],
    refiner: Refiner,
    things: Sequence[int] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> ScoreFit:
    """Fit the rule on pictures.

    Args:
        segmenter: without a rule, and ``min_score`` 0.
        pictures: with class maps.
        refiner: tells the objects from the class maps.
        things: ids of the countable classes; None: all but 0.

    Raises:
        InputError: there is too little to see in these pictures.
    """
    if len(pictures) < 2 * _HELD_EVERY:
        raise InputError(
            f"{len(pictures)} pictures are too few to fit a score and to judge it: give at least "
            f"{2 * _HELD_EVERY}"
        )
    looked = []
    for k, picture in enumerate(tqdm(pictures, desc="photos for the score", disable=quiet)):
        objects = refiner(
            picture.image, cluster(picture.semantic, things=things, split=0.0, min_area=refiner.min_area)
        ).label_map
        looked.append(_look(segmenter, *_crop(picture, objects, np.random.default_rng([seed, k]))))
    used, held = [v for k, v in enumerate(looked) if k % _HELD_EVERY], looked[::_HELD_EVERY]
    features, right = np.concatenate([v.features for v in used]), np.concatenate([v.iou for v in used]) > 0
    if min(right.sum(), (~right).sum()) < _LEAST:
        raise InputError(
            f"the network found {right.sum()} objects and {(~right).sum()} others in these pictures, wanted "
            f"{_LEAST} of each to tell them "
            "apart: give more pictures, whose class maps have the network's class ids"
        )
    rule = _logistic(features, right)
    return ScoreFit(
        round_to_float32(rule), len(right), int(right.sum()), (_quality(held, None), _quality(held, rule))
    )


def _crop(
    picture: Picture, objects: NDArray[np.int32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    """A part of the picture, scaled, perhaps mirrored, in another light: the network may have been trained on
    it as it is."""
    height, width = objects.shape
    share = rng.uniform(_LEAST_SIDE, 1) if rng.random() < _CROPPED else 1.0
    h, w = max(1, int(height * share)), max(1, int(width * share))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    zoom, mirrored = rng.uniform(*_ZOOM), rng.random() < 0.5
    size_wh = max(1, round(w * zoom)), max(1, round(h * zoom))

    def part(array: NDArray[Any], how: int) -> NDArray[Any]:
        scaled = cv2.resize(array[y : y + h, x : x + w], size_wh, interpolation=how)
        return np.ascontiguousarray(scaled[:, ::-1] if mirrored else scaled)

    image = part(picture.image, cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    noise = rng.normal(0, rng.uniform(0, _MOST_NOISE), image.shape)
    lit = np.clip(image * rng.uniform(*_LIGHT) + noise, 0, 255).astype(np.uint8)
    return lit, part(objects, cv2.INTER_NEAREST), part(picture.semantic, cv2.INTER_NEAREST)


def _look(
    segmenter: Segmenter, image: NDArray[np.uint8], objects: NDArray[np.int32], semantic: NDArray[np.uint8]
) -> _Looked:
    found: Instances = segmenter(image)
    score = panoptic_counts(found.label_map, found.class_id, objects, semantic)
    iou = np.zeros(len(found))
    for one, other in score.matches:
        mine, theirs = found.label_map == one, objects == other
        iou[one - 1] = (mine & theirs).sum() / (mine | theirs).sum()
    return _Looked(score_features(found), iou, found.score.astype(np.float64), score.pooled.false_negatives)


def _logistic(features: Floats, right: NDArray[np.bool_]) -> Floats:
    """Weights and bias of a logistic regression, by Newton's steps, on features of unit spread with a small
    ridge."""
    mean, spread = features.mean(0), features.std(0) + 1e-9
    rows = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    ridge = _RIDGE * np.diag([*[1.0] * len(FEATURES), 0.0])
    weights = np.zeros(rows.shape[1])
    for _ in range(30):
        said = 1 / (1 + np.exp(-rows @ weights))
        gradient = rows.T @ (said - right) / len(rows) + ridge @ weights
        curvature = (rows * (said * (1 - said))[:, None]).T @ rows / len(rows) + ridge
        weights -= np.linalg.solve(curvature, gradient)
    plain = weights[:-1] / spread
    return np.append(plain, weights[-1] - plain @ mean)


def _quality(looked: list[_Looked], rule: Floats | None) -> float:
    """PQ where instances below the usual score are left out, that of mean class probabilities or, with a
    rule, that of its own."""
    total = PanopticCounts()
    for one in looked:
        kept = (
            one.probability >= MIN_SCORE
            if rule is None
            else probability_of(one.features, rule) >= MIN_CALIBRATED_SCORE
        )
        hit = one.iou > 0
        total.add(
            PanopticCounts(
                float(one.iou[kept].sum()),
                int((kept & hit).sum()),
                int((kept & ~hit).sum()),
                one.missed + int((hit & ~kept).sum()),
            )
        )
    return round(total.quality, 2)


def _with_rule(metadata: dict[str, Any], rule: list[float], without_heads: bool) -> dict[str, Any]:
    """The metadata with a score rule; ``without_heads``: for instances that are found without them."""
    if without_heads:
        return {**metadata, WITHOUT_HEADS: _with_rule(metadata[WITHOUT_HEADS], rule, without_heads=False)}
    return {**metadata, "clustering": {**metadata.get("clustering", {}), "score_rule": rule}}


def add_score_rule(
    model: Path,
    images: Path,
    semantic: Path,
    confidence: Path | None,
    output: Path,
    refine: str | None = None,
    instance_model: Path | None = None,
    seed: int = 0,
    threads: int = 0,
    quiet: bool = False,
    more: Sequence[Path] = (),
) -> dict[str, Any]:
    """Fit the score rule of a model in tfiseg's format, and write the model with it to ``output``.

    Args:
        model: its own rule, if it has one, is replaced.
        images, semantic, confidence: photos, class maps with the network's class ids; see ``load_pictures``.
        refine: how its instances are found, see ``Segmenter``; default: "frame" where it has instance heads,
            else "components".
        instance_model: tells the photos' objects; default: the one that comes with tfiseg.

    Returns:
        the rule, how many instances it was fitted on, and PQ on photos kept apart with and without it.
    """
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} to write {output.name} to")
    network, info = read_network(model)
    has_heads = any(o.name == "affinity" for o in network.graph.output)
    if refine is None:
        refine = "frame" if has_heads else "components"
    teacher = instance_model if refine == "components" else None
    segmenter = Segmenter(
        model, refine=refine, min_score=0.0, threads=threads, instance_model=teacher, outlines=False
    )
    segmenter.score_rule = None
    teller = Refiner(instance_model, threads=threads)
    fit = fit_score_rule(
        segmenter,
        load_pictures(images, semantic, confidence, more),
        teller,
        segmenter.session.info.things,
        seed,
        quiet,
    )
    metadata = _with_rule(info.extra, fit.rule, without_heads=has_heads and refine != "frame")
    del network.metadata_props[:]
    helper.set_model_props(network, {METADATA_KEY: json.dumps(metadata)})
    with write_whole_model(network, output):
        pass
    before, after = fit.held_quality
    return {
        "output": str(output),
        "refine": refine,
        "rule": dict(zip([*FEATURES, "bias"], fit.rule, strict=True)),
        "instances": fit.seen,
        "objects": fit.objects,
        "held_PQ_without": before,
        "held_PQ": after,
    }
