"""Networks with uint8 input: the conversion removes uint8 and keeps their results."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tfiseg.export.byte_pixels import with_float_pixels
from tfiseg.export.frame_graph import (
    MODEL_IR_VERSION,
    PixelFormat,
    fixed_size_nodes,
    frame_value,
    pixel_nodes,
)

UINT8, FLOAT, HALF = TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16
NODE = helper.make_node
TO_FLOAT = NODE("Cast", ["image"], ["x"], to=FLOAT)
DEQUANTIZED = NODE("DequantizeLinear", ["image", "scale", "zero"], ["x"])


def model(nodes, layout="NCHW", zero=128):
    sizing, sizes = fixed_size_nodes((6, 8))
    pixels, constants = pixel_nodes(PixelFormat(layout=layout, uint8=True))
    more = {
        "scale": np.float32(0.5),
        "scales": np.float32([0.5, 1, 2]),
        "zero": np.uint8(zero),
        "zeros": np.uint8([0, 100, 200]),
        "two": np.uint8(2),
        "weight": np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32),
    }
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in more.items()]
    graph = helper.make_graph(
        [*sizing, *pixels, *nodes, NODE("Conv", ["x", "weight"], ["logits"])],
        "g",
        [frame_value()],
        [helper.make_tensor_value_info("logits", FLOAT, [1, 2, 6, 8])],
        [*sizes, *constants, *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=MODEL_IR_VERSION)


def logits(network):
    frame = np.random.default_rng(1).integers(0, 256, (1, 31, 43, 3), np.uint8)
    session = onnxruntime.InferenceSession(network.SerializeToString())
    return session.run(["logits"], {"frame": frame})[0]


def types_within(network):
    typed = onnx.shape_inference.infer_shapes(network, strict_mode=True)
    return {v.type.tensor_type.elem_type for v in typed.graph.value_info}


@pytest.mark.parametrize(
    ("layout", "nodes"),
    [
        ("NCHW", [TO_FLOAT]),
        ("NCHW", [DEQUANTIZED]),
        ("NCHW", [NODE("DequantizeLinear", ["image", "scale"], ["x"])]),
        ("NCHW", [NODE("Cast", ["image"], ["h"], to=HALF), NODE("Cast", ["h"], ["x"], to=FLOAT)]),
        (
            "NHWC",
            [NODE("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]), NODE("Cast", ["t"], ["x"], to=FLOAT)],
        ),
        (
            "NHWC",
            [NODE("Cast", ["image"], ["f"], to=FLOAT), NODE("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2])],
        ),
    ],
)
def test_uint8_is_replaced_by_integers_in_float32(layout, nodes):
    given = model(nodes, layout)
    assert UINT8 in types_within(given)
    changed = with_float_pixels(given)
    assert UINT8 not in types_within(changed)
    assert np.array_equal(logits(changed), logits(given))
    assert "image" in {name for node in changed.graph.node for name in node.output}
    assert with_float_pixels(changed) is changed


@pytest.mark.parametrize(
    "nodes",
    [
        [NODE("Sub", ["image", "two"], ["s"]), NODE("Cast", ["s"], ["x"], to=FLOAT)],  # 1 - 2 is 255 in bytes
        [NODE("DequantizeLinear", ["image", "scales", "zeros"], ["x"], axis=1)],
    ],
)
def test_networks_that_compute_with_uint8_are_unchanged(nodes):
    given = model(nodes)
    assert with_float_pixels(given) is given
