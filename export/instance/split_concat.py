"""Split convolutions of concatenations, which makes them faster in ONNX Runtime.

ONNX Runtime's fast convolutions need a multiple of 16 input channels (or fewer than 16). With 65 channels, 64
features and a mask, a convolution takes three times as long. ``conv(concat(a, b))`` equals ``conv_a(a) +
conv_b(b)`` if the weights are split in the same way.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_BLOCK = 16  # channels


def split_convolutions(model: onnx.ModelProto) -> None:
    """Split the convolutions of a concatenation that are slow, in place.

    Args:
        model: a simplified model.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.input, *inferred.value_info)}
    channels = {name: shape[1].dim_value for name, shape in shapes.items() if len(shape) == 4}
    graph = model.graph
    outputs = {o.name for o in graph.output}
    weights = {i.name: i for i in graph.initializer}
    while True:
        producer = {o: n for n in graph.node for o in n.output}
        users = Counter(name for n in graph.node for name in n.input)
        for position, conv in enumerate(graph.node):
            concat = producer.get(conv.input[0]) if conv.op_type == "Conv" else None
            if concat is None or concat.op_type != "Concat" or users[concat.output[0]] > 1:
                continue
            widths = [channels[name] for name in concat.input]
            group = next((a.i for a in conv.attribute if a.name == "group"), 1)
            axis = next(a.i for a in concat.attribute if a.name == "axis")
            depthwise = group == sum(widths) == weights[conv.input[1]].dims[0]
            if (
                sum(widths) % _BLOCK == 0
                or axis != 1
                or not (group == 1 or depthwise)
                or concat.output[0] in outputs
            ):
                continue
            nodes = _split_convolution(conv, concat, widths, weights, channels)
            del graph.node[position]
            graph.node.remove(concat)
            at = position - 1
            for node in reversed(nodes):
                graph.node.insert(at, node)
            break
        else:
            break
    used = {name for n in graph.node for name in n.input}
    kept = [i for name, i in weights.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _split_convolution(
    conv: onnx.NodeProto,
    concat: onnx.NodeProto,
    widths: list[int],
    weights: dict[str, onnx.TensorProto],
    channels: dict[str, int],
) -> list[onnx.NodeProto]:
    """Return nodes that replace a concatenation and a convolution; adds to ``weights`` and ``channels``."""
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    weight = numpy_helper.to_array(weights[conv.input[1]])
    bias = numpy_helper.to_array(weights[conv.input[2]]) if len(conv.input) > 2 else None
    depthwise = attributes.get("group", 1) == sum(widths)
    ends = np.cumsum(widths)[:-1]
    kernels = np.split(weight, ends, 0 if depthwise else 1)
    biases: list[NDArray[np.float32] | None] = [bias, *[None] * (len(widths) - 1)]
    if depthwise and bias is not None:
        biases = list(np.split(bias, ends))
    out, nodes, parts = conv.output[0], [], []
    for k, (name, width, kernel, part_bias) in enumerate(
        zip(concat.input, widths, kernels, biases, strict=True)
    ):
        inputs = [name]
        for kind, value in (("weight", kernel), ("bias", part_bias)):
            if value is not None:
                inputs.append(f"{out}/{k}/{kind}")
                weights[inputs[-1]] = numpy_helper.from_array(np.ascontiguousarray(value), inputs[-1])
        parts.append(f"{out}/{k}")
        channels[parts[-1]] = kernel.shape[0]
        nodes.append(
            helper.make_node(
                "Conv", inputs, [parts[-1]], parts[-1], **attributes | {"group": width if depthwise else 1}
            )
        )
    if depthwise:
        return [*nodes, helper.make_node("Concat", parts, [out], f"{out}/parts", axis=1)]
    for k, name in enumerate(parts[1:], 1):
        total = out if k == len(parts) - 1 else f"{out}/sum{k}"
        nodes.append(
            helper.make_node("Add", [parts[0] if k == 1 else f"{out}/sum{k - 1}", name], [total], total)
        )
    return nodes
