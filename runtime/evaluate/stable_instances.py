"""Compare the instances of two networks, except for those near a threshold.

Another precision changes every score, area and merge probability a little. An instance near a threshold then
appears or disappears, as it does between two frames of a camera. Such instances do not measure the precision,
so an instance counts only if it is stable: away from the thresholds in its own network, and missing in the
other network even with margins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ..map_clusterer import MapClusterer, Margins
from .metrics import PanopticCounts

Maps = Mapping[str, NDArray[np.float32]]

# one gray level of noise changes the default network's scores by up to 0.017 on average
# (docs/benchmarks/engines.md)
_SCORE, _AREA, _LOG_ODDS = 0.1, 1.5, 1.0
_STRICT = Margins(-_SCORE, 1 / _AREA)
_WIDE = tuple(Margins(_SCORE, _AREA, log_odds) for log_odds in (0.0, -_LOG_ODDS, _LOG_ODDS))
_MATCH_IOU = 0.5


@dataclass
class StableCounts:
    """Counts of the stable instances of a frame, or the sum over frames."""

    # stable instances of the reference that both networks have (IoU > 0.5, same class), and stable instances
    # of either network that the other network lacks
    panoptic: PanopticCounts = field(default_factory=PanopticCounts)
    score_change: float = 0.0  # sum of the absolute score changes of the instances that both have

    def add(self, other: StableCounts) -> None:
        """Add the counts of another frame."""
        self.panoptic.add(other.panoptic)
        self.score_change += other.score_change


def stable_counts(
    reference: MapClusterer, candidate: MapClusterer, maps: Maps, other: Maps, frame_size_hw: tuple[int, int]
) -> StableCounts:
    """Match the stable instances of a frame.

    Args:
        maps: the reference's outputs, name -> float32 (1, channels, h, w).
        frame_size_hw: height and width of the frame in pixels.
    """
    ours = reference.cluster_maps(maps, frame_size_hw, margins=_STRICT)
    theirs = candidate.cluster_maps(other, frame_size_hw, margins=_STRICT)
    overlap, score = _best_matches(ours, _variants(candidate, other, frame_size_hw))
    missing, _ = _best_matches(theirs, _variants(reference, maps, frame_size_hw))
    same = overlap > _MATCH_IOU
    counts = PanopticCounts(
        iou_sum=float(overlap[same].sum()),
        true_positives=int(same.sum()),
        false_positives=int((missing <= _MATCH_IOU).sum()),
        false_negatives=int((~same).sum()),
    )
    return StableCounts(counts, float(np.abs(ours.score[same] - score[same]).sum()))


def _variants(segmenter: MapClusterer, maps: Maps, size_hw: tuple[int, int]) -> list[Instances]:
    """Return the instances of a frame within the margins, for each shift of the merge rule."""
    has_rule = "affinity" in maps and segmenter.cluster_settings(size_hw).merge_rule is not None
    return [segmenter.cluster_maps(maps, size_hw, margins=m) for m in _WIDE[: 3 if has_rule else 1]]


def _best_matches(
    found: Instances, variants: list[Instances]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return IoU and score of each instance's best match of its class, float64 (n,) each; 0 without one."""
    overlap, score = np.zeros(len(found)), np.zeros(len(found))
    for variant in variants if len(found) else ():
        if not len(variant):
            continue
        iou = _iou(found, variant)
        best = iou.argmax(1)
        highest = iou[np.arange(len(found)), best]
        better = highest > overlap
        overlap[better], score[better] = highest[better], variant.score[best][better]
    return overlap, score


def _iou(one: Instances, other: Instances) -> NDArray[np.float64]:
    """Return the IoU of every pair, float64 (n, m); 0 for different classes."""
    n, m = len(one) + 1, len(other) + 1
    pairs = one.label_map.ravel().astype(np.int64) * m + other.label_map.ravel()
    overlap = np.bincount(pairs, minlength=n * m).reshape(n, m)[1:, 1:]
    union = one.area[:, None].astype(np.int64) + other.area[None] - overlap
    return np.where(one.class_id[:, None] == other.class_id[None], overlap / np.maximum(union, 1), 0.0)
