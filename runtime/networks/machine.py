"""Facts of this machine that decide whether an engine runs here.

Nothing is imported that could be broken or slow.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_L4T_RELEASE = Path("etc/nv_tegra_release")
_DRIVER_VERSION = Path("proc/driver/nvidia/version")
_OS_RELEASE = Path("etc/os-release")
_DPKG_STATUS = Path("var/lib/dpkg/status")
_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_SMI_SECONDS = 5.0
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: a driver's library without a GPU, for example in a container
WHEELS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt_rtx_cu13", "tensorrt-rtx-cu12"),
}


@dataclass(frozen=True)
class Machine:
    """Facts of a machine; None: not found."""

    platform: str  # operating system and architecture, such as "linux-x86_64"
    python: str
    gpu: str | None = None  # name of the first usable GPU
    compute_capability: str | None = None  # of the GPU, such as "8.7"
    cuda: str | None = None  # version that the driver supports, such as "13.0"
    driver: str | None = None  # version of the kernel driver
    # tensorrt, tensorrt_rtx: installed versions
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    # l4t, jetpack: releases of a Jetson's software
    l4t: str | None = None
    jetpack: str | None = None
    os: str | None = None
    cpus: int | None = None
    cuda_error: str | None = None  # why a GPU that is present can't be used

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Gpu:
    """The first GPU according to the driver's library; ``error`` if the query fails."""

    name: str | None = None
    compute_capability: str | None = None
    cuda: str | None = None
    error: str | None = None


@functools.cache
def this_machine() -> Machine:
    """Return the facts of this machine, detected once per process."""
    return detect_machine()


def detect_machine(
    root: Path = Path("/"),
    load: Callable[[str], Any] = ctypes.CDLL,
    run: Callable[[Sequence[str]], str | None] | None = None,
    version: Callable[[str], str] = importlib.metadata.version,
) -> Machine:
    """Detect the facts of a machine.

    Args:
        load: opens a shared library by name; raises OSError.
        run: returns the output of a command; None if it can't be run.
        version: returns the version of an installed package; raises PackageNotFoundError.
    """
    gpu = query_driver(load)
    listed = _query_smi(run or _run) if gpu.name is None or not (root / _DRIVER_VERSION).is_file() else None
    error = gpu.error
    if listed and gpu.cuda is None:
        error = f"nvidia-smi lists {listed[0]}, but the driver's library libcuda.so.1 can't be loaded"
    l4t, listed_driver = _l4t(root), listed[2] if listed else None
    jetpack = _first(r"(?ms)^Package: nvidia-jetpack$.*?^Version: ([\d.]+)", root / _DPKG_STATUS)
    return Machine(
        platform=f"{platform.system()}-{platform.machine()}".lower(),
        python=platform.python_version(),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        cuda=gpu.cuda,
        driver=_first(r"Kernel Module.*?\s(\d+\.\d+[\d.]*)", root / _DRIVER_VERSION) or listed_driver,
        tensorrt=_installed("tensorrt", version),
        tensorrt_rtx=_installed("tensorrt_rtx", version),
        l4t=l4t,
        jetpack=jetpack if l4t else None,
        os=_first(r'(?m)^PRETTY_NAME="?([^"\n]+)', root / _OS_RELEASE),
        cpus=os.cpu_count(),
        cuda_error=error,
    )


def _installed(flavour: str, version: Callable[[str], str]) -> str | None:
    for wheel in WHEELS[flavour]:
        try:
            return version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def query_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu:
    """Return the first GPU according to the driver's library."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return Gpu()
    version, device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    if status:
        return Gpu(
            cuda=text,
            error=None if status == _NO_DEVICE else f"CUDA doesn't start: {_error_name(cuda, status)}",
        )
    cuda.cuDeviceGetName(name, len(name), device)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", text)


def _error_name(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(text))
    return f"{(text.value or b'error').decode()} ({status})"


def _query_smi(run: Callable[[Sequence[str]], str | None]) -> tuple[str, str, str] | None:
    """Return name, compute capability and driver version of the first GPU of nvidia-smi."""
    lines = (run(_SMI) or "").splitlines()
    parts = [part.strip() for part in lines[0].split(",")] if lines else []
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else None


def _run(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _l4t(root: Path) -> str | None:
    try:
        found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", (root / _L4T_RELEASE).read_text())
    except OSError:
        return None
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _first(pattern: str, path: Path) -> str | None:
    try:
        found = re.search(pattern, path.read_text(errors="replace"))
    except OSError:
        return None
    return found.group(1) if found else None
