"""Build libtfiseg_plugin.so with CMake, nvcc and TensorRT's headers of the system, else of PyPI."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError, TfisegError
from ..files import whole_file
from .plugin_library import AUTOREGISTER_LIBRARY, LIBRARY, SOURCE, default_path, source_hash

C_API_LIBRARY = "libtfiseg.so"  # without TensorRT, this is the whole library
# Jetson Orin, RTX 40, Hopper, Jetson Thor, RTX 50; PTX for all others
ARCHITECTURES = ("87", "89", "90", "110", "120")


def build_plugin(
    architectures: Sequence[str] = ARCHITECTURES,
    output: Path | None = None,
    with_tensorrt: bool = True,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Path:
    """Compile the plugin library.

    Args:
        architectures: compute capabilities without the dot, or "native". Unknown ones are skipped.
        output: path of the library; default: the path where ``plugin_path()`` looks.
        with_tensorrt: include the TensorRT plugin; else only the C API, which needs no TensorRT headers.
        say: called with each line of progress.

    Returns:
        Path of the library. Next to it: ``.json`` (tools, registers and spills of each kernel) and ``.log``.

    Raises:
        MissingDependencyError: no CMake, nvcc or TensorRT headers.
        TfisegError: the compiler failed; the message names the log.
    """
    for architecture in architectures:
        if not re.fullmatch(r"native|\d{2,3}", architecture):
            raise TfisegError(
                f'architectures are compute capabilities like 87 or 120, or "native", got {architecture!r}'
            )
    target = output or default_path()
    cmake, nvcc = find_cmake(), find_nvcc()
    headers = find_tensorrt_headers() if with_tensorrt else None
    say(f"building {target}\n  nvcc: {nvcc}\n  TensorRT headers: {headers or 'none'}")
    say(f"  for: {', '.join(architectures)}, PTX; each takes about 40 seconds")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise TfisegError(
            f"can't write to {target.parent}: {wrong.strerror}; pass another path with --output"
        ) from wrong
    log = _compile(target, architectures, headers, (cmake, nvcc), say)
    report = kernel_report(log.read_text())
    spilling = [f"{k['kernel']} (sm_{k['architecture']})" for k in report if k["spill_bytes"]]
    if spilling:
        say(f"  registers spill to memory in: {', '.join(spilling)}")
    facts = _build_information(report, architectures, nvcc, headers)
    target.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    return target


def _compile(
    target: Path,
    architectures: Sequence[str],
    headers: Path | None,
    tools: tuple[Path, Path],
    say: Callable[[str], None],
) -> Path:
    """Compile the library with CMake and nvcc; returns the log."""
    cmake, nvcc = tools
    log = target.with_suffix(".log")
    options = [
        "-DTFISEG_CUDA=ON",
        f"-DTFISEG_ARCHITECTURES={';'.join(architectures)}",
        f"-DTFISEG_TENSORRT={'ON' if headers else 'OFF'}",
    ]
    if headers:
        options.append(f"-DTENSORRT_INCLUDE_DIR={headers}")
        built = {LIBRARY: target, AUTOREGISTER_LIBRARY: target.with_name(AUTOREGISTER_LIBRARY)}
    else:
        built = {C_API_LIBRARY: target}
    with tempfile.TemporaryDirectory() as build, log.open("w") as kept:
        environment = os.environ | {"CUDACXX": str(nvcc)}
        for command in (
            [cmake, "-S", SOURCE, "-B", build, *options],
            [cmake, "--build", build, "--parallel"],
        ):
            _run([str(part) for part in command], environment, kept, say, log)
        for name, place in built.items():
            with whole_file(place) as part:
                shutil.copyfile(Path(build) / name, part)
    return log


def _build_information(
    report: Sequence[dict[str, Any]], architectures: Sequence[str], nvcc: Path, headers: Path | None
) -> dict[str, Any]:
    """Return the build information for the JSON file beside the library."""
    return {
        "source": source_hash(),
        "architectures": sorted({k["architecture"] for k in report}, key=int)
        + ["PTX"] * ("native" not in architectures),
        "nvcc": _version_of(nvcc),
        "tensorrt_headers": _header_version(headers) if headers else None,
        "machine": f"{platform.system()} {platform.machine()}",
        "kernels": list(report),
    }


def _run(
    command: list[str], environment: dict[str, str], kept: Any, say: Callable[[str], None], log: Path
) -> None:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
        kept.write(line)
        if re.match(r"\[ *\d+%\]", line):
            say("  " + line.rstrip())
    if process.wait() != 0:
        kept.flush()
        errors = [line for line in log.read_text().splitlines() if "error" in line.lower()]
        raise TfisegError(
            f"the plugin could not be built: {errors[0].strip() if errors else command[0] + ' failed'}. "
            f"The full log is {log}"
        )


def find_cmake() -> Path:
    """Return CMake's path, on the PATH or next to this Python; raises MissingDependencyError."""
    found = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if not found:
        raise MissingDependencyError(
            "building the plugin needs CMake 3.24 or later: install it, or "
            'pip install ".[plugin]" in the repository'
        )
    return Path(found)


def find_nvcc() -> Path:
    """Return nvcc's path, from CUDACXX, the PATH, /usr/local/cuda or PyPI; raises MissingDependencyError."""
    named = os.environ.get("CUDACXX")
    candidates = [Path(named)] if named else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    package = importlib.util.find_spec("nvidia")  # a namespace: PyPI's CUDA is in nvidia/cu13
    candidates += [
        Path(folder) / "cu13" / "bin" / "nvcc"
        for folder in (package.submodule_search_locations or [] if package else [])
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise MissingDependencyError(
        f"building the plugin needs CUDA's compiler; searched for {', '.join(map(str, candidates))}. Install "
        'JetPack or the CUDA toolkit, or run pip install ".[plugin]" in the repository'
    )


def find_tensorrt_headers() -> Path:
    """Return the folder of NvInferRuntime.h, from TENSORRT_ROOT, the system or PyPI's kernel-lens."""
    root = os.environ.get("TENSORRT_ROOT")
    candidates = [Path(root) / "include"] if root else []
    candidates += [
        Path(f"/usr/include/{platform.machine()}-linux-gnu"),
        Path("/usr/include"),
        Path("/usr/local/tensorrt/include"),
    ]
    package = importlib.util.find_spec("kernel_lens")  # finds its folder without importing it
    candidates += [
        Path(folder) / "include" / "tensorrt"
        for folder in (package.submodule_search_locations or [] if package else [])
    ]
    for folder in candidates:
        if (folder / "NvInferRuntime.h").is_file():
            return folder
    raise MissingDependencyError(
        f"building the TensorRT plugin needs TensorRT's headers; searched in "
        f"{', '.join(map(str, candidates))}. Install JetPack, TensorRT's developer packages, or "
        "`pip install --no-deps kernel-lens==2.0.1`; --without-tensorrt builds the C API alone"
    )


_PTXAS = {
    "registers": r"Used (\d+) registers",
    "shared_bytes": r"(\d+) bytes smem",
    "spill_bytes": r"(\d+) bytes spill",
}


def kernel_report(log: str) -> list[dict[str, Any]]:
    """Read registers, shared memory and spilled bytes of each kernel and architecture from ptxas's output."""
    rows = []
    for name, architecture, body in re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'\n(.*?Used [^\n]*)", log, re.DOTALL
    ):
        numbers = {word: sum(map(int, re.findall(pattern, body))) for word, pattern in _PTXAS.items()}
        rows.append({"kernel": _plain_name(name), "architecture": architecture, **numbers})
    return sorted(rows, key=lambda row: (row["kernel"], int(row["architecture"])))


def _plain_name(mangled: str) -> str:
    """Return ``each_kernel<Labels>`` for an Itanium-mangled name, in which lengths precede identifiers."""
    names, at = [], 0
    while at < len(mangled):
        length = re.match(r"\d+", mangled[at:])
        if length is None:
            at += 1
            continue
        start = at + length.end()
        at = start + int(length[0])  # digits inside an identifier are not lengths
        names.append(mangled[start:at])
    kernel = next(word for word in names if word.endswith("_kernel"))
    phase = names[names.index(kernel) + 1 :]
    return f"{kernel}<{phase[0]}>" if phase else kernel


def _version_of(nvcc: Path) -> str:
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", output)
    return found[1] if found else "unknown"


def _header_version(folder: Path) -> str:
    text = (folder / "NvInferVersion.h").read_text()
    numbers = [
        re.search(rf"#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE) (\d+)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    return ".".join(found[1] if found else "?" for found in numbers)
