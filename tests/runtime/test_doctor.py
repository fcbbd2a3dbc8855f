"""The doctor: what is missing or wrong is named with the command that mends it."""

import json
from dataclasses import replace

import pytest
from tfiseg.cli import main
from tfiseg.runtime import doctor
from tfiseg.runtime.doctor import MISSING, OK, OPTIONAL, WRONG, doctor_text, examine, healthy, installed
from tfiseg.runtime.machine import Machine

DESKTOP = Machine("linux-x86_64", "3.11.7", "NVIDIA RTX 4090", "8.9", "13.0", "580.1")
ORIN = Machine("linux-aarch64", "3.10.12", "Orin", "8.7", "12.6", "540.4", l4t="36.4")


def by_name(machine, versions=installed):
    return {check.name.strip(): check for check in examine(machine, versions)}


def test_this_machine_is_healthy_and_says_so(capsys):
    status = main(["doctor"])
    text = capsys.readouterr().out
    for name in ("Python", "OpenCV", "FFmpeg", "ONNX Runtime", "operator, CPU", "default network", "GPU", "TensorRT", "nvcc"):
        assert name in text
    assert (status == 0) == text.rstrip().endswith("all is well")
    main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] == (status == 0)
    assert {check["state"] for check in report["checks"]} <= {OK, MISSING, WRONG, OPTIONAL}


def test_a_desktop_and_a_jetson():
    assert by_name(DESKTOP)["GPU"].found == "NVIDIA RTX 4090, compute capability 8.9, CUDA 13.0, driver 580.1"
    assert "Jetson Linux" not in by_name(DESKTOP)
    assert by_name(ORIN)["Jetson Linux"].found == "L4T 36.4"
    assert by_name(replace(DESKTOP, gpu=None))["GPU"].state == WRONG
    assert by_name(replace(DESKTOP, gpu=None, driver=None, cuda=None))["GPU"].state == OPTIONAL
    assert by_name(replace(DESKTOP, python="3.9.1"))["Python"].state == WRONG


def test_packages_that_overwrite_each_other_are_wrong():
    def versions(name):
        return "1.0" if name in ("onnxruntime", "onnxruntime-gpu", "opencv-python", "opencv-python-headless", "numpy") else None

    checks = by_name(DESKTOP, versions)
    assert checks["ONNX Runtime"].state == WRONG
    assert "pip uninstall" in checks["ONNX Runtime"].mend
    assert checks["OpenCV"].state == WRONG
    assert not healthy(checks.values())
    assert "to mend" in doctor_text(list(checks.values()))


def test_a_tensorrt_that_does_not_load_is_wrong():
    broken = by_name(replace(DESKTOP, tensorrt="10.14.1"))["TensorRT"]
    if broken.state == OK:
        pytest.skip("TensorRT is installed here")
    assert broken.state == WRONG
    assert "doesn't load" in broken.found


@pytest.mark.parametrize(
    ("info", "state", "says"),
    [
        ({"is_of_this_source": False}, WRONG, "--force"),
        ({"is_of_this_source": True, "architectures": ["90"]}, WRONG, "--arch 89"),
        ({"is_of_this_source": True, "architectures": ["87", "90"]}, OK, ""),
        ({"is_of_this_source": True, "architectures": ["89"], "tensorrt_headers": "10.14"}, WRONG, "--force"),
    ],
)
def test_the_plugin_must_match(monkeypatch, info, state, says):
    from tfiseg.plugins import plugin_library

    monkeypatch.setattr(plugin_library, "plugin_path", lambda: None)
    monkeypatch.setattr(plugin_library, "plugin_info", lambda: {"sha256": "0" * 64, **info})
    check = doctor._plugin(replace(DESKTOP, tensorrt="11.4.1"))
    assert check.state == state
    assert says in check.mend
