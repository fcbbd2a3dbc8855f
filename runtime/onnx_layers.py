"""What the convolutions and matrix products of an ONNX network compute in. Needs onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PRECISIONS = ("fp32", "fp16", "int8")
_PASSING = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class LayerPrecision:
    """One layer: node name, operator, "fp32", "fp16" or "int8" (both operands come from DequantizeLinear), multiply-accumulates at the
    network's own size, where the shapes are known."""

    name: str
    op: str
    precision: str
    macs: int | None = None


def layer_precisions(model: onnx.ModelProto) -> list[LayerPrecision]:
    """The layers of a network in graph order, preprocessing included. Weights stored as float16 and cast to float32 count as float32."""
    import onnx

    try:
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # nodes of other domains: what is declared must do
        typed = model
    types = {i.name: i.data_type for i in model.graph.initializer}
    shapes: dict[str, list[int]] = {i.name: list(i.dims) for i in model.graph.initializer}
    for value in [*typed.graph.input, *typed.graph.value_info, *typed.graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
        shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    makers = {name: node for node in model.graph.node for name in node.output}
    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.DOUBLE: "fp64"}

    def dequantised(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in _PASSING:
            node = makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    found = []
    for node in model.graph.node:
        if node.op_type not in KINDS or node.domain not in ("", "ai.onnx"):
            continue
        pair = all(dequantised(name) for name in node.input[:2])
        kind = types.get(node.input[0]) or types.get(node.output[0]) or onnx.TensorProto.FLOAT
        macs = _macs(node, shapes)
        found.append(LayerPrecision(node.name or node.output[0], node.op_type, "int8" if pair else names.get(kind, str(kind)), macs))
    return found


def _macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int | None:
    out, weight, data = (shapes.get(name, []) for name in (node.output[0], node.input[1], node.input[0]))
    if not out or not all(out) or not weight or not all(weight):
        return None
    total = 1
    for side in out:
        total *= side
    if node.op_type == "Conv":
        for side in weight[1:]:
            total *= side
        return total
    if node.op_type == "ConvTranspose":
        if not data or not all(data):
            return None
        total = 1
        for side in [*data, *weight[1:]]:
            total *= side
        return total
    return total * (data[-1] if data and data[-1] else weight[0])
