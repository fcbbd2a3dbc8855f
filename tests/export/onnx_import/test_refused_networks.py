"""Networks, options and commands that are rejected with a reason."""

import numpy as np
import onnx
import pytest
import tfiseg
from onnx import helper
from random_networks import FLOAT, C, H, W, export, node, two_outputs, write
from tfiseg.cli.main import main

pytest.importorskip("onnxsim", reason="the extra `export` is not installed (make test-export)")

from tfiseg.export.onnx_import.any_network import export_default


def broken(kind, folder):
    path = folder / "x.onnx"
    if kind == "text":
        path.write_text("this is no network")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "external":
        big = {"big": np.zeros((C, C, 1, 1), np.float32)}
        write(path, [node("Conv", ["scores", "big"], ["y"])], "y", extra=big.items())
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        (folder / "weights.bin").unlink()
    elif kind == "two inputs":
        write(path, [], "scores")
        model = onnx.load(path)
        model.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, [1]))
        onnx.save(model, path)
    elif kind == "two outputs":
        two_outputs(path)
    elif kind == "four channels":
        write(path, [], "scores", shape=(1, 4, H, W))
    elif kind == "unknown operator":
        write(path, [node("Unheard", ["scores"], ["y"], domain="of.somebody")], "y")
        model = onnx.load(path)
        model.opset_import.append(helper.make_opsetid("of.somebody", 1))
        onnx.save(model, path)
    elif kind == "classifier":
        write(path, [node("GlobalAveragePool", ["scores"], ["y"])], "y")
    elif kind == "tfiseg":
        export_default(path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no file"),
        ("text", "is no ONNX file"),
        ("empty", "is no ONNX file"),
        ("external", "keeps its weights in weights.bin"),
        ("two inputs", "has 2 inputs (picture, mask)"),
        ("two outputs", "2 outputs (scores, other)"),
        ("four channels", "its channels aren't 3"),
        ("unknown operator", "ONNX Runtime can't load"),
        ("classifier", "does it segment?"),
        ("tfiseg", "in tfiseg's format already"),
    ],
)
def test_unusable_files_raise_errors(kind, message, tmp_path):
    path = broken(kind, tmp_path)
    with pytest.raises(tfiseg.TfisegError) as wrong:
        export(path, tmp_path)
    assert message in str(wrong.value)
    assert not (tmp_path / "out.onnx").exists()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": "a,b"}, "has 5 classes, got 2 names"),
        ({"class_names": "voc22"}, "none of the known lists"),
        ({"things": "unicorn"}, "no class 'unicorn'"),
        ({"input_size_hw": (64, 64)}, "accepts images of 48x64 only"),
        ({"opset": 9}, "opset 9 is too old"),
        ({"random_weights": True}, "an ONNX file has its own weights"),
        ({"photos": "nowhere"}, "there is no file nowhere"),
    ],
)
def test_inconsistent_options_raise_errors(options, message, tmp_path):
    with pytest.raises(tfiseg.TfisegError) as wrong:
        export(write(tmp_path / "x.onnx", [], "scores"), tmp_path, **options)
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["default", "-o", "x.engine"], "must be called NAME.onnx"),
        (["default", "-o", "no/where/x.onnx"], "can't write"),
        (["default", "-o", "x.onnx", "--mean", "0.5"], "--mean: no effect on default"),
        (["x.onnx", "-o", "y.onnx", "--fp32-weights"], "--fp32-weights is for checkpoints"),
        (["x.onnx", "-o", "y.onnx", "--long-side", "448"], "for others, use --input-size"),
        (["default", "-o", "y.onnx", "--long-side", "9"], "must lie in 64..4096 pixels, got 9"),
    ],
)
def test_command_prints_the_error(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *argv]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["--input-size", "512"],
        ["--input-size", "5x5"],
        ["--mean", "1,2"],
        ["--scale", "1/0"],
        ["--rgb", "--bgr"],
    ],
)
def test_invalid_options_raise_errors(argv, capsys):
    with pytest.raises(SystemExit):
        main(["export", "x.onnx", "-o", "y.onnx", *argv])
    assert "expected" in (text := capsys.readouterr().err) or "not allowed" in text
