"""Find rows, columns and classes in a network's output: batch axis missing, flattened, channels last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ...errors import ModelError
from ..frame_graph import Layout

_SAME_ASPECT = 0.005  # difference of log aspect ratios
_MAX_SKEW = 0.25  # rounded sides differ by less, down to grids of 4 cells
_MAX_FLAT_SKEW = 0.1  # a flat output has many factorizations, so its aspect ratio must fit closely
_MIRRORED = 0.6  # correlation of an output with the mirrored output of the mirrored frame
_CLEARLY = 0.2  # by how much one correlation must exceed the other
_FLAT_NAME = "net.grid"


@dataclass(frozen=True)
class OutputLayout:
    """Layout of an output after a reshape to ``shape``."""

    shape: tuple[int, ...]  # (1, C, h, w), (1, h, w, C) or (1, h, w)
    class_axis: int  # 1 or 3; 0 = one value per pixel, without an axis

    @property
    def channels(self) -> int:
        return self.shape[self.class_axis] if self.class_axis else 1

    def maps(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Return an output as (C, h, w)."""
        shaped = raw.reshape(self.shape)
        return np.moveaxis(shaped, self.class_axis, 1)[0] if self.class_axis else shaped


def spatial_sides(shape: tuple[int, ...], class_axis: int) -> list[int]:
    """Return height and width of a shape (1, ...)."""
    return [side for axis, side in enumerate(shape) if axis not in (0, class_axis)]


def _skew(sides: tuple[int, int], size_hw: tuple[int, int]) -> float:
    """Return how far a grid's aspect ratio is from the image's; a grid larger than the image adds 1."""
    (h, w), (rows, columns) = size_hw, sides
    return abs(math.log(h / rows) - math.log(w / columns)) + (max(rows / h, columns / w) > 1)


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
        h, w = spatial_sides(shape, axis)
        return _skew((h, w), size_hw)

    usual = 1 if layout == "NCHW" else 3
    best = 4 - usual if skew(4 - usual) < skew(usual) - _SAME_ASPECT else usual
    if skew(best) > _MAX_SKEW:
        raise ModelError(
            f"no two sides of the network's output {shape} have the aspect ratio of its input {size_hw}: "
            f"does it segment?"
        )
    return best


def output_layout(shape: tuple[int, ...], size_hw: tuple[int, int], layout: Layout) -> OutputLayout:
    """Return the layout of an output.

    Args:
        shape: shape of the output for one image, of any rank.

    Raises:
        ModelError: no reading of the shape has the image's aspect ratio.
    """
    if len(shape) == 4 and shape[0] == 1:
        try:
            return OutputLayout(shape, class_axis_of(shape, size_hw, layout))
        except ModelError:
            if shape[2] != 1 and shape[3] != 1:  # else it may be flat: (1, C, h * w, 1)
                raise
    dims = tuple(side for side in shape if side > 1) or (1,)
    if len(dims) == 3:
        shaped = (1, *dims)
        return OutputLayout(shaped, class_axis_of(shaped, size_hw, layout))
    if len(dims) == 2 and _skew((dims[0], dims[1]), size_hw) <= _MAX_SKEW:
        return OutputLayout((1, *dims), 0)
    if len(dims) in (1, 2):
        for pixels in sorted(dims, reverse=True):
            grid = _factors(pixels, size_hw)
            if grid is not None:
                if len(dims) == 1:
                    return OutputLayout((1, *grid), 0)
                first = dims[0] == pixels
                return OutputLayout((1, *grid, dims[1]) if first else (1, dims[0], *grid), 3 if first else 1)
    raise ModelError(
        f"the network's output has shape {shape}, which is no grid of its input {size_hw}: expected "
        f"(1, classes, h, w), (1, h, w, classes), (1, classes, h * w) or a class map: does it segment?"
    )


def _factors(pixels: int, size_hw: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of a flat grid with the image's aspect ratio; None: there are none."""
    grids = [(h, pixels // h) for h in range(2, size_hw[0] + 1) if pixels % h == 0]
    best = min(grids, key=lambda grid: _skew(grid, size_hw), default=None)
    return best if best is not None and _skew(best, size_hw) <= _MAX_FLAT_SKEW else None


def check_orientation(
    layout: OutputLayout,
    size_hw: tuple[int, int],
    run: Callable[[NDArray[Any]], NDArray[Any]],
    frame: NDArray[np.uint8],
) -> OutputLayout:
    """Check a layout by a mirrored frame, and choose the class axis if the shape is ambiguous.

    Mirroring a frame must mirror the output. If rows and columns are transposed, it flips the other axis.

    Args:
        layout: from ``output_layout``.
        frame: uint8 (H, W, 3).

    Raises:
        ModelError: rows and columns are exchanged.
    """
    plain, mirrored = run(frame), run(np.ascontiguousarray(frame[:, ::-1]))

    def correlation(candidate: OutputLayout, axis: int) -> float:
        a, b = (candidate.maps(raw).astype(np.float64) for raw in (plain, mirrored))
        a, b = (maps - maps.mean((1, 2), keepdims=True) for maps in (np.flip(a, axis), b))
        energy = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
        return float((a * b).sum()) / energy if energy > 0 and math.isfinite(energy) else 0.0

    shape = layout.shape
    if len(shape) == 4:
        other = OutputLayout(shape, 4 - layout.class_axis)
        sides = spatial_sides(shape, other.class_axis)
        fits = _skew((sides[0], sides[1]), size_hw) <= _SAME_ASPECT
        if fits and correlation(other, 2) > correlation(layout, 2) + _CLEARLY:
            layout = other
    across, down = correlation(layout, 2), correlation(layout, 1)
    if down > _MIRRORED and down > across + _CLEARLY:
        raise ModelError(
            f"the network's output {plain.shape} has rows and columns exchanged: mirroring a frame left to "
            f"right mirrors it top to bottom. Remove the transposition from the network"
        )
    return layout


def with_grid_output(model: onnx.ModelProto, raw_shape: tuple[int, ...], layout: OutputLayout) -> None:
    """Give a network's only output the shape of a layout, in place."""
    if raw_shape == layout.shape:
        return
    graph = model.graph
    output = graph.output[0]
    types = {v.name: v.type.tensor_type for v in graph.value_info}
    producer = next((n for n in graph.node if output.name in n.output), None)
    name, element = _FLAT_NAME, output.type.tensor_type.elem_type
    flat = producer is not None and producer.op_type in ("Reshape", "Flatten")
    before = producer.input[0] if producer is not None and flat else ""
    if before in types and tuple(d.dim_value for d in types[before].shape.dim) == layout.shape:
        name, element = before, types[before].elem_type  # that reshape only flattened it
    else:
        shape = numpy_helper.from_array(np.array(layout.shape, np.int64), f"{_FLAT_NAME}_shape")
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("Reshape", [output.name, shape.name], [name], name=name))
        graph.value_info.append(helper.make_tensor_value_info(output.name, element, raw_shape))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(name, element, layout.shape))
