"""What the convolutions and matrix products of an ONNX network compute in. Needs onnx."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# operators whose very name says integers -> where their weights stand among the inputs
INTEGER_KINDS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1}
PRECISIONS = ("fp32", "fp16", "int8")
_PASSING = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast")
_MAX_PASSED = 100
_DOMAINS = ("", "ai.onnx", "com.microsoft")  # QGemm is of the last


@dataclass(frozen=True)
class LayerPrecision:
    """One layer: node name, operator, "fp32", "fp16" or "int8" (both operands come from DequantizeLinear, or
    the operator takes integers), multiply-accumulates of one run, where the shapes are known."""

    name: str
    op: str
    precision: str
    macs: int | None = None


def layer_precisions(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[LayerPrecision]:
    """The layers of a network in graph order, preprocessing included. Weights stored as float16 and cast to
    float32 count as float32.

    Args:
        model: an ONNX network.
        shapes: of tensors, by name, where they are known better than shape inference knows them: from a run.
    """
    import onnx

    try:
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # nodes of other domains: what is declared must do
        typed = model
    types = {i.name: i.data_type for i in model.graph.initializer}
    sizes: dict[str, Sequence[int]] = {i.name: list(i.dims) for i in model.graph.initializer}
    for value in [*typed.graph.input, *typed.graph.value_info, *typed.graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
        sizes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    sizes |= shapes or {}
    makers = {name: node for node in model.graph.node for name in node.output}
    names = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.DOUBLE: "fp64",
    }

    def dequantized(name: str) -> bool:
        node = makers.get(name)
        for _ in range(_MAX_PASSED):  # a damaged file may have a cycle
            if node is None or node.op_type not in _PASSING or not node.input:
                break
            node = makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    found = []
    for node in model.graph.node:
        if node.domain not in _DOMAINS or (node.op_type not in KINDS and node.op_type not in INTEGER_KINDS):
            continue
        ends = [*node.input[:1], *node.output[:1]]
        kind = next((types[name] for name in ends if types.get(name)), onnx.TensorProto.FLOAT)
        operands = node.input[:2]
        if node.op_type in INTEGER_KINDS or (len(operands) == 2 and all(map(dequantized, operands))):
            precision = "int8"
        else:
            precision = names.get(kind, element_name(kind).lower())
        name = node.name or next(iter(node.output), "")
        found.append(LayerPrecision(name, node.op_type, precision, _macs(node, sizes)))
    return found


def element_name(element: int) -> str:
    """Name a tensor's element type as ONNX does, such as "FLOAT"; damaged files hold unknown ones."""
    import onnx

    known = element in onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(element) if known else f"element type {element}"


def _macs(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> int | None:
    place = INTEGER_KINDS.get(node.op_type, 1)
    if len(node.input) <= place or not node.output:  # of a damaged file
        return None
    weights = node.input[place]
    out, weight, data = (sizes.get(name, []) for name in (node.output[0], weights, node.input[0]))
    if not out or not all(out) or not weight or not all(weight):
        return None
    if (
        "Conv" in node.op_type
    ):  # each weight of a channel is used once per pixel of the result; transposed: of the input
        over = data if node.op_type == "ConvTranspose" else out
        return math.prod(over) * math.prod(weight[1:]) if over and all(over) else None
    transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
    return math.prod(out) * weight[-1 if transposed or len(weight) == 1 else -2]
