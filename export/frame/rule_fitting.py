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
from ..instance.rule_fitting import Fit, OfComponent, calm, fit_rule, merges_of, weighed
from .composites import FrameComposer
from .export_onnx import FINER

_LONE_WEIGHTS = 3.0, 15.0  # of "merge", "part": photos show single objects more often than composites do
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
    weights = zip(("merge", "part"), (merges, parts), _LONE_WEIGHTS, strict=True)
    return {name: fit_rule(weighed(samples, weight), seed) for name, samples, weight in weights}


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
