"""Decide what the numbers of a network's output mean, and compute labels from them.

The decision needs evidence: how the network ends, and values on frames. Without it, the user decides with
``--output``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, ModelError
from .agreement import labels_of, upsample
from .output_evidence import IGNORED_ID, OutputEvidence
from .output_layout import OutputLayout

OutputKind = Literal["logits", "softmax", "sigmoid", "binary", "class-map"]
OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
PROBABILITY_EPS = 1e-6
BACKGROUND_NAMES = frozenset(
    {"background", "__background__", "_background_", "bg", "void", "unlabeled", "none"}
)
_PERCENT, _BYTE = 100.0, 255.0
_LEAST_SUM = 0.9  # of 100 or 255, because a conversion to integers rounds each channel down
_SUM_TOLERANCE = 0.01  # of sums of probabilities, relative
_RANGE_TOLERANCE = 1e-3
_DECIDED = 0.5  # minimum share of decided values for a mask without a sigmoid in the network
_EXCLUSIVE = 0.005  # fewer pixels without exactly one channel: the channels exclude each other
CHOICES = f"pass --output {'|'.join(OUTPUT_KINDS)}"


@dataclass(frozen=True)
class OutputReading:
    """The meaning of a network's output."""

    # "logits" and "softmax": the class is the argmax. "sigmoid": each channel above its threshold is a class,
    # the others are background. "binary": one channel, class 1 above the threshold. "class-map": class ids.
    kind: OutputKind
    layout: OutputLayout  # shape of the output
    factor: float  # probability 1 as a value of the output; 0 = the output holds logits
    origin: str  # "network", "frames", "source" or "--output"
    evidence: str  # why, as a sentence
    thresholds: tuple[float, ...] = ()  # probability per channel (sigmoid, binary)
    classes: int = 0  # number of ids of a class map; 0: from the class names
    background_channel: bool = False  # channel 0 of a sigmoid output is the background
    negative: float = 0.0  # share of pixels in which all channels are negative

    @property
    def background_added(self) -> bool:
        """Whether pixels below all thresholds need a class of their own in front of the channels."""
        return self.kind == "binary" or (self.kind == "sigmoid" and not self.background_channel)

    def __str__(self) -> str:
        if self.thresholds:
            at = ", ".join(f"{t:g}" for t in dict.fromkeys(self.thresholds))
            scaled = f" (value {self.factor * self.thresholds[0]:g})" if self.factor > 1 else ""
            return f"{self.kind}, threshold {at}{scaled} ({self.evidence})"
        return f"{self.kind} ({self.evidence})"

    def labels(
        self, raw: NDArray[Any], size_hw: tuple[int, ...] | None = None, corner_aligned: bool = False
    ) -> NDArray[np.int64]:
        """Return the class id of every pixel of an output, int64 (h, w).

        Args:
            size_hw: size of the result; default: the output's.
            corner_aligned: upsample with align_corners=True.
        """
        maps = self.layout.maps(raw)
        if self.kind == "class-map":
            ids = np.rint(maps[0]).astype(np.int64)
            return np.where(ids == IGNORED_ID, 0, ids) if self.classes <= IGNORED_ID else ids
        if not self.thresholds:
            return labels_of(maps[None], size_hw, corner_aligned=corner_aligned)
        sides = size_hw or maps.shape[1:]
        fine = [upsample(m, sides, corner_aligned) for m in np.asarray(maps, np.float32)]
        scores = np.stack([self._log_odds(m) for m in fine])
        scores -= np.array(log_odds(self.thresholds), np.float32)[:, None, None]
        if self.background_channel:
            scores[0] = np.maximum(scores[0], 0)
            return np.asarray(scores.argmax(0), np.int64)
        return np.where(scores.max(0) > 0, scores.argmax(0) + 1, 0)

    def _log_odds(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values if self.factor == 0 else np.asarray(log_odds(values / self.factor), np.float32)


def log_odds(probability: Any) -> NDArray[Any]:
    """Return log(p / (1 - p)); p is limited to 1e-6..1 - 1e-6."""
    p = np.clip(np.asarray(probability), PROBABILITY_EPS, 1 - PROBABILITY_EPS)
    return np.asarray(np.log(p / (1 - p)))


def decide_reading(
    layout: OutputLayout,
    evidence: OutputEvidence,
    stated: OutputKind | None = None,
    names: Sequence[str] | None = None,
    thresholds: Sequence[float] | None = None,
    known_logits: bool = False,
) -> OutputReading:
    """Decide how to read an output.

    Args:
        evidence: from ``collect_evidence``.
        stated: kind that the user states; default: from the evidence.
        thresholds: probabilities, one or one per channel; default: 0.5.
        known_logits: the source's library documents its output as logits.

    Raises:
        ModelError: the evidence allows several readings, or contradicts ``stated``.
        InputError: an option doesn't fit.
    """
    if stated is not None:
        kind, factor, why, origin = *_check_stated(stated, evidence), "--output"
    elif layout.channels == 1:
        kind, factor, why, origin = _one_channel(evidence, names)
    elif known_logits and evidence.final_activation.kind is None:
        kind, factor, why, origin = "logits", 0.0, f"documented by its library; {evidence.values}", "source"
    else:
        kind, factor, why, origin = _several_channels(evidence, names)
    background = (
        kind == "sigmoid"
        and names is not None
        and len(names) == layout.channels
        and names[0].lower() in BACKGROUND_NAMES
    )
    classes = _map_classes(evidence, names) if kind == "class-map" else 0
    if kind == "sigmoid":
        if layout.channels == 1:
            kind = "binary"
        else:
            why += f"; {evidence.none:.1%} of the pixels in no class, {evidence.several:.1%} in several"
    levels = _thresholds(kind, layout, thresholds)
    return OutputReading(kind, layout, factor, origin, why, levels, classes, background, evidence.negative)


_Decision = tuple[OutputKind, float, str, str]


def _ambiguity_error(evidence: OutputEvidence, what: str) -> ModelError:
    return ModelError(
        f"the network's output is ambiguous: {evidence.channels} channel{'s' * (evidence.channels != 1)}, "
        f"{evidence.values}; {what}. If it is a segmentation, {CHOICES}"
    )


def _one_channel(evidence: OutputEvidence, names: Sequence[str] | None) -> _Decision:
    end, ids = evidence.final_activation, set(evidence.ids)
    count = len(names) if names is not None else end.channels if end.kind == "ArgMax" else None
    if end.kind == "ArgMax" and evidence.whole < 1:
        raise _ambiguity_error(
            evidence, f"a resize mixes the ids of an argmax, {1 - evidence.whole:.2%} are no whole numbers"
        )
    if end.kind == "ArgMax":
        return "class-map", 0.0, f"an argmax over {end.channels} channels; {evidence.values}", "network"
    if end.kind in ("Sigmoid", "HardSigmoid", "Softmax") and _lies_within(evidence, end.factor):
        scaled = f" times {end.factor:g}" if end.factor != 1 else ""
        return "binary", end.factor, f"a {end.kind.lower()}{scaled} ends it; {evidence.values}", "network"
    if ids and evidence.low >= 0:
        more = ids - {IGNORED_ID}
        if ids <= {0, 1} and (count or 2) <= 2:
            return "binary", 1.0, f"all values are 0 or 1 on {evidence.where}", "frames"
        if ids == {0, 255} and (count or 2) <= 2:
            return "binary", _BYTE, f"all values are 0 or 255 on {evidence.where}", "frames"
        if count is not None and count > 2 and max(more, default=0) < count:
            return "class-map", 0.0, f"whole numbers, {evidence.values}", "frames"
        if count is None:
            raise InputError(
                f"the network's output looks like a class map: whole numbers, {evidence.values}. It has no "
                f"number of classes: give --class-names; if it is something else, {CHOICES}"
            )
        raise _ambiguity_error(evidence, f"whole numbers, but {count} classes")
    if evidence.low < 0 < evidence.high:
        return "binary", 0.0, f"logits: {evidence.values}, both sides of 0", "frames"
    if _lies_within(evidence, 1.0):
        if evidence.decided >= _DECIDED:
            why = f"{evidence.decided:.0%} of the values lie near 0 or 1; {evidence.values}"
            return "binary", 1.0, why, "frames"
        raise _ambiguity_error(
            evidence,
            f"only {evidence.decided:.0%} lie near 0 or 1: perhaps it is a mask, a heat map or a depth map",
        )
    if evidence.low >= 0:
        raise _ambiguity_error(
            evidence,
            "no value is negative, so these are no logits: perhaps it is a mask, a heat map or a depth map",
        )
    raise _ambiguity_error(
        evidence, "no value is positive, so no pixel is foreground; other --photos may show some"
    )


def _several_channels(evidence: OutputEvidence, names: Sequence[str] | None) -> _Decision:
    end = evidence.final_activation
    total = evidence.sums[1]
    equal_sums = total > 0 and evidence.sums[1] - evidence.sums[0] <= 2 * _SUM_TOLERANCE * total
    is_one = abs(total - 1) <= 2 * _SUM_TOLERANCE
    # several sigmoids, or quantized logits, may have any other sum
    is_scaled = any(_LEAST_SUM * scale <= total <= scale + 1 for scale in (_PERCENT, _BYTE))
    if evidence.low >= -_RANGE_TOLERANCE * total and equal_sums and (is_one or is_scaled):
        why = f"the channels of every pixel sum to {total:.4g} on {evidence.where}"
        return "softmax", 1.0 if is_one else total, why, "frames"
    if end.kind in ("Sigmoid", "HardSigmoid") and _lies_within(evidence, end.factor):
        if names is None and evidence.none + evidence.several < _EXCLUSIVE:
            raise _ambiguity_error(
                evidence, "a sigmoid ends it, but exactly one channel is on in each pixel. Give --class-names"
            )
        scaled = f" times {end.factor:g}" if end.factor != 1 else ""
        why = f"a sigmoid{scaled} over {evidence.channels} independent channels ends it; {evidence.values}"
        return "sigmoid", end.factor, why, "network"
    if evidence.ids and set(evidence.ids) <= {0, 1}:
        return "sigmoid", 1.0, f"a mask per channel: all values are 0 or 1 on {evidence.where}", "frames"
    if abs(evidence.exp_sums[0] - 1) <= _SUM_TOLERANCE and abs(evidence.exp_sums[1] - 1) <= _SUM_TOLERANCE:
        return "logits", 0.0, f"log-probabilities: their exponentials sum to 1 on {evidence.where}", "frames"
    if evidence.low < 0:
        return "logits", 0.0, f"{evidence.values}", "frames"
    if _lies_within(evidence, 1.0):
        raise _ambiguity_error(
            evidence,
            f"they sum to {evidence.sums[0]:.3g} to {evidence.sums[1]:.3g} per pixel, so it is no softmax. "
            f"Perhaps they are independent sigmoids",
        )
    raise _ambiguity_error(
        evidence,
        f"no value is negative, and they sum to {evidence.sums[0]:.3g} to {evidence.sums[1]:.3g} per pixel. "
        "Perhaps they are heat maps, or quantized logits",
    )


def _check_stated(stated: OutputKind, evidence: OutputEvidence) -> tuple[OutputKind, float, str]:
    """Return kind, factor and evidence for the stated kind; raise if the values contradict it."""

    def contradiction(expected: str) -> ModelError:
        return ModelError(
            f"--output {stated} contradicts the network's output: {evidence.channels} "
            f"channel{'s' * (evidence.channels != 1)}, {evidence.values}; expected {expected}"
        )

    one = evidence.channels == 1
    if stated == "class-map":
        if not one or evidence.low < 0:
            raise contradiction("one channel with class ids from 0")
        return stated, 0.0, f"as stated; {evidence.values}"
    if stated == "binary" and not one:
        raise contradiction("one channel. Use logits, softmax or sigmoid for several")
    if stated == "logits":
        if evidence.final_activation.kind == "ArgMax":
            raise contradiction("scores per class, but an argmax ends it. Use class-map")
        return ("binary" if one else "logits"), 0.0, f"as stated; {evidence.values}"
    if stated == "softmax":
        if evidence.low < -_RANGE_TOLERANCE:
            raise contradiction("probabilities from 0 to 1. Use logits")
        factor = (
            evidence.final_activation.factor if evidence.high <= evidence.final_activation.factor else _BYTE
        )
        return ("binary" if one else "softmax"), factor, f"as stated; {evidence.values}"
    if evidence.low < -_RANGE_TOLERANCE:
        return stated, 0.0, f"as stated; logits, {evidence.values}"
    for factor in (evidence.final_activation.factor, 1.0, _BYTE):
        if _lies_within(evidence, factor):
            return stated, factor, f"as stated; probabilities 0..{factor:g}, {evidence.values}"
    raise contradiction("logits, or probabilities from 0 to 1 or 0 to 255")


def _lies_within(evidence: OutputEvidence, factor: float) -> bool:
    return evidence.low >= -_RANGE_TOLERANCE * factor and evidence.high <= factor * (1 + _RANGE_TOLERANCE)


def _map_classes(evidence: OutputEvidence, names: Sequence[str] | None) -> int:
    classes = len(names) if names is not None else evidence.final_activation.channels
    if not classes:
        raise InputError(
            "the network's output is a class map, which has no number of classes: give --class-names"
        )
    largest = (
        max((i for i in evidence.ids if i != IGNORED_ID), default=0) if evidence.ids else round(evidence.high)
    )
    if largest >= classes and largest != IGNORED_ID:
        raise InputError(
            f"the network's class map holds ids up to {largest}, got {classes} class names. Name all "
            f"classes in order of their ids"
        )
    return classes


def _thresholds(kind: OutputKind, layout: OutputLayout, stated: Sequence[float] | None) -> tuple[float, ...]:
    if kind not in ("sigmoid", "binary"):
        if stated is not None:
            raise InputError(f"--threshold has no effect on {kind} outputs, expected sigmoid or binary")
        return ()
    values = tuple(stated or (0.5,))
    if len(values) not in (1, layout.channels) or not all(0 < v < 1 for v in values):
        raise InputError(
            f"--threshold {','.join(f'{v:g}' for v in values)} doesn't fit {layout.channels} channels: "
            f"expected one probability between 0 and 1, or one per channel"
        )
    return values * layout.channels if len(values) == 1 else values
