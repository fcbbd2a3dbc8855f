"""`tfiseg build` for ONNX Runtime, and errors before a TensorRT builder is needed."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tfiseg
from onnx import helper
from plain_model import PLAIN_MODEL
from tfiseg.calibration.graph import Network
from tfiseg.calibration.layers import find_layers
from tfiseg.calibration.quantize import edge_layers
from tfiseg.cli.main import main
from tfiseg.export.engine import build
from tfiseg.export.engine.lower import PrecisionSettings
from tfiseg.export.engine.tensorrt_builder import BuildSettings, Profile
from tfiseg.export.engine.tensorrt_flavors import find_flavor
from tfiseg.runtime.inspect.onnx_layers import layer_precisions
from tfiseg.runtime.sources.synthetic import SyntheticCamera

NETWORK = Network(onnx.load(PLAIN_MODEL))


@pytest.mark.parametrize(("precision", "lowered"), [("fp16", 71), ("int8", 68)])
def test_network_for_the_cpu(frames, tmp_path, capsys, precision, lowered):
    out = tmp_path / "net.onnx"
    command = ["build", str(PLAIN_MODEL), "-o", str(out), "--target", "onnxruntime", "--precision", precision]
    gate = ["--frames", str(frames), "--min-pq", "50", "--min-agreement", "95"]
    assert main([*command, *gate, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"]["layers"][precision] == lowered
    assert report["gate"]["passed"]
    assert [layer.precision for layer in layer_precisions(onnx.load(out))].count(precision) == lowered
    frame = next(iter(SyntheticCamera())).image
    assert tfiseg.Segmenter(out)(frame).label_map.shape == frame.shape[:2]
    assert main(["inspect", str(out)]) == 0
    assert f"{lowered} in {precision}" in capsys.readouterr().out
    sheet = tmp_path / "sheet.png"
    command = ["compare", str(PLAIN_MODEL), str(out), "--frames", str(frames), "--count", "3"]
    assert main([*command, "--out", str(sheet)]) == 0
    assert "of labels agree" in capsys.readouterr().out
    assert sheet.stat().st_size > 10_000


def test_layers_are_kept_by_name_and_sensitivity(frames, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    command = ["build", str(PLAIN_MODEL), "-o", str(out), "--target", "onnxruntime", "--precision", "int8"]
    command += ["--frames", str(frames)]
    more = ["--calibration-frames", "6", "--keep", "*backbone*", "--auto-exclude", "2", "--gate-frames", "2"]
    # a PQ of 101 is impossible: the maximum number of layers is excluded, then the gate fails
    assert main([*command, *more, "--min-pq", "101", "--json"]) == 1
    report = json.loads(Path(f"{out}.gate.json").read_text())
    by_name = {layer.name for layer in find_layers(NETWORK) if "backbone" in layer.weight}
    assert by_name | set(edge_layers(NETWORK)) <= set(report["kept_high"])
    assert len(report["kept_high"]) - len(by_name | set(edge_layers(NETWORK))) <= 2  # the best trial
    assert not out.exists()


def test_an_unknown_layer_is_an_error_before_frames_are_read(tmp_path, capsys):
    command = ["build", str(PLAIN_MODEL), "-o", str(tmp_path / "net.onnx"), "--target", "onnxruntime"]
    for precision in ("fp16", "int8"):
        assert main([*command, "--precision", precision, "--frames", "nowhere", "--keep", "nonsense"]) == 1
        assert "no layer is called 'nonsense'; there are: node_conv2d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 28), ({"gate": False}, 0), ({"auto_exclude": 3}, 3), ({"auto_exclude": 0}, 0)],
)
def test_half_of_the_layers_may_stay_in_high_precision(options, expected):
    assert PrecisionSettings("int8", frames="photos", **options).max_excluded(55) == expected


def test_missing_frames_and_invalid_names_and_sizes_raise_errors(tmp_path, capsys):
    def fails(*words, message):
        assert main(["build", *words]) == 1
        assert message in capsys.readouterr().err

    net = str(PLAIN_MODEL)
    cpu = ["--target", "onnxruntime", "-o", str(tmp_path / "x.onnx")]
    fails(net, *cpu, "--precision", "int8", message="int8 needs frames to calibrate on: --frames")
    fails(net, *cpu, "--precision", "fp16", message="pass some with --frames, or skip it with --no-gate")
    (tmp_path / "empty").mkdir()
    fails(net, *cpu, "--precision", "int8", "--frames", str(tmp_path / "empty"), message="empty")
    engine = ["--target", "onnxruntime", "-o", str(tmp_path / "x.engine")]
    fails(net, *engine, "--precision", "fp32", message="writes NAME.onnx")
    fails(str(tmp_path / "none.onnx"), *cpu, "--precision", "fp32", message="there is no network")
    with pytest.raises(tfiseg.InputError, match="must rise"):
        Profile((480, 640), (240, 320), (1080, 1920))
    with pytest.raises(tfiseg.InputError, match="target must be one of 'tensorrt', 'rtx', 'auto', got"):
        find_flavor("tpu")
    with pytest.raises(tfiseg.InputError, match=r"target must be one of .*'onnxruntime', got 'onnx'"):
        build.build(tmp_path / "x.onnx", tmp_path / "y.onnx", "onnx", PrecisionSettings("fp32"))
    with pytest.raises(tfiseg.InputError, match="method must be one of 'minmax', 'percentile', 'entropy'"):
        PrecisionSettings("int8", "photos", method="mean")


def test_missing_or_empty_tensorrt_raises_an_error(monkeypatch):
    for module in (None, types.ModuleType("tensorrt")):  # missing; the empty package of type stubs
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        with pytest.raises(tfiseg.MissingDependencyError, match="on a Jetson it comes with JetPack"):
            find_flavor("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(tfiseg.MissingDependencyError, match=r"no TensorRT is installed.*TensorRT-RTX"):
        find_flavor("auto")


def test_clustering_node_is_added_for_tensorrt():
    """TensorRT gets the network with a clustering node for the model's things and this frame size."""
    model, info = build.read_network(PLAIN_MODEL)
    for profile, size in (
        (Profile((480, 640), (480, 640), (480, 640)), [1, 480, 640]),
        (Profile(), [1, "4*grid_height", "4*grid_width"]),
    ):
        grafted, _ = build._add_clustering(model, info, BuildSettings(profile=profile))
        label_map = next(o for o in grafted.graph.output if o.name == "label_map")
        assert [d.dim_value or d.dim_param for d in label_map.type.tensor_type.shape.dim] == size
        node = grafted.graph.node[-1]
        assert (node.domain, node.op_type) == ("tfiseg", "DisplacementFieldClustering")
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert settings["things"] == list(range(1, 21))
        assert settings["min_area"] == 307
    for_small = replace(
        info, extra={**info.extra, "clustering": {**info.extra["clustering"], "min_area": 10}}
    )
    (given,) = (
        a.i
        for a in build._add_clustering(model, for_small, BuildSettings())[0].graph.node[-1].attribute
        if a.name == "min_area"
    )
    assert given == 10


def test_other_files_raise_errors(tmp_path, capsys):
    def fails(path, message):
        command = ["build", str(path), "--target", "onnxruntime", "-o", str(tmp_path / "out.onnx")]
        assert main([*command, "--precision", "fp32"]) == 1
        assert message in capsys.readouterr().err

    (tmp_path / "text.onnx").write_text("no network")
    fails(tmp_path / "text.onnx", "is no ONNX network")
    (tmp_path / "cut.onnx").write_bytes(PLAIN_MODEL.read_bytes()[:100_000])
    fails(tmp_path / "cut.onnx", "is no ONNX network")
    model = onnx.load(PLAIN_MODEL)
    onnx.save(
        model, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    (tmp_path / "weights.bin").unlink()
    fails(tmp_path / "outside.onnx", "keeps its weights in another file that isn't there")
    plain = onnx.load(PLAIN_MODEL)
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "plain.onnx")
    fails(tmp_path / "plain.onnx", "has no tfiseg metadata. Convert it first: `tfiseg export")
    foreign = onnx.load(PLAIN_MODEL)
    foreign.graph.node.append(
        helper.make_node("DisplacementFieldClustering", ["logits"], ["label_map"], domain="tfiseg")
    )
    foreign.opset_import.append(helper.make_opsetid("tfiseg", 1))
    onnx.save(foreign, tmp_path / "foreign.onnx")
    fails(tmp_path / "foreign.onnx", "tfiseg.DisplacementFieldClustering")
