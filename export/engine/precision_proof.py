"""Precision is proved, not assumed: what each convolution and matrix product of an engine computes in, from
every witness there is.

Three witnesses: the network as TensorRT has parsed it, the builder's own report of the layers it made, and
the engine inspector where a GPU lets the engine be loaded. The first says what was asked, the other two what
was made of it. They do differ: with a scale of shape (1,) in place of a scalar, TensorRT-RTX 1.7 takes a Q/DQ
network, builds float kernels, and says nothing.
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
    """The builder's log: what it wrote of its layers, and its errors."""

    messages: list[str] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)

    def add(self, severity: int, message: str) -> None:
        """Take in a line; 0 and 1 are errors."""
        if severity <= 1:
            self._wrong.append(message.strip())
        elif message.startswith(_LAYERS):
            self.messages.append(message)

    def errors(self) -> str:
        """The errors so far, in one line."""
        return "; ".join(dict.fromkeys(self._wrong))


def read_log(messages: Collection[str]) -> dict[str, str]:
    """Precision by ONNX node from the builder's "Layers:" messages (profiling verbosity DETAILED)."""
    found: dict[str, str] = {}
    for line in (line for message in messages for line in message.splitlines()):
        kind, metadata = re.search(r"LayerType: (\w+)", line), re.search(r"Metadata: (.*)", line)
        inputs = re.search(r"Inputs: \[(.*?)\], (?:Constants|Outputs):", line)
        if kind and metadata and inputs and kind.group(1).lower() not in _POINTWISE:
            _note(found, metadata.group(1), re.findall(r"Datatype: (\w+)", inputs.group(1)))
    return found


def read_inspector(text: str) -> dict[str, str]:
    """Precision by ONNX node from the engine inspector's JSON."""
    found: dict[str, str] = {}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, dict) and str(layer.get("LayerType", "")).lower() not in _POINTWISE:
            kinds = [
                str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "").split(" ")[0]
                for tensor in layer.get("Inputs", [])
            ]
            _note(found, str(layer.get("Metadata", "")), kinds)
    return found


def _note(found: dict[str, str], metadata: str, kinds: Collection[str]) -> None:
    """One made layer: all ONNX nodes that went into it compute in the type of its first input."""
    precisions = [_TYPES[kind.lower()] for kind in kinds if kind.lower() in _TYPES]
    for name in re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata):
        if precisions:
            # a node may have left its pointwise part in another layer: the lowest is its own
            found[name] = min(precisions[0], found.get(name, "fp32"), key=_ORDER.index)


def prove(expected: Mapping[str, str], witnesses: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Hold what is wanted of every layer against every witness.

    Args:
        expected: precision by ONNX node name, of the convolutions and matrix products, as the graph asks for
            it.
        witnesses: from ``Built``.

    Returns:
        ``layers``: how many in fp32, fp16, int8, by the best witness; ``proved_by``: per witness how many
        layers it spoke of.

    Raises:
        EngineError: a witness contradicts, or none speaks of a layer.
    """
    silent = [name for name in expected if not any(name in found for found in witnesses.values())]
    if silent or not witnesses:
        raise EngineError(
            f"no witness says what {len(silent)} of {len(expected)} layers compute in: {', '.join(silent[:5])}"
        )
    for witness, found in witnesses.items():
        wrong = {
            name: found[name] for name, wanted in expected.items() if name in found and found[name] != wanted
        }
        if wrong:
            some = ", ".join(
                f"{name} is {got}, wanted {expected[name]}" for name, got in list(wrong.items())[:5]
            )
            raise EngineError(
                f"the engine is not what was asked for: by the {witness}, {len(wrong)} of {len(expected)} layers compute in another "
                f"precision ({some}). No engine was written"
            )
    counts = Counter(expected.values())
    return {
        "layers": {precision: counts.get(precision, 0) for precision in ("fp32", "fp16", "int8")},
        "proved_by": {
            witness: sum(name in found for name in expected) for witness, found in witnesses.items()
        },
    }
