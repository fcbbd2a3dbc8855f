"""Declare what setup.cfg cannot: the native library and the tag of the wheel that holds it.

The library is loaded by ctypes. It includes no Python.h, so one wheel serves every Python 3 of a platform.
"""

from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CSRC = "plugins/csrc/"


class BuildPackage(build_py):
    """Leave setup.py out of the package, whose folder is the repository's root."""

    def find_package_modules(self, package: str, package_dir: str) -> list[Any]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


class BuildWheel(bdist_wheel):
    """Tag the wheel py3-none-PLATFORM: the native library depends on the platform, not on Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
    ext_modules=[
        Extension(
            "tfiseg.plugins._native",
            sources=[
                CSRC + "api.cpp",
                CSRC + "cluster_cpu.cpp",
                CSRC + "fit_cpu.cpp",
                CSRC + "views_cpu.cpp",
            ],
            depends=sorted(map(str, Path(CSRC).glob("*.h"))),
            language="c++",
            py_limited_api=True,  # names it _native.abi3.so: no Python version in the file's name
            # -fno-wrapv: Python's own flags ask for -fwrapv, which keeps index loops from being vectorised;
            # -ffp-contract=off: fused multiply-add would make decisions differ between machines
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-fno-wrapv",
                "-ffp-contract=off",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
            ],
            extra_link_args=["-pthread"],
        )
    ],
)
