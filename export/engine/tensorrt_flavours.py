"""TensorRT 10.3 to 11 and TensorRT-RTX 1.7: one API under two names, found, named and versioned in one
place."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from types import ModuleType

from ...errors import InputError, MissingDependencyError

TARGETS = ("tensorrt", "rtx")
MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT. ``target`` "tensorrt" or "rtx"; ``name`` as engine files have it; only the first
    takes plugins."""

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
        """TensorRT-RTX has no plugins in networks: its parser ends the process on such a node."""
        return self.target == "tensorrt"


def flavour(target: str) -> Flavour:
    """The installed TensorRT of a target, "auto" for whichever is there.

    Raises:
        MissingDependencyError: it isn't installed, with what installs it. InputError: no such target.
    """
    if target == "auto":
        for one in TARGETS:
            try:
                return flavour(one)
            except MissingDependencyError:
                continue
        raise MissingDependencyError(f"no TensorRT is installed. {_how('tensorrt')}; {_how('rtx')}")
    if target not in TARGETS:
        raise InputError(f"no target {target!r}: wanted one of {', '.join(TARGETS)}")
    try:
        module = importlib.import_module(MODULES[target])
    except (ImportError, OSError) as missing:  # OSError: a wheel whose libraries don't load here
        raise MissingDependencyError(
            f"{MODULES[target]} can't be imported ({missing}). {_how(target)}"
        ) from missing
    if not hasattr(module, "Builder"):  # the type checker's stubs leave an empty package behind
        raise MissingDependencyError(f"{MODULES[target]} is only a shell without the library. {_how(target)}")
    return Flavour(target, module)


def _how(target: str) -> str:
    if target == "rtx":
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return f"TensorRT-RTX has no wheel for {platform.system()} on {platform.machine()}: build on Linux x86-64"
        return 'TensorRT-RTX (desktop RTX GPUs; builds without a GPU): pip install ".[rtx]" in the repository'
    return "TensorRT (Jetson, data centre, desktop): on a Jetson it comes with JetPack (python3-libnvinfer), elsewhere pip install tensorrt"
