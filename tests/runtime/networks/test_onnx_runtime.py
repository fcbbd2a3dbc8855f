"""Test that sessions of ONNX Runtime compute what the network's file says."""

import logging

import numpy as np
import pytest
from tfiseg.runtime.networks import onnx_runtime
from tfiseg.runtime.networks.onnx_runtime import has_exact_int8, start_session

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


@pytest.mark.parametrize("is_exact", [True, False])
def test_layers_that_share_a_zero_point(is_exact, monkeypatch, caplog):
    """ONNX Runtime can't make sums of such layers exact: a warning, where they may saturate."""
    monkeypatch.setattr(onnx_runtime, "has_exact_int8", lambda: is_exact)
    one = onnx.load_from_string(layer("QLinearConv", np.full((4, 4, 1, 1), 127, np.int8), (1, 4, 8, 8)))
    second = one.graph.node.add()
    second.CopyFrom(one.graph.node[0])
    second.input[0], second.input[2], second.input[3] = "h", "y_zero", "w2"
    one.graph.node[0].output[0] = "h"
    one.graph.initializer.append(numpy_helper.from_array(np.full((4, 4, 1, 1), 127, np.int8), "w2"))
    with caplog.at_level(logging.WARNING, "tfiseg"):
        session = start_session(one.SerializeToString(), name="street.onnx")
    assert session.run(None, {"x": np.ones((1, 4, 8, 8), np.uint8)})[0].shape == (1, 4, 8, 8)
    assert ("street.onnx: its int8 sums may saturate" in caplog.text) == (not is_exact)


@pytest.mark.parametrize(("flags", "expected"), [("avx2", False), ("avx2 avx512_vnni", True), (None, False)])
def test_cpus_without_vnni_are_found(flags, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_runtime.platform, "machine", lambda: "x86_64")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert has_exact_int8(tmp_path / "cpuinfo") is expected
    monkeypatch.setattr(onnx_runtime.platform, "machine", lambda: "aarch64")
    assert has_exact_int8(tmp_path / "cpuinfo")
