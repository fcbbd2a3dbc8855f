"""``tfiseg doctor``: check the installation and print a fix for each problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..networks.machine import WHEELS, Machine
from .check import MISSING, OK, OPTIONAL, WRONG, Check
from .installation import NATIVE, Facts, normalize_name
from .jetson import jetson_checks

_OPENCV = (
    *("opencv-python", "opencv-python-headless"),
    *("opencv-contrib-python", "opencv-contrib-python-headless"),
)
_ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_PYTHONS = ((3, 10), (3, 13))
_RTX_CAPABILITIES = ("7.5", "8.6", "8.9", "12.")
_MIN_VERSIONS = {
    **{"numpy": "1.26", "cv2": "4.9", "onnxruntime": "1.20", "av": "14"},
    **{"tensorrt": "10.3", "tensorrt_rtx": "1", "cmake": "3.24"},
}
_REINSTALL = "pip install . in the repository"


def examine(facts: Facts) -> list[Check]:
    """Return the checks of an installation."""
    return list(_checks(facts))


def is_healthy(checks: Iterable[Check]) -> bool:
    """Return whether no required part is missing and no part is wrong."""
    return all(check.state in (OK, OPTIONAL) for check in checks)


def make_report(facts: Facts, checks: Sequence[Check]) -> dict[str, Any]:
    """Return the checks as a JSON object."""
    return {
        "healthy": is_healthy(checks),
        "machine": facts.machine.as_dict(),
        "checks": [{"name": c.name, "state": c.state, "found": c.found, "fix": c.fix} for c in checks],
    }


def doctor_text(facts: Facts, checks: Sequence[Check]) -> str:
    """Return the checks as text: one line for each check, and one for each fix."""
    machine = facts.machine
    lines = [f"{machine.platform}, {machine.os or 'an unknown system'}, {machine.cpus} CPUs"]
    width = max(len(check.name) for check in checks)
    for check in checks:
        lines.append(f"{check.state:<8}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"{'':<8}  {'':<{width}}  -> {check.fix}")
    count = {state: sum(check.state == state for check in checks) for state in (OK, OPTIONAL, MISSING, WRONG)}
    verdict = "Nothing that is needed is missing or wrong"
    if not is_healthy(checks):
        verdict = f"{count[MISSING]} missing, {count[WRONG]} wrong"
    return "\n".join([*lines, f"{verdict}; {count[OK]} ok, {count[OPTIONAL]} optional things are not here."])


def _checks(facts: Facts) -> Iterator[Check]:
    yield _python(facts)
    yield _required(facts, "numpy", "numpy", 'pip install "numpy>=1.26,<3"')
    yield _required(facts, "tqdm", "tqdm", "pip install tqdm")
    yield _required(facts, "PyAV", "av", 'pip install "av>=14"')
    yield _opencv(facts)
    yield _onnxruntime(facts)
    yield _native(facts)
    size = facts.network.stat().st_size if facts.network else 0
    if facts.network and size:
        yield Check("network", OK, f"{facts.network.name}, {size / 1e6:.1f} MB")
    else:
        yield Check("network", MISSING, "the default network is not installed", _REINSTALL)
    yield from _gpu(facts.machine)
    yield from jetson_checks(facts)
    for flavour in WHEELS:
        yield _tensorrt(facts, flavour)
    yield _plugin_check(facts)
    yield from _tools(facts)
    extra = "jetson" if facts.machine.l4t else "tensorrt"
    yield _optional(facts, "PyCUDA", "pycuda.driver", "pycuda", f'pip install ".[{extra}]" in the repository')
    fix = 'pip install ".[calibration]" in the repository (build, inspect and triton use it)'
    yield _optional(facts, "onnx", "onnx", "onnx", fix)
    for package, extra in (  # not imported, because that takes seconds
        ("torch", "torch"),
        ("transformers", "hf"),
        ("scipy", "live"),
        ("mcap", "live"),
        ("foxglove-sdk", "live"),
    ):
        if found := facts.packages.get(package):
            yield Check(package, OK, found)
        else:
            yield Check(package, OPTIONAL, "not installed", f'pip install ".[{extra}]" in the repository')


def _python(facts: Facts) -> Check:
    found = facts.machine.python
    if not _PYTHONS[0] <= _numbers(found)[:2] <= _PYTHONS[1]:
        return Check(
            "Python", WRONG, f"{found}; tfiseg needs 3.10 to 3.13", "create a venv with another Python"
        )
    return Check("Python", OK, found)


def _required(facts: Facts, name: str, module: str, fix: str) -> Check:
    found = facts.modules.get(module)
    if found is None:
        return Check(name, MISSING, "not installed", fix)
    if found.error:
        return Check(name, WRONG, found.error, fix.replace("pip install", "pip install --force-reinstall"))
    minimum = _MIN_VERSIONS.get(module, "")
    if _numbers(found.version) < _numbers(minimum):
        fix = fix.replace("install", "install -U")
        return Check(name, WRONG, f"{found.version}; tfiseg needs {minimum} or later", fix)
    return Check(name, OK, found.version)


def _opencv(facts: Facts) -> Check:
    conflict = _find_conflict(facts, "OpenCV", _OPENCV, "opencv-python-headless")
    if conflict:
        return conflict
    check = _required(facts, "OpenCV", "cv2", 'pip install "opencv-python-headless>=4.9"')
    if re.search(r"\blib(GL|gthread|glib)\b", check.found):  # opencv-python links them, headless does not
        fix = (
            "pip uninstall -y opencv-python && pip install opencv-python-headless, or: sudo apt install "
            "libgl1 libglib2.0-0"
        )
        return replace(check, fix=fix)
    if re.search(r"_ARRAY_API|numpy\.core\.multiarray", check.found):  # the system's, compiled for numpy 1
        return replace(check, fix='pip install "numpy<2", or: pip install opencv-python-headless')
    if check.state != OK:
        return check
    build = str(facts.modules["cv2"].details.get("build", ""))
    parts = [f"{name} {'yes' if _is_built_with(build, name) else 'no'}" for name in ("FFmpeg", "GStreamer")]
    gui = re.search(r"(?m)^\s*GUI:\s*(\w*)", build)
    parts.append(f"windows {'yes' if gui and gui[1].upper() != 'NONE' else 'no'}")
    if not _is_built_with(build, "FFmpeg"):
        found = f"{check.found} reads no video files: built without FFmpeg"
        return Check("OpenCV", WRONG, found, "pip install opencv-python-headless")
    fix = ""
    if facts.machine.l4t and not _is_built_with(build, "GStreamer"):
        fix = "for CSI cameras: sudo apt install gstreamer1.0-tools"
    return Check("OpenCV", OK, f"{check.found}; {', '.join(parts)}", fix)


def _is_built_with(build: str, library: str) -> bool:
    return bool(re.search(rf"(?mi)^\s*{library}:\s*YES", build))


def _onnxruntime(facts: Facts) -> Check:
    conflict = _find_conflict(
        facts, "ONNX Runtime", _ONNXRUNTIME, "onnxruntime-gpu" if facts.machine.gpu else "onnxruntime"
    )
    if conflict:
        return conflict
    check = _required(facts, "ONNX Runtime", "onnxruntime", 'pip install "onnxruntime>=1.20"')
    if check.state != OK:
        return check
    providers = [
        p.removesuffix("ExecutionProvider") for p in facts.modules["onnxruntime"].details.get("providers", [])
    ]
    return Check("ONNX Runtime", OK, f"{check.found}; runs on {', '.join(providers)}")


def _find_conflict(facts: Facts, name: str, candidates: Sequence[str], keep: str) -> Check | None:
    """Return a check if several of these packages, which share a folder, are installed."""
    installed = [package for package in candidates if package in facts.packages]
    if len(installed) < 2:
        return None
    versions = " and ".join(f"{package} {facts.packages[package]}" for package in installed)
    found = f"{versions} are both installed and overwrite each other"
    return Check(name, WRONG, found, f"pip uninstall -y {' '.join(installed)} && pip install {keep}")


def _native(facts: Facts) -> Check:
    found = facts.modules.get(NATIVE)
    if found is None or found.error:
        error = found.error if found and found.error else "tfiseg can't be imported by its name"
        return Check(
            "operator",
            MISSING if "is not built" in error else WRONG,
            re.sub(r"^[\w.]*Error: ", "", error),
            _REINSTALL,
        )
    return Check("operator", OK, f"{Path(found.details['path']).name} loads, and is of this version")


def _gpu(machine: Machine) -> Iterator[Check]:
    if machine.cuda_error:
        fix = (
            "restart after a driver update; in a container: --gpus all and "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        )
        yield Check("GPU", WRONG, machine.cuda_error, fix)
    elif machine.gpu:
        yield Check("GPU", OK, f"{machine.gpu}, compute capability {machine.compute_capability}")
    else:
        yield Check("GPU", OPTIONAL, "no NVIDIA GPU found: everything runs on the CPU")
    if machine.cuda or machine.driver:
        cuda = f"; supports CUDA {machine.cuda}" if machine.cuda else ""
        yield Check("driver", OK, f"{machine.driver or 'version unknown'}{cuda}")


def _tensorrt(facts: Facts, flavour: str) -> Check:
    machine, name = facts.machine, {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[flavour]
    wheels = sorted({normalize_name(wheel) for wheel in WHEELS[flavour]})
    conflict = _find_conflict(facts, name, [wheel for wheel in wheels if "-cu" in wheel], wheels[-1])
    if conflict:
        return conflict
    parts = [*wheels, *(f"{wheel}-{part}" for wheel in wheels for part in ("bindings", "libs"))]
    installed = {package: facts.packages[package] for package in parts if package in facts.packages}
    module, fix = facts.modules.get(flavour), _tensorrt_fix(flavour, machine)
    is_complete = module is not None and not module.error and bool(module.details.get("is_complete"))
    if not is_complete and not installed:
        stubs = "; the type checker's stubs are" if module is not None else ""
        return Check(name, OPTIONAL, f"not installed{stubs}", fix)
    if not is_complete:
        reason = (module.error if module else "") or "it is a shell without the library"
        return Check(name, WRONG, f"{' and '.join(f'{k} {v}' for k, v in installed.items())}: {reason}", fix)
    assert module is not None
    minimum = _MIN_VERSIONS[flavour]
    if _numbers(module.version) < _numbers(minimum):
        return Check(name, WRONG, f"{module.version}; tfiseg needs {minimum} or later", fix)
    wheel_cuda = next(
        (int(found[1]) for package in installed if (found := re.search(r"-cu(\d+)", package))), None
    )
    if wheel_cuda and machine.cuda and _numbers(machine.cuda)[0] < wheel_cuda:
        older = f"pip uninstall it and install its -cu{_numbers(machine.cuda)[0]} wheel, or update the driver"
        state = f"{module.version} is built for CUDA {wheel_cuda}, the driver supports {machine.cuda}"
        return Check(name, WRONG, state, older)
    note = ""
    if (
        flavour == "tensorrt_rtx"
        and machine.gpu
        and not str(machine.compute_capability).startswith(_RTX_CAPABILITIES)
    ):
        note = f"; builds engines, but none run on compute capability {machine.compute_capability}"
    elif not machine.gpu:
        note = "; builds engines, running them needs a GPU" if flavour == "tensorrt_rtx" else "; needs a GPU"
    return Check(name, OK, f"{module.version}{note}")


def _tensorrt_fix(flavour: str, machine: Machine) -> str:
    if flavour == "tensorrt_rtx":
        has_wheel = machine.platform == "linux-x86_64"
        return 'pip install ".[rtx]" in the repository (desktop RTX GPUs)' if has_wheel else ""
    if machine.l4t:
        return "sudo apt install python3-libnvinfer, and create the venv with --system-site-packages"
    return (
        f"pip install tensorrt-cu{_numbers(machine.cuda)[0] if machine.cuda else 13} from NVIDIA's own "
        "package index"
    )


def _plugin_check(facts: Facts) -> Check:
    plugin, name = facts.plugin, "plugin"
    if plugin is None:
        found = "libtfiseg_plugin.so is not built: TensorRT engines and CUDA programs need it"
        return Check(name, OPTIONAL, found, "tfiseg plugin build")
    if isinstance(plugin, str):
        return Check(name, WRONG, plugin, "tfiseg plugin build --force")
    if not plugin["is_of_this_source"]:
        found = f"{plugin['path']} was built from another version of tfiseg"
        return Check(name, WRONG, found, "tfiseg plugin build --force")
    headers, module = plugin.get("tensorrt_headers"), facts.modules.get("tensorrt")
    installed = module.version if module and module.details.get("is_complete") else ""
    if headers and installed and _numbers(headers)[0] > _numbers(installed)[0]:
        found = f"compiled for TensorRT {headers}, installed is {installed}"
        return Check(name, WRONG, found, "TENSORRT_ROOT=<folder of its include/> tfiseg plugin build --force")
    architectures = list(plugin.get("architectures", []))
    capability = (facts.machine.compute_capability or "").replace(".", "")
    if capability and capability not in architectures:
        if "PTX" not in architectures:
            found = f"compiled for {', '.join(architectures)}, this GPU is {capability}"
            return Check(name, WRONG, found, "tfiseg plugin build --arch native --force")
        found = f"{_interface(headers)}; for this GPU it is compiled at first use"
        return Check(name, OK, found, "faster start: tfiseg plugin build --arch native")
    return Check(name, OK, f"{_interface(headers)}; for {', '.join(architectures)}")


def _interface(headers: str | None) -> str:
    """Return what the plugin is compiled for. IPluginV3 is compatible up to TensorRT 11."""
    return f"compiled for TensorRT {headers}" if headers else "the C API alone, without TensorRT"


def _tools(facts: Facts) -> Iterator[Check]:
    headers = "sudo apt install libnvinfer-headers-dev, or pip install --no-deps kernel-lens==2.0.1"
    for name, tool in facts.tools.items():
        fix = headers if name == "TensorRT headers" else 'pip install ".[plugin]" in the repository'
        minimum = _MIN_VERSIONS.get(name, "")
        if tool.path is None:
            found = (
                "can't be run" if "can't be run" in tool.error else "not found; building the plugin needs it"
            )
            yield Check(name, OPTIONAL, found, fix)
        elif tool.version and _numbers(tool.version) < _numbers(minimum):
            yield Check(
                name, OPTIONAL, f"{tool.version} is too old; building the plugin needs {minimum}", fix
            )
        else:
            yield Check(name, OK, f"{tool.version} {tool.path}".strip())


def _optional(facts: Facts, name: str, module: str, package: str, fix: str) -> Check:
    found = facts.modules.get(module)
    if found is None:
        return Check(name, OPTIONAL, "not installed", fix)
    version = facts.packages.get(package) or found.version
    if found.error and "libcuda" in found.error and not facts.machine.gpu:
        return Check(name, OK, f"{version}; needs a GPU")
    return Check(name, WRONG, f"{version}: {found.error}", fix) if found.error else Check(name, OK, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
