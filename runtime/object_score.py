"""How likely an instance is an object: the score of a network's instances, where its model says how.

The mean class probability alone says too much for the crumbs of a class map: a patch of "cow" in a horse is
as sure as the horse. Size tells them apart. The rule is a logistic regression, fitted on photos by
export/semantic/score_calibration.py; it belongs to one network and lies in its metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..instances import Instances

FEATURES = (
    "log of the share of the picture",
    "log of the share of its largest instance",
    "logit of the mean class probability",
)
_SURE = 1e-3  # probabilities are taken no nearer to 0 and 1


def score_features(instances: Instances, largest_excluded_area_px: int = 0) -> NDArray[np.float64]:
    """(n, 3), see FEATURES; ``largest_excluded_area_px``: the area of the largest other instance of the
    picture, of whatever class."""
    area = np.maximum(instances.area, 1).astype(np.float64)
    sure = np.clip(instances.score.astype(np.float64), _SURE, 1 - _SURE)
    return np.stack(
        [
            np.log(area / instances.label_map.size),
            np.log(area / area.max(initial=max(1, largest_excluded_area_px))),
            np.log(sure / (1 - sure)),
        ],
        axis=1,
    )


def object_probability(
    instances: Instances, rule: Sequence[float], largest_excluded_area_px: int = 0
) -> NDArray[np.float32]:
    """Probability (n,) that an instance is an object, found with IoU > 0.5, from its size among the picture's
    others.

    Args:
        instances: of one picture; ``score`` is the mean class probability.
        rule: a weight for each feature, and a bias: ``clustering.score_rule`` in a model's metadata.
        largest_excluded_area_px: area of the largest instance that was found in the picture and isn't among
            these.
    """
    return probability_of(score_features(instances, largest_excluded_area_px), rule).astype(np.float32)


def probability_of(
    features: NDArray[np.float64], rule: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probability (n,) of each row of features (n, 3) by a rule."""
    weights = np.asarray(rule, np.float64)
    return np.asarray(1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1]))), np.float64)
