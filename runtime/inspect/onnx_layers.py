"""The precision of the convolutions and matrix products of an ONNX network. Needs onnx."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# operators on integers -> index of their weights among the inputs
INTEGER_KINDS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1}
PRECISIONS = ("fp32", "fp16", "int8")
_SHAPE_OPERATORS = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Cast")
_MAX_SKIPPED = 100  # a damaged file may have a cycle
_DOMAINS = ("", "ai.onnx", "com.microsoft")  # QGemm is of the last


@dataclass(frozen=True)
class LayerPrecision:
    """The precision of one layer."""

    name: str  # name of the node, or of its output if the node has none
    op: str
    precision: str  # "fp32", "fp16" or "int8" (both operands are dequantized, or the operator takes integers)
    macs: int | None = None  # multiply-accumulates of one run; None if a shape is unknown


def layer_precisions(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[LayerPrecision]:
    """Return the layers of a network in graph order, including preprocessing.

    Weights that are stored as float16 and cast to float32 count as float32.

    Args:
        shapes: tensor name -> shape from a run; other shapes are inferred.
    """
    import onnx

    try:
        typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # nodes of other domains: only the declared shapes are known
        typed = model
    types = {i.name: i.data_type for i in model.graph.initializer}
    sizes: dict[str, Sequence[int]] = {i.name: list(i.dims) for i in model.graph.initializer}
    for value in [*typed.graph.input, *typed.graph.value_info, *typed.graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
        sizes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    sizes |= shapes or {}
    producers = {name: node for node in model.graph.node for name in node.output}
    names = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.DOUBLE: "fp64",
    }

    def is_dequantized(name: str) -> bool:
        node = producers.get(name)
        for _ in range(_MAX_SKIPPED):
            if node is None or node.op_type not in _SHAPE_OPERATORS or not node.input:
                break
            node = producers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    layers = []
    for node in model.graph.node:
        if node.domain not in _DOMAINS or (node.op_type not in KINDS and node.op_type not in INTEGER_KINDS):
            continue
        data = [*node.input[:1], *node.output[:1]]
        element = next((types[name] for name in data if types.get(name)), onnx.TensorProto.FLOAT)
        operands = node.input[:2]
        if node.op_type in INTEGER_KINDS or (len(operands) == 2 and all(map(is_dequantized, operands))):
            precision = "int8"
        else:
            precision = names.get(element, element_name(element).lower())
        name = node.name or next(iter(node.output), "")
        layers.append(LayerPrecision(name, node.op_type, precision, _macs(node, sizes)))
    return layers


def element_name(element: int) -> str:
    """Return ONNX's name of an element type, such as "FLOAT"; damaged files contain unknown types."""
    import onnx

    known = element in onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(element) if known else f"element type {element}"


def _macs(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> int | None:
    weight_index = INTEGER_KINDS.get(node.op_type, 1)
    if len(node.input) <= weight_index or not node.output:  # a damaged file
        return None
    weights = node.input[weight_index]
    out, weight, data = (sizes.get(name, []) for name in (node.output[0], weights, node.input[0]))
    if not out or not all(out) or not weight or not all(weight):
        return None
    if "Conv" in node.op_type:  # each weight is used once per output pixel; transposed: per input pixel
        pixels = data if node.op_type == "ConvTranspose" else out
        return math.prod(pixels) * math.prod(weight[1:]) if pixels and all(pixels) else None
    transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
    return math.prod(out) * weight[-1 if transposed or len(weight) == 1 else -2]
