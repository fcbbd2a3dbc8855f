"""Test that damaged and malicious models and metadata raise errors in bounded time."""

import json
import time

import numpy as np
import onnx
import pytest
import tfiseg
from onnx import TensorProto, helper, numpy_helper
from plain_model import PLAIN_MODEL
from tfiseg.errors import EngineError, ModelError
from tfiseg.runtime.networks.engine_file import read_sidecar, sidecar_path, write_engine
from tfiseg.runtime.networks.instance_session import InstanceInfo
from tfiseg.runtime.networks.model_info import ModelInfo
from tfiseg.runtime.networks.native_preprocessing import split_preprocessing

GOOD = {"format_version": 1, "class_names": ["background", "a", "b"], "things": [1, 2], "stride": 4}
INSTANCE = {"instance_format": 2, "view_px": 192, "stride": 4, "affinity_offsets": [[0, 1]], "rules": {}}
BAD_VALUES = (None, 5, -1, "x", [], {}, [1], {"a": 1}, True, 1e308, 10**30, "\ud800", "a" * 10**6, [[[]]])


def with_value(data, path, value):
    copy = json.loads(json.dumps(data))
    inner = copy
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return json.dumps(copy)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("class_names",), "abc"),
        (("class_names",), [0, 1, 2]),
        (("class_names",), []),
        (("class_names",), ["x"] * 10**6),
        (("class_names",), ["bg", "\ud800", "b"]),
        (("class_names",), ["bg", "a\x1b[31m", "b"]),
        (("things",), [3]),
        (("things",), [-1]),
        (("things",), [1.5]),
        (("things",), [True]),
        (("things",), "person"),
        (("stride",), 0),
        (("stride",), 2**70),
        (("stride",), 1e300),
        (("clustering",), []),
        (("clustering", "split"), 2),
        (("clustering", "split"), True),
        (("clustering", "split"), {"300": 0.5}),
        (("clustering", "affinity_offsets"), [[2**31 - 1, 0]]),
        (("clustering", "affinity_offsets"), [[0, 1], [1]]),
        (("clustering", "affinity_offsets"), []),
        (("clustering", "merge_rule"), [1.0]),
        (("clustering", "merge_rule"), [1e39] * 20),
        (("clustering", "part_rule"), [[1]] * 20),
        (("clustering", "score_rule"), [None] * 4),
        (("clustering", "sharpen"), 33),
        (("clustering", "min_area"), -1),
        (("without_heads",), [1]),
        (("without_heads", "stride"), -1),
        (("name",), 5),
        (("weights_sha256",), "x"),
        (("long_side_px",), 0),
    ],
)
def test_invalid_metadata_is_rejected(path, value):
    with pytest.raises(ModelError, match=r"net\.onnx: its tfiseg metadata is damaged") as wrong:
        ModelInfo.from_json(with_value(GOOD, path, value), "net.onnx")
    assert len(str(wrong.value)) < 300


@pytest.mark.parametrize("key", [*INSTANCE, "outline_px", "min_area", "lone_odds"])
def test_metadata_of_instance_networks_is_checked(key, tmp_path):
    InstanceInfo.from_json(json.dumps(INSTANCE), tmp_path)
    optional = {"outline_px": 0, "min_area": 0, "lone_odds": 1}
    for value in BAD_VALUES:
        if (value == {} and key == "rules") or (
            key in optional and value in (5, 1e308) and key != "outline_px"
        ):
            continue
        with pytest.raises(ModelError):
            InstanceInfo.from_json(with_value(INSTANCE, (key,), value), tmp_path)


def records():
    return {
        "built_from": {
            "onnx": "net.onnx",
            "onnx_sha256": "0" * 64,
            "command": "tfiseg build net.onnx",
            "shapes": {"view_px": 192, "batch": 64},
        },
        "built_with": {"flavour": "tensorrt", "version": "10.3.0", "platform": "linux-x86_64", "gpu": None},
        "precision": {"asked": "fp16", "layers": {"fp16": 3}},
        "model": GOOD,
        "plugin": None,
    }


def is_refused(engine):
    try:
        read_sidecar(engine)
    except EngineError as wrong:
        return len(str(wrong)) < 700
    return False


def test_engine_metadata_is_checked(tmp_path):
    engine = tmp_path / "net.engine"
    write_engine(engine, b"plan", records())
    good = json.loads(sidecar_path(engine).read_text())
    read_sidecar(engine)
    for part in ("plan", "built_from", "built_with", "precision", "model"):
        for key in [None, *good[part]]:
            for value in BAD_VALUES:
                path = (part,) if key is None else (part, key)
                sidecar_path(engine).write_text(with_value(good, path, value))
                assert is_refused(engine) or isinstance(read_sidecar(engine)[part], dict), (path, value)
    for content in (
        b"[" * 200_000,
        b"",
        b"\xef\xbb\xbf{}",
        b"\0" * 100,
        b'{"a":"' + b"x" * (1 << 25) + b'"}',
    ):
        sidecar_path(engine).write_bytes(content)
        with pytest.raises(EngineError, match="is damaged"):
            read_sidecar(engine)


# -- the preprocessing of a network


def changed(change):
    model = onnx.load(PLAIN_MODEL)
    change(model.graph)
    return model.SerializeToString()


def cyclic(graph):
    next(n for n in graph.node if n.output[0] == "pre.float").input[0] = "pre.small"


def own_input(graph):
    graph.node.append(helper.make_node("Identity", ["pre.small"], ["pre.small"]))


def long_chain(graph):
    name = "frame"
    for k in range(20_000):
        graph.node.append(helper.make_node("Identity", [name], [f"pre.x{k}"]))
        name = f"pre.x{k}"


def test_cycles_and_long_chains_end():
    began = time.process_time()
    assert split_preprocessing(changed(cyclic)) is None
    assert split_preprocessing(changed(own_input)) is None
    assert split_preprocessing(changed(long_chain)) is not None
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["pre.long_side", "pre.multiple"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 0, 1e30, 1e5])
def test_sizes_of_the_preprocessing_are_checked(name, value):
    def change(graph):
        for tensor in graph.initializer:
            if tensor.name == name:
                shape = numpy_helper.to_array(tensor).shape
                tensor.CopyFrom(numpy_helper.from_array(np.full(shape, value, np.float32), name))

    with pytest.raises(ModelError, match="the model scales frames to"):
        split_preprocessing(changed(change))


@pytest.mark.parametrize("sides", [(0, 0), (-2, -2), (2**40, 2**40), (60_000, 60_000), (-(2**63), 2)])
def test_fixed_sizes_of_the_preprocessing_are_checked(sides):
    def change(graph):
        graph.initializer.append(numpy_helper.from_array(np.array(sides, np.int64), "pre.double_hw"))

    with pytest.raises(ModelError, match="the model scales frames to"):
        split_preprocessing(changed(change))


# -- the outputs of a network


def network(tmp_path, logits, metadata=GOOD):
    """Return a network with a constant output."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, "h", "w", 3))],
        [helper.make_tensor_value_info("logits", helper.np_dtype_to_tensor_dtype(logits.dtype), None)],
        [numpy_helper.from_array(logits, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"tfiseg": json.dumps(metadata)})
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((1, 3), np.float32),
        np.zeros((), np.float32),
        np.zeros((2, 3, 12, 16), np.float32),
        np.zeros((1, 2, 12, 16), np.float32),
        np.zeros((1, 300, 12, 16), np.float32),
        np.zeros((1, 3, 0, 16), np.float32),
        np.zeros((1, 3, 12, 16), np.int64),
    ],
    ids=str,
)
def test_outputs_that_are_no_maps_are_rejected(logits, tmp_path):
    segmenter = tfiseg.Segmenter(network(tmp_path, logits), threads=1)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        segmenter(np.zeros((48, 64, 3), np.uint8))


def test_a_failing_run_is_a_model_error(tmp_path):
    path = network(tmp_path, np.zeros((1, 3, 12, 16), np.float32))
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array((1, 3, 1 << 31, 1 << 31), np.int64), "s"))
    model.graph.node[0].CopyFrom(helper.make_node("ConstantOfShape", ["s"], ["logits"]))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        tfiseg.Segmenter(path, threads=1)(np.zeros((48, 64, 3), np.uint8))
