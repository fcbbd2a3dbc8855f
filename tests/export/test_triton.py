import json

import numpy as np
import onnxruntime
import pytest
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import main
from tfiseg.errors import EngineError, InputError, ModelError
from tfiseg.runtime.networks.engine_file import write_engine

onnx = pytest.importorskip("onnx")
from tfiseg.export.triton import write_repository  # noqa: E402 - needs onnx

MODEL = {"format_version": 1, "class_names": ["background", "cät", 'the "sky"'], "things": [1], "stride": 4}
PLUGIN = {"name": "DisplacementFieldClustering", "version": "1", "namespace": "tfiseg", "sha256": "cd" * 32}


def parsed(folder):
    """Parse config.pbtxt like Triton; unknown fields and wrong values are errors."""
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), config.ModelConfig())


def network(
    path,
    inputs="uint8[1, height, width, 3] frame",
    outputs="float[1, 3, h, w] logits",
    body="",
    metadata=MODEL,
):
    body = body or "f = Cast<to = 1>(frame) t = Transpose<perm = [0, 3, 1, 2]>(f) logits = Relu(t)"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 19, "x" : 1]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    if metadata:
        model.metadata_props.add(key="tfiseg", value=json.dumps(metadata))
    onnx.save(model, path)
    return path


def engine(
    path, batch=1, low=(240, 320), high=(1080, 1920), plugin=PLUGIN, portable=True, flavour="tensorrt"
):
    shapes = {"min_hw": list(low), "opt_hw": [480, 640], "max_hw": list(high), "batch": batch}
    record = {
        "built_from": {
            "onnx": "a.onnx",
            "onnx_sha256": "ab" * 32,
            "command": "tfiseg build a.onnx",
            "shapes": shapes,
        },
        "built_with": {
            "flavour": flavour,
            "version": "10.14.1",
            "platform": "linux-x86_64",
            "version_compatible": portable,
        },
        "plugin": plugin,
        "precision": {"asked": "fp16", "layers": {"fp16": 3}, "proved_by": {"log": 3}},
        "gate": None,
        "model": MODEL,
    }
    write_engine(path, b"ftrt" * 100, record)
    return path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_included_network_with_single_frames(tmp_path):
    report = write_repository(PLAIN_MODEL, tmp_path / "models", batch=1, instances=2, device="gpu")
    folder = tmp_path / "models" / "tfiseg-voc21"
    assert files(tmp_path) == [
        f"models/tfiseg-voc21/{name}" for name in ("1/model.onnx", "README.md", "config.pbtxt", "labels.txt")
    ]
    assert (folder / "labels.txt").read_text().splitlines()[15] == "person"
    assert report["serve"] == f"tritonserver --model-repository={tmp_path / 'models'}"
    assert report["max_batch_size"] == 0
    config = parsed(folder)
    assert (config.name, config.platform, config.max_batch_size) == ("tfiseg-voc21", "onnxruntime_onnx", 0)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("frame", 2, [1, -1, -1, 3])
    ]  # 2: TYPE_UINT8
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("logits", 11, [1, 21, -1, -1])
    ]  # 11: TYPE_FP32
    assert config.output[0].label_filename == "labels.txt"
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 1)]
    assert not config.HasField("dynamic_batching")
    assert list(config.model_warmup[0].inputs["frame"].dims) == [1, 480, 640, 3]
    assert config.version_policy.latest.num_versions == 1
    assert json.loads(config.parameters["tfiseg"].string_value)["class_names"][15] == "person"


@pytest.mark.parametrize(("batch", "expected"), [(None, 8), (3, 3)])
def test_included_network_with_batches(tmp_path, batch, expected):
    assert write_repository(PLAIN_MODEL, tmp_path, "people", batch)["max_batch_size"] == expected
    config = parsed(tmp_path / "people")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (expected, True)
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([-1, -1, 3], [21, -1, -1])
    assert list(config.model_warmup[0].inputs["frame"].dims) == [480, 640, 3]
    frames = np.random.default_rng(0).integers(0, 256, (expected, 60, 80, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(
        tmp_path / "people" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.run(None, {"frame": frames})[0].shape[:2] == (expected, 21)


def test_names_that_need_quoting(tmp_path):
    write_repository(network(tmp_path / "a.onnx"), tmp_path / "m", "other.name-1")
    config = parsed(tmp_path / "m" / "other.name-1")
    assert json.loads(config.parameters["tfiseg"].string_value) == MODEL
    assert (tmp_path / "m" / "other.name-1" / "labels.txt").read_text(
        encoding="utf-8"
    ) == 'background\ncät\nthe "sky"\n'


@pytest.mark.parametrize(("batch", "expected"), [(None, 8), (32, 32)])
def test_network_with_a_dynamic_batch_axis_is_batched(tmp_path, batch, expected):
    path = network(tmp_path / "a.onnx", "uint8[n, 48, width, 3] frame", "float[n, 3, 48, width] logits")
    assert write_repository(path, tmp_path, batch=batch)["max_batch_size"] == expected
    config = parsed(tmp_path / "a")
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([48, -1, 3], [3, 48, -1])
    assert list(config.model_warmup[0].inputs["frame"].dims) == [48, 640, 3]


def test_network_for_single_frames(tmp_path):
    path = network(tmp_path / "a.onnx")
    assert write_repository(path, tmp_path)["max_batch_size"] == 0
    with pytest.raises(ModelError, match="no preprocessing of tfiseg"):
        write_repository(path, tmp_path, batch=4)


@pytest.mark.parametrize(
    ("settings", "frame", "labels"),
    [
        ({}, [1, -1, -1, 3], [1, -1, -1]),
        (
            {"low": (480, 640), "high": (480, 640)},
            [1, -1, -1, 3],
            [1, 480, 640],
        ),  # then the plugin's output has a fixed size, but not the input
    ],
)
def test_engine_with_the_plugin(tmp_path, settings, frame, labels):
    report = write_repository(engine(tmp_path / "a.engine", **settings), tmp_path / "m")
    assert report["serve"].endswith(" --backend-config=tensorrt,version-compatible=true")
    assert files(tmp_path / "m" / "a") == ["1/model.plan", "README.md", "config.pbtxt", "labels.txt"]
    assert "TensorRT 10.14.1 or newer" in (tmp_path / "m" / "a" / "README.md").read_text()
    config = parsed(tmp_path / "m" / "a")
    assert (config.platform, config.max_batch_size, config.instance_group[0].kind) == ("tensorrt_plan", 0, 1)
    assert list(config.input[0].dims) == frame
    outputs = {t.name: (t.data_type, list(t.dims)) for t in config.output}
    assert outputs == {
        "label_map": (8, labels),
        "semantic_map": (8, labels),
        "count": (8, [1]),
        "table": (11, [1, 256, 10]),
    }


def test_engine_with_batches(tmp_path):
    write_repository(engine(tmp_path / "a.engine", batch=4), tmp_path)
    config = parsed(tmp_path / "a")
    assert (config.max_batch_size, config.HasField("dynamic_batching"), list(config.input[0].dims)) == (
        4,
        True,
        [-1, -1, 3],
    )
    outputs = {t.name: list(t.dims) for t in config.output}
    assert outputs == {"label_map": [-1, -1], "semantic_map": [-1, -1], "count": [1], "table": [256, 10]}
    reshaped = {t.name: list(t.reshape.shape) for t in config.output if t.HasField("reshape")}
    assert reshaped == {"count": []}  # one number per frame has no axis


def test_outputs_of_the_plugin_equal_those_of_the_node():
    from tfiseg.export.engine.clustering_node import MAX_INSTANCES, OUTPUTS, graft_clustering
    from tfiseg.runtime.inspect.model_file import describe_tensor

    grafted = graft_clustering(onnx.load(PLAIN_MODEL))
    found = {t["name"]: (t["dtype"], len(t["shape"])) for t in map(describe_tensor, grafted.graph.output)}
    assert found == {
        "label_map": ("int32", 3),
        "semantic_map": ("int32", 3),
        "count": ("int32", 1),
        "table": ("float32", 3),
    }
    assert (set(found), MAX_INSTANCES) == (set(OUTPUTS), 256)


def test_engine_without_plugin_has_no_outputs_in_the_configuration(tmp_path):
    write_repository(engine(tmp_path / "a.engine", plugin=None, portable=False), tmp_path)
    config = parsed(tmp_path / "a")
    assert (len(config.input), len(config.output)) == (1, 0)
    assert "TensorRT 10.14.1, exactly" in (tmp_path / "a" / "README.md").read_text()


def test_engine_without_its_plugin_is_served_with_the_library(tmp_path):
    report = write_repository(engine(tmp_path / "a.engine", portable=False), tmp_path)
    option = "--backend-config=tensorrt,plugins="
    assert report["serve"].endswith(f" {option}$(tfiseg plugin path --autoregister)")
    readme = (tmp_path / "a" / "README.md").read_text()
    assert f"--model-repository=/models {option}/plugins/libtfiseg_plugin_autoregister.so" in readme
    assert "autoregister):/plugins/libtfiseg_plugin_autoregister.so`" in readme
    assert "TensorRT 10.14.1, exactly" in readme
    assert len(parsed(tmp_path / "a").output) == 4


def test_engines_of_another_tensorrt_raise_errors(tmp_path):
    with pytest.raises(EngineError, match="engines of TensorRT only"):
        write_repository(engine(tmp_path / "a.engine", flavour="tensorrt_rtx", plugin=None), tmp_path)
    assert not (tmp_path / "a").exists()


def test_damaged_engine_and_engine_without_record(tmp_path):
    path = engine(tmp_path / "a.engine")
    path.write_bytes(b"ftrt")
    with pytest.raises(EngineError, match="cut off or replaced"):
        write_repository(path, tmp_path)
    path.with_name("a.engine.json").unlink()
    with pytest.raises(EngineError, match="no metadata file"):
        write_repository(path, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metadata": None}, "no tfiseg metadata"),
        ({"body": "logits = x.Strange(frame)"}, r"non-standard operators: x\.Strange"),
        ({"outputs": "bool[1, 3, h, w] logits", "body": "logits = Cast<to = 9>(frame)"}, "logits is bool"),
    ],
)
def test_unsuitable_networks_raise_errors(tmp_path, given, message):
    with pytest.raises(ModelError, match=message):
        write_repository(network(tmp_path / "a.onnx", **given), tmp_path)


def quantized(path):
    """Write a 1 x 1 convolution in int8."""
    body = (
        "f = Cast<to = 1>(frame) t = Transpose<perm = [0, 3, 1, 2]>(f) q = QuantizeLinear(t, s, z) d = "
        "DequantizeLinear(q, s, z) "
        "v = DequantizeLinear(w, s, z) logits = Conv(d, v)"
    )
    model = onnx.load(network(path, body=body))
    weights = np.eye(3, dtype=np.int8)[::-1].reshape(3, 3, 1, 1)
    for name, value in {"s": np.float32(2), "z": np.int8(0), "w": weights}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, path)
    return path


def test_quantized_networks_are_tested_like_in_triton(tmp_path, monkeypatch):
    from tfiseg.export import triton

    path = quantized(tmp_path / "a.onnx")
    assert write_repository(path, tmp_path / "m")["max_batch_size"] == 0
    monkeypatch.setattr(triton, "MIN_AGREEMENT", 1.1)
    with pytest.raises(ModelError, match=r"the class of only 100\.0% of the pixels"):
        write_repository(path, tmp_path / "m")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "letters, digits"),
        ({"instances": 0}, "at least 1"),
        ({"device": "tpu"}, "device must be one of .* got 'tpu'"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_inconsistent_settings_raise_errors(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        write_repository(network(tmp_path / "a.onnx"), tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"device": "cpu"}, {"batch": 2}])
def test_settings_for_networks_only(tmp_path, settings):
    with pytest.raises(InputError, match="is an engine"):
        write_repository(engine(tmp_path / "a.engine"), tmp_path, **settings)


def test_only_own_folders_are_replaced(tmp_path):
    path = network(tmp_path / "a.onnx")
    write_repository(path, tmp_path / "m")
    stale = tmp_path / "m" / "a" / "1" / "stale"
    stale.touch()
    write_repository(path, tmp_path / "m")
    assert not stale.exists()
    assert [entry.name for entry in (tmp_path / "m").iterdir()] == ["a"]  # no temporary files remain
    foreign = tmp_path / "m" / "theirs" / "config.pbtxt"
    foreign.parent.mkdir()
    foreign.write_text('name: "theirs"')
    with pytest.raises(InputError, match="was not written by"):
        write_repository(path, tmp_path / "m", "theirs")
    assert foreign.read_text() == 'name: "theirs"'
    with pytest.raises(InputError, match="the folder of a model"):
        write_repository(path, tmp_path / "m" / "a")
    with pytest.raises(InputError, match="is a file"):
        write_repository(path, path)


def test_external_weights_are_included(tmp_path):
    body = "f = Cast<to = 1>(frame) t = Transpose<perm = [0, 3, 1, 2]>(f) logits = Conv(t, k)"
    model = onnx.load(network(tmp_path / "a.onnx", body=body))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "k"))
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    write_repository(tmp_path / "a.onnx", tmp_path / "m")
    onnxruntime.InferenceSession(
        tmp_path / "m" / "a" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (tmp_path / "a.data").unlink()
    with pytest.raises(ModelError, match="another file that isn't there"):
        write_repository(tmp_path / "a.onnx", tmp_path / "m")


def test_triton_verb(tmp_path, capsys):
    argv = ["triton", str(PLAIN_MODEL), "-o", str(tmp_path), "--name", "people"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "onnxruntime_onnx, up to 8 frames per call" in text
    assert "frame TYPE_UINT8 [-1, -1, 3]" in text
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "people"
    assert main(["triton", "no.onnx", "-o", str(tmp_path)]) == 1
    assert "there is no network no.onnx" in capsys.readouterr().err
