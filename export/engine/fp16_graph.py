"""Convert a network to float16, except for its preprocessing and outputs.

TensorRT 11 and TensorRT-RTX read the precision from the network alone. With the precision in the graph, one
file means the same to every runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ...calibration.graph import Network, attributes, run_tensors
from ...errors import ModelError
from ..frame_graph import POSTPROCESSING_PREFIX

FP16_OPSET = 19  # the first with float16 in QuantizeLinear and DequantizeLinear
_MAX_MAGNITUDE = 0.5 * float(np.finfo(np.float16).max)
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)


def to_fp16(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Convert everything after a network's preprocessing to float16.

    Args:
        model: float32 network, possibly with Q/DQ pairs. Nodes before the tensor ``image`` are not changed.
        keep: names of nodes that stay in float32; see ``find_overflowing_nodes``.

    Returns:
        A network with the inputs and outputs of ``model``; outputs stay float32.

    Raises:
        ModelError: onnxruntime's converter can't convert it.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    network = Network(_at_least_opset(model, FP16_OPSET))
    typed = onnx.shape_inference.infer_shapes(network.model, data_prop=True)
    types = {v.name: v for v in [*typed.graph.value_info, *typed.graph.output, *typed.graph.input]}
    before = network.preprocessing()
    front = [node for node in network.graph.node if node.output[0] in before]
    back = [node for node in network.graph.node if node.output[0] not in before]
    made_by_front = {name for node in front for name in node.output} | {i.name for i in network.graph.input}
    crossing = list(dict.fromkeys(name for node in back for name in node.input if name in made_by_front))
    part = onnx.ModelProto()
    part.CopyFrom(network.model)
    del part.graph.node[:], part.graph.input[:], part.graph.value_info[:], part.graph.initializer[:]
    part.graph.node.extend(back)
    part.graph.input.extend(types[name] for name in crossing)
    read = {name for node in back for name in node.input}
    part.graph.initializer.extend(i for i in network.graph.initializer if i.name in read)
    kept = _whole_layers(network, [*keep, *_tiny_scales(network), *_log_odds_nodes(network)])
    try:
        half = convert_float_to_float16(part, keep_io_types=True, node_block_list=kept)
    except Exception as wrong:  # its errors share no base class
        raise ModelError(f"the network can't be converted to float16: {wrong!r}") from wrong
    whole = onnx.ModelProto()
    whole.CopyFrom(network.model)
    del whole.graph.node[:], whole.graph.initializer[:], whole.graph.value_info[:]
    whole.graph.node.extend([*front, *half.graph.node])
    read = {name for node in front for name in node.input}
    have = {i.name for i in half.graph.initializer}
    for tensor in network.graph.initializer:
        if tensor.name in read and tensor.name not in have:
            whole.graph.initializer.append(tensor)
        elif (
            tensor.name in read
            and next(i for i in half.graph.initializer if i.name == tensor.name).data_type != tensor.data_type
        ):
            raise ModelError(
                f"preprocessing and network share the constant {tensor.name}: export the network again"
            )
    whole.graph.initializer.extend(half.graph.initializer)
    result = Network(whole)
    _drop_round_trips(result)
    result.sort()
    return result.model


def _drop_round_trips(network: Network) -> None:
    """Remove casts to float16 and back, which the converter inserts between nodes that stay float32.

    They would reduce precision and hide a Q/DQ pair from the layer that reads it.
    """
    for node in list(network.graph.node):
        first = network.producer.get(node.input[0]) if node.op_type == "Cast" else None
        if first is None or first.op_type != "Cast" or node.output[0] in network.outputs:
            continue
        if (attributes(first)["to"], attributes(node)["to"]) != (TensorProto.FLOAT16, TensorProto.FLOAT):
            continue
        for reader in network.consumers.get(node.output[0], []):
            reader.input[:] = [first.input[0] if name == node.output[0] else name for name in reader.input]
        network.graph.node.remove(node)
        network.index()
        if not network.consumers.get(first.output[0]) and first.output[0] not in network.outputs:
            network.graph.node.remove(first)
            network.index()


def find_overflowing_nodes(model: onnx.ModelProto, frames: Iterable[NDArray[np.uint8]]) -> list[str]:
    """Find nodes whose values or weights exceed float16's range; they must stay in float32.

    Args:
        model: float32 network.
        frames: uint8 (H, W, 3) each. A few are enough, because half of float16's range is kept as a margin.
    """
    network = Network(model)
    typed = onnx.shape_inference.infer_shapes(network.model, data_prop=True)
    floats = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    watched = sorted(floats - network.preprocessing())
    large = {
        i.name
        for i in network.graph.initializer
        if i.data_type == TensorProto.FLOAT and _overflows(network.weight(i.name))
    }
    for values in run_tensors(network.model, watched, frames):
        large |= {name for name, value in values.items() if _overflows(value)}
    return [node.name for node in network.graph.node if not large.isdisjoint([*node.input, *node.output])]


def _overflows(values: NDArray[np.float32]) -> bool:
    finite = values[np.isfinite(values)]  # minus infinity, used as a mask, exists in float16
    return bool(finite.size) and float(np.abs(finite).max()) > _MAX_MAGNITUDE


def _tiny_scales(network: Network) -> list[str]:
    """Find Q/DQ nodes whose scales would lose precision in float16."""
    found = []
    for node in network.graph.node:
        pair = node.op_type in _PAIR and network.has_weight(node.input[1])
        if pair and float(np.abs(network.weight(node.input[1])).min()) < _SMALLEST_SCALE:
            found.append(node.name)
    return found


def _log_odds_nodes(network: Network) -> list[str]:
    """Find the nodes that turn probabilities into logits (``export.onnx_import.logit_nodes``).

    In float16, the largest probability rounds to 1, and its log-odds are infinite. Matrix products, which
    average probabilities, may use float16, because the largest is limited after them."""
    own = [node for node in network.graph.node if node.name.startswith(POSTPROCESSING_PREFIX)]
    if all(node.op_type != "Log" for node in own):
        return []
    return [node.name for node in own if node.op_type != "MatMul"]


def _whole_layers(network: Network, names: Collection[str]) -> list[str]:
    """Add the nodes that must have the same float type as those named: a layer, and all Q/DQ pairs it reads.

    TensorRT-RTX rejects a matrix product of two int8 tensors whose scales differ in type.
    """
    by_name = {node.name: node for node in network.graph.node}
    kept = dict.fromkeys(names)
    todo = [by_name[name] for name in names if name in by_name]
    while todo:
        node = todo.pop()
        made_by = [network.producer[name] for name in node.input if name in network.producer]
        read_by = network.consumers.get(node.output[0], []) if node.op_type in _PAIR else []
        for other in [n for n in made_by if n.op_type in _PAIR] + read_by:
            # an ordinary node before a pair may have any type, because a cast is inserted
            if other.name not in kept:
                kept[other.name] = None
                todo.append(other)
    return list(kept)


def _at_least_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model in this opset or a newer one; raises ModelError if onnx can't convert it."""
    now = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if now >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as wrong:  # onnx's converter raises RuntimeError and its own errors
        raise ModelError(f"the network's opset {now} can't be converted to {opset}: {wrong}") from wrong
