"""Small random networks with common tails."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxsim", reason="the extra `export` is not installed (make test-export)")

from tfiseg.export.onnx_import.any_network import ExportSettings, export_any

H, W, C = 48, 64, 5
FLOAT, HALF, UINT8, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64
node = helper.make_node


def write(
    path,
    nodes,
    output,
    *,
    shape=(1, 3, H, W),
    element=FLOAT,
    out_type=FLOAT,
    out_shape=(None,) * 4,
    opset=17,
    channels=C,
    extra=(),
):
    """Write a network: a random convolution of stride 4 from ``x`` to ``scores``, then ``nodes``."""
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 1, (channels, 3, 4, 4)).astype(np.float32)
    kind = np.float16 if element == HALF else np.float32
    constants = {"weight": weight.astype(kind), "bias": rng.normal(0, 0.5, channels).astype(kind)}
    constants |= {
        "hw_sizes": np.array([1, channels, H, W], np.int64),
        "none": np.zeros(0, np.float32),
        **dict(extra),
    }
    first = []
    picture = "picture"
    if element == UINT8:
        first.append(node("Cast", [picture], ["float"], to=FLOAT))
        picture = "float"
    if shape[3] == 3:
        first.append(node("Transpose", [picture], ["planes"], perm=[0, 3, 1, 2]))
        picture = "planes"
    first.append(node("Conv", [picture, "weight", "bias"], ["scores"], strides=[4, 4], kernel_shape=[4, 4]))
    outputs = [output] if isinstance(output, str) else output
    graph = helper.make_graph(
        [*first, *nodes],
        "theirs",
        [helper.make_tensor_value_info("picture", element, shape)],
        [helper.make_tensor_value_info(name, out_type, out_shape) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def export(path, tmp_path, **options):
    out = tmp_path / "out.onnx"
    return export_any(str(path), out, ExportSettings(**options), quiet=True), onnx.load(out)


def upsampling(mode, transformation):
    """Return a node that resizes ``scores`` to ``up``, the size of the input."""
    inputs = ["scores", "none", "none", "hw_sizes"]
    return node("Resize", inputs, ["up"], mode=mode, coordinate_transformation_mode=transformation)


UP = upsampling("linear", "half_pixel")
UP_CORNERS = upsampling("linear", "align_corners")
MAP = {"out_type": INT64, "out_shape": (None,) * 3}


def two_outputs(path):
    return write(path, [node("Neg", ["scores"], ["other"])], ["scores", "other"])
