"""The accuracy gate: a network in lower precision must still say what the float32 network says, on real
frames, or it is not delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import GateError
from ..runtime.evaluate.comparison import Comparison


@dataclass(frozen=True)
class Thresholds:
    """Least label agreement in % of pixels (mean over frames), and least PQ of instances against
    float32's."""

    label_agreement: float
    quality: float


DEFAULTS = {"fp16": Thresholds(99.5, 99.0), "int8": Thresholds(98.0, 95.0)}


def verdict(comparison: Comparison, thresholds: Thresholds) -> dict[str, Any]:
    """The comparison's report with the thresholds, ``passed`` and ``failures``, a sentence each."""
    report = comparison.report()
    failures = []
    if comparison.label_agreement < thresholds.label_agreement:
        failures.append(
            f"label agreement {comparison.label_agreement:.2f}%, wanted at least {thresholds.label_agreement:g}%"
        )
    if comparison.quality < thresholds.quality:
        failures.append(
            f"PQ of instances against float32's {comparison.quality:.2f}, wanted at least {thresholds.quality:g}"
        )
    wanted = {"label_agreement": thresholds.label_agreement, "PQ": thresholds.quality}
    return {**report, "thresholds": wanted, "passed": not failures, "failures": failures}


def insist(gate: dict[str, Any], where: str) -> None:
    """Raise GateError where a gate was not passed; ``where`` names what is not written, or where the report
    lies."""
    if not gate["passed"]:
        worst, floor = gate["worst_frame"], gate.get("noise_floor")
        yardstick = (
            f" For comparison, fp32 against itself with one grey level of noise on the frames: {floor['label_agreement']:.2f}%, "
            f"PQ {floor['PQ']:.1f}."
            if floor
            else ""
        )
        raise GateError(
            f"the accuracy gate failed on {gate['frames']} frames: {'; '.join(gate['failures'])} (worst frame: {worst['name']}, "
            f"{worst['label_agreement']:.2f}% of labels). {where}.{yardstick} What helps: --auto-exclude N (int8 leaves up to 8 layers out "
            "by itself), --keep LAYER, more frames of the kind that the camera sees; --min-agreement and --min-pq set other thresholds, "
            "--no-gate builds without"
        )
