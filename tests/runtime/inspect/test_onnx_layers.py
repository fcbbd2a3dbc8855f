"""Test the precision and the multiply-accumulates of layers."""

import numpy as np
import pytest
from tfiseg.runtime.inspect.model_file import describe_tensor
from tfiseg.runtime.inspect.onnx_layers import LayerPrecision, layer_precisions

onnx = pytest.importorskip("onnx")
HEAD = '<ir_version: 8, opset_import: ["" : 19, "com.microsoft" : 1]>'


def network(body, inputs="float[1, 2, 6, 8] x"):
    """Return a network from ONNX's text format, with output y."""
    return onnx.parser.parse_model(f"{HEAD} g ({inputs}) => (float[] y) {{ {body} }}")


def add_weights(model, name, shape, dtype):
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, dtype), name))
    return model


def precisions(model):
    return [(layer.op, layer.precision) for layer in layer_precisions(model)]


@pytest.mark.parametrize(
    ("body", "inputs", "stored", "expected"),
    [
        ("y = Conv(x, w)", "float[1, 2, 6, 8] x", np.float32, "fp32"),
        ("y = Conv(x, w)", "float16[1, 2, 6, 8] x", np.float16, "fp16"),
        ("y = Conv(x, w)", "double[1, 2, 6, 8] x", np.float64, "fp64"),
        (
            "v = Cast<to = 1>(w) y = Conv(x, v)",
            "float[1, 2, 6, 8] x",
            np.float16,
            "fp32",
        ),  # only stored as fp16
        ("h = Cast<to = 10>(x) y = Conv(h, w)", "float[1, 2, 6, 8] x", np.float16, "fp16"),
        (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, z) y = "
            "Conv(d, v)",
            "",
            np.int8,
            "int8",
        ),
        (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w)",
            "",
            np.float32,
            "fp32",
        ),  # data alone
        ("v = DequantizeLinear(w, s, z) y = Conv(x, v)", "", np.int8, "fp32"),  # weights alone
        (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) t = DequantizeLinear(w, s, z) "
            "u = Identity(t) i = Cast<to = 1>(u) y = Conv(d, i)",
            "",
            np.int8,
            "int8",
        ),
    ],
)
def test_precision_of_a_convolution(body, inputs, stored, expected):
    model = network(body, inputs or "float[1, 2, 6, 8] x, float s, int8 z")
    assert precisions(add_weights(model, "w", (4, 2, 3, 3), stored)) == [("Conv", expected)]


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("y = QLinearConv(x, s, z, w, s, z, s, z)", "QLinearConv"),
        ("y = ConvInteger(x, w)", "ConvInteger"),
        ("y = MatMulInteger(x, w)", "MatMulInteger"),
        ("y = QLinearMatMul(x, s, z, w, s, z, s, z)", "QLinearMatMul"),
        ("y = com.microsoft.QGemm(x, s, z, w, s, z)", "QGemm"),
    ],
)
def test_integer_operators_are_int8(body, op):
    assert precisions(network(body, "int8[1, 2, 6, 8] x, int8[4, 2, 3, 3] w, float s, int8 z")) == [
        (op, "int8")
    ]


@pytest.mark.parametrize(
    ("body", "shape", "macs"),
    [
        ("y = Conv(x, w)", (4, 2, 3, 3), 4 * 4 * 6 * 2 * 9),
        ("y = Conv<group = 2>(x, w)", (2, 1, 3, 3), 2 * 4 * 6 * 9),
        ("y = ConvTranspose(x, w)", (2, 4, 2, 2), 2 * 6 * 8 * 4 * 4),
        ("y = MatMul(x, w)", (8, 5), 2 * 6 * 5 * 8),
        ("f = Flatten(x) y = Gemm(f, w)", (96, 7), 96 * 7),
        ("f = Flatten(x) y = Gemm<transB = 1>(f, w)", (7, 96), 96 * 7),
    ],
)
def test_multiply_accumulates(body, shape, macs):
    (layer,) = layer_precisions(add_weights(network(body), "w", shape, np.float32))
    assert layer.macs == macs


def test_shapes_that_inference_cannot_determine_come_from_a_run():
    model = add_weights(
        network("y = Conv(x, w)", "float[1, 2, height, width] x"), "w", (4, 2, 3, 3), np.float32
    )
    assert layer_precisions(model) == [LayerPrecision("y", "Conv", "fp32", None)]
    (layer,) = layer_precisions(model, {"y": (1, 4, 10, 10)})
    assert layer.macs == 4 * 100 * 18


def test_names_and_order_of_layers():
    model = add_weights(
        network("a = Relu(x) b = Conv(a, w) c = Add(b, b) y = Conv(c, v)"), "w", (2, 2, 1, 1), np.float32
    )
    model.graph.node[1].name = "first"
    assert [layer.name for layer in layer_precisions(add_weights(model, "v", (3, 2, 1, 1), np.float32))] == [
        "first",
        "y",
    ]


def test_a_network_with_nodes_of_other_domains():
    model = add_weights(network("a = Conv(x, w) y = tfiseg.Strange(a)"), "w", (2, 2, 1, 1), np.float32)
    model.opset_import.append(onnx.helper.make_opsetid("tfiseg", 1))
    assert precisions(model) == [("Conv", "fp32")]


def test_an_unknown_element_type_is_named_by_its_number():
    model = network("y = Conv(x, w)", "float[1, 2, 6, 8] x, float[4, 2, 3, 3] w")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = 65
    assert precisions(model) == [("Conv", "element type 65")]
    assert describe_tensor(model.graph.output[0])["dtype"] == "element type 65"


@pytest.mark.parametrize("kept", [0, 1])
def test_macs_of_a_layer_without_weights_or_input_are_unknown(kept):
    model = network("y = Conv(x, w)", "float[1, 2, 6, 8] x, float[4, 2, 3, 3] w")
    del model.graph.node[0].input[kept:]
    assert [layer.macs for layer in layer_precisions(model)] == [None]


def test_a_cycle_before_a_layer():
    model = network(
        "a = Identity(x) b = Identity(a) y = Conv(b, w)", "float[1, 2, 6, 8] x, float[4, 2, 3, 3] w"
    )
    model.graph.node[0].input[0] = "b"
    assert precisions(model) == [("Conv", "fp32")]
