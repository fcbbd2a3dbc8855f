"""Networks in PyTorch, compared with ONNX Runtime, and on an emulated GPU."""

import json
import logging
import sys
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import tfiseg
from onnx import TensorProto, helper, numpy_helper
from plain_model import PLAIN_MODEL
from skimage import data
from tfiseg.runtime.networks import native_preprocessing, onnx_session
from tfiseg.runtime.networks.model_variants import AS_IS
from tfiseg.runtime.networks.session import DEFAULT_MODEL

sys.path.insert(0, str(Path(__file__).parents[1]))
import emulated_gpu
from emulated_engines import gpu, same

torch = pytest.importorskip("torch")
from tfiseg.runtime.gpu import frame_fitting, torch_cuda  # noqa: E402
from tfiseg.runtime.networks import torch_network, torch_session  # noqa: E402
from tfiseg.runtime.networks.torch_network import TorchNetwork  # noqa: E402

__all__ = ["gpu"]  # a fixture
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def whole(*values):
    return np.array(values, np.int64)


IMAGE = normal(1, 4, 9, 12)
# operator, inputs, attributes
CASES = {
    "conv, padding that differs": ("Conv", [IMAGE, normal(6, 4, 3, 3), normal(6)], {"pads": [1, 0, 2, 1]}),
    "conv, in groups, dilated": (
        "Conv",
        [IMAGE, normal(8, 1, 3, 3)],
        {"group": 4, "dilations": [2, 2], "pads": [2, 2, 2, 2], "strides": [2, 1]},
    ),
    "transposed conv": (
        "ConvTranspose",
        [IMAGE, normal(4, 3, 3, 3), normal(3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "average pool": (
        "AveragePool",
        [IMAGE],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "average pool, padding counted": (
        "AveragePool",
        [IMAGE],
        {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1},
    ),
    "max pool, padding that differs": ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 2]}),
    "max pool, rounded up": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "global pool": ("GlobalAveragePool", [IMAGE], {}),
    "batch norm": ("BatchNormalization", [IMAGE, normal(4), normal(4), normal(4), normal(4) ** 2], {}),
    "instance norm": ("InstanceNormalization", [IMAGE, normal(4), normal(4)], {"epsilon": 1e-3}),
    "layer norm": ("LayerNormalization", [IMAGE, normal(12), normal(12)], {"axis": -1}),
    "linear by size": ("Resize", [IMAGE, None, None, whole(1, 4, 20, 7)], {"mode": "linear"}),
    "linear by scale": (
        "Resize",
        [IMAGE, None, np.array([1, 1, 2.0, 1.5], np.float32)],
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ),
    "linear, corners aligned": (
        "Resize",
        [IMAGE, None, None, whole(1, 4, 33, 33)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "cubic": ("Resize", [IMAGE, None, None, whole(1, 4, 18, 24)], {"mode": "cubic"}),
    "nearest, asymmetric": (
        "Resize",
        [IMAGE, None, None, whole(1, 4, 25, 30)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "nearest, half pixels": ("Resize", [IMAGE, None, None, whole(1, 4, 27, 36)], {"mode": "nearest"}),
    "nearest, half way up": (
        "Resize",
        [IMAGE, None, None, whole(1, 4, 9, 6)],
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    ),
    "softmax": ("Softmax", [IMAGE], {"axis": 1}),
    "leaky": ("LeakyRelu", [IMAGE], {"alpha": 0.3}),
    "hard swish": ("HardSwish", [IMAGE], {}),
    "hard sigmoid": ("HardSigmoid", [IMAGE], {"alpha": 0.3}),
    "prelu": ("PRelu", [IMAGE, normal(4, 1, 1)], {}),
    "erf": ("Erf", [IMAGE], {}),
    "clip below": ("Clip", [IMAGE, np.float32(-0.2)], {}),
    "division of integers": ("Div", [np.array([-7, 7, 8], np.int32), np.array([2, -2, 3], np.int32)], {}),
    "largest of three": ("Max", [IMAGE, normal(12), normal(9, 1)], {}),
    "mean": ("ReduceMean", [IMAGE, whole(2, -1)], {"keepdims": 0}),
    "largest along all axes": ("ReduceMax", [IMAGE], {"keepdims": 1}),
    "matrix product": ("MatMul", [IMAGE, normal(12, 5)], {}),
    "gemm": ("Gemm", [normal(3, 4), normal(5, 4), normal(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "concat": ("Concat", [IMAGE, normal(1, 2, 9, 12)], {"axis": 1}),
    "slice with a step": ("Slice", [IMAGE, whole(1, -20), whole(99, -2), whole(3, 2), whole(3, 2)], {}),
    "slice, reversed": ("Slice", [IMAGE, whole(-1), whole(-(1 << 31)), whole(1), whole(-1)], {}),
    "gather, from the end": ("Gather", [IMAGE, np.array([[2, -1], [0, 1]], np.int64)], {"axis": 1}),
    "transpose": ("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    "reshape that copies a size": ("Reshape", [IMAGE, whole(0, -1, 6)], {}),
    "flatten": ("Flatten", [IMAGE], {"axis": 2}),
    "squeeze": ("Squeeze", [IMAGE, whole(0)], {}),
    "unsqueeze": ("Unsqueeze", [IMAGE, whole(0, -1)], {}),
    "expand": ("Expand", [normal(4, 1, 1), whole(2, 4, 3, 1)], {}),
    "tile": ("Tile", [IMAGE, whole(1, 2, 1, 1)], {}),
    "pad": ("Pad", [IMAGE, whole(0, 1, 0, 2, 0, 0, 3, 0), np.float32(0.5)], {}),
    "pad, reflected": ("Pad", [IMAGE, whole(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "reflect"}),
    "depth to space": ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}),
    "where": ("Where", [IMAGE > 0, IMAGE, normal(1)], {}),
    "argmax": ("ArgMax", [IMAGE], {"axis": 1, "keepdims": 0}),
    "cast": ("Cast", [IMAGE * 9], {"to": TensorProto.INT32}),
    "split": ("Split", [IMAGE, whole(1, 3)], {"axis": 1}),
}


def model_of(kind, inputs, attributes, opset=18):
    """Return a graph of one node, whose first input is the graph's; the others are constants."""
    names = ["" if value is None else f"in{k}" for k, value in enumerate(inputs)]
    constants = [numpy_helper.from_array(np.asarray(v), n) for v, n in zip(inputs, names, strict=True) if n]
    first = helper.make_tensor_value_info(
        "in0", helper.np_dtype_to_tensor_dtype(inputs[0].dtype), inputs[0].shape
    )
    outputs = ["out0", "out1"] if kind == "Split" else ["out0"]
    node = helper.make_node(kind, names, outputs, **attributes)
    ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "one", [first], ends, constants[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize("name", CASES)
def test_operators_equal_onnx_runtime(name):
    kind, inputs, attributes = CASES[name]
    model = model_of(kind, inputs, attributes)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"in0": inputs[0]})
    found = TorchNetwork(model, "cpu")({"in0": torch.from_numpy(inputs[0])})
    for tensor, value in zip(found.values(), expected, strict=True):
        assert tensor.numpy().dtype == value.dtype
        np.testing.assert_allclose(tensor.numpy(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        ("Resize", [IMAGE, None, None, whole(1, 4, 9, 6)], {"mode": "nearest"}, "ties between two pixels"),
        ("ArgMax", [IMAGE], {"axis": 1, "select_last_index": 1}, "select_last_index"),
        ("Resize", [IMAGE, None, None, whole(1, 8, 9, 12)], {"mode": "linear"}, "another batch or number"),
        ("Conv", [IMAGE, normal(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}, "auto_pad SAME_UPPER"),
        ("Celu", [IMAGE], {}, "operators Celu"),
    ],
)
def test_unsupported_attributes_are_errors(kind, inputs, attributes, message):
    with pytest.raises(tfiseg.ModelError, match=message):
        TorchNetwork(model_of(kind, inputs, attributes), "cpu")({"in0": torch.from_numpy(inputs[0])})


def test_old_opsets_are_errors():
    with pytest.raises(tfiseg.ModelError, match="from opset 13 on, this model has opset 12"):
        TorchNetwork(model_of("Softmax", [IMAGE], {"axis": 1}, opset=12), "cpu")


def test_a_network_that_contradicts_its_metadata_is_an_error(tmp_path):
    model = onnx.load(PLAIN_MODEL)
    metadata = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(
        metadata | {"class_names": metadata["class_names"][:20], "things": [1]}
    )
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(tfiseg.ModelError, match="returns logits of 21 classes, its metadata names 20"):
        tfiseg.Segmenter(tmp_path / "net.onnx", backend="torch")(photo())


def photo(height=240, width=320):
    return cv2.resize(np.ascontiguousarray(data.astronaut()[..., ::-1]), (width, height))


@pytest.mark.parametrize("model", [PLAIN_MODEL, DEFAULT_MODEL])
def test_a_network_gives_the_same_instances_at_any_size(model):
    ours = tfiseg.Segmenter(model, backend="torch")
    expected = tfiseg.Segmenter(model, threads=1)
    for size in ((240, 320), (501, 333), (240, 320)):
        maps, expected_maps = ours.session.infer(photo(*size)), expected.session.infer(photo(*size))
        assert [*maps] == [*expected_maps]
        for name, value in maps.items():
            np.testing.assert_allclose(value, expected_maps[name], atol=2e-4)
        assert len(expected(photo(*size))) > 0
        same(ours(photo(*size)), expected(photo(*size)))


def test_threads_share_a_session():
    from concurrent.futures import ThreadPoolExecutor

    segmenter = tfiseg.Segmenter(backend="torch")
    frames = [photo(96 + 8 * k, 128) for k in range(8)]
    expected = [segmenter(frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        for found, instances in zip(pool.map(segmenter, frames), expected, strict=True):
            same(found, instances)


def test_the_memory_of_many_sizes_is_bounded():
    network = TorchNetwork(model_of("Relu", [IMAGE], {}), "cpu")
    for side in range(1, 600):
        network({"in0": torch.zeros(1, 1, 1, side)})
    assert len(network._by_shapes) < 300


def test_maps_are_freed_after_their_last_use(monkeypatch):
    nodes = [helper.make_node("Relu", [f"x{k}"], [f"x{k + 1}"]) for k in range(20)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x0", "x20")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    network = TorchNetwork(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "cpu"
    )
    alive, most = weakref.WeakSet(), 0

    def relu(call):
        nonlocal most
        found = torch.relu(call.tensor())
        alive.add(found)
        most = max(most, len(alive))
        return found

    monkeypatch.setitem(torch_network.OPERATORS, "Relu", relu)
    assert (network({"x0": torch.ones(1, 1, 2, 2)})["x20"] == 1).all()
    assert most <= 3


def emulate_torch(monkeypatch, gpu, captures=True):
    """PyTorch's streams and contexts on the emulated GPU, with host memory."""
    emulated_gpu.install(monkeypatch, gpu)
    # PyTorch and ONNX Runtime both get frames that the C API preprocessed
    monkeypatch.setattr(onnx_session, "split_preprocessing", native_preprocessing.split_preprocessing)
    context = emulated_gpu.Context(gpu)

    @contextmanager
    def current(_device):
        context.push()
        try:
            yield
        finally:
            context.pop()

    class Stream(emulated_gpu.Stream):
        def __init__(self):
            super().__init__(gpu, 1)
            self.cuda_stream = self.handle

    class Graph:
        """A recorded function that runs again: PyTorch cannot capture kernels on a CPU."""

        def __init__(self, work):
            self.work = work

        def replay(self):
            gpu.check()
            gpu.launches += 1
            self.work()

    def capture(_self, _stream, work):
        if not captures:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        gpu.captures += 1
        return torch_cuda._TorchGraph(Graph(work), lambda _: nullcontext())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: gpu.streams[handle])
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: gpu.waits.append("all"))
    monkeypatch.setattr(torch_cuda.TorchCuda, "capture", capture)
    monkeypatch.setattr(torch_session.TorchGpuSession.__init__, "__defaults__", (AS_IS, "cpu"))


@pytest.mark.parametrize("model", [PLAIN_MODEL, DEFAULT_MODEL])
@pytest.mark.parametrize("captures", [True, False])
def test_network_and_operator_on_a_gpu(gpu, monkeypatch, caplog, model, captures):
    emulate_torch(monkeypatch, gpu, captures)
    segmenter = tfiseg.Segmenter(model, device="cuda", backend="torch")
    expected = tfiseg.Segmenter(model, threads=1)
    with caplog.at_level(logging.WARNING, "tfiseg"):
        for size in ((120, 160), (96, 128), (120, 160), (120, 160)):
            same(segmenter(photo(*size)), expected(photo(*size)))
    assert segmenter.session.network.preprocessing is not None
    assert gpu.captures == (2 if captures else 0)  # one graph for each size holds everything
    assert ("runs without CUDA graphs" in caplog.text) == (not captures)


def test_a_frame_on_the_gpu_stays_there(gpu, monkeypatch):
    emulate_torch(monkeypatch, gpu)
    segmenter = tfiseg.Segmenter(device="cuda", backend="torch")
    same(segmenter(emulated_gpu.DeviceArray(photo())), tfiseg.Segmenter(threads=1)(photo()))
    assert gpu.waits == ["all"]


def test_best_on_a_gpu_refines_on_the_cpu(gpu, monkeypatch, caplog):
    emulate_torch(monkeypatch, gpu)
    with caplog.at_level(logging.WARNING, "tfiseg"):
        segmenter = tfiseg.Segmenter(PLAIN_MODEL, device="cuda", backend="torch", quality="best")
    assert "components are refined on the CPU" in caplog.text
    same(segmenter(photo()), tfiseg.Segmenter(PLAIN_MODEL, threads=1, quality="best")(photo()))


@pytest.mark.parametrize("missing", ["the library", "the function"])
def test_network_preprocesses_if_no_kernel_can(gpu, monkeypatch, missing):
    emulate_torch(monkeypatch, gpu)
    if missing == "the library":
        monkeypatch.setattr(frame_fitting, "cuda_library", Mock(side_effect=tfiseg.TfisegError("not built")))
    else:
        monkeypatch.delattr(emulated_gpu.OperatorLibrary, "tfiseg_fit_frame_cuda")
    session = torch_session.TorchGpuSession(PLAIN_MODEL)
    assert session.network.preprocessing is None
    expected = tfiseg.Segmenter(PLAIN_MODEL, threads=1).session.infer(photo())
    np.testing.assert_allclose(session.infer(photo())["logits"], expected["logits"], atol=2e-3)


def test_preprocessing_of_an_impossible_size_is_an_error(tmp_path):
    model = onnx.load(PLAIN_MODEL)
    changed = [t for t in model.graph.initializer if t.name in ("pre.long_side", "pre.double_hw")]
    for tensor in changed:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1000, tensor.name))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(tfiseg.ModelError, match="the model scales frames to"):
        tfiseg.Segmenter(tmp_path / "net.onnx", backend="torch")


def test_missing_gpu_error_names_a_fix():
    with pytest.raises(tfiseg.EngineError, match=r'install a CUDA build of it, or use device="cpu"'):
        tfiseg.Segmenter(device="cuda", backend="torch")


@pytest.mark.parametrize("content", [None, b"no model at all", b""])
def test_files_that_are_no_models_are_errors(tmp_path, content):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(tfiseg.ModelError, match=r"net\.onnx"):
        tfiseg.Segmenter(path, backend="torch")
