"""What a network's output holds: the operator that ends it, and its values on several frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ...errors import ModelError
from .output_layout import OutputLayout

EVIDENCE_FRAMES = 8
IGNORED_ID = 255
_MAX_IDS = 300
_LARGEST = 1e30  # stands for infinity
_NEAR = 0.1  # a probability so close to 0 or 1 is decided
_ACTIVATIONS = ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "ArgMax")
# operators that keep every value, or average neighbors
_KEEPS_VALUES = (
    *("Identity", "Cast", "Dropout", "Round", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose"),
    *("Slice", "Gather", "Split", "Resize", "Upsample", "AveragePool", "MaxPool", "DepthToSpace", "Clip"),
    "Concat",
)


@dataclass(frozen=True)
class FinalActivation:
    """The sigmoid, softmax or argmax at a network's end."""

    kind: str | None = None  # the operator's type; None: the network has no such operator
    factor: float = 1.0  # the values are multiplied by it after the operator
    channels: int = 0  # of the operator's input, 0 = unknown


def find_final_activation(model: onnx.ModelProto) -> FinalActivation:
    """Walk back from a network's only output to the sigmoid, softmax or argmax that its values come from."""
    graph = model.graph
    producer = {o: n for n in graph.node for o in n.output}
    constants = {i.name: i for i in graph.initializer}
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.input]
    }
    name, factor = graph.output[0].name, 1.0
    while (node := producer.get(name)) is not None:
        if node.op_type in _ACTIVATIONS:
            shape = shapes.get(node.input[0], [])
            axis = next(
                (a.i for a in node.attribute if a.name == "axis"), 0 if node.op_type == "ArgMax" else -1
            )
            known = bool(shape) and -len(shape) <= axis < len(shape)
            return FinalActivation(node.op_type, factor, shape[axis] if known else 0)
        if node.op_type in _KEEPS_VALUES:
            name = node.input[0]
            continue
        scaled = _rescale_mask(node, constants)
        if scaled is None:
            return FinalActivation()
        name, factor = scaled[0], factor * scaled[1]
    return FinalActivation()


def _rescale_mask(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> tuple[str, float] | None:
    """Return input and factor of a product with a positive scalar; None for other operators."""
    if node.op_type not in ("Mul", "Div") or len(node.input) != 2:
        return None
    places = [k for k in (0, 1) if node.input[k] in constants]
    if len(places) != 1 or (node.op_type == "Div" and places == [0]):
        return None
    value = numpy_helper.to_array(constants[node.input[places[0]]])
    if value.size < 1 or np.ptp(value) != 0 or float(value.flat[0]) <= 0:
        return None
    factor = float(value.flat[0])
    return node.input[1 - places[0]], factor if node.op_type == "Mul" else 1 / factor


@dataclass(frozen=True)
class OutputEvidence:
    """Values of a network's output on several frames."""

    frames: int  # number of frames
    synthetic: bool  # they are drawn, not photos
    channels: int  # C of the output
    whole_type: bool  # the output's type holds whole numbers only
    # low, high: extreme values
    low: float
    high: float
    whole: float  # share of values that are whole numbers
    ids: tuple[int, ...]  # the different values, if there are few and all are whole
    decided: float  # share of values within 10 % of the range from 0 or from ``factor``
    sums: tuple[float, float]  # extremes of the sum over the channels
    exp_sums: tuple[float, float]  # the same of the exponentials
    # none, several: share of pixels in which no channel, or more than one, exceeds half of ``factor``
    none: float
    several: float
    negative: float  # share of pixels in which all channels are negative
    final_activation: FinalActivation  # from ``find_final_activation``

    @property
    def where(self) -> str:
        kind = "synthetic frame" if self.synthetic else "photo"
        return f"{self.frames} {kind}{'s' * (self.frames != 1)}"

    @property
    def values(self) -> str:
        return f"values from {self.low:.4g} to {self.high:.4g} on {self.where}"


def collect_evidence(
    run: Callable[[NDArray[np.uint8]], NDArray[Any]],
    frames: Iterable[tuple[str, NDArray[np.uint8]]],
    layout: OutputLayout,
    final_activation: FinalActivation,
    synthetic: bool,
) -> OutputEvidence:
    """Describe a network's output on up to 8 frames; raises ModelError for NaN and for equal outputs."""
    summaries: list[dict[str, Any]] = []
    ids: set[int] | None = set()
    whole_type = True
    for name, frame in islice(frames, EVIDENCE_FRAMES):
        raw = run(frame)
        require_numbers(raw, name)
        whole_type = raw.dtype.kind in "iub"
        maps = np.clip(layout.maps(raw).astype(np.float32), -_LARGEST, _LARGEST)
        summaries.append(_describe(maps, final_activation.factor))
        if ids is not None:
            values = np.unique(maps)
            few = summaries[-1]["whole"] == 1 and len(values) <= _MAX_IDS
            ids = ids | {int(v) for v in values} if few else None
    if len(summaries) > 1 and len({s["digest"] for s in summaries}) == 1:
        raise ModelError(
            f"the network's output is the same for {len(summaries)} different frames: its weights or its "
            f"input are damaged. Export it again from the trained network"
        )

    def mean(key: str) -> float:
        return float(np.mean([s[key] for s in summaries]))

    def extremes(key: str) -> tuple[float, float]:
        return min(s[key][0] for s in summaries), max(s[key][1] for s in summaries)

    low, high = extremes("range")
    return OutputEvidence(
        frames=len(summaries),
        synthetic=synthetic,
        channels=layout.channels,
        whole_type=whole_type,
        low=low,
        high=high,
        ids=tuple(sorted(ids or ())),
        sums=extremes("sums"),
        exp_sums=extremes("exp_sums"),
        **{name: mean(name) for name in ("whole", "decided", "none", "several", "negative")},
        final_activation=final_activation,
    )


def _describe(maps: NDArray[np.float32], factor: float) -> dict[str, Any]:
    on = (maps > 0.5 * factor).sum(0)
    sums = maps.sum(0, dtype=np.float64)
    with np.errstate(over="ignore"):
        exp_sums = np.exp(maps.astype(np.float64)).sum(0)
    return {
        "range": (float(maps.min()), float(maps.max())),
        "whole": float((maps == np.rint(maps)).mean()),
        "decided": float((np.minimum(abs(maps), abs(maps - factor)) <= _NEAR * factor).mean()),
        "sums": (float(sums.min()), float(sums.max())),
        "exp_sums": (float(exp_sums.min()), float(exp_sums.max())),
        "none": float((on == 0).mean()),
        "several": float((on > 1).mean()),
        "negative": float((maps.max(0) < 0).mean()),
        "digest": hash(maps.tobytes()),
    }


def require_numbers(raw: NDArray[Any], frame: str) -> None:
    """Raise ModelError if an output contains NaN, or nothing finite."""
    if raw.dtype.kind not in "fiub":
        raise ModelError(f"the network's output holds {raw.dtype}, expected numbers")
    wrong = np.isnan(raw) if raw.dtype.kind == "f" else np.zeros(1, bool)
    if wrong.any():
        raise ModelError(
            f"the network's output for {frame} contains NaN ({math.ceil(100 * wrong.mean())}% of its "
            f"values): it overflows, or divides by 0. Check the preprocessing (--mean, --std, --scale), and "
            f"export it in float32"
        )
