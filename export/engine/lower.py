"""A network brought to the precision that was asked for, and held against float32 on real frames."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ...calibration.frames import FrameSample, sample_frames
from ...calibration.gate import DEFAULTS, Thresholds, gate_report
from ...calibration.graph import Network
from ...calibration.layers import find_layers
from ...calibration.qdq import Scheme
from ...calibration.quantize import Calibration, calibrate, edge_layers, matching_layers, quantize
from ...calibration.sensitivity import exclude_until, rank_layers
from ...errors import InputError
from ...runtime.evaluate.comparison import Comparison, compare, noise_floor, worst_sheet
from ...runtime.inspect.onnx_layers import layer_precisions
from ...runtime.segmenter import Segmenter
from .fp16_graph import overflowing, to_fp16

PRECISIONS = ("fp32", "fp16", "int8")
_RANGE_FRAMES, _RANKING_FRAMES = 8, 12
_USUALLY_EXCLUDED = 8  # layers at most, unless told otherwise


@dataclass(frozen=True)
class PrecisionSettings:
    """What to bring a network to, and on which frames to measure."""

    precision: str = "fp16"
    frames: str | None = None  # folder, video, recording: whatever open_source takes
    calibration_frames: int = 128
    gate_frames: int = 128
    method: str = "minmax"
    cache: Path | None = None
    keep: tuple[str, ...] = ()  # layers that stay in high precision: names or patterns
    auto_exclude: int | None = (
        # at most this many more, the most sensitive first, where the gate fails; None: 8 where there is a
        # gate
        None
    )
    label_agreement: float | None = None
    quality: float | None = None
    gate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"no precision {self.precision!r}: wanted one of {', '.join(PRECISIONS)}")
        if self.precision == "fp16" and self.frames is None and self.gate:
            raise InputError(
                "an fp16 network is held against float32 on real frames: name some with --frames, or say --no-gate"
            )
        if self.precision == "int8" and self.frames is None:
            raise InputError(
                "int8 needs frames to calibrate on: --frames with a folder of pictures, a video or a camera's recording"
            )

    @property
    def most_excluded(self) -> int:
        """How many layers may be left out of int8 for the gate's sake."""
        return self.auto_exclude if self.auto_exclude is not None else _USUALLY_EXCLUDED if self.gate else 0

    @property
    def thresholds(self) -> Thresholds:
        """The gate's, for this precision."""
        usual = DEFAULTS[self.precision]
        return Thresholds(
            usual.label_agreement if self.label_agreement is None else self.label_agreement,
            usual.quality if self.quality is None else self.quality,
        )


@dataclass
class Lowered:
    """A network in the precision asked for. ``kept`` layers that stayed higher, whatever the reason; ``gate``
    its gate_report, None for float32; ``comparison`` the figures of every frame; ``searched`` what --auto-exclude
    tried."""

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
) -> Lowered:
    """Bring a network to a precision and judge it.

    Args:
        model: float32 network in tfiseg's format.
        settings: the precision, frames and thresholds.
        for_cpu: int8 for ONNX Runtime's CPU kernels; else for TensorRT, its other layers in float16.
        sheet: where to draw the worst frames.
        quiet: no progress bars.

    Returns:
        The network; ``gate["passed"]`` says whether it may be delivered.

    Raises:
        InputError: settings that don't fit the network. SourceError: no frames there. ModelError: the network
            can't be lowered.
    """
    model = Network(model).model
    if settings.precision == "fp32":
        return Lowered(model)
    calibration_part, gate_part = _frames(settings, quiet)
    if settings.precision == "fp16":
        kept = _high(model, settings)
        if calibration_part is not None:
            kept += [
                name
                for name in overflowing(model, calibration_part.part(0, _RANGE_FRAMES))
                if name not in kept
            ]
        lowered = Lowered(to_fp16(model, kept))
    else:
        assert calibration_part is not None
        lowered = _to_int8(model, settings, for_cpu, calibration_part, gate_part or calibration_part, quiet)
    lowered.kept = [
        layer.name for layer in layer_precisions(lowered.model) if layer.precision != settings.precision
    ]
    if not settings.gate:
        lowered.gate = {"skipped": "--no-gate"}
    elif gate_part is not None:
        _judge(model, lowered, settings, gate_part, sheet, quiet)
    return lowered


def _frames(settings: PrecisionSettings, quiet: bool) -> tuple[FrameSample | None, FrameSample | None]:
    """Frames to calibrate on and others for the gate; where there are few, a third goes to the gate."""
    if settings.frames is None:
        return None, None
    wanted = settings.calibration_frames + (settings.gate_frames if settings.gate else 0)
    sample = sample_frames(settings.frames, wanted, settings.seed, quiet)
    if not settings.gate:
        return sample, None
    if len(sample) == 1:
        return sample, sample
    for_gate = min(settings.gate_frames, max(1, round(len(sample) * settings.gate_frames / wanted)))
    return sample.part(for_gate), sample.part(0, for_gate)


def _high(model: onnx.ModelProto, settings: PrecisionSettings) -> list[str]:
    return matching_layers(find_layers(Network(model)), settings.keep)


def _to_int8(
    model: onnx.ModelProto,
    settings: PrecisionSettings,
    for_cpu: bool,
    frames: FrameSample,
    judged_on: FrameSample,
    quiet: bool,
) -> Lowered:
    scheme = Scheme(signed=not for_cpu)
    calibration: Calibration = calibrate(model, frames, settings.method, settings.cache, quiet)
    kept = list(dict.fromkeys([*edge_layers(Network(model)), *_high(model, settings)]))

    def made(excluded: list[str]) -> onnx.ModelProto:
        quantized = quantize(model, calibration, [*kept, *excluded], scheme)
        if for_cpu:
            return quantized
        return to_fp16(quantized, overflowing(quantized, frames.part(0, _RANGE_FRAMES)))

    if not settings.most_excluded:
        return Lowered(made([]))
    made_so_far: dict[int, Lowered] = {}

    def rank() -> list[tuple[str, float]]:
        _say(quiet, "int8 throughout fails the gate: looking for the layers that cost most")
        return rank_layers(model, calibration, frames.part(0, _RANKING_FRAMES), scheme, kept, quiet)

    def judge(excluded: list[str]) -> dict[str, Any]:
        lowered = made(excluded)
        comparison = _compared(model, lowered, judged_on, quiet)
        made_so_far[len(excluded)] = Lowered(lowered, comparison=comparison)
        found = gate_report(comparison, settings.thresholds)
        _say(
            quiet,
            f"{len(excluded)} layers left out: {found['label_agreement']:.2f}% of labels, PQ {found['PQ']:.1f}",
        )
        return found

    excluded, tried = exclude_until(rank, settings.most_excluded, judge)
    chosen = made_so_far[len(excluded)]
    chosen.searched = tried
    return chosen


def _judge(
    model: onnx.ModelProto,
    lowered: Lowered,
    settings: PrecisionSettings,
    frames: FrameSample,
    sheet: Path | None,
    quiet: bool,
) -> None:
    if lowered.comparison is None:
        lowered.comparison = _compared(model, lowered.model, frames, quiet)
    if sheet is not None:
        with _both(model, lowered.model) as (reference, candidate):
            worst_sheet(reference, candidate, frames, lowered.comparison, sheet)
    found = gate_report(lowered.comparison, settings.thresholds)
    if not found["passed"]:  # how much of it is the scenes' own doing?
        with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
            found["noise_floor"] = noise_floor(_segmenter(model, Path(folder, "fp32.onnx")), frames, quiet)
    lowered.gate = {
        **found,
        "reference": "fp32",
        "candidate": settings.precision,
        "source": Path(str(settings.frames)).name,
        "seed": settings.seed,
    }


def _compared(
    model: onnx.ModelProto, lowered: onnx.ModelProto, frames: FrameSample, quiet: bool
) -> Comparison:
    with _both(model, lowered) as (reference, candidate):
        return compare(reference, candidate, frames, frames.names, quiet)


@contextmanager
def _both(model: onnx.ModelProto, lowered: onnx.ModelProto) -> Iterator[tuple[Segmenter, Segmenter]]:
    with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
        yield _segmenter(model, Path(folder, "fp32.onnx")), _segmenter(lowered, Path(folder, "lowered.onnx"))


def _segmenter(model: onnx.ModelProto, path: Path) -> Segmenter:
    onnx.save(model, path)
    return Segmenter(path)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr)
