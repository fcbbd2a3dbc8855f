"""The merge rule of frame mode, fitted on composites as the semantic network itself segments them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...plugins.operator import AFFINITY_OFFSETS
from ...plugins.problem import Problem, problem_of
from ...runtime.sessions import OnnxSession
from ..instance.rules import Fit, fit_rule, merges_of
from ..neck_rule import Samples
from .composites import FrameComposer
from .frame_onnx import FINER

_LONE_WEIGHT = 3.0  # photos show lone objects more often than composites do
_LEAST_CELLS = 24  # smaller components say nothing


def fit_frame_rule(composer: FrameComposer, model: Path, count: int, seed: int = 0, quiet: bool = False) -> Fit:
    """Fit the rule of a network with heads on ``count`` composites of pictures that training kept apart.

    Args:
        composer: makes them.
        model: what ``export_frame`` wrote, as yet without a rule.
    """
    session, rng = OnnxSession(model), np.random.default_rng(seed)
    samples: list[Samples] = []
    for k in tqdm(range(count), desc="composites for the rule", disable=quiet):
        composite = composer(k)
        maps = session.infer(composite.image)
        class_map = maps["logits"][0].argmax(0)
        owner, class_of = composite.at(class_map.shape)
        for class_id in np.unique(composite.class_id):
            its = (class_map == class_id).astype(np.uint8)
            truth = np.where(class_of == class_id, owner, 0).astype(np.int32)
            samples += merges_of(its, truth, partial(_problem, maps=maps), rng, _LONE_WEIGHT, _LEAST_CELLS, 0.0)
    return fit_rule(samples, seed)


def _problem(own: NDArray[np.uint8], maps: dict[str, NDArray[np.float32]]) -> Problem:
    return problem_of(
        own,
        boundary=np.ascontiguousarray(maps["boundary"][:, 0]),
        affinity=np.ascontiguousarray(maps["affinity"]),
        affinity_offsets=np.ascontiguousarray(AFFINITY_OFFSETS, np.int32),
        affinity_stride=FINER,
    )
