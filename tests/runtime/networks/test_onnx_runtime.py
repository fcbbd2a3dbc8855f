"""Test that sessions of ONNX Runtime compute what the network's file says."""

import numpy as np
import pytest
from tfiseg.runtime.networks.onnx_runtime import start_session

onnx = pytest.importorskip("onnx", reason="the extra `calibration` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

NAMES = ("x", "scale", "x_zero", "w", "scale", "w_zero", "y_scale", "y_zero")
Y_SCALE = 8 / 0.01**2  # in units of the products


def layer(kind: str, w: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """Return a network of one layer with uint8 inputs and int8 weights."""
    integer = kind == "MatMulInteger"
    output = TensorProto.INT32 if integer else TensorProto.UINT8
    constants = {
        "w": w,
        "scale": np.float32(0.01),
        "x_zero": np.uint8(0),
        "w_zero": np.int8(0),
        "y_scale": np.float32(8),
        "y_zero": np.uint8(128),
    }
    names = ("x", "w", "x_zero", "w_zero") if integer else NAMES
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(constants[name]), name) for name in sorted({*names} - {"x"})],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("kind", ["QLinearConv", "QLinearMatMul", "MatMulInteger"])
def test_sums_of_int8_products_are_exact_on_every_cpu(kind):
    """x86 processors without VNNI add two products in 16 bits: 2 * 255 * 127 saturates."""
    rng = np.random.default_rng(0)
    x = rng.integers(100, 256, (32, 256)).astype(np.uint8)
    w = rng.integers(-127, 128, (256, 64)).astype(np.int8)
    w[:, :4], w[:, 4:8] = 127, -127
    sums = x.astype(np.int64) @ w.astype(np.int64)
    if kind == "QLinearConv":
        image, weights = x.T[None, :, None], np.ascontiguousarray(w.T[:, :, None, None])
        found = start_session(layer(kind, weights, image.shape)).run(None, {"x": image})[0][0, :, 0].T
    else:
        found = start_session(layer(kind, w, x.shape)).run(None, {"x": x})[0]
    expected = sums if kind == "MatMulInteger" else np.clip(np.rint(sums / Y_SCALE) + 128, 0, 255)
    assert np.abs(found.astype(np.int64) - expected).max() <= (kind != "MatMulInteger")
