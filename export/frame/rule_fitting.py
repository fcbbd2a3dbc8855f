"""Fit the rules of instance heads on composites that the semantic network segments.

The "merge" rule decides whether two regions of a component are one object. The "part" rule decides the same
in the operator's second pass, on the parts between boundaries."""

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
    Fit,
    OfComponent,
    averaged,
    calm,
    fit_rule,
    lone_odds_of,
    merges_of,
    weighed,
)
from ..instance.teacher import PHOTOS_LONE_ODDS
from .composites import FrameComposer
from .export_onnx import FINER

# lone components weigh so much more than their share in photos, for "merge" and "part"
_CAUTION = 1.0, 2.8
_SHARE = 2 / 3  # of the components for each member of a rule: members that differ vary less together
_MIN_CELLS = 24  # smaller components are not used


def fit_frame_rules(
    composer: FrameComposer, model: Path, count: int, seed: int = 0, quiet: bool = False
) -> dict[str, Fit]:
    """Fit the rules of a network with heads on composites of held-out images.

    Args:
        composer: makes the composites.
        model: written by ``export_frame``, without rules.
        count: number of composites.
        seed: random seed.
        quiet: show no progress bar.

    Returns:
        Fits by name: "merge" and "part".
    """
    session, rng = OnnxSession(model), np.random.default_rng(seed)
    merges: list[OfComponent] = []
    parts: list[OfComponent] = []
    for k in tqdm(range(count), desc="composites for the rules", disable=quiet):
        composite = composer(k)
        maps = session.infer(composite.image)
        class_map = maps["logits"][0].argmax(0)
        owner, class_of = composite.at(class_map.shape)
        for class_id in np.unique(composite.class_id):
            its = (class_map == class_id).astype(np.uint8)
            truth = np.where(class_of == class_id, owner, 0).astype(np.int32)
            for samples, problem in ((merges, _problem), (parts, _parted_problem)):
                samples += merges_of(its, truth, partial(problem, maps=maps), rng, _MIN_CELLS, 0.0)
    return {
        name: _bagged(its, caution * PHOTOS_LONE_ODDS / lone_odds_of(its), seed)
        for name, its, caution in zip(("merge", "part"), (merges, parts), _CAUTION, strict=True)
    }


def _bagged(components: list[OfComponent], lone_weight: float, seed: int) -> Fit:
    """The mean of rules that were each fitted on a part of the components."""
    rng, samples = np.random.default_rng(seed), weighed(components, lone_weight)
    fits = []
    for member in range(MEMBERS):
        chosen = np.flatnonzero(rng.random(len(samples)) < _SHARE)
        fits.append(fit_rule([samples[k] for k in chosen], seed + member, members=1))
    error = float(np.mean([fit.held_error for fit in fits]))
    return Fit(averaged([fit.rule for fit in fits]), error, sum(len(same) for _, same, _ in samples))


def _problem(own: NDArray[np.uint8], maps: dict[str, NDArray[np.float32]]) -> Problem:
    return problem_of(
        own,
        boundary=np.ascontiguousarray(maps["boundary"][:, 0]),
        affinity=np.ascontiguousarray(maps["affinity"]),
        affinity_offsets=np.ascontiguousarray(AFFINITY_OFFSETS, np.int32),
        affinity_stride=FINER,
    )


def _parted_problem(own: NDArray[np.uint8], maps: dict[str, NDArray[np.float32]]) -> Problem:
    """The same of what boundaries leave of the component."""
    return _problem(calm(own, maps["boundary"][0, 0]), maps)
