"""Split convolutions of concatenations give the same result."""

import numpy as np
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx", reason="exporting needs onnx: make test-export")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tfiseg.export.instance.split_concat import split_convolutions  # noqa: E402

node = helper.make_node
WIDTHS = {"a": 16, "b": 3, "c": 1}


def model_of(nodes, weights, output_channels):
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in WIDTHS.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", output_channels, None, None])
    initializers = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "toy", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model):
    rng = np.random.default_rng(1)
    given = {n: rng.normal(size=(2, c, 8, 8)).astype(np.float32) for n, c in WIDTHS.items()}
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, given
    )[0]


def kernels(*shapes):
    rng = np.random.default_rng(0)
    return {f"w{k}": rng.normal(size=s) for k, s in enumerate(shapes)} | {
        f"b{k}": rng.normal(size=s[0]) for k, s in enumerate(shapes)
    }


CASES = {
    "a convolution with a bias": (
        [
            node("Concat", ["a", "b", "c"], ["x"], axis=1),
            node("Conv", ["x", "w0", "b0"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
        ],
        kernels((5, 20, 3, 3)),
        ["Conv", "Conv", "Conv", "Add", "Add"],
    ),
    "depthwise, then pointwise": (
        [
            node("Concat", ["a", "b"], ["x"], axis=1),
            node("Conv", ["x", "w0", "b0"], ["d"], pads=[1, 1, 1, 1], group=19),
            node("Conv", ["d", "w1"], ["y"]),
        ],
        kernels((19, 1, 3, 3), (8, 19, 1, 1)),
        ["Conv", "Conv", "Conv", "Conv", "Add"],
    ),
    "a multiple of sixteen": (
        [node("Concat", ["a", "a"], ["x"], axis=1), node("Conv", ["x", "w0"], ["y"])],
        kernels((4, 32, 1, 1)),
        ["Concat", "Conv"],
    ),
    "along another axis": (
        [node("Concat", ["b", "b"], ["x"], axis=2), node("Conv", ["x", "w0"], ["y"])],
        kernels((4, 3, 1, 1)),
        ["Concat", "Conv"],
    ),
    "in groups": (
        [node("Concat", ["b", "c"], ["x"], axis=1), node("Conv", ["x", "w0"], ["y"], group=2)],
        kernels((6, 2, 3, 3)),
        ["Concat", "Conv"],
    ),
    "depthwise, several times each": (
        [node("Concat", ["b", "c"], ["x"], axis=1), node("Conv", ["x", "w0"], ["y"], group=4)],
        kernels((8, 1, 3, 3)),
        ["Concat", "Conv"],
    ),
    "a concatenation with another user": (
        [
            node("Concat", ["a", "b"], ["x"], axis=1),
            node("Conv", ["x", "w0"], ["z"]),
            node("Add", ["z", "x"], ["y"]),
        ],
        kernels((19, 19, 1, 1)),
        ["Concat", "Conv", "Add"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_split_convolutions_give_the_same_result(case):
    nodes, weights, operators = CASES[case]
    model = model_of(nodes, weights, None)
    before = run(model)
    split_convolutions(model)
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == operators
    np.testing.assert_allclose(run(model), before, atol=1e-4)
    used = {name for n in model.graph.node for name in n.input}
    assert {i.name for i in model.graph.initializer} <= used
