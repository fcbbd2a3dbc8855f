"""Convert a network to a lower precision and compare it with float32 on real frames."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from ...calibration.frames import FrameSample, sample_frames
from ...calibration.gate import DEFAULTS, Thresholds, gate_report
from ...calibration.graph import Network
from ...calibration.layers import find_layers
from ...calibration.qdq import Scheme
from ...calibration.quantize import Calibration, calibrate, edge_layers, matching_layers, quantize
from ...calibration.ranges import METHODS
from ...calibration.sensitivity import exclude_until, rank_layers
from ...errors import InputError, check_choice
from ...runtime.evaluate.comparison import Comparison, compare, noise_floor, write_worst_sheet
from ...runtime.inspect.onnx_layers import layer_precisions
from ...runtime.segmenter import Segmenter
from .fp16_graph import find_overflowing_nodes, to_fp16

PRECISIONS = ("fp32", "fp16", "int8")
_RANGE_FRAMES, _RANKING_FRAMES = 8, 12


@dataclass(frozen=True)
class PrecisionSettings:
    """Precision of a network, and the frames to measure it on."""

    precision: str = "fp16"  # one of ``PRECISIONS``
    frames: str | None = None  # source of real frames; see ``open_source``
    # calibration_frames, gate_frames: maximum number of frames for calibration and for the gate
    calibration_frames: int = 128
    gate_frames: int = 128
    method: str = "minmax"  # how ranges of activations are found; see ``calibration.ranges``
    cache: Path | None = None
    keep: tuple[str, ...] = ()  # layers to keep in high precision: names or patterns
    # maximum number of further layers to keep in high precision until the gate passes; default: half of the
    # layers with a gate, else 0
    auto_exclude: int | None = None
    # label_agreement, quality: absolute thresholds of the gate; default: see ``calibration.gate``. A quality
    # below the default also lowers the threshold for scores.
    label_agreement: float | None = None
    quality: float | None = None
    gate: bool = True  # compare with float32
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("method", self.method, METHODS)
        if self.precision == "fp16" and self.frames is None and self.gate:
            raise InputError(
                "fp16 is compared with float32 on real frames: pass some with --frames, or skip it with "
                "--no-gate"
            )
        if self.precision == "int8" and self.frames is None:
            raise InputError(
                "int8 needs frames to calibrate on: --frames with a folder of images, a video or a recording"
            )

    def max_excluded(self, layers: int) -> int:
        """Return how many of so many layers may stay in high precision so that the gate passes."""
        return self.auto_exclude if self.auto_exclude is not None else -(-layers // 2) if self.gate else 0

    @property
    def thresholds(self) -> Thresholds:
        """Thresholds of the gate for this precision."""
        result = DEFAULTS[self.precision]
        if self.label_agreement is not None:
            relative = result.relative - {"label_agreement"}
            result = replace(result, label_agreement=self.label_agreement, relative=relative)
        if self.quality is not None:
            scores = min(result.score_agreement, self.quality)
            relative = result.relative - {"stable_PQ"}
            result = replace(result, quality=self.quality, score_agreement=scores, relative=relative)
        return result


@dataclass
class LoweredNetwork:
    """A network in the requested precision.

    ``kept`` are the layers in higher precision, ``gate`` is the gate's report (None for float32),
    ``comparison`` has the figures of each frame, and ``searched`` the trials of --auto-exclude.
    """

    model: onnx.ModelProto
    kept: list[str] = field(default_factory=list)
    gate: dict[str, Any] | None = None
    comparison: Comparison | None = None
    searched: list[dict[str, Any]] = field(default_factory=list)


def lower(
    model: onnx.ModelProto,
    settings: PrecisionSettings,
    for_cpu: bool,
    sheet: Path | None = None,
    quiet: bool = True,
) -> LoweredNetwork:
    """Convert a network to a precision and compare it with float32.

    Args:
        model: float32 network in tfiseg's format.
        for_cpu: int8 for ONNX Runtime's CPU kernels; else for TensorRT, with the other layers in float16.

    Returns:
        The network; ``gate["passed"]`` states whether it is accurate enough.

    Raises:
        InputError: the settings don't fit the network.
        SourceError: the source has no frames.
        ModelError: the network can't be converted.
    """
    model = Network(model).model
    if settings.precision == "fp32":
        return LoweredNetwork(model)
    kept = matching_layers(find_layers(Network(model)), settings.keep)
    calibration_part, gate_part = _frames(settings, quiet)
    test_frames = gate_part or calibration_part
    yardstick = _yardstick(model, test_frames, quiet)
    if settings.precision == "fp16":
        if calibration_part is not None:
            kept += [
                name
                for name in find_overflowing_nodes(model, calibration_part.part(0, _RANGE_FRAMES))
                if name not in kept
            ]
        lowered = LoweredNetwork(to_fp16(model, kept))
    else:
        assert calibration_part is not None
        assert test_frames is not None
        lowered = _to_int8(model, settings, for_cpu, kept, calibration_part, test_frames, yardstick, quiet)
    lowered.kept = [
        layer.name for layer in layer_precisions(lowered.model) if layer.precision != settings.precision
    ]
    if not settings.gate:
        lowered.gate = {"skipped": "--no-gate"}
    elif gate_part is not None:
        _run_gate(model, lowered, settings, gate_part, yardstick, sheet, quiet)
    return lowered


def _frames(settings: PrecisionSettings, quiet: bool) -> tuple[FrameSample | None, FrameSample | None]:
    """Return frames for calibration and other frames for the gate."""
    if settings.frames is None:
        return None, None
    count = settings.calibration_frames + (settings.gate_frames if settings.gate else 0)
    sample = sample_frames(settings.frames, count, settings.seed, quiet)
    if not settings.gate:
        return sample, None
    if len(sample) == 1:
        return sample, sample
    for_gate = min(settings.gate_frames, max(1, round(len(sample) * settings.gate_frames / count)))
    return sample.part(for_gate), sample.part(0, for_gate)


def _to_int8(
    model: onnx.ModelProto,
    settings: PrecisionSettings,
    for_cpu: bool,
    kept: list[str],
    frames: FrameSample,
    test_frames: FrameSample,
    yardstick: Callable[[], Comparison],
    quiet: bool,
) -> LoweredNetwork:
    scheme = Scheme(signed=not for_cpu)
    calibration: Calibration = calibrate(model, frames, settings.method, settings.cache, quiet)
    kept = list(dict.fromkeys([*edge_layers(Network(model)), *kept]))

    def convert(excluded: list[str]) -> onnx.ModelProto:
        quantized = quantize(model, calibration, [*kept, *excluded], scheme)
        if for_cpu:
            return quantized
        return to_fp16(quantized, find_overflowing_nodes(quantized, frames.part(0, _RANGE_FRAMES)))

    max_excluded = settings.max_excluded(len(find_layers(Network(model))))
    if not max_excluded:
        return LoweredNetwork(convert([]))
    trials: dict[int, LoweredNetwork] = {}

    def rank() -> list[tuple[str, float]]:
        _say(quiet, "int8 in all layers fails the gate: ranking layers by the accuracy that they lose")
        return rank_layers(model, calibration, frames.part(0, _RANKING_FRAMES), scheme, kept, quiet)

    def judge(excluded: list[str]) -> dict[str, Any]:
        lowered = convert(excluded)
        comparison = _compare_with_float32(model, lowered, test_frames, quiet)
        trials[len(excluded)] = LoweredNetwork(lowered, comparison=comparison)
        report = gate_report(comparison, settings.thresholds, yardstick)
        _say(
            quiet,
            f"{len(excluded)} layers in high precision: {report['label_agreement']:.2f}% of labels, PQ of "
            f"stable instances {report['stable_PQ']:.1f}",
        )
        return report

    excluded, tried = exclude_until(rank, max_excluded, judge)
    chosen = trials[len(excluded)]
    chosen.searched = tried
    return chosen


def _run_gate(
    model: onnx.ModelProto,
    lowered: LoweredNetwork,
    settings: PrecisionSettings,
    frames: FrameSample,
    yardstick: Callable[[], Comparison],
    sheet: Path | None,
    quiet: bool,
) -> None:
    if lowered.comparison is None:
        lowered.comparison = _compare_with_float32(model, lowered.model, frames, quiet)
    if sheet is not None:
        with _segmenters(model, lowered.model) as (reference, candidate):
            write_worst_sheet(reference, candidate, frames, lowered.comparison, sheet)
    report = gate_report(lowered.comparison, settings.thresholds, yardstick)
    lowered.gate = {
        **report,
        "reference": "fp32",
        "candidate": settings.precision,
        "source": Path(str(settings.frames)).name,
        "seed": settings.seed,
    }


def _yardstick(model: onnx.ModelProto, frames: FrameSample | None, quiet: bool) -> Callable[[], Comparison]:
    """Return a function that compares the network with itself on noisy frames, once."""

    @functools.cache
    def measure() -> Comparison:
        assert frames is not None
        with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
            return noise_floor(_segmenter(model, Path(folder, "fp32.onnx")), frames, frames.names, quiet)

    return measure


def _compare_with_float32(
    model: onnx.ModelProto, lowered: onnx.ModelProto, frames: FrameSample, quiet: bool
) -> Comparison:
    with _segmenters(model, lowered) as (reference, candidate):
        return compare(reference, candidate, frames, frames.names, quiet)


@contextmanager
def _segmenters(model: onnx.ModelProto, lowered: onnx.ModelProto) -> Iterator[tuple[Segmenter, Segmenter]]:
    with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
        yield _segmenter(model, Path(folder, "fp32.onnx")), _segmenter(lowered, Path(folder, "lowered.onnx"))


def _segmenter(model: onnx.ModelProto, path: Path) -> Segmenter:
    onnx.save(model, path)
    return Segmenter(path)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr)
