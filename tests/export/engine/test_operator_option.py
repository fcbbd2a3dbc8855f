"""Test the option --no-operator by the input of the TensorRT builder, which does not run."""

from types import SimpleNamespace

import onnx
import pytest
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import main
from tfiseg.export.engine import build
from tfiseg.export.engine.tensorrt_flavors import Flavor
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL


@pytest.mark.parametrize("with_operator", [True, False])
def test_operator_can_be_omitted(monkeypatch, tmp_path, with_operator):
    given = {}

    def build_plan(network, kind, settings, quiet):
        given["network"], given["plugin"] = onnx.load_from_string(network), settings.plugin
        return SimpleNamespace(plan=b"a plan", witnesses={}, seconds=0.0)

    monkeypatch.setattr(
        build, "find_flavor", lambda target: Flavor("tensorrt", SimpleNamespace(__version__="10.13.0"))
    )
    monkeypatch.setattr(build, "load_plugin", lambda module: None)
    monkeypatch.setattr(build, "plugin_info", lambda: {"path": "libtfiseg_plugin.so", "sha256": "0" * 64})
    monkeypatch.setattr(build, "build_plan", build_plan)
    monkeypatch.setattr(build, "prove", lambda expected, witnesses: {"layers": {}, "proved_by": {}})
    target = ["--target", "tensorrt", "--precision", "fp32"]
    command = ["build", str(PLAIN_MODEL), "-o", str(tmp_path / "net.engine"), *target]
    assert main([*command, "--json", *(() if with_operator else ("--no-operator",))]) == 0
    outputs = [o.name for o in given["network"].graph.output]
    assert ("label_map" in outputs) == with_operator
    assert ("logits" in outputs) != with_operator
    assert (given["plugin"] is not None) == with_operator


@pytest.mark.parametrize(
    ("network", "target"), [(PLAIN_MODEL, "onnxruntime"), (DEFAULT_INSTANCE_MODEL, "tensorrt")]
)
def test_no_operator_option_without_an_operator_raises_an_error(
    monkeypatch, tmp_path, capsys, network, target
):
    monkeypatch.setattr(
        build, "find_flavor", lambda target: Flavor("tensorrt", SimpleNamespace(__version__="10.13.0"))
    )
    output = tmp_path / ("net.onnx" if target == "onnxruntime" else "net.engine")
    command = ["build", str(network), "-o", str(output), "--target", target, "--precision", "fp32"]
    assert main([*command, "--no-operator"]) == 1
    assert "--no-operator is for engines of semantic networks" in capsys.readouterr().err
