"""Score calibration: the probability that an instance is an object.

The mean class probability is too high for small false positives: a patch of "cow" inside a horse scores as
high as the horse. Their size separates them. The calibration is a logistic regression, fitted on photos by
export/semantic/score_calibration.py. It belongs to one network and is stored in its metadata.
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
_MIN_PROBABILITY = 1e-3  # probabilities are clipped to this distance from 0 and 1


def score_features(instances: Instances, largest_excluded_area_px: int = 0) -> NDArray[np.float64]:
    """Return the features of instances, float64 (n, 3), columns ``FEATURES``.

    Args:
        instances: of one image.
        largest_excluded_area_px: see ``object_probability``.
    """
    area = np.maximum(instances.area, 1).astype(np.float64)
    probability = np.clip(instances.score.astype(np.float64), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return np.stack(
        [
            np.log(area / instances.label_map.size),
            np.log(area / area.max(initial=max(1, largest_excluded_area_px))),
            np.log(probability / (1 - probability)),
        ],
        axis=1,
    )


def object_probability(
    instances: Instances, rule: Sequence[float], largest_excluded_area_px: int = 0
) -> NDArray[np.float32]:
    """Return the probability that each instance matches an object with IoU > 0.5.

    Args:
        instances: of one image; ``score`` is the mean class probability.
        rule: a weight for each feature, and a bias: ``clustering.score_rule`` in a model's metadata.
        largest_excluded_area_px: area in pixels of the largest instance, of any class, that was found in the
            image and is not in ``instances``.

    Returns:
        float32 (n,) in [0, 1].
    """
    return probability_of(score_features(instances, largest_excluded_area_px), rule).astype(np.float32)


def probability_of(
    features: NDArray[np.float64], rule: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Apply a calibration to features (n, 3); return probabilities, float64 (n,)."""
    weights = np.asarray(rule, np.float64)
    return np.asarray(1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1]))), np.float64)
