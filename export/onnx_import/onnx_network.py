"""Convert an ONNX network to tfiseg's format: find its layout, then add preprocessing and logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...errors import InputError, ModelError, did_you_mean
from ...runtime.inspect.onnx_layers import element_name
from ...runtime.networks.model_info import METADATA_KEY
from ..byte_pixels import node_reads, subgraphs, with_float_pixels
from ..frame_graph import (
    MODEL_IR_VERSION,
    POSTPROCESSING_PREFIX,
    Layout,
    Part,
    PixelFormat,
    fixed_size_nodes,
    frame_value,
    pixel_nodes,
)

OPSET = 18
OLDEST_OPSET = 13  # the first whose Resize needs only sizes and whose Softmax uses one axis
_FIRST_HALF_PIXEL_OPSET = 11  # before, bilinear resizing was asymmetric
_OWN_NAMES = ("frame", "image", "logits")
_OWN_PREFIXES = ("pre.", POSTPROCESSING_PREFIX)


@dataclass(frozen=True)
class NetworkInput:
    """The input of a network; ``size_hw`` is None if it accepts any size."""

    name: str
    layout: Layout
    element: int
    size_hw: tuple[int, int] | None

    @property
    def uint8(self) -> bool:
        return self.element == TensorProto.UINT8


def load_network(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with all its weights.

    Raises:
        ModelError: the file or its weights are missing, or it isn't ONNX.
        InputError: it is in tfiseg's format already."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as wrong:  # protobuf's errors share no base class across its versions
        raise ModelError(f"{path} is no ONNX file ({wrong})") from wrong
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX file, or one without a single operator")
    if foreign := sorted({n.op_type for n in model.graph.node if n.domain.startswith("com.microsoft")}):
        raise ModelError(
            f"{path} holds operators of ONNX Runtime ({', '.join(foreign)}, com.microsoft): ONNX Runtime "
            f"optimized or quantized it. Export the file from before that step"
        )
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as wrong:  # FileNotFoundError or a validation error, by version
        missing = sorted(
            {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        )
        raise ModelError(
            f"{path} keeps its weights in {', '.join(missing)}, which can't be read: {wrong}. Put it into "
            f"the same folder"
        ) from wrong
    if any(p.key == METADATA_KEY for p in model.metadata_props):
        raise InputError(
            f"{path} is in tfiseg's format already. Use it directly: `tfiseg run --model`, `tfiseg build`"
        )
    return model


def with_output_shape(model: onnx.ModelProto, output: str, raw: NDArray[Any]) -> onnx.ModelProto:
    """Return a copy that states one output only, with the shape and type that a run gave.

    ONNX allows outputs without a shape; its converters and checkers don't."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    element = helper.np_dtype_to_tensor_dtype(raw.dtype)
    result.graph.output.append(helper.make_tensor_value_info(output, element, raw.shape))
    return result


def with_opset(model: onnx.ModelProto, opset: int | None) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Convert a network to an opset; default: its own if it is 13 or later, else 18.

    Returns:
        The network, and notes for the user.

    Raises:
        InputError: the opset is too old.
        ModelError: onnx can't convert the network."""
    own = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if not own:
        raise ModelError("the network states no opset of ONNX. Export it again with opset 13 or later")
    target = opset or (own if own >= OLDEST_OPSET else OPSET)
    if target < OLDEST_OPSET:
        raise InputError(f"opset {target} is too old for the preprocessing, expected at least {OLDEST_OPSET}")
    if own == target:
        return model, ()
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(model, target)
    except Exception as wrong:  # RuntimeError mostly; the converter is C++
        raise ModelError(
            f"the network's opset {own} can't be converted to {target} ({wrong}). Export it again with opset "
            f"{OLDEST_OPSET} or later"
        ) from wrong
    return converted, _keep_old_resizing(converted) if own < _FIRST_HALF_PIXEL_OPSET else ()


def _keep_old_resizing(model: onnx.ModelProto) -> tuple[str, ...]:
    """State what resizing meant before opset 11, asymmetric and floor; the converter leaves it out."""
    resizes = [n for n in model.graph.node if n.op_type in ("Resize", "Upsample")]
    for node in resizes:
        stated = {a.name for a in node.attribute}
        for key, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
            if key not in stated:
                node.attribute.append(helper.make_attribute(key, value))
    linear = any(a.s == b"linear" for n in resizes for a in n.attribute if a.name == "mode")
    note = (
        "its opset is older than 11, which cannot state half-pixel centers: its bilinear resizing is kept "
        "as ONNX defines it, shifted by up to half a cell. If PyTorch wrote it, export it again with opset "
        "11 or later"
    )
    return (note,) if linear else ()


def recognize_input(model: onnx.ModelProto) -> NetworkInput:
    """Find a network's input; raises ModelError if it isn't one image with three channels."""
    weights = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) != 1:
        raise ModelError(
            f"the network has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), expected one, the "
            f"image"
        )
    tensor = inputs[0].type.tensor_type
    shape = [d.dim_value or None for d in tensor.shape.dim]
    stated = [d.dim_value or d.dim_param for d in tensor.shape.dim]
    found = f"the network's input {inputs[0].name} is {element_name(tensor.elem_type)} {stated}"
    if len(shape) != 4 or shape[0] not in (None, 1):
        raise ModelError(f"{found}, expected one image: (1, 3, H, W) or (1, H, W, 3)")
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8):
        raise ModelError(f"{found}, expected float32, float16 or uint8")
    if 3 not in (shape[1], shape[3]):
        raise ModelError(f"{found}: {_channel_fix(shape[1], shape[3])}")
    layout: Layout = "NCHW" if shape[1] == 3 else "NHWC"
    h, w = shape[2:] if layout == "NCHW" else shape[1:3]
    if (h is None) != (w is None):
        raise ModelError(f"{found}: height and width must both be fixed or both be free")
    return NetworkInput(inputs[0].name, layout, tensor.elem_type, (h, w) if h and w else None)


def _channel_fix(first: int | None, last: int | None) -> str:
    """Return cause and fix for an input that has not three channels."""
    expected = "expected (1, 3, H, W) or (1, H, W, 3)"
    if 1 in (first, last):
        return (
            f"its channels aren't 3 but 1, so it takes gray images; {expected}. Put a layer in front of it "
            f"that averages RGB to gray, and export it again"
        )
    if 4 in (first, last):
        return (
            f"its channels aren't 3 but 4, and frames have no alpha or depth; {expected}. Put a layer in "
            f"front of it that appends the fourth channel as a constant, and export it again"
        )
    return f"its channels aren't 3, or not stated; {expected}. Export it again with the channels stated"


def recognize_output(model: onnx.ModelProto, name: str | None = None) -> str:
    """Return the output that holds the classes; raises ModelError if there are several and none is named."""
    names = [o.name for o in model.graph.output]
    if name is not None:
        if name not in names:
            raise InputError(
                f"the network has no output {name!r}, but {', '.join(names)}.{did_you_mean(name, names)}"
            )
        return name
    if len(names) > 1:
        raise ModelError(
            f"the network has {len(names)} outputs ({', '.join(names)}): pass the one that holds the "
            f"classes with --output-name"
        )
    return names[0]


def fix_input_size(model: onnx.ModelProto, network: NetworkInput, output: str) -> onnx.ModelProto:
    """Fix the input size of a network, keep one output, infer shapes and fold shape arithmetic."""
    assert network.size_hw is not None
    graph = model.graph
    picture = next(i for i in graph.input if i.name == network.name)
    sides = (1, 3, *network.size_hw) if network.layout == "NCHW" else (1, *network.size_hw, 3)
    picture.CopyFrom(helper.make_tensor_value_info(network.name, network.element, sides))
    for value in [o for o in graph.output if o.name != output]:
        graph.output.remove(value)
    del graph.value_info[:]  # sizes of another input size
    for at, side in enumerate(graph.output[0].type.tensor_type.shape.dim):
        side.dim_param = f"out_{at}"
    # folding would turn int8 weights into float
    if not any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in graph.node):
        import onnxsim

        try:
            simple, sound = onnxsim.simplify(model)
        except Exception as wrong:  # RuntimeError from C++, or an error of ONNX Runtime
            raise ModelError(f"the network can't be read: {wrong}") from wrong
        if not sound:
            raise ModelError("onnxsim changed the network's result: use another version of onnxsim")
        model = simple
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def attach(
    model: onnx.ModelProto, network: NetworkInput, pixels: PixelFormat, tensor: str, post: Part
) -> onnx.ModelProto:
    """Put a network, up to a tensor, between preprocessing and the nodes that compute logits.

    Args:
        model: from ``fix_input_size``.
        post: nodes from it to ``logits`` (see ``network_tail``); none if it is the logits.

    Returns:
        A model with input ``frame`` uint8 (1, H, W, 3) and output ``logits`` float32 (1, C, h, w), without
        metadata.
    """
    kept = _find_needed_nodes(model.graph, tensor)
    read = {name for node in kept for name in node_reads(node)}
    weights = [i for i in model.graph.initializer if i.name in read]
    taken = {*read, tensor, *(name for node in kept for name in node.output)}
    renamed = {name: f"net.{name}" for name in taken if name in _OWN_NAMES or name.startswith(_OWN_PREFIXES)}
    half = network.element == TensorProto.FLOAT16
    renamed[network.name] = "pre.half" if half else "image"
    if not post[0]:
        renamed[tensor] = "logits"
    for node in kept:
        _rename(node, renamed)
    for weight in weights:
        weight.name = renamed.get(weight.name, weight.name)
    for node in post[0]:
        if tensor in node.input:
            node.input[list(node.input).index(tensor)] = renamed.get(tensor, tensor)
    casts = [helper.make_node("Cast", ["image"], ["pre.half"], to=TensorProto.FLOAT16)] if half else []
    assert network.size_hw is not None, "fix_input_size() gives it one"
    sizing, size_constants = fixed_size_nodes(network.size_hw)
    pre, pre_constants = pixel_nodes(pixels)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None, None, None])
    nodes = [*sizing, *pre, *casts, *kept, *post[0]]
    constants = [*size_constants, *pre_constants, *weights, *post[1]]
    graph = helper.make_graph(nodes, "tfiseg", [frame_value()], [logits], constants)
    opsets = list(model.opset_import)
    result = helper.make_model(
        graph, opset_imports=opsets, functions=list(model.functions), producer_name="tfiseg"
    )
    result.ir_version = max(MODEL_IR_VERSION, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    return with_float_pixels(result)


def _find_needed_nodes(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    """Return the nodes that a tensor depends on, in the graph's order."""
    kept, needed = [], {tensor}
    for node in reversed(graph.node):  # sorted topologically, so one pass is enough
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node_reads(node))
    return kept[::-1]


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for graph in subgraphs(node):
        for inner in graph.node:
            _rename(inner, names)
        for value in [*graph.input, *graph.output, *graph.initializer]:
            value.name = names.get(value.name, value.name)
