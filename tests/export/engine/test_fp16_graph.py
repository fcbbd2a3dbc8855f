"""Float16 in the graph: preprocessing, outputs and overflowing layers stay float32; int8 is kept."""

import numpy as np
import onnx
import pytest
import tfiseg
from onnx import TensorProto, helper
from plain_model import PLAIN_MODEL
from tfiseg.calibration.graph import Network, session
from tfiseg.export.engine.batching import with_batch
from tfiseg.export.engine.fp16_graph import find_overflowing_nodes, to_fp16
from tfiseg.runtime.inspect.onnx_layers import layer_precisions
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="module")
def frame():
    return SyntheticCamera()._read(0).image


def run(model, frames):
    return session(model).run(None, {"frame": frames})[0]


def test_default_network_in_half_precision(frame):
    model = onnx.load(PLAIN_MODEL)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert {layer.precision for layer in layer_precisions(half)} == {"fp16"}
    assert {layer.precision for layer in layer_precisions(model)} == {
        "fp32"
    }  # weights are stored in fp16, arithmetic is float32
    casts = [
        node for node in half.graph.node if node.op_type == "Cast" and not node.output[0].startswith("pre.")
    ]
    assert len(casts) == 2  # at the input and the output only
    a, b = run(model, frame[None]), run(half, frame[None])
    assert b.dtype == np.float32
    assert (a.argmax(1) == b.argmax(1)).mean() > 0.999


def test_kept_layers_stay_in_single_precision(frame):
    half = to_fp16(onnx.load(PLAIN_MODEL), ["node_conv2d_70"])
    precisions = {layer.name: layer.precision for layer in layer_precisions(half)}
    assert precisions.pop("node_conv2d_70") == "fp32"
    assert set(precisions.values()) == {"fp16"}
    assert np.isfinite(run(half, frame[None])).all()


def test_overflowing_layers_are_found(frame):
    network = Network(onnx.load(PLAIN_MODEL))
    assert find_overflowing_nodes(network.model, [frame]) == []
    network.set_weight("network.heads.logits.weight", network.weight("network.heads.logits.weight") * 1e5)
    assert "node_conv2d_70" in find_overflowing_nodes(network.model, [frame])


def quantized_product(left_scale, right_scale):
    """Return a matrix product of two quantized tensors."""

    def pair(name, scale):
        return [
            helper.make_node("QuantizeLinear", [name, f"{name}.s"], [f"{name}.q"], name=f"{name}.quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{name}.q", f"{name}.s"], [f"{name}.d"], name=f"{name}.dequantize"
            ),
        ]

    nodes = [
        helper.make_node("Mul", ["image", "two"], ["left"], name="left"),
        helper.make_node("Transpose", ["left"], ["right"], name="right", perm=[0, 1, 3, 2]),
        *pair("left", left_scale),
        *pair("right", right_scale),
        helper.make_node("MatMul", ["left.d", "right.d"], ["product"], name="product"),
        helper.make_node("Relu", ["product"], ["logits"], name="relu"),
    ]
    shape = ["n", 2, 8, 8]
    constants = {"left.s": left_scale, "right.s": right_scale, "two": 2.0}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [helper.make_tensor(k, TensorProto.FLOAT, [], [v]) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


@pytest.mark.parametrize(
    ("scales", "kind"), [((0.1, 0.2), TensorProto.FLOAT16), ((1e-6, 0.2), TensorProto.FLOAT)]
)
def test_scales_of_a_layer_have_one_type(scales, kind):
    """TensorRT-RTX rejects a product of scales of two types; a small scale must stay float32."""
    half = to_fp16(quantized_product(*scales))
    onnx.checker.check_model(half, full_check=True)
    network = Network(half)
    types = {i.name: i.data_type for i in network.graph.initializer}
    pairs = [n for n in network.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 4
    assert {types[n.input[1]] for n in pairs} == {kind}
    product = next(n for n in network.graph.node if n.name == "product")
    assert [network.producer[name].op_type for name in product.input] == ["DequantizeLinear"] * 2


def test_batch_equals_single_frames(frame):
    model = onnx.load(PLAIN_MODEL)
    batched = with_batch(model, 3)
    frames = np.stack([frame, frame[:, ::-1], frame[::-1]])
    assert np.allclose(run(batched, frames), np.concatenate([run(model, f[None]) for f in frames]), atol=1e-2)
    assert run(batched, frames[:2]).shape[0] == 2
    assert with_batch(model, 1) is model


def test_network_for_single_frames_raises_an_error():
    foreign = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cast", ["frame"], ["logits"], to=TensorProto.FLOAT)],
            "g",
            [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "h", "w", 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "h", "w", 3])],
        )
    )
    with pytest.raises(tfiseg.ModelError, match="no preprocessing of tfiseg"):
        with_batch(foreign, 2)
