"""Test the checks of a Jetson."""

from dataclasses import replace
from pathlib import Path

import pytest
from plain_model import PLAIN_MODEL
from tfiseg.runtime.inspect.check import OK, OPTIONAL, WRONG
from tfiseg.runtime.inspect.doctor import examine
from tfiseg.runtime.inspect.installation import Facts, Module
from tfiseg.runtime.inspect.jetson import JETPACKS, jetpack_of, jetson_checks
from tfiseg.runtime.networks.machine import Machine

ORIN = Machine("linux-aarch64", "3.10.12", "Orin", "8.7", "12.6", l4t="36.4.3", jetpack="6.2")
THOR = Machine("linux-aarch64", "3.12.3", "NVIDIA Thor", "11.0", "13.0", l4t="38.2.0", jetpack="7.0")


def facts(machine: Machine, *packages: str, **modules: Module) -> Facts:
    return Facts(machine, dict.fromkeys(packages, "1.0"), modules, {}, None, PLAIN_MODEL)


@pytest.mark.parametrize(
    ("l4t", "jetpack", "expected"),
    [
        ("36.4.0", None, "6.1"),
        ("36.4.3", None, "6.2"),
        ("36.4.4", "6.2.1", "6.2"),
        ("38.2.1", None, "7.0"),
        ("38.4.0", None, "7.1"),
        ("39.1", "7.2", "7.2"),
        ("39.1", None, None),
        ("35.4.1", "5.1.2", None),
    ],
)
def test_releases(l4t, jetpack, expected):
    found = jetpack_of(l4t, jetpack)
    assert (found.version if found else None) == expected


@pytest.mark.parametrize(
    ("machine", "state", "part"),
    [
        (ORIN, OK, "L4T 36.4.3, JetPack 6.2"),
        (THOR, OK, "L4T 38.2.0, JetPack 7.0"),
        (replace(ORIN, l4t="35.4.1", jetpack="5.1.2"), WRONG, "its TensorRT is older than 10.3"),
        (replace(ORIN, l4t="36.3.0", jetpack=None), WRONG, "its TensorRT is older than 10.3"),
        (replace(THOR, l4t="40.1", jetpack="8.0"), OK, "it knows JetPack 6.1 to 7.2"),
    ],
)
def test_checks_of_the_release(machine, state, part):
    (check,) = jetson_checks(facts(machine))
    assert (check.name, check.state) == ("Jetson", state)
    assert part in check.found
    assert ("JetPack 6.2 or later" in check.fix) == (state == WRONG)


def test_a_missing_nvidia_jetpack_has_a_fix():
    (check,) = jetson_checks(facts(replace(ORIN, jetpack=None)))
    assert "sudo apt install nvidia-jetpack" in check.fix


@pytest.mark.parametrize("machine", [ORIN, THOR])
def test_a_python_that_differs_from_jetpack(machine):
    *_, check = jetson_checks(facts(replace(machine, python="3.11.9")))
    assert (check.name, check.state) == ("Jetson's Python", OPTIONAL)
    assert f"is for Python {'3.10' if machine == ORIN else '3.12'}" in check.found
    assert "/usr/bin/python3 -m venv" in check.fix


def test_tensorrt_from_pypi_conflicts_with_jetpack_6():
    *_, check = jetson_checks(facts(ORIN, "tensorrt-cu13", "tensorrt-cu13-libs"))
    assert (check.name, check.state) == ("Jetson's TensorRT", WRONG)
    assert check.fix == "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-libs"
    assert len(list(jetson_checks(facts(THOR, "tensorrt-cu13")))) == 1  # JetPack 7 runs them


def test_the_opencv_of_the_system_needs_numpy_1():
    for error in (
        "ImportError: numpy.core.multiarray failed to import",
        "AttributeError: _ARRAY_API not found",
    ):
        given = facts(ORIN, cv2=Module("", error))
        check = next(check for check in examine(given) if check.name == "OpenCV")
        assert (check.state, 'pip install "numpy<2"' in check.fix) == (WRONG, True)


def test_other_machines_have_no_jetson_check():
    assert list(jetson_checks(facts(Machine("linux-x86_64", "3.12.3")))) == []


def test_the_guide_lists_every_release():
    page = (Path(__file__).parents[3] / "docs" / "guide" / "jetson.md").read_text()
    for release in JETPACKS:
        for fact in (release.version, release.tensorrt, release.cuda, release.python):
            assert fact in page
