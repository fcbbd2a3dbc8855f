"""Prove the precision of each convolution and matrix product of an engine.

There are three witnesses: the network as parsed by TensorRT, the builder's report of its layers, and, if a
    GPU can
load the engine, the engine inspector. The first shows the request, the others show the result. They can
differ: with a scale of shape (1,) instead of a scalar, TensorRT-RTX 1.7 accepts a Q/DQ network and silently
builds float kernels.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ...errors import EngineError

_LAYERS = "Layers:"
_POINTWISE = ("kgen", "shape_call", "avgpool", "maxpool", "pooling", "shuffle", "reformat", "constant")
_TYPES = {"int8": "int8", "half": "fp16", "float": "fp32", "fp16": "fp16", "fp32": "fp32"}
_ORDER = ("int8", "fp16", "fp32")


@dataclass
class LayerReport:
    """The builder's log: its layer messages and its errors."""

    messages: list[str] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)

    def add(self, severity: int, message: str) -> None:
        """Add a message; severities 0 and 1 are errors."""
        if severity <= 1:
            self._wrong.append(message.strip())
        elif message.startswith(_LAYERS):
            self.messages.append(message)

    def errors(self) -> str:
        """Return the errors so far, in one line."""
        return "; ".join(dict.fromkeys(self._wrong))


def read_log(messages: Collection[str]) -> dict[str, str]:
    """Read the precision of ONNX nodes from the builder's "Layers:" messages.

    The builder writes them with profiling verbosity DETAILED.
    """
    found: dict[str, str] = {}
    for line in (line for message in messages for line in message.splitlines()):
        kind, metadata = re.search(r"LayerType: (\w+)", line), re.search(r"Metadata: (.*)", line)
        inputs = re.search(r"Inputs: \[(.*?)\], (?:Constants|Outputs):", line)
        if kind and metadata and inputs and kind.group(1).lower() not in _POINTWISE:
            _record_layer(found, metadata.group(1), re.findall(r"Datatype: (\w+)", inputs.group(1)))
    return found


def read_inspector(text: str) -> dict[str, str]:
    """Read the precision of ONNX nodes from the engine inspector's JSON."""
    found: dict[str, str] = {}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, dict) and str(layer.get("LayerType", "")).lower() not in _POINTWISE:
            kinds = [
                str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "").split(" ")[0]
                for tensor in layer.get("Inputs", [])
            ]
            _record_layer(found, str(layer.get("Metadata", "")), kinds)
    return found


def _record_layer(found: dict[str, str], metadata: str, kinds: Collection[str]) -> None:
    """Record a layer of the engine: all its ONNX nodes compute in the type of its first input."""
    precisions = [_TYPES[kind.lower()] for kind in kinds if kind.lower() in _TYPES]
    for name in re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata):
        if precisions:
            # the pointwise part of a node may be in another layer: the lowest precision counts
            found[name] = min(precisions[0], found.get(name, "fp32"), key=_ORDER.index)


def prove(expected: Mapping[str, str], witnesses: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Compare the expected precision of every layer with every witness.

    Args:
        expected: precision of the convolutions and matrix products in the graph, by ONNX node name.
        witnesses: from ``BuiltPlan``.

    Returns:
        ``layers``: number of layers in fp32, fp16 and int8; ``proved_by``: number of layers that each witness
        names.

    Raises:
        EngineError: a witness contradicts, or no witness names a layer.
    """
    silent = [name for name in expected if not any(name in found for found in witnesses.values())]
    if silent or not witnesses:
        raise EngineError(
            f"no witness names the precision of {len(silent)} of {len(expected)} layers: "
            f"{', '.join(silent[:5])}"
        )
    for witness, found in witnesses.items():
        wrong = {
            name: found[name] for name, kind in expected.items() if name in found and found[name] != kind
        }
        if wrong:
            some = ", ".join(
                f"{name} is {got}, expected {expected[name]}" for name, got in list(wrong.items())[:5]
            )
            raise EngineError(
                f"by the {witness}, {len(wrong)} of {len(expected)} layers compute in another precision "
                f"({some}). No engine was written"
            )
    counts = Counter(expected.values())
    return {
        "layers": {precision: counts.get(precision, 0) for precision in ("fp32", "fp16", "int8")},
        "proved_by": {
            witness: sum(name in found for name in expected) for witness, found in witnesses.items()
        },
    }
