"""What setup.cfg can't declare: the native module, a plain shared library that ctypes loads (so no Python.h
is needed)."""

from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

CSRC = "plugins/csrc/"


class BuildPackage(build_py):
    """The repository's root is the package, but this file is none of its modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[Any]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    cmdclass={"build_py": BuildPackage},
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
