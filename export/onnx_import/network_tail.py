"""Remove the end of a network that the clustering operator replaces: upsampling, softmax, argmax.

The operator upsamples logits bilinearly with half-pixel centers, takes the argmax and computes scores by
softmax. Without its tail, a network outputs a small grid. New nodes after it are named ``post.*``.

Interpolated logits are not the logits of interpolated probabilities: between +2 and -4, the first cross 0
after a third of the way, the second after 0.44 of it. So probabilities that the network itself resizes, or
that its user resizes (independent channels on a coarse grid), are resized before logits are formed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto, helper

from ...errors import ModelError
from .onnx_network import NetworkInput
from .output_layout import class_axis_of, spatial_sides
from .output_reading import OutputReading

__all__ = ["Tail", "class_axis_of", "cut_tail"]

# after an ArgMax
_MOVES_NO_PIXEL = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_RESIZES = ("Resize", "Upsample")
_FINE_STRIDE_PX = 2  # finer grids are not resized: an outline moves by less than a pixel of the input
# Odd, so that cell centers, where a bilinear resize has its kinks, are centers of the finer grid, too.
# Labels that differ from those of probabilities resized to full size, mean of 60 photos at stride 8 (16):
# 1: 0.31 % (0.90), 2: 0.19 % (0.44), 3: 0.008 % (0.019), 4: 0.044 % (0.10), 5: 0.002 % (0.004).
_FINER = 3


@dataclass
class Tail:
    """The end of a network after its tail is removed."""

    # tensor, shape, element: name, shape and type of the last tensor that is kept
    tensor: str
    shape: tuple[int, ...] = ()
    element: int = TensorProto.FLOAT
    # axis of its classes; 0 = none, one score per pixel; None = it is a class map
    class_axis: int | None = None
    removed: list[str] = field(default_factory=list)  # removed operators, from the end backwards
    # size to which the network upsampled with align_corners=True; None = half-pixel centers
    corners_hw: tuple[int, int] | None = None
    # the softmax, log-softmax or sigmoid that was removed, so the tensor holds logits
    activation: str | None = None
    upsampled: bool = False  # a resize that enlarges was removed
    mixes_probabilities: bool = False  # what is resized are probabilities, by the network or by its user
    finer: int = 1  # factor to resize the probabilities by, so that logits may be interpolated from there on

    @property
    def channels(self) -> int:
        """Number of channels of the tensor; 1 for a class map."""
        return self.shape[self.class_axis] if self.class_axis else 1

    @property
    def grid_hw(self) -> tuple[int, int]:
        sides = (
            spatial_sides(self.shape, self.class_axis)
            if self.class_axis is not None
            else [s for s in self.shape if s > 1]
        )
        if len(sides) != 2:
            raise ModelError(
                f"the network's output {self.tensor} has shape {self.shape}, expected a class map (1, h, w)"
            )
        return sides[0], sides[1]


def cut_tail(model: onnx.ModelProto, network: NetworkInput, reading: OutputReading) -> Tail:
    """Walk backwards from the output of a network over all nodes that the operator replaces.

    Args:
        model: result of ``fix_input_size``.

    Raises:
        ModelError: shapes are unknown.
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
    if tail.class_axis is None and reading.kind != "class-map":
        tail.class_axis = reading.layout.class_axis
    if tail.class_axis is None:
        return tail
    image_height = network.size_hw[0]
    # a user thresholds independent channels after resizing them, so a coarse output is resized as it is
    keep_grid = (
        bool(reading.thresholds)
        and reading.factor != 0
        and grid_stride(image_height, tail.grid_hw[0]) > _FINE_STRIDE_PX
    )
    while tail.element in _FLOATS and (node := producer.get(tail.tensor)) is not None:
        before = shape(node.input[0]) if node.input else ()
        if not before or (keep_grid and node.op_type in _RESIZES and before != tail.shape):
            break
        element = types[node.input[0]].elem_type
        if not _step_over(tail, node, before, element, network.size_hw, reading):
            break
        tail.removed.append(node.op_type)
        tail.tensor, tail.shape, tail.element = node.input[0], before, element
    if keep_grid or (reading.factor != 0 and tail.activation is None and tail.upsampled):
        tail.mixes_probabilities = True
    if tail.mixes_probabilities and tail.corners_hw is None:
        tail.finer = _FINER if grid_stride(image_height, tail.grid_hw[0]) > _FINE_STRIDE_PX else 1
    return tail


def grid_stride(side_px: int, cells: int) -> int:
    """Return the stride of a grid with ``cells`` cells along a side, in whole pixels and at least 1."""
    return max(1, round(side_px / cells))


def _keeps_activation(tail: Tail, kind: str, reading: OutputReading) -> bool:
    """Return whether an activation stays because its input alone does not give what is read."""
    if tail.activation is not None:  # the last one counts
        return True
    # a threshold on raw values, on scaled ones or on a softmax belongs after it
    return bool(reading.thresholds) and (kind != "Sigmoid" or reading.factor != 1)


def _step_over(
    tail: Tail,
    node: onnx.NodeProto,
    before: tuple[int, ...],
    element: int,
    size_hw: tuple[int, int],
    reading: OutputReading,
) -> bool:
    """Return whether the operator replaces a node; records the node's effect in ``tail``."""
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axis = tail.class_axis
    if node.op_type in ("Identity", "Dropout") or (node.op_type == "Cast" and element in _FLOATS):
        return True
    if node.op_type == "Sigmoid" or (
        node.op_type in ("Softmax", "LogSoftmax") and settings.get("axis", -1) % len(before) == axis
    ):
        if _keeps_activation(tail, node.op_type, reading):
            return False
        tail.activation = node.op_type
        # log-softmax shifts all logits of a cell alike, which changes no class between cells either
        if tail.upsampled and node.op_type != "LogSoftmax":
            tail.mixes_probabilities = reading.factor != 0 or reading.kind == "class-map"
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
    return node.op_type in _RESIZES and _step_over_resize(tail, settings, before, axis, size_hw)


def _step_over_resize(
    tail: Tail, settings: dict[str, Any], before: tuple[int, ...], axis: int, size_hw: tuple[int, int]
) -> bool:
    geometry, identity = _geometry(settings, before, tail.shape, axis), before == tail.shape
    if geometry is None or (tail.upsampled and not identity):
        return False
    if geometry == "align_corners" and not tail.upsampled:
        # a resize that changes no size is left over from a cut network: its mode still shows the geometry
        sides = size_hw if identity else tuple(spatial_sides(tail.shape, axis))
        grid = spatial_sides(before, axis)
        if not identity or all(g > 1 and (s - 1) % (g - 1) == 0 for s, g in zip(sides, grid, strict=True)):
            tail.corners_hw = (sides[0], sides[1])
    tail.upsampled = tail.upsampled or not identity
    return True


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


def _geometry(
    settings: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...], class_axis: int
) -> str | None:
    """Return a resize's geometry, "half_pixel" or "align_corners"; None if the operator cannot replace it."""
    if before[class_axis] != after[class_axis] or any(a < b for a, b in zip(after, before, strict=True)):
        return None
    if before != after and settings.get("mode", b"nearest") != b"linear":
        return None
    geometry = settings.get("coordinate_transformation_mode", b"half_pixel").decode().replace("pytorch_", "")
    if geometry in ("half_pixel", "align_corners"):
        return geometry
    return "half_pixel" if before == after else None
