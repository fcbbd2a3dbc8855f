"""What ``tfiseg doctor`` judges: the machine, the installed packages, what importing them says, the tools and
the plugin.

Packages are imported in processes of their own: a broken wheel may end the process that imports it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import MissingDependencyError, TfisegError
from ...plugins.plugin_build import find_cmake, find_nvcc, find_tensorrt_headers
from ...plugins.plugin_library import PATH_VARIABLE, plugin_info, plugin_path
from ..networks.machine import Machine, look_at_machine
from ..networks.session import DEFAULT_MODEL

NATIVE = "tfiseg.plugins.native"
_PROBES = {  # module -> what else to ask it
    "numpy": "",
    "cv2": "found['build'] = module.getBuildInformation()",
    "onnxruntime": "found['providers'] = module.get_available_providers()",
    "onnx": "",
    "tqdm": "",
    "av": "",
    "tensorrt": "found['whole'] = hasattr(module, 'Builder')",
    "tensorrt_rtx": "found['whole'] = hasattr(module, 'Builder')",
    "pycuda.driver": "",
    NATIVE: "module.library(); found['path'] = str(module.library_path())",
}
_PROBE = """
import importlib, json, sys
module = importlib.import_module({name!r})
found = {{"version": str(getattr(module, "__version__", "") or "")}}
{more}
print("\\n" + json.dumps(found))
"""
_PROBE_SECONDS = 30.0


@dataclass(frozen=True)
class Module:
    """An installed module as a process of its own found it: ``error`` where importing it failed."""

    version: str = ""
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tool:
    """A program or folder that building the plugin needs: ``path``, or None and ``error``."""

    path: str | None = None
    version: str = ""
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """All that is judged. ``packages``: installed distributions, name -> version; ``modules``: those that can
    be found; ``plugin``: ``plugin_info()``, None where it isn't built, or a sentence on what is wrong with
    it; ``network``: the shipped one's file."""

    machine: Machine
    packages: Mapping[str, str]
    modules: Mapping[str, Module]
    tools: Mapping[str, Tool]
    plugin: Mapping[str, Any] | str | None
    network: Path | None


def look() -> Facts:
    """The facts of this machine; takes about as long as importing the slowest package does."""
    wanted = [name for name in _PROBES if _is_there(name)]
    tools = {"nvcc": find_nvcc, "cmake": find_cmake, "TensorRT headers": find_tensorrt_headers}
    running = probe(wanted)  # these run while the rest is looked at
    packages = {
        plain_name(d.metadata["Name"]): d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }
    return Facts(
        machine=look_at_machine(),
        packages=packages,
        tools={name: _tool(find) for name, find in tools.items()},
        plugin=_plugin(),
        network=DEFAULT_MODEL if DEFAULT_MODEL.exists() else None,
        modules=running(),
    )


def probe(
    names: Sequence[str], probes: Mapping[str, str] = _PROBES, seconds: float = _PROBE_SECONDS
) -> Callable[[], dict[str, Module]]:
    """Import modules, each in a process of its own, all at once; call the result to wait for what they
    say."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", _PROBE.format(name=name, more=probes.get(name, ""))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for name in names
    }
    until = time.monotonic() + seconds
    return lambda: {
        name: _heard(process, max(0.1, until - time.monotonic())) for name, process in processes.items()
    }


def _heard(process: subprocess.Popen[str], seconds: float) -> Module:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Module(error=f"importing it takes more than {seconds:.0f} s")
    if process.returncode:
        said = [line.strip() for line in err.splitlines() if line.strip()]
        ended = (
            f"importing it ends the process (signal {-process.returncode})"
            if process.returncode < 0
            else "it can't be imported"
        )
        return Module(error=said[-1] if said and process.returncode > 0 else ended)
    found = json.loads(out.splitlines()[-1])
    return Module(found.pop("version"), None, found)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name.split(".")[0]) is not None
    except (ImportError, ValueError):  # a module without a spec
        return False


def _tool(find: Callable[[], Path]) -> Tool:
    try:
        path = find()
    except MissingDependencyError as missing:
        return Tool(error=str(missing))
    if path.is_dir():
        return Tool(str(path))
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired) as wrong:
        return Tool(error=f"{path} can't be run: {wrong}")
    version = re.search(r"(?:V|version )(\d+(?:\.\d+)+)", said)
    return Tool(str(path), version[1] if version else "")


def _plugin() -> Mapping[str, Any] | str | None:
    try:
        plugin_path()
    except TfisegError as missing:
        return str(missing) if os.environ.get(PATH_VARIABLE) else None
    try:
        return plugin_info()
    except (OSError, ValueError) as wrong:
        return f"what its build wrote beside it can't be read ({wrong})"


def plain_name(name: str) -> str:
    """A distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
