"""Preprocessing as plain ONNX nodes: frame uint8 (N, H, W, 3) BGR of any size in, the tensor ``image`` out.

Written by hand, so that a graph without shape arithmetic in Python is left: ONNX Runtime and TensorRT both read it. All names start with
"pre.": what lowers the precision leaves them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..errors import InputError

_TIE = 0.003  # averages of whole numbers often end in .5: which way they go must not hang on the last bit


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see.

    ``size_hw``: frames are stretched to this size; or ``long_side_px``: the longer side becomes that, proportions kept, both sides
    multiples of ``multiple``. Then (value - mean) * scale per channel, values 0..255, in the order RGB (``rgb``) or BGR.
    ``channels_last``: (N, h, w, 3) in place of (N, 3, h, w); ``uint8``: rounded to whole numbers, not normalised.
    """

    size_hw: tuple[int, int] | None = None
    long_side_px: int | None = None
    multiple: int = 1
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rgb: bool = True
    channels_last: bool = False
    uint8: bool = False

    def __post_init__(self) -> None:
        if (self.size_hw is None) == (self.long_side_px is None):
            raise InputError("a network's input is either one size, or as long as its longer side: say one of the two")

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes and constants.

        The frame is first scaled to twice the size and then averaged 2 x 2: bilinear scaling alone skips pixels of large frames.
        """
        node = helper.make_node
        constants: dict[str, Any] = {
            "pre.batch_and_channels": np.array([1, 3], np.int64),
            "pre.mean": np.array(self.mean, np.float32).reshape(3, 1, 1),
            "pre.scale": np.array(self.scale, np.float32).reshape(3, 1, 1),
            "pre.rgb": np.array([2, 1, 0], np.int64),
        }
        if self.size_hw is not None:
            constants["pre.double_hw"] = 2 * np.array(self.size_hw, np.int64)
            nodes: list[onnx.NodeProto] = []
        else:
            nodes, more = self._fitting()
            constants |= more
        nodes += [
            node("Concat", ["pre.batch_and_channels", "pre.double_hw"], ["pre.sizes"], axis=0),
            node("Cast", ["frame"], ["pre.float"], to=TensorProto.FLOAT),
            node("Transpose", ["pre.float"], ["pre.nchw"], perm=[0, 3, 1, 2]),
            node(
                "Resize",
                ["pre.nchw", "", "", "pre.sizes"],
                ["pre.double"],
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            ),
            node("AveragePool", ["pre.double"], ["pre.small"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        now = "pre.small"
        if self.rgb:
            nodes.append(node("Gather", [now, "pre.rgb"], ["pre.colours"], axis=1))
            now = "pre.colours"
        if self.uint8:
            constants["pre.tie"] = np.float32(_TIE)
            nodes += [
                node("Add", [now, "pre.tie"], ["pre.untied"]),
                node("Round", ["pre.untied"], ["pre.whole"]),
                node("Cast", ["pre.whole"], ["pre.uint8"], to=TensorProto.UINT8),
            ]
            now = "pre.uint8"
        else:
            nodes += [node("Sub", [now, "pre.mean"], ["pre.centred"]), node("Mul", ["pre.centred", "pre.scale"], ["pre.normalised"])]
            now = "pre.normalised"
        if self.channels_last:
            nodes.append(node("Transpose", [now], ["pre.nhwc"], perm=[0, 2, 3, 1]))
        nodes[-1].output[0] = "image"
        read = {name for one in nodes for name in one.input}
        return nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in read]

    def _fitting(self) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
        """Twice the network's size from the frame's, as ``network_size_hw`` reckons it."""
        constants = {
            "pre.long_side": np.float32(self.long_side_px or 0),
            "pre.multiple": np.float32(self.multiple),
            "pre.one": np.float32(1),
            "pre.twice": np.array(2 * self.multiple, np.int64),
            "pre.hw_start": np.array([1], np.int64),
            "pre.hw_end": np.array([3], np.int64),
        }
        node = helper.make_node
        nodes = [
            node("Shape", ["frame"], ["pre.shape"]),
            node("Slice", ["pre.shape", "pre.hw_start", "pre.hw_end"], ["pre.hw"]),
            node("Cast", ["pre.hw"], ["pre.hw_float"], to=TensorProto.FLOAT),
            node("ReduceMax", ["pre.hw_float"], ["pre.longer"], keepdims=0),
            node("Div", ["pre.long_side", "pre.longer"], ["pre.zoom"]),
            node("Mul", ["pre.hw_float", "pre.zoom"], ["pre.fitted"]),
            node("Div", ["pre.fitted", "pre.multiple"], ["pre.blocks"]),
            node("Round", ["pre.blocks"], ["pre.rounded"]),
            node("Max", ["pre.rounded", "pre.one"], ["pre.at_least_one"]),
            node("Cast", ["pre.at_least_one"], ["pre.blocks_int"], to=TensorProto.INT64),
            node("Mul", ["pre.blocks_int", "pre.twice"], ["pre.double_hw"]),
        ]
        return nodes, constants

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The same by OpenCV and numpy, for checks: frame uint8 (H, W, 3) BGR -> what the network gets, batch axis included."""
        if self.size_hw is not None:
            height, width = self.size_hw
        else:
            fit = (self.long_side_px or 0) / max(frame.shape[:2])
            height, width = (max(1, round(side * fit / self.multiple)) * self.multiple for side in frame.shape[:2])
        double = cv2.resize(frame.astype(np.float32), (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
        small = double.reshape(height, 2, width, 2, 3).mean((1, 3))
        if self.rgb:
            small = small[..., ::-1]
        values: NDArray[Any] = np.round(small + _TIE).astype(np.uint8) if self.uint8 else (small - self.mean) * self.scale
        values = values if self.channels_last else values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], np.uint8 if self.uint8 else np.float32)


def halved_weights(weights: Sequence[onnx.TensorProto]) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Large float32 weights stored as float16, and the casts that bring them back when the network is loaded: half the size on disk."""
    casts, stored = [], []
    for tensor in weights:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= 64:
            stored.append(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half"))
            casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
        else:
            stored.append(tensor)
    return stored, casts
