"""The accuracy gate: compare a network in lower precision with float32 on real frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import GateError
from ..runtime.evaluate.comparison import Comparison


@dataclass(frozen=True)
class Thresholds:
    """Minimum agreement with float32: labels in % of pixels (mean over frames), and PQ of instances."""

    label_agreement: float
    quality: float


DEFAULTS = {"fp16": Thresholds(99.5, 99.0), "int8": Thresholds(98.0, 95.0)}


def gate_report(comparison: Comparison, thresholds: Thresholds) -> dict[str, Any]:
    """Return a comparison's report with ``thresholds``, ``passed`` and ``failures``, a sentence each."""
    report = comparison.report()
    failures = []
    if comparison.label_agreement < thresholds.label_agreement:
        failures.append(
            f"label agreement {comparison.label_agreement:.2f}%, expected at least "
            f"{thresholds.label_agreement:g}%"
        )
    if comparison.quality < thresholds.quality:
        failures.append(
            f"PQ against float32 {comparison.quality:.2f}, expected at least {thresholds.quality:g}"
        )
    expected = {"label_agreement": thresholds.label_agreement, "PQ": thresholds.quality}
    return {**report, "thresholds": expected, "passed": not failures, "failures": failures}


def require_passed(gate: dict[str, Any], where: str) -> None:
    """Raise GateError if a gate was not passed.

    Args:
        gate: from ``gate_report``.
        where: sentence on what was not written, and where the report is."""
    if not gate["passed"]:
        worst, floor = gate["worst_frame"], gate.get("noise_floor")
        yardstick = (
            f" For comparison, fp32 against itself with one gray level of noise: "
            f"{floor['label_agreement']:.2f}%, PQ {floor['PQ']:.1f}."
            if floor
            else ""
        )
        raise GateError(
            f"the accuracy gate failed on {gate['frames']} frames: {'; '.join(gate['failures'])} (worst "
            f"frame: {worst['name']}, {worst['label_agreement']:.2f}% of labels). {where}.{yardstick} Try "
            "--auto-exclude N (int8 keeps up to 8 layers in high precision by default), --keep LAYER, or "
            "more frames from your camera. --min-agreement and --min-pq set the thresholds, --no-gate "
            "skips the check"
        )
