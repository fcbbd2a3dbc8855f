"""Test the descriptions of networks and engines."""

import json

import numpy as np
import pytest
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import main
from tfiseg.errors import InputError, ModelError
from tfiseg.runtime.inspect.model_file import inspect_file
from tfiseg.runtime.inspect.model_text import inspection_text
from tfiseg.runtime.networks.engine_file import write_engine
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.model_info import weights_digest

PLAN = b"ftrt" + bytes(range(200))
MODEL = {
    "format_version": 1,
    "class_names": ["background", "cat", "sky"],
    "things": [1],
    "stride": 4,
    "name": "small",
}


def record(**parts):
    shapes = {"min_hw": [240, 320], "opt_hw": [480, 640], "max_hw": [1080, 1920], "batch": 1}
    made = {
        "flavour": "tensorrt",
        "version": "10.3.0",
        "cuda": "12.6",
        "driver": "540.4.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "compute_capabilities": ["8.7"],
        "platform": "linux-aarch64",
        "hardware_compatibility": None,
        "version_compatible": False,
    }
    return {
        "built_from": {
            "onnx": "small.onnx",
            "onnx_sha256": "ab" * 32,
            "command": "tfiseg build small.onnx",
            "shapes": shapes,
        },
        "built_with": made,
        "plugin": {
            "name": "DisplacementFieldClustering",
            "version": "1",
            "namespace": "tfiseg",
            "sha256": "cd" * 32,
        },
        "precision": {
            "asked": "fp16",
            "layers": {"fp32": 1, "fp16": 64, "int8": 0},
            "kept_high": ["stem"],
            "proved_by": {"log": 65},
        },
        "gate": {"passed": True, "label_agreement": 99.9, "PQ": 99.1, "frames": 128, "reference": "fp32"},
        "model": MODEL,
        "timings_s": {},
    } | parts


@pytest.fixture
def engine(tmp_path):
    write_engine(tmp_path / "small.engine", PLAN, record())
    return tmp_path / "small.engine"


def test_an_engine_and_its_metadata(engine):
    report = inspect_file(engine)
    assert (report["kind"], report["bytes"], report["problems"]) == ("engine", len(PLAN), [])
    assert report["record"]["built_with"]["gpu"] == "Orin"
    assert report["fits_this_machine"] is False
    text = inspection_text(report)
    for text_part in (
        "intact",
        "small.onnx",
        "tfiseg build small.onnx",
        "240x320 to 1080x1920, fastest at 480x640",
        "tensorrt 10.3.0 on linux-aarch64, CUDA 12.6, driver 540.4.0",
        "compute capability 8.7 (Orin); this version of TensorRT only",
        "requested fp16, layers 1 in fp32, 64 in fp16; proved by log (65)",
        "stem",
        "passed: 99.9% of labels as in fp32, PQ 99.1, 128 frames",
        "tfiseg::DisplacementFieldClustering version 1",
        "3, of which 1 countable (*): 0 background, 1 cat*, 2 sky",
    ):
        assert text_part in text
    assert "here:          no. platform: the engine has linux-aarch64" in text


@pytest.mark.parametrize(
    ("gate", "text_part"),
    [
        (None, "none needed"),
        ({"skipped": "--no-gate"}, "skipped: --no-gate"),
        ({"passed": False, "PQ": 60.0}, "FAILED"),
    ],
)
def test_results_of_the_accuracy_check(tmp_path, gate, text_part):
    write_engine(tmp_path / "a.engine", PLAN, record(gate=gate, plugin=None))
    text = inspection_text(inspect_file(tmp_path / "a.engine"))
    assert text_part in text
    assert "clustering runs after the network" in text


@pytest.mark.parametrize(
    ("content", "text_part"),
    [
        (PLAN[:50], "has 50 bytes, but its metadata says 204"),
        (PLAN[:-1] + b"x", "is not the plan of its metadata file"),
    ],
)
def test_a_truncated_or_changed_engine(engine, content, text_part, capsys):
    engine.write_bytes(content)
    assert text_part in inspect_file(engine)["problems"][0]
    assert main(["inspect", str(engine)]) == 1
    text = capsys.readouterr().out
    assert "truncated, replaced or damaged" in text
    assert "WRONG: " in text


def test_an_engine_without_its_metadata(engine, capsys):
    engine.with_name("small.engine.json").unlink()
    assert main(["inspect", str(engine)]) == 0
    text = capsys.readouterr().out
    assert "204 bytes, sha256" in text
    assert "only by the TensorRT that wrote it" in text


@pytest.mark.parametrize(
    ("content", "text_part"),
    [
        ("{", "is damaged"),
        ('{"format_version": 2}', "has format 2, this version of tfiseg reads 1"),
        ('{"format_version": 1}', "plan, built_from"),
        (
            json.dumps({"format_version": 1, "plan": {"bytes": 3}, **record(model={})}),
            "plan.sha256, model.class_names",
        ),
    ],
)
def test_damaged_metadata(engine, content, text_part, capsys):
    engine.with_name("small.engine.json").write_text(content)
    assert main(["inspect", str(engine)]) == 1
    assert text_part in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text_part"),
    [
        ("no.onnx", "there is no file"),
        ("small.engine", "its metadata small.engine.json exists"),
        ("a.txt", "is neither"),
    ],
)
def test_files_that_cannot_be_inspected(engine, name, text_part):
    engine.unlink()
    with pytest.raises(InputError, match=text_part):
        inspect_file(engine.with_name(name))


def test_json_output(engine, capsys):
    assert main(["inspect", str(engine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["record"]["gate"]["PQ"] == 99.1


def test_the_default_network():
    pytest.importorskip("onnx")
    report = inspect_file(PLAIN_MODEL)
    assert report["problems"] == []
    assert report["inputs"] == [{"name": "frame", "dtype": "uint8", "shape": [1, "height", "width", 3]}]
    assert report["outputs"][0]["dtype"] == "float32"
    assert report["model"]["class_names"][15] == "person"
    assert report["weights_unchanged"] is True
    assert report["precision"]["fp32"]["layers"] == len(report["layers"]) == 71
    assert report["precision"]["fp32"]["share"] == 1
    assert report["macs_at_hw"] == (480, 640)
    assert all(layer["macs"] > 0 for layer in report["layers"])
    text = inspection_text(report, with_layers=True)
    assert "71 in fp32 (100% of the work)" in text
    assert report["layers"][0]["name"] in text
    assert "standard operators only" in text


def onnx_file(path, **metadata):
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 19, "tfiseg" : 1]> g (float[1, 2, h, w] x) => (float[] y) '
        "{ a = Conv(x, k) y = tfiseg.DisplacementFieldClustering(a) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 2, 1, 1), np.float32), "k"))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_the_instance_network():
    report = inspect_file(DEFAULT_INSTANCE_MODEL)
    assert report["problems"] == []
    assert report["weights_unchanged"]
    text = inspection_text(report)
    assert "tfiseg-instance, stride 4" in text
    assert "merge, part, join; views of 192x192 px" in text
    assert "the network separates objects of any class" in text
    nuclei = {**report, "model": {**report["model"], "min_area": 10, "lone_odds": 0.28}}
    assert "objects of 10 px and more" in inspection_text(nuclei)
    assert "0.28 for each group; exhaustive refinement" in inspection_text(nuclei)


def test_a_damaged_instance_network(tmp_path):
    given = b'"view_px": 192, "outline_px": 128'
    damaged = DEFAULT_INSTANCE_MODEL.read_bytes().replace(given, b'"view_px": 192, "lone_odds": "x" ')
    (tmp_path / "m.onnx").write_bytes(damaged)
    report = inspect_file(tmp_path / "m.onnx")
    assert "lone_odds must be a positive number, got 'x'" in report["problems"][0]
    assert "damaged" in inspection_text(report)


def test_a_foreign_network_with_a_plugin_node(tmp_path):
    report = inspect_file(onnx_file(tmp_path / "a.onnx"))
    assert report["plugin_nodes"] == [{"name": "y", "op": "tfiseg::DisplacementFieldClustering"}]
    assert (report["model"], report["weights_unchanged"], report["precision"]["fp32"]["macs"]) == (
        None,
        None,
        None,
    )
    text = inspection_text(report)
    assert "not in tfiseg's format" in text
    assert "1 in fp32" in text
    assert "tfiseg::DisplacementFieldClustering (y)" in text


def test_changed_weights_and_damaged_metadata(tmp_path):
    changed = onnx_file(tmp_path / "a.onnx", tfiseg=json.dumps(MODEL | {"weights_sha256": "ef" * 32}))
    assert inspect_file(changed)["weights_unchanged"] is False
    assert "changed since the export" in inspection_text(inspect_file(changed))
    assert "metadata is damaged" in inspect_file(onnx_file(tmp_path / "b.onnx", tfiseg="{"))["problems"][0]


def test_changed_weights_in_typed_fields():
    onnx = pytest.importorskip("onnx")
    two, three = (onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [value]) for value in (2.0, 3.0))
    assert not two.raw_data
    assert weights_digest([two]) != weights_digest([three])


def test_missing_external_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file(tmp_path / "a.onnx"))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert inspect_file(tmp_path / "b.onnx")["external_data"] == [{"file": "b.data", "bytes": 24}]
    (tmp_path / "b.data").unlink()
    assert "b.data beside it" in inspect_file(tmp_path / "b.onnx")["problems"][0]


def test_files_that_are_no_onnx_network(tmp_path):
    pytest.importorskip("onnx")
    for content in (b"", b"no network", PLAIN_MODEL.read_bytes()[:100_000]):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="is no ONNX network"):
            inspect_file(tmp_path / "a.onnx")


@pytest.mark.parametrize("argv", [["inspect", "a.onnx"], ["triton", "a.onnx", "-o", "models"]])
def test_reading_a_network_needs_onnx(argv, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.onnx").write_bytes(PLAIN_MODEL.read_bytes())  # a missing file would be reported first
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(argv) == 1
    assert ".[calibration]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/dev/zero", "."])
def test_names_of_external_weights_that_no_file_can_have(name, tmp_path):
    onnx = pytest.importorskip("onnx")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=name)
    output = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Identity", ["w"], ["logits"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], [weights]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert inspect_file(tmp_path / "model.onnx")["external_data"] == [{"file": name, "bytes": None}]
