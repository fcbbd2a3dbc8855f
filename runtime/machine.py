"""What machine this is: the facts that decide whether an engine runs here. Nothing is imported that could be broken or slow."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_L4T_RELEASE = Path("/etc/nv_tegra_release")
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_WHEELS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt_rtx_cu13", "tensorrt-rtx-cu12"),
}


@dataclass(frozen=True)
class Machine:
    """``platform`` like "linux-x86_64"; ``gpu`` its name, None without one; ``compute_capability`` like "8.7"; ``cuda`` what the driver
    brings, like "13.0"; ``tensorrt`` and ``tensorrt_rtx`` the installed versions; ``l4t`` the Jetson's release."""

    platform: str
    python: str
    gpu: str | None = None
    compute_capability: str | None = None
    cuda: str | None = None
    driver: str | None = None
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    l4t: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@functools.cache
def this_machine() -> Machine:
    """This machine; looked at once per process."""
    gpu, capability, cuda = _gpu()
    return Machine(
        platform=f"{platform.system()}-{platform.machine()}".lower(),
        python=platform.python_version(),
        gpu=gpu,
        compute_capability=capability,
        cuda=cuda,
        driver=_first(r"Kernel Module.*?\s(\d+\.\d+[\d.]*)", _DRIVER_VERSION),
        tensorrt=_installed("tensorrt"),
        tensorrt_rtx=_installed("tensorrt_rtx"),
        l4t=_l4t(),
    )


def _installed(flavour: str) -> str | None:
    for wheel in _WHEELS[flavour]:
        try:
            return importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _gpu(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[str | None, str | None, str | None]:
    """Name, compute capability and CUDA version of the first GPU, from the driver's own library."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return None, None, None
    version, device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None, None, text
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return name.value.decode(), f"{major.value}.{minor.value}", text


def _l4t() -> str | None:
    try:
        found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", _L4T_RELEASE.read_text())
    except OSError:
        return None
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _first(pattern: str, path: Path) -> str | None:
    try:
        found = re.search(pattern, path.read_text())
    except OSError:
        return None
    return found.group(1) if found else None
