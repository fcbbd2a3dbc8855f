"""Test the checks of ``tfiseg doctor``."""

import json
import time
from dataclasses import replace

import pytest
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import main
from tfiseg.runtime.inspect.doctor import MISSING, OK, OPTIONAL, WRONG, doctor_text, examine, is_healthy
from tfiseg.runtime.inspect.installation import NATIVE, Facts, Module, Tool, collect_facts, start_probes
from tfiseg.runtime.networks.machine import Machine

BUILD = (
    "  GUI:                           {gui}\n  Video I/O:\n    FFMPEG:   YES\n    GStreamer:                 "
    "  {gstreamer}\n"
)
PLUGIN = {
    "path": "/x/lib.so",
    "is_of_this_source": True,
    "tensorrt_headers": "10.14.1",
    "architectures": ["87", "89", "PTX"],
}


def cv2(gui="NONE", gstreamer="NO"):
    return Module("4.11.0", None, {"build": BUILD.format(gui=gui, gstreamer=gstreamer)})


def core(**more):
    """Return the required modules and more."""
    return {
        "numpy": Module("2.2.0"),
        "tqdm": Module("4.67.0"),
        "av": Module("14.2.0"),
        "cv2": cv2(),
        "onnxruntime": Module("1.22.0", None, {"providers": ["CPUExecutionProvider"]}),
        NATIVE: Module("", None, {"path": "/x/_native.abi3.so"}),
    } | more


def facts(machine=None, packages=None, modules=None, tools=None, plugin=None):
    return Facts(
        machine=machine or Machine("linux-x86_64", "3.12.3", os="Debian", cpus=8),
        packages=packages or {},
        modules=core() if modules is None else modules,
        tools=tools or {},
        plugin=plugin,
        network=PLAIN_MODEL,
    )


ORIN = Machine(
    "linux-aarch64",
    "3.10.12",
    "Orin",
    "8.7",
    "12.6",
    "540.4.0",
    "10.3.0",
    None,
    "36.4.3",
    "6.2",
    "Ubuntu 22.04.5 LTS",
    8,
)
DESKTOP = Machine("linux-x86_64", "3.12.3", "NVIDIA GeForce RTX 4090", "8.9", "13.0", "580.95.05", cpus=16)
TENSORRT = Module("10.3.0", None, {"is_complete": True})
RTX = Module("1.7.1.116", None, {"is_complete": True})
SHELL = Module("", None, {"is_complete": False})


def check_of(name, given):
    return next(check for check in examine(given) if check.name == name)


def test_an_installation_of_the_required_parts_is_healthy():
    checks = examine(facts())
    assert is_healthy(checks)
    assert {check.state for check in checks} == {OK, OPTIONAL}
    text = doctor_text(facts(), checks)
    assert "Nothing that is needed is missing or wrong" in text
    assert "-> tfiseg plugin build" in text


def test_a_jetson_orin():
    given = facts(
        ORIN, {"tensorrt": "10.3.0"}, core(cv2=cv2("GTK3", "YES (1.20.3)"), tensorrt=TENSORRT), plugin=PLUGIN
    )
    assert is_healthy(examine(given))
    assert check_of("GPU", given).found == "Orin, compute capability 8.7"
    assert check_of("driver", given).found == "540.4.0; supports CUDA 12.6"
    assert check_of("Jetson", given).found == "L4T 36.4.3, JetPack 6.2"
    assert check_of("TensorRT", given).found == "10.3.0"
    assert check_of("OpenCV", given).found == "4.11.0; FFmpeg yes, GStreamer yes, windows yes"
    assert check_of("OpenCV", given).fix == ""
    assert check_of("plugin", given).found == "compiled for TensorRT 10.14.1; for 87, 89, PTX"
    assert check_of("TensorRT-RTX", given).fix == ""  # no wheels for Jetsons


def test_a_jetson_in_a_venv_that_hides_jetpack():
    given = facts(ORIN)
    assert check_of("TensorRT", given).state == OPTIONAL
    assert "--system-site-packages" in check_of("TensorRT", given).fix
    assert check_of("OpenCV", given).state == OK
    assert "CSI" in check_of("OpenCV", given).fix


def test_a_desktop():
    given = facts(DESKTOP, {"tensorrt-rtx-cu13": "1.7.1.116"}, core(tensorrt_rtx=RTX))
    assert is_healthy(examine(given))
    assert check_of("TensorRT-RTX", given).found == "1.7.1.116"
    assert "Jetson" not in [check.name for check in examine(given)]


@pytest.mark.parametrize(
    ("given", "name", "state", "found", "fix"),
    [
        (facts(Machine("linux-x86_64", "3.8.10")), "Python", WRONG, "needs 3.10 to 3.13", "another Python"),
        (facts(Machine("linux-x86_64", "3.14.0")), "Python", WRONG, "needs 3.10 to 3.13", "another Python"),
        (facts(modules=core(cv2=Module("4.11.0"))), "OpenCV", WRONG, "reads no video files", "pip install"),
        (facts(packages={"torch": "2.8.0"}), "torch", OK, "2.8.0", ""),
        (facts(), "transformers", OPTIONAL, "not installed", ".[hf]"),
        (
            facts(modules=core(numpy=Module("1.21.0"))),
            "numpy",
            WRONG,
            "needs 1.26 or later",
            'pip install -U "numpy',
        ),
        (
            facts(modules=core(numpy=Module(error="ImportError: x"))),
            "numpy",
            WRONG,
            "ImportError: x",
            "--force-reinstall",
        ),
        (
            facts(modules={k: v for k, v in core().items() if k != "cv2"}),
            "OpenCV",
            MISSING,
            "not installed",
            "pip install",
        ),
        (
            facts(packages={"opencv-python": "4.11", "opencv-python-headless": "4.12"}),
            "OpenCV",
            WRONG,
            "opencv-python 4.11 and opencv-python-headless 4.12 are both installed",
            "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless",
        ),
        (
            facts(
                packages={"opencv-python": "5.0"},
                modules=core(
                    cv2=Module(
                        "",
                        "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
                    )
                ),
            ),
            "OpenCV",
            WRONG,
            "libGL.so.1",
            "pip uninstall -y opencv-python && pip install opencv-python-headless, or: sudo apt install "
            "libgl1",
        ),
        (
            facts(DESKTOP, {"onnxruntime": "1.22", "onnxruntime-gpu": "1.22"}),
            "ONNX Runtime",
            WRONG,
            "both installed",
            "&& pip install onnxruntime-gpu",
        ),
        (
            facts(
                modules=core(
                    **{
                        NATIVE: Module(
                            error="tfiseg.errors.TfisegError: tfiseg's native library is not built; looked"
                        )
                    }
                )
            ),
            "operator",
            MISSING,
            "tfiseg's native library is not built",
            "pip install .",
        ),
        (
            facts(modules=core(**{NATIVE: Module(error="OSError: wrong ELF class")})),
            "operator",
            WRONG,
            "wrong ELF class",
            "pip install .",
        ),
        (replace(facts(), network=None), "network", MISSING, "is not installed", "pip install ."),
        (
            facts(replace(DESKTOP, gpu=None, cuda_error="CUDA doesn't start")),
            "GPU",
            WRONG,
            "CUDA doesn't start",
            "--gpus all",
        ),
        (
            facts(
                packages={"tensorrt": "10.14", "tensorrt-cu13": "10.14"},
                modules=core(tensorrt=Module(error="ImportError: libnvinfer.so")),
            ),
            "TensorRT",
            WRONG,
            "tensorrt 10.14 and tensorrt-cu13 10.14: ImportError: libnvinfer.so",
            "from NVIDIA's own package index",
        ),
        (
            facts(packages={"tensorrt-cu13": "10.14"}, modules=core(tensorrt=SHELL)),
            "TensorRT",
            WRONG,
            "shell without the library",
            "NVIDIA",
        ),
        (
            facts(packages={"tensorrt-stubs": "10.13"}, modules=core(tensorrt=SHELL)),
            "TensorRT",
            OPTIONAL,
            "stubs are",
            "NVIDIA",
        ),
        (
            facts(modules=core(tensorrt=Module("8.5.2", None, {"is_complete": True}))),
            "TensorRT",
            WRONG,
            "needs 10.3 or later",
            "NVIDIA",
        ),
        (
            facts(packages={"tensorrt-cu12": "10.9", "tensorrt-cu13": "10.14"}),
            "TensorRT",
            WRONG,
            "overwrite each other",
            "uninstall",
        ),
        (
            facts(replace(DESKTOP, cuda="12.6"), {"tensorrt-rtx-cu13": "1.7"}, core(tensorrt_rtx=RTX)),
            "TensorRT-RTX",
            WRONG,
            "built for CUDA 13, the driver supports 12.6",
            "-cu12",
        ),
        (
            facts(replace(DESKTOP, compute_capability="9.0"), modules=core(tensorrt_rtx=RTX)),
            "TensorRT-RTX",
            OK,
            "none run on compute capability 9.0",
            "",
        ),
        (
            facts(plugin="there is no /x/lib.so (the variable TFISEG_PLUGIN names it)"),
            "plugin",
            WRONG,
            "TFISEG_PLUGIN",
            "plugin build",
        ),
        (
            facts(plugin=PLUGIN | {"is_of_this_source": False}),
            "plugin",
            WRONG,
            "another version of tfiseg",
            "--force",
        ),
        (
            facts(modules=core(tensorrt=Module("11.4.1", None, {"is_complete": True})), plugin=PLUGIN),
            "plugin",
            OK,  # the only headers that the fix of missing headers installs
            "compiled for TensorRT 10.14.1",
            "",
        ),
        (
            facts(modules=core(tensorrt=TENSORRT), plugin=PLUGIN | {"tensorrt_headers": "11.4.1"}),
            "plugin",
            WRONG,
            "compiled for TensorRT 11.4.1, installed is 10.3.0",
            "TENSORRT_ROOT",
        ),
        (facts(ORIN), "PyCUDA", OPTIONAL, "not installed", ".[jetson]"),
        (
            facts(replace(DESKTOP, compute_capability="12.0"), plugin=PLUGIN),
            "plugin",
            OK,
            "compiled at first use",
            "--arch native",
        ),
        (
            facts(DESKTOP, plugin=PLUGIN | {"architectures": ["87"]}),
            "plugin",
            WRONG,
            "compiled for 87, this GPU is 89",
            "--arch native",
        ),
        (facts(plugin=PLUGIN | {"tensorrt_headers": None}), "plugin", OK, "the C API alone", ""),
        (
            facts(tools={"cmake": Tool("/usr/bin/cmake", "3.22.1")}),
            "cmake",
            OPTIONAL,
            "3.22.1 is too old",
            ".[plugin]",
        ),
        (facts(tools={"nvcc": Tool(error="looked for it")}), "nvcc", OPTIONAL, "not found", ".[plugin]"),
        (facts(tools={"nvcc": Tool("/x/nvcc", "13.0.88")}), "nvcc", OK, "13.0.88 /x/nvcc", ""),
        (
            facts(
                packages={"pycuda": "2026.1"},
                modules=core(**{"pycuda.driver": Module(error="ImportError: libcuda.so.1")}),
            ),
            "PyCUDA",
            OK,
            "needs a GPU",
            "",
        ),
        (
            facts(DESKTOP, modules=core(**{"pycuda.driver": Module(error="ImportError: y")})),
            "PyCUDA",
            WRONG,
            "ImportError: y",
            "tensorrt",
        ),
    ],
)
def test_checks(given, name, state, found, fix):
    check = check_of(name, given)
    assert check.state == state
    assert found in check.found
    assert fix in check.fix
    assert is_healthy(examine(given)) == (state in (OK, OPTIONAL))


def test_modules_are_imported_in_separate_processes(tmp_path, monkeypatch):
    bodies = {
        "good": "__version__ = '1.2'; print('hello')",
        "bad": "import nowhere",
        "crash": "import os; os.abort()",
        "slow": "import time; time.sleep(60)",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = start_probes(list(bodies), {"good": "found['answer'] = 42"}, seconds=3)()
    assert found["good"] == Module("1.2", None, {"answer": 42})
    assert found["bad"].error == "ModuleNotFoundError: No module named 'nowhere'"
    assert found["crash"].error == "importing it ends the process (signal 6)"
    assert "takes more than" in found["slow"].error


def test_this_installation_has_the_required_parts(capsys):
    began = time.perf_counter()
    given = collect_facts()
    assert time.perf_counter() - began < 20  # 1.5 s on an idle machine
    needed = ("Python", "numpy", "tqdm", "OpenCV", "ONNX Runtime", "operator", "network")
    assert {name: check_of(name, given).state for name in needed} == dict.fromkeys(needed, OK)
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] == (code == 0)
    assert [check["name"] for check in report["checks"]] == [check.name for check in examine(given)]
