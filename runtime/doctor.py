"""``tfiseg doctor``: what is installed, whether it fits together, and the command that mends what doesn't."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import TfisegError
from .machine import Machine, this_machine

OK, MISSING, WRONG, OPTIONAL = "ok", "missing", "wrong", "optional"
_PYTHONS = ((3, 10), (3, 13))


@dataclass(frozen=True)
class Check:
    """One line: ``state`` "ok", "missing" or "wrong" (both make the exit status 1), or "optional": not there, and not needed for the
    default; ``mend`` the command."""

    name: str
    state: str
    found: str
    mend: str = ""


Versions = Callable[[str], "str | None"]


def installed(package: str) -> str | None:
    """Version of an installed distribution, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine(machine: Machine | None = None, versions: Versions = installed) -> list[Check]:
    """All checks, in the order in which one would mend things.

    Args:
        machine: default: this one. versions: of installed packages; both are handed in by tests.
    """
    machine = machine or this_machine()
    checks = [
        _python(machine),
        _package("numpy", versions, required=True),
        *_opencv(versions),
        *_onnxruntime(versions),
        _native(),
        _model(),
    ]
    checks += [_driver(machine), *_jetson(machine), *_tensorrt(machine, versions), _plugin(machine)]
    checks += [_tool("nvcc", 'pip install ".[plugin]"'), _tool("cmake", 'pip install ".[plugin]"')]
    for package, extra in (("onnx", "calibration"), ("torch", "export"), ("transformers", "hf"), ("pycuda", "tensorrt")):
        checks.append(_package(package, versions, mend=f'pip install ".[{extra}]"'))
    return checks


def healthy(checks: Iterable[Check]) -> bool:
    """Is nothing missing that is needed, and nothing there that is wrong?"""
    return all(check.state in (OK, OPTIONAL) for check in checks)


def as_report(checks: list[Check]) -> dict[str, Any]:
    """Plain values."""
    return {"healthy": healthy(checks), "machine": this_machine().as_dict(), "checks": [asdict(check) for check in checks]}


def doctor_text(checks: list[Check]) -> str:
    """Lines for a terminal."""
    lines = []
    for check in checks:
        lines.append(f"{check.state:9}{check.name:22}{check.found}")
        if check.mend and check.state != OK:
            lines.append(f"{'':31}-> {check.mend}")
    troubles = sum(check.state in (MISSING, WRONG) for check in checks)
    lines.append("all is well" if not troubles else f"{troubles} to mend")
    return "\n".join(lines)


def _python(machine: Machine) -> Check:
    version = tuple(int(part) for part in machine.python.split(".")[:2])
    if _PYTHONS[0] <= version <= _PYTHONS[1]:
        return Check("Python", OK, f"{machine.python} on {machine.platform}")
    return Check("Python", WRONG, machine.python, "use Python 3.10 to 3.13")


def _package(name: str, versions: Versions, required: bool = False, mend: str = "") -> Check:
    version = versions(name)
    if version is not None:
        return Check(name, OK, version)
    return Check(name, MISSING if required else OPTIONAL, "not installed", mend or f"pip install {name}")


def _opencv(versions: Versions) -> list[Check]:
    names = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
    there = {name: version for name in names if (version := versions(name)) is not None}
    if len(there) > 1:
        others = " ".join(there)
        return [
            Check(
                "OpenCV",
                WRONG,
                f"{', '.join(there)} overwrite each other's files",
                f"pip uninstall -y {others} && pip install opencv-python-headless",
            )
        ]
    try:
        import cv2
    except ImportError as wrong:
        return [Check("OpenCV", MISSING if not there else WRONG, str(wrong), "pip install opencv-python-headless")]
    info = cv2.getBuildInformation()
    has = {name: bool(re.search(rf"^\s*{name}:\s*YES", info, re.MULTILINE)) for name in ("FFMPEG", "GStreamer")}
    gui = re.search(r"^\s*GUI:\s*(\S+)", info, re.MULTILINE)
    window = gui is not None and gui.group(1).upper() != "NONE"
    found = f"{cv2.__version__} ({next(iter(there), 'from the system')}), {'with' if window else 'without'} windows"
    checks = [Check("OpenCV", OK, found)]
    checks.append(
        Check("  FFmpeg", OK, "video files and streams")
        if has["FFMPEG"]
        else Check("  FFmpeg", WRONG, "this OpenCV reads no video files", "pip install opencv-python-headless")
    )
    checks.append(
        Check("  GStreamer", OK, "CSI cameras")
        if has["GStreamer"]
        else Check(
            "  GStreamer", OPTIONAL, "not in this OpenCV; CSI cameras need it", "use the system's OpenCV (apt install python3-opencv)"
        )
    )
    return checks


def _onnxruntime(versions: Versions) -> list[Check]:
    there = [name for name in ("onnxruntime", "onnxruntime-gpu") if versions(name) is not None]
    if len(there) == 2:
        mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        return [Check("ONNX Runtime", WRONG, "onnxruntime and onnxruntime-gpu overwrite each other's files", mend)]
    try:
        import onnxruntime
    except ImportError as wrong:
        return [Check("ONNX Runtime", MISSING, str(wrong), "pip install onnxruntime")]
    providers = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    return [Check("ONNX Runtime", OK, f"{onnxruntime.__version__}, runs on {', '.join(providers)}")]


def _native() -> Check:
    try:
        from ..plugins.native import library_path

        return Check("operator, CPU", OK, str(library_path().name))
    except (ImportError, TfisegError, OSError) as wrong:
        return Check("operator, CPU", WRONG, str(wrong), "pip install --force-reinstall --no-deps . in the repository")


def _model() -> Check:
    from .sessions import DEFAULT_MODEL

    if DEFAULT_MODEL.is_file():
        return Check("default network", OK, f"{DEFAULT_MODEL.name}, {DEFAULT_MODEL.stat().st_size / 1e6:.1f} MB")
    return Check("default network", MISSING, str(DEFAULT_MODEL), "pip install --force-reinstall --no-deps . in the repository")


def _driver(machine: Machine) -> Check:
    if machine.gpu:
        driver = f", driver {machine.driver}" if machine.driver else ""
        return Check("GPU", OK, f"{machine.gpu}, compute capability {machine.compute_capability}, CUDA {machine.cuda}{driver}")
    if machine.driver or machine.cuda:
        return Check("GPU", WRONG, "there is a driver, but no GPU that it can use", "nvidia-smi says why; in a container: --gpus all")
    return Check("GPU", OPTIONAL, "no NVIDIA driver; everything runs on the CPU", "install the NVIDIA driver")


def _jetson(machine: Machine) -> list[Check]:
    return [Check("Jetson Linux", OK, f"L4T {machine.l4t}")] if machine.l4t else []


def _tensorrt(machine: Machine, versions: Versions) -> list[Check]:
    checks = []
    for name, module, version, mend in (
        ("TensorRT", "tensorrt", machine.tensorrt, "on a Jetson: apt install python3-libnvinfer; elsewhere: pip install tensorrt"),
        ("TensorRT-RTX", "tensorrt_rtx", machine.tensorrt_rtx, 'pip install ".[rtx]"'),
    ):
        if version is None:
            stubs = name == "TensorRT" and versions("tensorrt-stubs") is not None
            checks.append(Check(name, OPTIONAL, "only its type stubs" if stubs else "not installed", mend))
        elif said := _import_fails(module):
            checks.append(Check(name, WRONG, f"{version} is installed but doesn't load: {said}", mend))
        else:
            checks.append(Check(name, OK, version))
    return checks


def _import_fails(module: str) -> str | None:
    """None if a module imports, else why not. In a process of its own: a broken library may take its process down."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.Builder"], capture_output=True, text=True, timeout=60, check=False
    )
    if run.returncode == 0:
        return None
    return (run.stderr.strip().splitlines() or [f"ended with status {run.returncode}"])[-1]


def _plugin(machine: Machine) -> Check:
    from ..plugins.plugin_library import plugin_info, plugin_path

    try:
        plugin_path()
        info = plugin_info()
    except (TfisegError, OSError, ValueError) as wrong:
        return Check("operator, TensorRT", OPTIONAL, str(wrong).split(":")[0], "tfiseg plugin build")
    if not info["is_of_this_source"]:
        return Check("operator, TensorRT", WRONG, "the plugin was built from another state of the source", "tfiseg plugin build --force")
    architectures = [str(a) for a in info.get("architectures", [])]
    wanted = (machine.compute_capability or "").replace(".", "")
    if wanted and architectures and wanted not in architectures and not any(a.isdecimal() and int(a) <= int(wanted) for a in architectures):
        return Check(
            "operator, TensorRT",
            WRONG,
            f"built for {', '.join(architectures)}, this GPU is {wanted}",
            f"tfiseg plugin build --arch {wanted} --force",
        )
    headers = info.get("tensorrt_headers")
    if machine.tensorrt and headers and str(headers).split(".")[0] != machine.tensorrt.split(".")[0]:
        return Check(
            "operator, TensorRT", WRONG, f"built against TensorRT {headers}, installed is {machine.tensorrt}", "tfiseg plugin build --force"
        )
    return Check("operator, TensorRT", OK, f"sha256 {info['sha256'][:12]}, for {', '.join(architectures) or 'unknown GPUs'}")


def _tool(name: str, mend: str) -> Check:
    path = shutil.which(name)
    if path is None:
        where = importlib.util.find_spec("nvidia.cuda_nvcc") if name == "nvcc" and importlib.util.find_spec("nvidia") else None
        if where is not None:
            return Check(name, OK, "from PyPI")
        return Check(name, OPTIONAL, "not found; only `tfiseg plugin build` needs it", mend)
    run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    version = re.search(r"(?:release|version) ([\d.]+)", run.stdout)
    return Check(name, OK, f"{version.group(1) if version else 'unknown version'} ({path})")
