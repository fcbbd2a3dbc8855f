"""The facts that ``tfiseg doctor`` checks: the machine, the installed packages, the tools and the plugin.

Packages are imported in separate processes, because a broken package may crash the process.
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
from ..networks.machine import Machine, detect_machine
from ..networks.session import DEFAULT_MODEL

NATIVE = "tfiseg.plugins.native"
_PROBES = {  # module -> additional statements of its probe
    "numpy": "",
    "cv2": "found['build'] = module.getBuildInformation()",
    "onnxruntime": "found['providers'] = module.get_available_providers()",
    "onnx": "",
    "tqdm": "",
    "av": "",
    "tensorrt": "found['is_complete'] = hasattr(module, 'Builder')",
    "tensorrt_rtx": "found['is_complete'] = hasattr(module, 'Builder')",
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
    """The result of importing an installed module in a separate process."""

    version: str = ""  # its version, or ""
    error: str | None = None  # why it cannot be imported, or None
    details: Mapping[str, Any] = field(default_factory=dict)  # the values of its probe


@dataclass(frozen=True)
class Tool:
    """A program or folder that building the plugin needs."""

    path: str | None = None  # its path, or None if it is not found
    version: str = ""  # its version, or ""
    error: str = ""  # why it is not found


@dataclass(frozen=True)
class Facts:
    """The facts about an installation."""

    machine: Machine
    packages: Mapping[str, str]  # name -> version of the installed packages
    modules: Mapping[str, Module]  # name -> result of the import, for modules that are installed
    tools: Mapping[str, Tool]  # name -> program or folder
    # ``plugin_info()``, None if the plugin is not built, or a sentence about its problem
    plugin: Mapping[str, Any] | str | None
    network: Path | None  # file of the default network, or None


def collect_facts() -> Facts:
    """Return the facts about this installation, in the time of importing the slowest package."""
    tools = {"nvcc": find_nvcc, "cmake": find_cmake, "TensorRT headers": find_tensorrt_headers}
    wait_for_modules = start_probes([name for name in _PROBES if _is_installed(name)])
    packages = {
        normalize_name(d.metadata["Name"]): d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }
    return Facts(
        machine=detect_machine(),
        packages=packages,
        tools={name: _tool(find) for name, find in tools.items()},
        plugin=_plugin(),
        network=DEFAULT_MODEL if DEFAULT_MODEL.exists() else None,
        modules=wait_for_modules(),
    )


def start_probes(
    names: Sequence[str], probes: Mapping[str, str] = _PROBES, seconds: float = _PROBE_SECONDS
) -> Callable[[], dict[str, Module]]:
    """Import modules in parallel processes; the returned function waits for the results.

    ``probes``: name -> additional statements, which store values in ``found``.
    """
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
        name: _wait_for_probe(process, max(0.1, until - time.monotonic()))
        for name, process in processes.items()
    }


def _wait_for_probe(process: subprocess.Popen[str], seconds: float) -> Module:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Module(error=f"importing it takes more than {seconds:.0f} s")
    if process.returncode:
        if process.returncode < 0:
            return Module(error=f"importing it ends the process (signal {-process.returncode})")
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        return Module(error=lines[-1] if lines else "it can't be imported")
    found = json.loads(out.splitlines()[-1])
    return Module(found.pop("version"), None, found)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name.split(".")[0]) is not None
    except (ImportError, ValueError):  # a module without a spec
        return False


def _tool(find: Callable[[], Path]) -> Tool:
    try:
        path = find()
    except MissingDependencyError as error:
        return Tool(error=str(error))
    if path.is_dir():
        return Tool(str(path))
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired) as run_error:
        return Tool(error=f"{path} can't be run: {run_error}")
    version = re.search(r"(?:V|version )(\d+(?:\.\d+)+)", output)
    return Tool(str(path), version[1] if version else "")


def _plugin() -> Mapping[str, Any] | str | None:
    try:
        plugin_path()
    except TfisegError as missing:
        return str(missing) if os.environ.get(PATH_VARIABLE) else None
    try:
        return plugin_info()
    except (OSError, ValueError) as error:
        return f"the file that its build wrote beside it can't be read ({error})"


def normalize_name(name: str) -> str:
    """Return the normalized name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
