"""Somebody's ONNX network brought into tfiseg's format: its input recognised, its tail cut back to logits.

Segmentation networks are exported with all kinds of tails: upsampling to the frame, softmax, argmax, transposes. The operator does all
that itself, on the GPU and fused, and wants logits at the network's own grid. So the graph is walked back from its output to the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..calibration.graph import Network, attributes, session
from ..errors import InputError, ModelError
from .frame_graph import Preprocessing, halved_weights

OPSETS = range(11, 24)
_TINY = 1e-7
_FINER = 4


@dataclass(frozen=True)
class Input:
    """What the network takes: name, layout and type; the size, 0 where it may vary."""

    name: str
    channels_last: bool
    uint8: bool
    size_hw: tuple[int, int]


@dataclass
class Cut:
    """Where the logits were found. ``tensor`` its name; ``removed`` the operators behind it, last first; ``channels_last``; ``binary``: one
    channel through a sigmoid; ``align_corners``: the upsampling that was cut mapped corners onto corners; ``kind`` of the values:
    "logits", "probabilities" or "labels"."""

    tensor: str
    removed: list[str] = field(default_factory=list)
    channels_last: bool = False
    binary: bool = False
    align_corners: bool = False
    kind: str = "logits"


def load_network(path: str) -> Network:
    """An ONNX file with its weights; raises ModelError with a sentence for everything that may be wrong with it."""
    try:
        model = onnx.load(path)
    except FileNotFoundError as wrong:
        raise ModelError(f"{path}: {wrong.strerror or wrong}: {wrong.filename or 'its external data'} isn't there") from wrong
    except Exception as wrong:  # protobuf's and onnx's errors share no base class
        hint = " (its weights lie in another file: copy both)" if "external" in str(wrong).lower() or "data" in str(wrong).lower() else ""
        raise ModelError(f"{path} is no ONNX network, or not all of one{hint}: {wrong}") from wrong
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX network: it holds no graph")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise ModelError(f"{path} has opset {opset}; wanted {OPSETS.start} to {OPSETS.stop - 1}: export it again with another opset")
    return Network(model)


def recognise_input(network: Network) -> Input:
    """The one picture that the network takes; raises ModelError where it takes anything else."""
    given = [i for i in network.graph.input if not network.has_weight(i.name)]
    if len(given) != 1:
        raise ModelError(f"the network takes {len(given)} inputs ({', '.join(i.name for i in given)}); wanted one picture")
    tensor = given[0].type.tensor_type
    sides = [d.dim_value for d in tensor.shape.dim]
    if len(sides) != 4 or 3 not in (sides[1], sides[3]):
        raise ModelError(f"the input {given[0].name} has shape {sides}; wanted a picture of 3 channels, (1, 3, H, W) or (1, H, W, 3)")
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.UINT8):
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        raise ModelError(f"the input {given[0].name} is {kind}; wanted float32 or uint8: export the network in float32")
    last = sides[3] == 3 and sides[1] != 3
    size = (sides[1], sides[2]) if last else (sides[2], sides[3])
    return Input(given[0].name, last, tensor.elem_type == TensorProto.UINT8, size)


def find_logits(network: Network, output: str | None = None) -> Cut:
    """Walk back from the output to the logits.

    Args:
        network: with constants folded.
        output: which output (or inner tensor) to start at; needed where there are several.
    """
    names = [o.name for o in network.graph.output]
    if output is None and len(names) > 1:
        raise InputError(f"the network has the outputs {', '.join(names)}: say which is the class map or the logits, with --tensor NAME")
    start = output or names[0]
    if start not in network.producer:
        raise InputError(f"the network has no tensor {start!r}; its outputs are {', '.join(names)}")
    cut = Cut(start)
    while True:
        node = network.producer.get(cut.tensor)
        if node is None or not _passable(network, node, cut):
            return cut
        cut.removed.append(node.op_type)
        cut.tensor = node.input[0]


def _passable(network: Network, node: onnx.NodeProto, cut: Cut) -> bool:
    """May this last node be left out? Notes in ``cut`` what it meant."""
    settings = attributes(node)
    labels = "ArgMax" in cut.removed
    if node.op_type in ("Identity", "Cast", "Softmax", "LogSoftmax"):
        return not network.has_weight(node.input[0])
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return not labels  # around a class map; behind an ArgMax they belong to the network
    if node.op_type == "ArgMax":
        axis = settings.get("axis", 0)
        cut.channels_last = axis in (3, -1)
        return not labels and axis in (1, 3, -1)
    if node.op_type == "Sigmoid":
        cut.binary = True
        return not labels
    if node.op_type == "Transpose":
        perm = list(settings.get("perm", []))
        if perm not in ([0, 2, 3, 1], [0, 3, 1, 2]):
            return False
        # behind it the classes were last, so before it they come first, and the other way round
        cut.channels_last = perm == [0, 3, 1, 2]
        return True
    if node.op_type == "Resize":
        if settings.get("mode", b"nearest") not in (b"linear", b"nearest"):
            return False
        cut.align_corners = settings.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
        return True
    return False


def assemble(
    network: Network, taken: Input, cut: Cut, preprocessing: Preprocessing, classes: int | None = None, half_weights: bool = False
) -> onnx.ModelProto:
    """The network in tfiseg's format, without metadata: ``frame`` in, ``logits`` float32 (1, C, h, w) out.

    Args:
        cut: from ``find_logits``. classes: how many; needed only where the network gives labels that can't be cut back to logits.

    Raises:
        ModelError: ONNX Runtime can't run it, or what it says is no map of classes.
    """
    body = _body(network, taken, cut)
    nodes, constants = preprocessing.nodes()
    weights, casts = halved_weights(list(body.initializer)) if half_weights else (list(body.initializer), [])
    front, stored = [*nodes, *casts, *body.node], [*constants, *weights]

    def made(tail: list[onnx.NodeProto], more: list[onnx.TensorProto], output: onnx.ValueInfoProto) -> onnx.ModelProto:
        frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "height", "width", 3])
        graph = helper.make_graph([*front, *tail], "tfiseg", [frame], [output], [*stored, *more])
        model = helper.make_model(graph, opset_imports=list(network.model.opset_import), producer_name="tfiseg")
        model.ir_version = max(8, min(10, network.model.ir_version))  # what ONNX Runtime 1.18 and TensorRT 10 read
        return model

    values = _run(made([], [], helper.make_empty_tensor_value_info(cut.tensor)))
    tail, more = _tail(cut, values, preprocessing, classes)
    shape = _run(made(tail, more, helper.make_empty_tensor_value_info("logits"))).shape
    if len(shape) != 4 or shape[1] < 2:
        raise ModelError(f"the logits come out as {shape}; wanted (1, classes, h, w) with at least 2 classes: name another --tensor")
    sides = list(shape[2:]) if preprocessing.size_hw is not None else ["grid_height", "grid_width"]
    return made(tail, more, helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, shape[1], *sides]))


def _run(model: onnx.ModelProto) -> NDArray[Any]:
    picture = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    running = session(model)
    try:
        return np.asarray(running.run(None, {"frame": picture})[0])
    except Exception as wrong:  # onnxruntime's errors share no base class
        raise ModelError(f"the network doesn't take pictures of that size: {wrong}. --input-size says another") from wrong


def _body(network: Network, taken: Input, cut: Cut) -> onnx.GraphProto:
    """The part between picture and logits, its input called ``image``, no name of it in the way of ours."""
    needed: set[str] = {cut.tensor}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(network.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    known = {name for node in nodes for name in [*node.input, *node.output] if name}
    clash = any(name in ("frame", "image", "logits") or name.startswith(("pre.", "tail.")) for name in known)
    renamed = {name: f"net.{name}" if clash else name for name in known}
    renamed[taken.name] = "image"
    graph = onnx.GraphProto()
    for node in reversed(nodes):
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in network.graph.initializer:
        if tensor.name in needed:
            weight = graph.initializer.add()
            weight.CopyFrom(tensor)
            weight.name = renamed[tensor.name]
    cut.tensor = renamed[cut.tensor]
    return graph


def _tail(
    cut: Cut, values: NDArray[Any], preprocessing: Preprocessing, classes: int | None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """From what the network says to logits (1, C, h, w)."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add(op: str, inputs: list[str], **settings: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"tail.{len(nodes)}"], **settings))
        return f"tail.{len(nodes) - 1}"

    def constant(value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value, f"tail.constant{len(constants)}"))
        return constants[-1].name

    now = cut.tensor
    if np.issubdtype(values.dtype, np.integer):
        cut.kind = "labels"
        if classes is None:
            raise InputError("the network gives class numbers and nothing behind which logits lie: say its classes with --class-names")
        now = add("Cast", [now], to=TensorProto.INT64)
        squeezed = [axis for axis in range(1, values.ndim) if values.shape[axis] == 1][: values.ndim - 3]
        if squeezed:
            now = add("Squeeze", [now, constant(np.array(squeezed, np.int64))])
        # as sure as a network that is right 99.9 % of the time
        now = add("OneHot", [now, constant(np.array(classes, np.int64)), constant(np.array([0, 7], np.float32))], axis=1)
        values = np.zeros((1, classes, *[side for k, side in enumerate(values.shape[1:], 1) if k not in squeezed]), np.float32)
    else:
        now, values = _classes_first(cut, values, now, add, constant, preprocessing)
        now = _as_logits(cut, values, now, add, constant)
    if cut.align_corners:
        now = _half_pixel(now, values.shape[2:], preprocessing, add, constant)
    add("Identity", [now])
    nodes[-1].output[0] = "logits"
    return nodes, constants


def _classes_first(
    cut: Cut, values: NDArray[Any], now: str, add: Any, constant: Any, preprocessing: Preprocessing
) -> tuple[str, NDArray[Any]]:
    if values.ndim == 3:  # (1, h, w): one channel
        now, values = add("Unsqueeze", [now, constant(np.array([1], np.int64))]), values[:, None]
    if values.ndim != 4:
        raise ModelError(f"the network's output has shape {values.shape}; wanted (1, classes, h, w): name another with --tensor")
    if values.dtype != np.float32:
        now = add("Cast", [now], to=TensorProto.FLOAT)
    if not {"ArgMax", "Transpose"} & set(cut.removed):  # nothing told: the grid has the picture's proportions
        height, width = preprocessing.size_hw or (96, 128)

        def distortion(h: int, w: int) -> float:
            return abs(float(np.log((h * width) / (w * height))))

        first, last = distortion(*values.shape[2:]), distortion(*values.shape[1:3])
        cut.channels_last = last < first
    if cut.channels_last:
        now, values = add("Transpose", [now], perm=[0, 3, 1, 2]), values.transpose(0, 3, 1, 2)
    return now, values


def _as_logits(cut: Cut, values: NDArray[Any], now: str, add: Any, constant: Any) -> str:
    """Probabilities that couldn't be cut back become logarithms, one channel becomes two."""
    within = values.min() >= 0 and values.max() <= 1 + 1e-3
    if values.shape[1] == 1:
        if within and not cut.binary:  # p: log(p / (1 - p))
            cut.kind = "probabilities"
            sure = add("Clip", [now, constant(np.float32(_TINY)), constant(np.float32(1 - _TINY))])
            now = add("Log", [add("Div", [sure, add("Sub", [constant(np.float32(1)), sure])])])
        return str(add("Concat", [add("Mul", [now, constant(np.float32(0))]), now], axis=1))
    if within and not {"Softmax", "LogSoftmax"} & set(cut.removed) and np.abs(values.sum(1) - 1).max() < 1e-2:
        cut.kind = "probabilities"
        now = add("Log", [add("Add", [now, constant(np.float32(_TINY))])])
    return now


def _half_pixel(now: str, grid_hw: tuple[int, ...], preprocessing: Preprocessing, add: Any, constant: Any) -> str:
    """Logits whose corners lie on the picture's corners, resampled onto a finer grid whose cells tile the picture, as all that comes after
    reads it; two constant matrix products."""
    if preprocessing.size_hw is None:
        raise ModelError("an upsampling with align_corners can be set right for one input size only: name it with --input-size")
    for axis, side in enumerate(grid_hw):
        full, fine = preprocessing.size_hw[axis], _FINER * (side - 1) + 1
        corners = _interpolation(np.arange(full) / max(full - 1, 1) * (side - 1), side)
        centres = _interpolation((np.arange(full) + 0.5) / full * fine - 0.5, fine)
        # the fine grid which, enlarged the one way, comes nearest to the coarse one enlarged the other way
        weights = np.linalg.lstsq(centres, corners, rcond=None)[0].astype(np.float32)
        pair = [constant(weights), now] if axis == 0 else [now, constant(np.ascontiguousarray(weights.T))]
        now = add("MatMul", pair)
    return now


def _interpolation(places: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Linear interpolation at ``places`` of a row of ``side`` values, as a matrix (places, side)."""
    return np.maximum(0.0, 1.0 - np.abs(np.clip(places, 0, side - 1)[:, None] - np.arange(side)[None]))
