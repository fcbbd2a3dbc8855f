"""Find the installed TensorRT (10.3 to 11) or TensorRT-RTX (1.7), which share one API."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from types import ModuleType

from ...errors import MissingDependencyError, check_choice

TARGETS = ("tensorrt", "rtx")
MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Flavor:
    """An installed TensorRT.

    ``target`` is "tensorrt" or "rtx"; ``name`` is the name in engine records."""

    target: str
    module: ModuleType

    @property
    def name(self) -> str:
        return MODULES[self.target]

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def takes_plugins(self) -> bool:
        """Whether networks can have plugins; TensorRT-RTX's parser ends the process on such a node."""
        return self.target == "tensorrt"


def find_flavor(target: str) -> Flavor:
    """Return the installed TensorRT of a target; "auto": the first one that is installed.

    Raises:
        MissingDependencyError: it isn't installed; the message names the command that installs it.
        InputError: the target is unknown.
    """
    if target == "auto":
        for one in TARGETS:
            try:
                return find_flavor(one)
            except MissingDependencyError:
                continue
        raise MissingDependencyError(
            f"no TensorRT is installed. {_install_hint('tensorrt')}; {_install_hint('rtx')}"
        )
    check_choice("target", target, (*TARGETS, "auto"))
    try:
        module = importlib.import_module(MODULES[target])
    except (ImportError, OSError) as missing:  # OSError: a wheel whose libraries don't load here
        raise MissingDependencyError(
            f"{MODULES[target]} can't be imported ({missing}). {_install_hint(target)}"
        ) from missing
    if not hasattr(module, "Builder"):  # type stubs leave an empty package
        raise MissingDependencyError(
            f"{MODULES[target]} is a package without the library. {_install_hint(target)}"
        )
    return Flavor(target, module)


def _install_hint(target: str) -> str:
    if target == "rtx":
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return (
                f"TensorRT-RTX has no wheel for {platform.system()} on {platform.machine()}: build on "
                f"Linux x86-64"
            )
        return 'TensorRT-RTX (desktop RTX GPUs; builds without a GPU): pip install ".[rtx]" in the repository'
    return (
        "TensorRT (Jetson, data center, desktop): on a Jetson it comes with JetPack (python3-libnvinfer), "
        "elsewhere `pip install tensorrt`"
    )
