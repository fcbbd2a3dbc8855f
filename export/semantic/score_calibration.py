"""Fit the score calibration of a network: ``tfiseg train score``. Needs onnx and torch.

The calibrated score is the probability that an instance is an object. No instance labels are needed: the
instance network (the teacher) finds the objects of each photo from its class map. The network then segments a
crop of the photo, and each of its instances is a hit (same class, IoU > 0.5) or an error.
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

_HELD_EVERY = 10  # each tenth photo is held out
_MIN_INSTANCES = 50  # minimum number of hits and of errors
_CROPPED, _MIN_CROP_SIDE = 0.6, 0.6  # share of photos that are cropped, and minimum share of their sides
_ZOOM = (0.8, 1.4)  # of all photos
_LIGHT_FACTOR, _MAX_NOISE = (0.7, 1.3), 8.0
_RIDGE = 1e-4  # relative to the mean loss; defines the weight of a constant feature

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreFit:
    """A fitted score calibration."""

    rule: list[float]  # a weight for each feature of an instance, and a bias
    instances: int  # number of instances in the fit
    objects: int  # number of hits among them
    # PQ on held-out photos with mean class probabilities, and with calibrated scores
    held_quality: tuple[float, float]


@dataclass(frozen=True)
class _CropResult:
    """Instances of a crop."""

    features: Floats  # (n, 3)
    iou: Floats  # IoU with an object, (n,), 0 = an error
    probability: Floats  # mean class probability, (n,)
    missed: int  # number of objects without an instance


def fit_score_calibration(
    segmenter: Segmenter,
    pictures: list[Picture],
    refiner: Refiner,
    things: Sequence[int] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> ScoreFit:
    """Fit a score calibration.

    Args:
        segmenter: without a score calibration, and with ``min_score`` 0.
        refiner: the teacher, which finds the objects in the class maps.
        things: IDs of the countable classes; None: all but 0.

    Raises:
        InputError: there are too few images, hits or errors.
    """
    if len(pictures) < 2 * _HELD_EVERY:
        raise InputError(
            f"{len(pictures)} images are too few to fit and validate a score calibration: use at least "
            f"{2 * _HELD_EVERY}"
        )
    results = []
    for k, picture in enumerate(tqdm(pictures, desc="photos for the score", disable=quiet)):
        objects = refiner(
            picture.image, cluster(picture.semantic, things=things, split=0.0, min_area=refiner.min_area)
        ).label_map
        results.append(_segment_crop(segmenter, *_crop(picture, objects, np.random.default_rng([seed, k]))))
    used, held = [v for k, v in enumerate(results) if k % _HELD_EVERY], results[::_HELD_EVERY]
    features, hit = np.concatenate([v.features for v in used]), np.concatenate([v.iou for v in used]) > 0
    if min(hit.sum(), (~hit).sum()) < _MIN_INSTANCES:
        raise InputError(
            f"the network found {hit.sum()} objects and {(~hit).sum()} false positives in these images, "
            f"expected at least {_MIN_INSTANCES} of each. Use more images, with the network's class IDs"
        )
    rule = _logistic(features, hit)
    return ScoreFit(
        round_to_float32(rule), len(hit), int(hit.sum()), (_quality(held, None), _quality(held, rule))
    )


def _crop(
    picture: Picture, objects: NDArray[np.int32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    """Return a random crop, scaled, mirrored and relit, because the network may know the image itself."""
    height, width = objects.shape
    share = rng.uniform(_MIN_CROP_SIDE, 1) if rng.random() < _CROPPED else 1.0
    h, w = max(1, int(height * share)), max(1, int(width * share))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    zoom, mirrored = rng.uniform(*_ZOOM), rng.random() < 0.5
    size_wh = max(1, round(w * zoom)), max(1, round(h * zoom))

    def crop(array: NDArray[Any], interpolation: int) -> NDArray[Any]:
        scaled = cv2.resize(array[y : y + h, x : x + w], size_wh, interpolation=interpolation)
        return np.ascontiguousarray(scaled[:, ::-1] if mirrored else scaled)

    image = crop(picture.image, cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    noise = rng.normal(0, rng.uniform(0, _MAX_NOISE), image.shape)
    relit = np.clip(image * rng.uniform(*_LIGHT_FACTOR) + noise, 0, 255).astype(np.uint8)
    return relit, crop(objects, cv2.INTER_NEAREST), crop(picture.semantic, cv2.INTER_NEAREST)


def _segment_crop(
    segmenter: Segmenter, image: NDArray[np.uint8], objects: NDArray[np.int32], semantic: NDArray[np.uint8]
) -> _CropResult:
    found: Instances = segmenter(image)
    score = panoptic_counts(found.label_map, found.class_id, objects, semantic)
    iou = np.zeros(len(found))
    for number, object_number in score.matches:
        a, b = found.label_map == number, objects == object_number
        iou[number - 1] = (a & b).sum() / (a | b).sum()
    return _CropResult(
        score_features(found), iou, found.score.astype(np.float64), score.pooled.false_negatives
    )


def _logistic(features: Floats, hit: NDArray[np.bool_]) -> Floats:
    """Fit a logistic regression by Newton's method, with a small ridge; returns weights and bias."""
    mean, std = features.mean(0), features.std(0) + 1e-9
    rows = np.column_stack([(features - mean) / std, np.ones(len(features))])
    ridge = _RIDGE * np.diag([*[1.0] * len(FEATURES), 0.0])
    weights = np.zeros(rows.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-rows @ weights))
        gradient = rows.T @ (p - hit) / len(rows) + ridge @ weights
        hessian = (rows * (p * (1 - p))[:, None]).T @ rows / len(rows) + ridge
        weights -= np.linalg.solve(hessian, gradient)
    unscaled = weights[:-1] / std
    return np.append(unscaled, weights[-1] - unscaled @ mean)


def _quality(results: list[_CropResult], rule: Floats | None) -> float:
    """Return PQ at the default minimum score; with a rule, of calibrated scores."""
    total = PanopticCounts()
    for crop in results:
        kept, hit = crop.probability >= MIN_SCORE, crop.iou > 0
        if rule is not None:
            kept = probability_of(crop.features, rule) >= MIN_CALIBRATED_SCORE
        missed = crop.missed + int((hit & ~kept).sum())
        counts = int((kept & hit).sum()), int((kept & ~hit).sum()), missed
        total.add(PanopticCounts(float(crop.iou[kept].sum()), *counts))
    return round(total.quality, 2)


def _add_rule(metadata: dict[str, Any], rule: list[float], without_heads: bool) -> dict[str, Any]:
    """Return the metadata with a score calibration; ``without_heads``: for instances without heads."""
    if without_heads:
        return {**metadata, WITHOUT_HEADS: _add_rule(metadata[WITHOUT_HEADS], rule, without_heads=False)}
    return {**metadata, "clustering": {**metadata.get("clustering", {}), "score_rule": rule}}


def add_score_calibration(
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
    """Fit the score calibration of a model and write the model with it to ``output``.

    Args:
        model: a model in tfiseg's format; its calibration is replaced.
        images, semantic, confidence, more: see ``load_pictures``; with the network's class IDs.
        output: NAME.onnx, written atomically.
        refine: see ``Segmenter``; default: "frame" if the model has instance heads, else "components".
        instance_model: the teacher; default: tfiseg's instance network.

    Returns:
        The rule, the number of instances and hits in the fit, and PQ on held-out photos with and without it.
    """
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} for {output.name}")
    network, info = read_network(model)
    has_heads = any(o.name == "affinity" for o in network.graph.output)
    if refine is None:
        refine = "frame" if has_heads else "components"
    own_model = instance_model if refine == "components" else None
    segmenter = Segmenter(
        model, refine=refine, min_score=0.0, threads=threads, instance_model=own_model, outlines=False
    )
    segmenter.score_rule = None
    teacher, things = Refiner(instance_model, threads=threads), segmenter.session.info.things
    pictures = load_pictures(images, semantic, confidence, more)
    fit = fit_score_calibration(segmenter, pictures, teacher, things, seed, quiet)
    metadata = _add_rule(info.extra, fit.rule, without_heads=has_heads and refine != "frame")
    del network.metadata_props[:]
    helper.set_model_props(network, {METADATA_KEY: json.dumps(metadata)})
    with write_whole_model(network, output):
        pass
    before, after = fit.held_quality
    return {
        "output": str(output),
        "refine": refine,
        "rule": dict(zip([*FEATURES, "bias"], fit.rule, strict=True)),
        "instances": fit.instances,
        "objects": fit.objects,
        "held_PQ_without": before,
        "held_PQ": after,
    }
