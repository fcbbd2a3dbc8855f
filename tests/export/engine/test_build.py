"""Engines built by TensorRT-RTX without a GPU: `make test-engines`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import tfiseg
from onnx import TensorProto, helper
from plain_model import PLAIN_MODEL
from tfiseg.calibration.graph import Network
from tfiseg.cli.main import main
from tfiseg.export.engine.precision_proof import prove, read_inspector, read_log
from tfiseg.export.engine.tensorrt_builder import BuildSettings, Profile, build_plan
from tfiseg.export.engine.tensorrt_flavors import find_flavor
from tfiseg.runtime.inspect.onnx_layers import layer_precisions
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL, INSTANCE_FORMAT
from tfiseg.runtime.networks.model_info import METADATA_KEY
from tfiseg.runtime.networks.session import DEFAULT_MODEL

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (make test-engines)")


def rtx_command(model, engine, *more):
    """Return the command that builds an engine for TensorRT-RTX."""
    return ["build", str(model), "-o", str(engine), "--target", "rtx", *map(str, more)]


@pytest.fixture(scope="module")
def engines(frames, tmp_path_factory):
    """Build the default network in three precisions; int8 with thresholds that it reaches on these frames."""
    folder = tmp_path_factory.mktemp("engines")
    for precision in ("fp32", "fp16", "int8"):
        gate = ["--min-pq", "50", "--min-agreement", "95"] if precision == "int8" else ["--min-pq", "95"]
        command = rtx_command(PLAIN_MODEL, folder / f"{precision}.engine", "--precision", precision)
        assert main([*command, "--frames", str(frames), *gate, "--json"]) == 0
    return folder


def record_of(engine):
    return json.loads(Path(f"{engine}.json").read_text())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_engine_has_the_requested_precision(engines, precision):
    record = record_of(engines / f"{precision}.engine")
    layers = record["precision"]["layers"]
    assert sum(layers.values()) == 71
    assert layers[precision] == (68 if precision == "int8" else 71)
    assert record["precision"]["proved_by"] == {"parsed network": 71, "builder's layer report": 71}
    assert len(record["precision"]["kept_high"]) == (3 if precision == "int8" else 0)
    assert record["built_with"]["flavour"] == "tensorrt_rtx"
    assert record["plugin"] is None
    assert record["model"]["class_names"][15] == "person"
    assert (record["gate"] is None) == (precision == "fp32")
    assert (engines / f"{precision}.engine").stat().st_size == record["plan"]["bytes"]


def test_lower_precision_makes_smaller_engines_than_float32(engines):
    size = {p: (engines / f"{p}.engine").stat().st_size for p in ("fp32", "fp16")}
    assert size["fp16"] < 0.75 * size["fp32"]


def test_proof_fails_if_rtx_ignores_a_scale():
    """With a scale per tensor of shape (1,), TensorRT-RTX silently builds float convolutions."""
    weight, x = (
        np.ones((32, 32, 1, 1), np.int8),
        helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 64, 64, 3]),
    )

    def network(scale):
        arrays = {
            "w": weight,
            "ws": np.full(32, 0.1, np.float32),
            "s": scale,
            "z": np.zeros(np.shape(scale), np.int8),
        }
        arrays |= {"wz": np.zeros(32, np.int8), "v": np.ones((32, 3, 1, 1), np.float32)}
        node = helper.make_node
        nodes = [
            node("Cast", ["frame"], ["f"], to=TensorProto.FLOAT),
            node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
            node("Conv", ["t", "v"], ["a"], name="first"),
            node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
            node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
            node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0, name="wd"),
            node("Conv", ["d", "wd"], ["logits"], name="second"),
        ]
        tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 32, 64, 64])
        return helper.make_model(
            helper.make_graph(nodes, "g", [x], [logits], tensors), opset_imports=[helper.make_opsetid("", 19)]
        )

    settings = BuildSettings(profile=Profile((64, 64), (64, 64), (64, 64)))
    for scale, fine in ((np.float32(0.1), True), (np.float32([0.1]), False)):
        model = network(scale)
        expected = {layer.name: layer.precision for layer in layer_precisions(model)}
        assert expected == {"first": "fp32", "second": "int8"}
        built = build_plan(model.SerializeToString(), find_flavor("rtx"), settings)
        if fine:
            assert prove(expected, built.witnesses)["layers"] == {"fp32": 1, "fp16": 0, "int8": 1}
        else:
            with pytest.raises(
                tfiseg.EngineError, match=r"second is fp32, expected int8.*No engine was written"
            ):
                prove(expected, built.witnesses)


def test_proof_fails_for_gpus_without_int8_convolutions(frames, tmp_path, capsys):
    out = tmp_path / "turing.engine"
    command = rtx_command(PLAIN_MODEL, out, "--precision", "int8", "--frames", frames, "--no-gate")
    assert main([*command, "--compute-capability", "7.5", "--calibration-frames", "4"]) == 1
    assert "layers compute in another precision" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--compute-capability", "1.0", "--calibration-frames", "4"]) == 1
    assert "has no compute capability '1.0': expected one of 7.5" in capsys.readouterr().err


def test_gate_fails_for_wrong_ranges(frames, tmp_path, capsys, monkeypatch):
    """int8 with ranges ten times too small gives no engine, but a report, an image and a message."""
    import tfiseg.calibration.quantize as quantize_module

    real = quantize_module._observe

    def narrow(*args):
        ranges, rounded = real(*args)
        return {name: (low / 10, high / 10) for name, (low, high) in ranges.items()}, rounded

    monkeypatch.setattr(quantize_module, "_observe", narrow)
    out = tmp_path / "damaged.engine"
    command = rtx_command(PLAIN_MODEL, out, "--precision", "int8", "--frames", frames)
    assert main([*command, "--calibration-frames", "4", "--gate-frames", "3"]) == 1
    error = capsys.readouterr().err
    assert "the accuracy gate failed on" in error
    assert "For comparison, fp32 against itself" in error
    assert not out.exists()
    assert not Path(f"{out}.json").exists()
    report = json.loads(Path(f"{out}.gate.json").read_text())
    assert report["passed"] is False
    assert len(report["per_frame"]) == report["frames"]
    assert Path(f"{out}.gate.png").stat().st_size > 10_000
    assert main([*command, "--calibration-frames", "4", "--no-gate", "--json"]) == 0
    assert record_of(out)["gate"] == {"skipped": "--no-gate"}


def test_killed_build_leaves_no_engine(frames, tmp_path):
    out = tmp_path / "killed.engine"
    command = [sys.executable, "-m", "tfiseg", *rtx_command(PLAIN_MODEL, out, "--precision", "int8")]
    process = subprocess.Popen(
        [*command, "--frames", str(frames), "--json"], env=os.environ, stderr=subprocess.DEVNULL
    )
    time.sleep(4)  # calibration takes longer
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert not Path(f"{out}.json").exists()


def test_batches_modes_and_timing_cache(tmp_path, capsys):
    out = tmp_path / "net.engine"
    command = rtx_command(PLAIN_MODEL, out, "--precision", "fp16", "--no-gate", "--shape", "240x320")
    more = ["--batch", "4", "--workspace", "512", "--opt-level", "2", "--tf32", "--json"]
    more += ["--timing-cache", str(tmp_path / "t.cache")]
    gpus = ["--compute-capability", "8.6", "--compute-capability", "8.9"]
    assert main([*command, *more, *gpus]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["built_with"]["compute_capabilities"] == ["8.6", "8.9"]
    assert record["built_with"]["hardware_compatibility"] is None
    assert record["built_from"]["shapes"] == {
        "min_hw": [240, 320],
        "opt_hw": [240, 320],
        "max_hw": [240, 320],
        "batch": 4,
    }
    assert main([*command, "--shape-min", "32x32"]) == 1
    assert "--shape sets a single size" in capsys.readouterr().err
    assert main([*command, "--portable"]) == 1
    assert "--portable is for --target tensorrt" in capsys.readouterr().err


def test_networks_that_tensorrt_cannot_build_raise_errors(tmp_path, capsys):
    model = Network(onnx.load(PLAIN_MODEL)).model
    model.graph.node.append(helper.make_node("Bernoulli", ["logits_before"], ["logits"], name="chance"))
    maker = next(n for n in model.graph.node if "logits" in n.output)
    maker.output[:] = ["logits_before"]
    odd = tmp_path / "odd.onnx"
    onnx.save(model, odd)
    out = tmp_path / "odd.engine"
    assert main(["build", str(odd), "-o", str(out), "--target", "rtx", "--precision", "fp32"]) == 1
    assert "node 'chance' (Bernoulli): this operator is not supported" in capsys.readouterr().err
    assert not out.exists()


def test_engine_is_inspected_and_rejected_without_a_gpu(engines, capsys):
    engine = engines / "fp16.engine"
    assert main(["inspect", str(engine)]) == 0
    text = capsys.readouterr().out
    assert "71 in fp16; proved by parsed network (71), builder's layer report (71)" in text
    assert main(["inspect", str(engine), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    if report["fits_this_machine"]:
        pytest.skip("this machine has the GPU")
    with pytest.raises(
        tfiseg.EngineError,
        match=r"was not built for this machine. .*this machine none.* build it again: tfiseg build",
    ):
        tfiseg.Segmenter(engine)


def test_rtx_engines_need_neither_plugin_nor_torch():
    code = f"""
import sys
from tfiseg.cli.main import main
options = "--target rtx --precision fp32 --json".split()
assert main(["build", {str(PLAIN_MODEL)!r}, "-o", sys.argv[1], *options]) == 0
assert "torch" not in sys.modules
"""
    out = Path(os.environ.get("TMPDIR", "/tmp")) / f"tfiseg-test-{os.getpid()}.engine"
    try:
        subprocess.run([sys.executable, "-c", code, str(out)], check=True, stdout=subprocess.DEVNULL)
    finally:
        out.unlink(missing_ok=True)
        Path(f"{out}.json").unlink(missing_ok=True)


def test_inspector_report_is_parsed():
    layers = [
        {
            "Name": "a",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Format/Datatype": "Int8 NC/32HW32"}],
            "Metadata": "[ONNX Layer: a]",
        },
        {
            "Name": "b",
            "LayerType": "gemm",
            "Inputs": [{"Format/Datatype": "Half"}],
            "Metadata": "[ONNX Layer: b]\x1e[ONNX Layer: c]",
        },
        {
            "Name": "d",
            "LayerType": "Reformat",
            "Inputs": [{"Format/Datatype": "Float"}],
            "Metadata": "[ONNX Layer: d]",
        },
        "a name alone, as without detailed profiling",
    ]
    assert read_inspector(json.dumps({"Layers": layers})) == {"a": "int8", "b": "fp16", "c": "fp16"}
    assert read_log(["Layers:\nnothing of use"]) == {}
    with pytest.raises(tfiseg.EngineError, match="no witness names the precision of 1 of 1 layers: a"):
        prove({"a": "int8"}, {})


def test_engines_have_the_metadata(engines):
    text = next(p.value for p in onnx.load(PLAIN_MODEL).metadata_props if p.key == METADATA_KEY)
    assert record_of(engines / "fp32.engine")["model"] == json.loads(text)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_instance_network_is_built_for_views(frames, tmp_path, capsys, precision):
    engine = tmp_path / "instance.engine"
    command = rtx_command(DEFAULT_INSTANCE_MODEL, engine, "--precision", precision)
    assert main([*command, "--frames", str(frames), "--gate-frames", "6"]) == 0
    record = record_of(engine)
    assert record["precision"]["layers"][precision] == sum(record["precision"]["layers"].values()) > 60
    assert record["built_from"]["shapes"]["batch"] == 64
    assert record["model"]["instance_format"] == INSTANCE_FORMAT
    assert record["model"]["outline_px"] == record["model"]["view_px"]
    assert (record["gate"] is None) == (precision == "fp32")
    if record["gate"]:
        assert min(record["gate"]["pair_agreement"], record["gate"]["outline_agreement"]) > 99.5
    assert main(["inspect", str(engine)]) == 0
    assert "of any class" in capsys.readouterr().out


def test_instance_network_is_not_built_in_int8(frames, tmp_path, capsys):
    command = rtx_command(DEFAULT_INSTANCE_MODEL, tmp_path / "x.engine", "--frames", frames)
    assert main([*command, "--precision", "int8"]) == 1
    assert "doesn't survive int8" in capsys.readouterr().err


def test_network_is_built_with_its_heads(frames, tmp_path):
    engine = tmp_path / "frame.engine"
    command = rtx_command(DEFAULT_MODEL, engine, "--precision", "fp16", "--min-pq", "95")
    assert main([*command, "--frames", str(frames)]) == 0
    record = record_of(engine)
    assert record["precision"]["layers"]["fp16"] == sum(record["precision"]["layers"].values()) > 75
    assert len(record["model"]["clustering"]["merge_rule"]) == 48 * 19 + 1
