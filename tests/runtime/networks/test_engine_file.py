"""Checks of engines: content, metadata and machine."""

import json
from dataclasses import replace

import pytest
import tfiseg
from tfiseg.runtime.networks.engine_file import (
    check_content,
    check_machine,
    mismatches,
    read_sidecar,
    sidecar_path,
    write_engine,
)
from tfiseg.runtime.networks.machine import Machine, this_machine

ORIN = Machine("linux-aarch64", "3.10.12", "Orin", "8.7", "12.6", "540.4", tensorrt="10.3.0", l4t="36.4")
RECORD = {
    "built_from": {
        "onnx": "net.onnx",
        "onnx_sha256": "0" * 64,
        "command": "tfiseg build net.onnx --precision fp16",
    },
    "built_with": {
        "flavour": "tensorrt",
        "version": "10.3.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "compute_capabilities": ["8.7"],
        "platform": "linux-aarch64",
        "hardware_compatibility": None,
        "version_compatible": False,
    },
    "plugin": None,
    "precision": {"asked": "fp16", "layers": {"fp32": 0, "fp16": 65, "int8": 0}},
    "gate": None,
    "model": {"class_names": ["background", "person"], "things": [1], "stride": 4},
}


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "net.engine"
    write_engine(path, b"a plan" * 1000, RECORD)
    return path


def test_engine_and_metadata_are_written_and_read(engine):
    record = read_sidecar(engine)
    assert check_content(engine, record) == b"a plan" * 1000
    check_machine(engine, record, ORIN)
    assert sorted(p.name for p in engine.parent.iterdir()) == ["net.engine", "net.engine.json"]


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (replace(ORIN, tensorrt="10.16.0"), "tensorrt: the engine has 10.3.0, this machine 10.16.0"),
        (replace(ORIN, tensorrt=None), "tensorrt: the engine has 10.3.0, this machine none"),
        (
            replace(ORIN, compute_capability="11.0", gpu="Thor"),
            "compute capability: the engine has 8.7, this machine 11.0",
        ),
        (
            replace(ORIN, platform="linux-x86_64"),
            "platform: the engine has linux-aarch64, this machine linux-x86_64",
        ),
        (replace(ORIN, compute_capability=None, gpu=None), "GPU: the engine has Orin, this machine none"),
    ],
)
def test_mismatch_error_names_both_sides_and_the_command(engine, here, message):
    with pytest.raises(tfiseg.EngineError) as wrong:
        check_machine(engine, read_sidecar(engine), here)
    assert message in str(wrong.value)
    assert "build it again: tfiseg build net.onnx --precision fp16" in str(wrong.value)


def test_portable_engines_run_on_newer_versions_and_gpus():
    portable = json.loads(json.dumps(RECORD))
    portable["built_with"] |= {"version_compatible": True, "hardware_compatibility": "ampere_plus"}
    assert mismatches(portable, replace(ORIN, tensorrt="11.4.1", compute_capability="12.0")) == []
    assert [m.what for m in mismatches(portable, replace(ORIN, tensorrt="10.1.0"))] == ["tensorrt"]
    assert [m.what for m in mismatches(portable, replace(ORIN, compute_capability="7.5"))] == [
        "compute capability"
    ]


def test_another_plugin_library_is_a_mismatch(monkeypatch):
    wanting = {**RECORD, "plugin": {"name": "n", "version": "1", "namespace": "tfiseg", "sha256": "a" * 64}}
    for sha, wrong in (("a" * 64, []), ("b" * 64, ["plugin library"])):
        monkeypatch.setattr(
            "tfiseg.runtime.networks.engine_file.plugin_info", lambda sha=sha: {"sha256": sha}
        )
        assert [m.what for m in mismatches(wanting, ORIN)] == wrong


def test_errors_of_damaged_engines(engine, tmp_path):
    def fails(message):
        with pytest.raises(tfiseg.EngineError, match=message):
            tfiseg.Segmenter(engine)

    plan, text = engine.read_bytes(), sidecar_path(engine).read_text()
    engine.write_bytes(plan[:-10])
    fails("has 5990 bytes, but its metadata says 6000: it was cut off or replaced")
    engine.write_bytes(b"b" + plan[1:])
    fails("is not the plan of its metadata file")
    engine.unlink()
    fails("there is no engine")
    engine.write_bytes(plan)
    for content, message in (
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (text.replace('"format_version": 1', '"format_version": 9'), "has format 9"),
    ):
        sidecar_path(engine).write_text(content)
        fails(message)
    sidecar_path(engine).write_text(json.dumps({**json.loads(text), "built_with": None}))
    fails("built_with missing")
    sidecar_path(engine).unlink()
    fails("has no metadata file net.engine.json beside it")
    foreign = tmp_path / "trtexec.engine"
    foreign.write_bytes(b"ptrt....")
    with pytest.raises(tfiseg.EngineError, match="cannot be checked before TensorRT loads it"):
        tfiseg.Segmenter(foreign)


def test_this_machine_is_checked():
    machine = this_machine()
    assert machine.platform.count("-") >= 1
    assert machine.as_dict()["python"] == machine.python
