import importlib.metadata
import platform

import pytest
from tfiseg.runtime.networks.machine import Gpu, Machine, detect_machine, query_driver, this_machine

ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  "
    "540.4.0  Release Build\n",
    "var/lib/dpkg/status": "Package: a\nVersion: 3.0\n\nPackage: nvidia-jetpack\nStatus: ok\n"
    "Version: 6.2+b77\n\nPackage: z\nVersion: 1\n",
}
DESKTOP = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  "
    "Tue Sep 23 10:11:16 UTC 2025\n"
}


class Driver:
    """A fake libcuda.so.1, whose functions write through pointers."""

    def __init__(self, name=b"", capability=(0, 0), cuda=13000, status=0):
        self.name, self.capability, self.cuda, self.status = name, capability, cuda, status

    def __call__(self, library):
        assert library == "libcuda.so.1"
        return self

    def cuDriverGetVersion(self, version):
        version._obj.value = self.cuda
        return 0

    def cuInit(self, flags):
        return self.status

    def cuDeviceGet(self, device, index):
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = self.name

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capability[attribute - 75]

    def cuGetErrorName(self, status, text):
        text._obj.value = b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"


def no_driver(library):
    raise OSError(f"{library}: cannot open shared object file")


def detect(root, files=None, load=no_driver, smi=None, packages=None):
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def version(name):
        if name not in (packages or {}):
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    return detect_machine(root, load, lambda command: smi, version)


def test_a_jetson_orin(tmp_path):
    machine = detect(tmp_path, ORIN, Driver(b"Orin", (8, 7), 12060), packages={"tensorrt": "10.3.0"})
    assert (machine.gpu, machine.compute_capability, machine.cuda, machine.driver) == (
        "Orin",
        "8.7",
        "12.6",
        "540.4.0",
    )
    assert (machine.l4t, machine.jetpack, machine.os) == ("36.4.3", "6.2", "Ubuntu 22.04.5 LTS")
    assert (machine.tensorrt, machine.tensorrt_rtx, machine.cuda_error) == ("10.3.0", None, None)


def test_a_desktop(tmp_path):
    machine = detect(
        tmp_path,
        DESKTOP,
        Driver(b"NVIDIA GeForce RTX 4090", (8, 9)),
        packages={"tensorrt_rtx_cu13": "1.7.1.116"},
    )
    assert (machine.gpu, machine.compute_capability, machine.driver) == (
        "NVIDIA GeForce RTX 4090",
        "8.9",
        "580.95.05",
    )
    assert (machine.tensorrt, machine.tensorrt_rtx, machine.l4t, machine.jetpack) == (
        None,
        "1.7.1.116",
        None,
        None,
    )


def test_nvidia_smi_gives_the_driver_version(tmp_path):
    machine = detect(tmp_path, {}, Driver(b"NVIDIA RTX A2000", (8, 6)), smi="NVIDIA RTX A2000, 8.6, 555.42\n")
    assert (machine.driver, machine.cuda_error) == ("555.42", None)


def test_no_gpu(tmp_path):
    machine = detect(tmp_path)
    assert machine == Machine(machine.platform, platform.python_version(), cpus=machine.cpus)
    assert machine.as_dict()["gpu"] is None


def test_a_gpu_that_cannot_be_used(tmp_path):
    machine = detect(tmp_path, DESKTOP, smi="NVIDIA L4, 8.9, 580.95.05\n")
    assert machine.gpu is None
    assert (
        machine.cuda_error
        == "nvidia-smi lists NVIDIA L4, but the driver's library libcuda.so.1 can't be loaded"
    )


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (no_driver, Gpu()),
        (Driver(status=100), Gpu(cuda="13.0")),
        (
            Driver(status=803),
            Gpu(cuda="13.0", error="CUDA doesn't start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
        ),
        (Driver(b"NVIDIA Thor", (11, 0)), Gpu("NVIDIA Thor", "11.0", "13.0")),
    ],
)
def test_query_of_the_driver(driver, expected):
    assert query_driver(driver) == expected


def test_this_machine_is_detected_once():
    assert this_machine() is this_machine()
    assert this_machine().platform == f"{platform.system()}-{platform.machine()}".lower()
