"""Fit the rules of instance heads on composites that the semantic network segments.

The merge rule ("merge") decides whether two regions of a component are one object. The second-pass rule
("part") decides the same for the parts between boundaries.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...plugins.problem import Problem, problem_of
from ...plugins.settings import AFFINITY_OFFSETS
from ...runtime.networks.onnx_session import OnnxSession
from ..instance.rule_fitting import (
    MEMBERS,
    ComponentSamples,
    Fit,
    average_rules,
    collect_component_samples,
    count_ratio,
    fit_rule,
    remove_boundaries,
    weight_samples,
)
from ..instance.teacher import PHOTO_SINGLE_TO_GROUP_RATIO
from .composites import FrameComposer
from .export_onnx import FINER

# weights of single objects for "merge" and "part", relative to their share in photos
_SINGLE_WEIGHTS = (1.0, 2.8)
_SHARE = 2 / 3  # share of the components for each member of a rule, so that members differ
_MIN_CELLS = 24  # smaller components are not used


def fit_frame_rules(
    composer: FrameComposer, model: Path, count: int, seed: int = 0, quiet: bool = False
) -> dict[str, Fit]:
    """Fit the rules of a network with heads on composites of held-out images.

    Args:
        model: written by ``export_frame``, without rules.

    Returns:
        Fits by name: "merge" and "part".
    """
    session, rng = OnnxSession(model), np.random.default_rng(seed)
    merges: list[ComponentSamples] = []
    parts: list[ComponentSamples] = []
    for k in tqdm(range(count), desc="composites for the rules", disable=quiet):
        composite = composer(k)
        maps = session.infer(composite.image)
        class_map = maps["logits"][0].argmax(0)
        owner, class_of = composite.at(class_map.shape)
        for class_id in np.unique(composite.class_id):
            mask = (class_map == class_id).astype(np.uint8)
            truth = np.where(class_of == class_id, owner, 0).astype(np.int32)
            for samples, problem in ((merges, _problem), (parts, _second_pass_problem)):
                samples += collect_component_samples(
                    mask, truth, partial(problem, maps=maps), rng, _MIN_CELLS, 0.0
                )
    return {
        name: _fit_bagged_rule(
            components, weight * PHOTO_SINGLE_TO_GROUP_RATIO / count_ratio(components), seed
        )
        for name, components, weight in zip(("merge", "part"), (merges, parts), _SINGLE_WEIGHTS, strict=True)
    }


def _fit_bagged_rule(components: list[ComponentSamples], single_weight: float, seed: int) -> Fit:
    """Return the mean of rules that are each fitted on a random subset of the components."""
    rng, samples = np.random.default_rng(seed), weight_samples(components, single_weight)
    fits = []
    for member in range(MEMBERS):
        chosen = np.flatnonzero(rng.random(len(samples)) < _SHARE)
        fits.append(fit_rule([samples[k] for k in chosen], seed + member, members=1))
    error = float(np.mean([fit.held_error for fit in fits]))
    return Fit(average_rules([fit.rule for fit in fits]), error, sum(len(same) for _, same, _ in samples))


def _problem(own: NDArray[np.uint8], maps: dict[str, NDArray[np.float32]]) -> Problem:
    return problem_of(
        own,
        boundary=np.ascontiguousarray(maps["boundary"][:, 0]),
        affinity=np.ascontiguousarray(maps["affinity"]),
        affinity_offsets=np.ascontiguousarray(AFFINITY_OFFSETS, np.int32),
        affinity_stride=FINER,
    )


def _second_pass_problem(own: NDArray[np.uint8], maps: dict[str, NDArray[np.float32]]) -> Problem:
    """Return the operator's problem for what boundaries leave of a component."""
    return _problem(remove_boundaries(own, maps["boundary"][0, 0]), maps)
