"""Replace uint8 inputs of networks by float32 with the same integers, 0..255.

TensorRT has no uint8 tensors between layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

# operators that move values of their first input, whatever the type
_MOVES = (
    *("DepthToSpace", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)
_ENDS = ("Cast", "DequantizeLinear")


def with_float_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the cast to uint8 behind its preprocessing.

    The network's own conversion of the bytes, a Cast or DequantizeLinear, then reads float32. The model is
    returned as it is if it has no such cast, or if another operator computes with the bytes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    producers = {name: node for node in graph.node for name in node.output}
    casts = [node for node in graph.node if _is_cast_to_bytes(node, producers)]
    if len(casts) != 1 or casts[0].output[0] in {o.name for o in graph.output}:
        return model
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node_reads(node):
            readers.setdefault(name, []).append(node)
    moved, ends = _followers(casts[0].output[0], readers)
    scalars = {i.name for i in graph.initializer if [*i.dims] in ([], [1])}
    if not all(_is_conversion(node, moved, scalars) for node in ends):
        return model
    for node in ends:
        if node.op_type == "DequantizeLinear":
            _replace_dequantize(graph, node)
    _bypass(graph, casts[0])
    kept = [value for value in graph.value_info if value.name not in moved]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return result


def _is_cast_to_bytes(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> bool:
    """Return whether a node is the last step of ``frame_graph.pixel_nodes`` for bytes."""
    rounds = producers.get(node.input[0]) if node.op_type == "Cast" else None
    is_ours = rounds is not None and rounds.op_type == "Round" and rounds.output[0] == "pre.whole"
    return is_ours and node.attribute[0].i == TensorProto.UINT8


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the branches and loop bodies of a node."""
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs


def node_reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, including reads within its branches and loops."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from node_reads(inner)
        yield from (output.name for output in graph.output)


def _followers(
    tensor: str, readers: dict[str, list[onnx.NodeProto]]
) -> tuple[set[str], list[onnx.NodeProto]]:
    """Return the tensors that hold the bytes, moved or not, and the other nodes that read them."""
    moved, ends, waiting = {tensor}, [], [tensor]
    while waiting:
        name = waiting.pop()
        for node in readers.get(name, []):
            if node.op_type in _MOVES and node.input[0] == name and name not in node.input[1:]:
                new = [output for output in node.output if output not in moved]
                moved.update(new)
                waiting += new
            else:
                ends.append(node)
    return moved, ends


def _is_conversion(node: onnx.NodeProto, moved: set[str], scalars: set[str]) -> bool:
    """Return whether a node only converts the bytes to another type, the same way for all channels."""
    return (
        node.op_type in _ENDS
        and not moved.intersection(node.input[1:])
        and all(name in scalars for name in node.input[1:] if name)
    )


def _replace_dequantize(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Write (x - zero point) * scale in float32."""
    at = list(graph.node).index(node)
    x, scale, *zero_point = [name for name in node.input if name]
    steps, tensor = [], x
    if zero_point:
        zero, shifted = f"{node.output[0]}.zero_point", f"{node.output[0]}.shifted"
        steps.append(helper.make_node("Cast", [zero_point[0]], [zero], to=TensorProto.FLOAT))
        steps.append(helper.make_node("Sub", [x, zero], [shifted]))
        tensor = shifted
    steps.append(helper.make_node("Mul", [tensor, scale], [node.output[0]]))
    graph.node.remove(node)
    for k, step in enumerate(steps):
        graph.node.insert(at + k, step)


def _bypass(graph: onnx.GraphProto, cast: onnx.NodeProto) -> None:
    """Remove a cast; its input takes the name of its output, which other code uses."""
    (producer,) = (node for node in graph.node if cast.input[0] in node.output)
    producer.output[0] = cast.output[0]
    graph.node.remove(cast)
