"""Test that sessions of ONNX Runtime compute what the network's file says."""

from collections.abc import Sequence

import numpy as np
import pytest
from tfiseg.runtime.networks.onnx_bytes import with_own_int8
from tfiseg.runtime.networks.onnx_runtime import start_session

onnx = pytest.importorskip("onnx", reason="the extra `calibration` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

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


WEIGHTS = np.random.default_rng(0).choice([-127, 127], (4, 4, 1, 1), p=[0.2, 0.8]).astype(np.int8)


def two_layers(first: onnx.NodeProto, second: onnx.NodeProto, *constants: onnx.NodeProto) -> onnx.ModelProto:
    """Return a network of two layers from x to y."""
    tensors = {"w": WEIGHTS, "w_zero": np.int8(0), "x_zero": np.uint8(0), "scale": np.float32(0.01)}
    tensors |= {"y_zero": np.uint8(0), "y_scale": np.float32(0.05), "w2": WEIGHTS}
    made = {name for node in constants for name in node.output}
    graph = helper.make_graph(
        [*constants, first, second],
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, 4, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, (1, 4, 8, 8))],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items() if name not in made],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def q_conv(source: str, target: str, weights: str = "w") -> onnx.NodeProto:
    names = [source, "scale", "x_zero", weights, "scale", "w_zero", "y_scale", "y_zero"]
    return helper.make_node("QLinearConv", names, [target])


def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def dequantized(weights: Sequence[str]) -> onnx.ModelProto:
    """Return two layers in the form of TensorRT, with the DequantizeLinear of each one's weights."""
    nodes = {
        name: helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], [name], name=name)
        for name in weights
    }
    steps = []
    for source, target, name in zip(("x", "h"), ("h", "y"), weights, strict=True):
        scale = ("scale", "x_zero") if source == "x" else ("y_scale", "y_zero")
        steps += [
            helper.make_node("DequantizeLinear", [source, *scale], [f"{source} as float"]),
            helper.make_node("Conv", [f"{source} as float", name], [f"{target} sums"]),
            helper.make_node("QuantizeLinear", [f"{target} sums", "y_scale", "y_zero"], [target]),
        ]
    model = two_layers(*steps[:2], *nodes.values())
    model.graph.node.extend(steps[2:])
    return model


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Add float weights to the outputs, as the proof of an engine's precision does with every tensor."""
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, WEIGHTS.shape))
    return model


SHARED = {
    "weights and zero points": two_layers(q_conv("x", "h"), q_conv("h", "y")),
    "zero points": two_layers(q_conv("x", "h"), q_conv("h", "y", "w2")),
    "constants": two_layers(
        q_conv("x", "h"), q_conv("h", "y"), constant("w", WEIGHTS), constant("w_zero", np.array(0, np.int8))
    ),
    "copies": two_layers(
        q_conv("x", "h", "same"), q_conv("h", "y", "same"), helper.make_node("Identity", ["w"], ["same"])
    ),
    "weights of two nodes": dequantized(["a", "b"]),
    "a node": dequantized(["a", "a"]),
    "weights that are an output": with_output(dequantized(["a", "b"]), "a"),
}


def in_float(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Return the output, by ONNX's reference implementation."""
    found: np.ndarray = ReferenceEvaluator(model).run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("as_file", [False, True])
def test_sums_are_exact_in_layers_that_share_int8_constants(name, as_file, tmp_path, caplog, capfd):
    """ONNX Runtime can't make sums of such layers exact, so each layer gets constants of its own."""
    x = np.random.default_rng(1).integers(200, 256, (1, 4, 8, 8)).astype(np.uint8)
    onnx.checker.check_model(with_own_int8(SHARED[name].SerializeToString()))
    if as_file:  # with its weights in another file
        options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
        onnx.save(onnx.load_from_string(SHARED[name].SerializeToString()), tmp_path / "a.onnx", **options)
    session = start_session(tmp_path / "a.onnx" if as_file else SHARED[name].SerializeToString())
    found = session.run(None, {"x": x})[0]
    assert np.abs(found.astype(int) - in_float(SHARED[name], x)).max() <= 1
    assert found.max() > 0
    assert (caplog.text, capfd.readouterr().err) == ("", "")
