"""Preprocessing as ONNX nodes: from frames of any size to a network's input.

All results and constants are named ``pre.*``; the last result is ``image``. So a network's precision can be
lowered without its preprocessing. All shape arithmetic is in the graph, for ONNX Runtime and TensorRT alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..errors import InputError
from ..runtime.networks.model_variants import MAX_LONG_SIDE_PX, MIN_LONG_SIDE_PX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
POSTPROCESSING_PREFIX = "post."  # of nodes and tensors between a network and its logits
MODEL_IR_VERSION = 10  # readable by ONNX Runtime 1.18 and TensorRT 10

_LONG_SIDE = "pre.long_side"

Layout = Literal["NCHW", "NHWC"]
Part = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


@dataclass(frozen=True)
class PixelFormat:
    """Pixel format of a network's input: ``(pixel * scale - mean) / std`` in float32, or plain uint8."""

    # mean, std: per channel, in the network's channel order
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255  # factor of pixels 0..255
    rgb: bool = True  # channel order RGB; else BGR, as in frames
    layout: Layout = "NCHW"  # "NCHW" or "NHWC"
    uint8: bool = False  # the network accepts bytes 0..255; mean, std and scale have no effect

    def __str__(self) -> str:
        order = f"{'RGB' if self.rgb else 'BGR'} {self.layout}"
        if self.uint8:
            return f"uint8 {order}"
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"float32 {order}, (pixel * {self.scale:.5g} - [{mean}]) / [{std}]"


def fixed_size_nodes(size_hw: tuple[int, int]) -> Part:
    """Return nodes that compute ``pre.sizes`` for a network with the fixed input size ``size_hw``."""
    constants = {"pre.batch_and_channels": [1, 3], "pre.double_hw": [2 * side for side in size_hw]}
    nodes = [helper.make_node("Concat", list(constants), ["pre.sizes"], axis=0)]
    return nodes, [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]


def long_side_nodes(long_side_px: int, side_multiple: int) -> Part:
    """Return nodes that compute ``pre.sizes`` from the frame.

    The longer side becomes ``long_side_px``; both sides become multiples of ``side_multiple``."""
    constants = {
        "pre.multiple": np.float32(side_multiple),
        "pre.one": np.float32(1),
        "pre.twice": np.array(2 * side_multiple, np.int64),
        "pre.batch_and_channels": np.array([1, 3], np.int64),
        "pre.hw_start": np.array([1], np.int64),
        "pre.hw_end": np.array([3], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["frame"], ["pre.shape"]),
        node("Slice", ["pre.shape", "pre.hw_start", "pre.hw_end"], ["pre.hw"]),
        node("Cast", ["pre.hw"], ["pre.hw_float"], to=TensorProto.FLOAT),
        node("ReduceMax", ["pre.hw_float"], ["pre.longer"], keepdims=0),
        node("Div", [_LONG_SIDE, "pre.longer"], ["pre.zoom"]),
        node("Mul", ["pre.hw_float", "pre.zoom"], ["pre.fitted"]),
        node("Div", ["pre.fitted", "pre.multiple"], ["pre.blocks"]),
        node("Round", ["pre.blocks"], ["pre.rounded"]),
        node("Max", ["pre.rounded", "pre.one"], ["pre.at_least_one"]),
        node("Cast", ["pre.at_least_one"], ["pre.blocks_int"], to=TensorProto.INT64),
        node("Mul", ["pre.blocks_int", "pre.twice"], ["pre.double_hw"]),
        node("Concat", ["pre.batch_and_channels", "pre.double_hw"], ["pre.sizes"], axis=0),
    ]
    return nodes, [
        _long_side(long_side_px),
        *(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()),
    ]


def check_long_side(long_side_px: int) -> None:
    """Raise InputError if a longer side is out of range."""
    if not MIN_LONG_SIDE_PX <= long_side_px <= MAX_LONG_SIDE_PX:
        raise InputError(
            f"the longer side must lie in {MIN_LONG_SIDE_PX}..{MAX_LONG_SIDE_PX} pixels, got {long_side_px}"
        )


def _long_side(long_side_px: int) -> onnx.TensorProto:
    check_long_side(long_side_px)
    return numpy_helper.from_array(np.asarray(np.float32(long_side_px)), _LONG_SIDE)


def pixel_nodes(pixels: PixelFormat) -> Part:
    """Return nodes that compute ``image`` from ``frame`` and ``pre.sizes``.

    ``frame`` is uint8 (1, H, W, 3) BGR; ``pre.sizes`` is int64 (4,), twice the network's size. The frame is
    scaled to twice the size and then averaged 2 x 2, because bilinear scaling alone skips pixels of large
    frames.
    """
    constants: dict[str, NDArray[Any]] = {}
    steps: list[tuple[str, list[str], dict[str, Any], str]] = [
        ("Cast", [], {"to": TensorProto.FLOAT}, "pre.float"),
        ("Transpose", [], {"perm": [0, 3, 1, 2]}, "pre.nchw"),
        (
            "Resize",
            ["", "", "pre.sizes"],
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
            "pre.double",
        ),
        ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, "pre.small"),
    ]
    if pixels.rgb:
        constants["pre.rgb"] = np.array([2, 1, 0], np.int64)
        steps.append(("Gather", ["pre.rgb"], {"axis": 1}, "pre.colours"))
    if pixels.uint8:
        steps += [("Round", [], {}, "pre.whole"), ("Cast", [], {"to": TensorProto.UINT8}, "pre.bytes")]
    else:
        mean, std = (np.array(v, np.float64).reshape(1, 3, 1, 1) for v in (pixels.mean, pixels.std))
        constants |= {
            "pre.mean": (mean / pixels.scale).astype(np.float32),
            "pre.scale": (pixels.scale / std).astype(np.float32),
        }
        steps += [("Sub", ["pre.mean"], {}, "pre.centred"), ("Mul", ["pre.scale"], {}, "pre.normalised")]
    if pixels.layout == "NHWC":
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}, "image"))
    nodes, tensor = [], "frame"
    for kind, more, settings, name in steps:
        nodes.append(helper.make_node(kind, [tensor, *more], [name], **settings))
        tensor = name
    nodes[-1].output[0] = "image"
    return nodes, [numpy_helper.from_array(v, k) for k, v in constants.items()]


def frame_value() -> onnx.ValueInfoProto:
    """Return the input of every model in tfiseg's format."""
    return helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "height", "width", 3])
