"""The accuracy gate: compare a network in lower precision with float32 on real frames.

It measures labels, stable instances (see ``stable_instances``) and their scores. If one of them is below its
threshold, the yardstick decides: float32 against itself with one gray level of noise on the same frames. A
    precision
that is not worse than this, by a bootstrap interval, passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GateError
from ..runtime.evaluate.comparison import Comparison

_DRAWS, _CONFIDENCE = 2000, (2.5, 97.5)  # percentiles of the interval
_MIN_FRAMES = 8  # with differences; with fewer, the values decide instead of an interval
# maximum by which the yardstick lowers a threshold, in the measure's percent
_MAX_RELIEF = {"label_agreement": 1.0, "stable_PQ": 5.0, "score_agreement": 2.0}
_TEXTS = {
    "label_agreement": ("label agreement {:.2f}%", "{:g}%"),
    "stable_PQ": ("PQ of stable instances against float32 {:.2f}", "{:g}"),
    "score_agreement": ("agreement of scores {:.2f}%", "{:g}%"),
}


@dataclass(frozen=True)
class Thresholds:
    """Minimum agreement with float32."""

    label_agreement: float  # labels, in % of pixels (mean over frames)
    quality: float  # PQ of stable instances, 0..100
    score_agreement: float = 0.0  # 100 minus the mean change of their scores in percentage points
    # names of the measures, as in a report, whose threshold the yardstick may lower
    relative: frozenset[str] = frozenset()

    def by_measure(self) -> dict[str, float]:
        """Return the thresholds by the names that reports use."""
        return {
            "label_agreement": self.label_agreement,
            "stable_PQ": self.quality,
            "score_agreement": self.score_agreement,
        }


DEFAULTS = {
    "fp16": Thresholds(99.5, 99.0, 98.0, frozenset(_MAX_RELIEF)),
    "int8": Thresholds(98.0, 95.0, 95.0, frozenset(_MAX_RELIEF)),
}


def gate_report(
    comparison: Comparison, thresholds: Thresholds, yardstick: Callable[[], Comparison] | None = None
) -> dict[str, Any]:
    """Judge a comparison with float32.

    Args:
        yardstick: returns the comparison of float32 with itself on noisy frames (``noise_floor``); called
            only if a threshold is not reached. None: the thresholds alone decide.

    Returns:
        The comparison's report with ``thresholds``, ``passed``, ``failures`` (a sentence each) and
        ``intervals`` (95 %, by bootstrap over frames); with the yardstick's values in ``noise_floor`` if it
        was measured.
    """
    table, expected = _table(comparison), thresholds.by_measure()
    values, intervals = {name: _value(table[name]) for name in table}, {}
    for name in table:
        intervals[name] = [round(v, 3) for v in _interval(table[name])]
    below = [name for name in table if values[name] < expected[name]]
    report = {**comparison.report(), "intervals": intervals, "thresholds": expected}
    noise = yardstick() if below and yardstick is not None else None
    if noise is not None:
        noise_report = noise.report()
        report["noise_floor"] = {key: noise_report[key] for key in (*expected, "PQ")}
        floor = _table(noise)
        below = [
            name
            for name in below
            if name not in thresholds.relative
            or values[name] < expected[name] - _MAX_RELIEF[name]
            or _is_worse(table[name], floor[name])
        ]
    failures = [_failure(name, values[name], expected[name], intervals[name]) for name in below]
    return {**report, "passed": not failures, "failures": failures}


def _failure(name: str, value: float, expected: float, interval: list[float]) -> str:
    value_text, expected_text = _TEXTS[name]
    return (
        f"{value_text.format(value)}, expected at least {expected_text.format(expected)} (95% interval "
        f"{interval[0]:.2f} to {interval[1]:.2f})"
    )


def _table(comparison: Comparison) -> dict[str, NDArray[np.float64]]:
    """Return each measure as float64 (frames, 2): its value is 100 times the ratio of the columns' sums."""
    labels, quality, scores = [], [], []
    for frame in comparison.frames:
        counts = frame.stable.panoptic
        misses = counts.false_positives + counts.false_negatives
        labels.append((frame.label_agreement / 100, 1.0))
        quality.append((counts.iou_sum, counts.true_positives + 0.5 * misses))
        scores.append((counts.true_positives - frame.stable.score_change, counts.true_positives))
    return {
        "label_agreement": np.array(labels, np.float64),
        "stable_PQ": np.array(quality, np.float64),
        "score_agreement": np.array(scores, np.float64),
    }


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values (...) of summed tables (..., 2); 100 if there is nothing to compare."""
    is_empty = sums[..., 1] == 0
    return np.where(is_empty, 100.0, 100 * sums[..., 0] / np.where(is_empty, 1, sums[..., 1]))


def _value(table: NDArray[np.float64]) -> float:
    return float(_ratio(table.sum(0)))


def _draws(frames: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, frames, (_DRAWS, frames))


def _interval(table: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(_ratio(table[_draws(len(table))].sum(1)), _CONFIDENCE)
    return float(low), float(high)


def _is_worse(table: NDArray[np.float64], floor: NDArray[np.float64]) -> bool:
    """Return whether a measure is significantly worse than the yardstick's."""
    has_difference = (_ratio(table) < 100) | (_ratio(floor) < 100)
    if has_difference.sum() < _MIN_FRAMES:
        return _value(table) < _value(floor)
    table, floor = table[has_difference], floor[has_difference]
    draws = _draws(len(table))
    difference = _ratio(table[draws].sum(1)) - _ratio(floor[draws].sum(1))
    return bool(np.percentile(difference, _CONFIDENCE[1]) < 0)


def require_passed(gate: Mapping[str, Any], where: str) -> None:
    """Raise GateError if a gate was not passed.

    Args:
        gate: from ``gate_report``.
        where: sentence on the file that was not written, and the path of the report.
    """
    if not gate["passed"]:
        worst, floor = gate["worst_frame"], gate.get("noise_floor")
        yardstick = ""
        if floor:
            values = f"{floor['label_agreement']:.2f}%, PQ {floor['stable_PQ']:.1f}"
            yardstick = f" For comparison, fp32 against itself with one gray level of noise: {values}."
        raise GateError(
            f"the accuracy gate failed on {gate['frames']} frames: {'; '.join(gate['failures'])} (worst "
            f"frame: {worst['name']}, {worst['label_agreement']:.2f}% of labels). {where}.{yardstick} Try "
            "more frames from your camera, --keep LAYER, or for int8 --auto-exclude N (by default, at most "
            "half of the layers stay in higher precision). --min-agreement and --min-pq set the thresholds, "
            "--no-gate skips the check"
        )
