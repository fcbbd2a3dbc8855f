"""Remove the end of a network that the clustering operator replaces: upsampling, softmax, argmax.

The operator upsamples logits bilinearly with half-pixel centers, takes the argmax and computes scores by
softmax. Without its tail, a network outputs a small grid. New nodes after it are named ``post.*``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...errors import ModelError
from ..frame_graph import Layout, Part
from .onnx_network import NetworkInput

# after an ArgMax
_MOVES_NO_PIXEL = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_PROBABILITY_EPS = 1e-6
_CERTAIN = 20.0  # logit of the class of a class map: its softmax is 1 - 2e-9
_NEVER = -1e4  # logit of a class that never wins, within float16's range
# Grid cells per corner-aligned cell; one more cell balances the phases. Agreement of labels for a grid of
# stride 16, worst of 24 photos: 98.8 % with 2, 99.7 % with 4, 99.85 % with 6, 99.9 % with 8; 99.5 % with 4
# and without the extra cell.
_FINER = 6


@dataclass
class Tail:
    """The end of a network after its tail is removed.

    Args:
        tensor, shape, element: name, shape and type of the last tensor that is kept.
        class_axis: axis of its classes; 0 = none, one score per pixel; None = it is a class map.
        removed: removed operators, from the end backwards.
        corners_hw: size to which the network upsampled with align_corners=True; None = half-pixel centers.
        squashed: a softmax, log-softmax or sigmoid was removed, so the tensor holds logits.
        upsampled: a resize that enlarges was removed.
    """

    tensor: str
    shape: tuple[int, ...] = ()
    element: int = TensorProto.FLOAT
    class_axis: int | None = None
    removed: list[str] = field(default_factory=list)
    corners_hw: tuple[int, int] | None = None
    squashed: bool = False
    upsampled: bool = False

    @property
    def channels(self) -> int:
        """Number of channels of the tensor; 1 for a class map."""
        return self.shape[self.class_axis] if self.class_axis else 1

    @property
    def grid_hw(self) -> tuple[int, int]:
        sides = (
            _spatial(self.shape, self.class_axis)
            if self.class_axis is not None
            else [s for s in self.shape if s > 1]
        )
        if len(sides) != 2:
            raise ModelError(
                f"the network's output {self.tensor} has shape {self.shape}, expected a class map (1, h, w)"
            )
        return sides[0], sides[1]


def cut_tail(model: onnx.ModelProto, network: NetworkInput) -> Tail:
    """Walk backwards from the output of a network over all nodes that the operator replaces.

    Args:
        model: result of ``at_fixed_size``.
        network: its input.

    Raises:
        ModelError: shapes are unknown, or the output's aspect ratio differs from the input's.
    """
    assert network.size_hw is not None
    graph = model.graph
    producer = {o: n for n in graph.node for o in n.output}
    types = {v.name: v.type.tensor_type for v in [*graph.input, *graph.value_info, *graph.output]}

    def shape(name: str) -> tuple[int, ...]:
        return tuple(d.dim_value for d in types[name].shape.dim) if name in types else ()

    tail = Tail(graph.output[0].name)
    _skip_argmax(tail, producer, shape)
    tail.shape = shape(tail.tensor)
    if not tail.shape or not all(tail.shape):
        raise ModelError(
            f"the size of the network's tensor {tail.tensor} is unknown. Export the network with a fixed "
            f"input size"
        )
    tail.element = types[tail.tensor].elem_type
    if tail.element not in _FLOATS:
        return tail
    if tail.class_axis is None:
        tail.class_axis = class_axis_of(tail.shape, network.size_hw, network.layout)
    while (node := producer.get(tail.tensor)) is not None and (
        before := shape(node.input[0]) if node.input else ()
    ):
        element = types[node.input[0]].elem_type
        if not _step_over(tail, node, before, element, network.size_hw):
            break
        tail.removed.append(node.op_type)
        tail.tensor, tail.shape, tail.element = node.input[0], before, element
    return tail


def _step_over(
    tail: Tail, node: onnx.NodeProto, before: tuple[int, ...], element: int, size_hw: tuple[int, int]
) -> bool:
    """Tell whether the operator replaces a node, and record in ``tail`` what the node did."""
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axis = tail.class_axis
    if node.op_type in ("Identity", "Dropout") or (node.op_type == "Cast" and element in _FLOATS):
        return True
    if node.op_type == "Sigmoid" or (
        node.op_type in ("Softmax", "LogSoftmax") and settings.get("axis", -1) % len(before) == axis
    ):
        tail.squashed = True
        return True
    if node.op_type == "Squeeze" and axis == 0 and len(before) == 4 and 1 in (before[1], before[3]):
        tail.class_axis = 1 if before[1] == 1 else 3
        return True
    if len(before) != 4 or not axis:
        return False
    if node.op_type == "Transpose":
        perm = [*settings.get("perm", (3, 2, 1, 0))]
        sides_before = [perm[i] for i in (1, 2, 3) if i != axis]
        if perm[0] != 0 or sides_before != [i for i in (1, 2, 3) if i != perm[axis]]:
            return False  # transposes the image
        tail.class_axis = perm[axis]
        return True
    return node.op_type in ("Resize", "Upsample") and _step_over_resize(tail, settings, before, axis, size_hw)


def _step_over_resize(
    tail: Tail, settings: dict[str, Any], before: tuple[int, ...], axis: int, size_hw: tuple[int, int]
) -> bool:
    geometry, identity = _geometry(settings, before, tail.shape, axis), before == tail.shape
    if geometry is None or (tail.upsampled and not identity):
        return False
    if geometry == "align_corners" and not tail.upsampled:
        # a resize that changes no size is left over from a cut network: its mode still shows the geometry
        sides = size_hw if identity else tuple(_spatial(tail.shape, axis))
        grid = _spatial(before, axis)
        if not identity or all(g > 1 and (s - 1) % (g - 1) == 0 for s, g in zip(sides, grid, strict=True)):
            tail.corners_hw = (sides[0], sides[1])
    tail.upsampled = tail.upsampled or not identity
    return True


def _spatial(shape: tuple[int, ...], class_axis: int) -> list[int]:
    return [side for axis, side in enumerate(shape) if axis not in (0, class_axis)]


def _skip_argmax(tail: Tail, producer: dict[str, onnx.NodeProto], shape: Any) -> None:
    """Move ``tail`` to the input of an ArgMax, if only casts and reshapes follow it."""
    passed, name = [], tail.tensor
    while (node := producer.get(name)) is not None and node.op_type in _MOVES_NO_PIXEL:
        passed.append(node.op_type)
        name = node.input[0]
    if node is None or node.op_type != "ArgMax":
        return
    before = shape(node.input[0])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % max(1, len(before))
    if len(before) == 4 and axis in (1, 3):
        tail.tensor, tail.class_axis, tail.removed = node.input[0], axis, [*passed, "ArgMax"]


def class_axis_of(shape: tuple[int, ...], size_hw: tuple[int, int], layout: Layout) -> int:
    """Return the axis of (1, ?, ?, ?) that holds the classes; 0 for (1, ?, ?).

    The other two axes have the image's aspect ratio."""
    if len(shape) == 3 and shape[0] == 1:
        return 0
    if len(shape) != 4 or shape[0] != 1:
        raise ModelError(
            f"the network's output has shape {shape}, expected (1, classes, h, w), (1, h, w, classes) or a "
            f"class map"
        )

    def skew(axis: int) -> float:
        h, w = _spatial(shape, axis)
        return abs(math.log(size_hw[0] / h) - math.log(size_hw[1] / w)) + (
            max(h / size_hw[0], w / size_hw[1]) > 1
        )

    usual = 1 if layout == "NCHW" else 3
    best = 4 - usual if skew(4 - usual) < skew(usual) - 0.005 else usual
    if skew(best) > 0.25:  # rounded sides differ by less, down to grids of 4 cells
        raise ModelError(
            f"no two sides of the network's output {shape} have the aspect ratio of its input {size_hw}: "
            f"does it segment?"
        )
    return best


def _geometry(
    settings: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...], class_axis: int
) -> str | None:
    """Return how a resize places pixels, "half_pixel" or "align_corners"; None: the operator can't replace
    it."""
    if before[class_axis] != after[class_axis] or any(a < b for a, b in zip(after, before, strict=True)):
        return None
    if before != after and settings.get("mode", b"nearest") != b"linear":
        return None
    geometry = settings.get("coordinate_transformation_mode", b"half_pixel").decode().replace("pytorch_", "")
    return (
        geometry if geometry in ("half_pixel", "align_corners") else "half_pixel" if before == after else None
    )


def logit_nodes(
    tail: Tail, *, probabilities: bool = False, map_classes: int | None = None, background: bool = False
) -> Part:
    """Return nodes from a tail's tensor to ``logits`` float32 (1, C, h, w); none if it has the logits.

    Args:
        tail: end of the network.
        probabilities: the tensor is in 0..1; take its logarithm, or with one channel its log-odds.
        map_classes: number of classes of a class map, which becomes one-hot.
        background: prepend a class that never wins, because class 0 is background for the operator.
    """
    post = _PostNodes(tail.tensor)
    if tail.class_axis is None:
        assert map_classes is not None, "a class map has no number of classes"
        post.one_hot(tail.grid_hw, map_classes)
    else:
        if tail.element != TensorProto.FLOAT:
            post.add("Cast", to=TensorProto.FLOAT)
        if tail.class_axis == 0:
            post.add("Unsqueeze", post.constant("class_axis", np.array([1], np.int64)))
        if tail.class_axis == 3:
            post.add("Transpose", perm=[0, 3, 1, 2])
        if probabilities:
            post.logarithm(is_binary=tail.channels == 1)
        if tail.channels == 1:  # softmax of [0, s] is [1 - p, p] with s the log-odds of p
            post.channel_in_front("rest", 0)
    if background:
        post.channel_in_front("background", _NEVER)
    if tail.corners_hw is not None:
        sides = zip(tail.grid_hw, tail.corners_hw, strict=True)
        rows, columns = (_from_corners(grid, side) for grid, side in sides)
        post.add("MatMul", post.constant("columns", columns.T.copy()))
        post.add("MatMul", post.constant("rows", rows), constant_first=True)
    return post.nodes(), post.constants


class _PostNodes:
    """A chain of nodes from a tensor to ``logits``."""

    def __init__(self, tensor: str) -> None:
        self.constants: list[onnx.TensorProto] = []
        self._tensor = tensor
        self._steps: list[tuple[str, list[str], bool, dict[str, Any]]] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, f"post.{name}"))
        return f"post.{name}"

    def add(self, kind: str, *constants: str, constant_first: bool = False, **settings: Any) -> None:
        self._steps.append((kind, list(constants), constant_first, settings))

    def one_hot(self, grid_hw: tuple[int, int], classes: int) -> None:
        ids = self.constant("class_ids", np.arange(classes, dtype=np.int64).reshape(1, -1, 1, 1))
        self.add("Reshape", self.constant("map_shape", np.array([1, 1, *grid_hw], np.int64)))
        self.add("Cast", to=TensorProto.INT64)
        self.add("Equal", ids)
        self.add("Cast", to=TensorProto.FLOAT)
        self.add("Mul", self.constant("certain", np.array(_CERTAIN, np.float32)))

    def logarithm(self, is_binary: bool) -> None:
        low = self.constant("low", np.array(_PROBABILITY_EPS, np.float32))
        self.add("Clip", low, self.constant("high", np.array(1 - _PROBABILITY_EPS, np.float32)))
        if is_binary:  # log(p / (1 - p)) = -log(1 / p - 1)
            self.add("Reciprocal")
            self.add("Sub", self.constant("one", np.array(1, np.float32)))
            self.add("Log")
            self.add("Neg")
        else:
            self.add("Log")

    def channel_in_front(self, name: str, value: float) -> None:
        pads = self.constant(f"{name}_pads", np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int64))
        self.add("Pad", pads, self.constant(f"{name}_value", np.array(value, np.float32)))

    def nodes(self) -> list[onnx.NodeProto]:
        made, tensor = [], self._tensor
        for at, (kind, constants, constant_first, settings) in enumerate(self._steps):
            name = f"post.{at}" if at + 1 < len(self._steps) else "logits"
            inputs = [*constants, tensor] if constant_first else [tensor, *constants]
            made.append(helper.make_node(kind, inputs, [name], **settings))
            tensor = name
        return made


def _from_corners(grid: int, side: int) -> NDArray[np.float32]:
    """Return weights (n, grid) that resample a corner-aligned grid at the centers of n cells."""
    n = min(side, _FINER * (grid - 1) + 1)
    pixel = (np.arange(n) + 0.5) * side / n - 0.5
    at = np.clip(pixel * (grid - 1) / max(1, side - 1), 0, grid - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grid))).astype(np.float32)
