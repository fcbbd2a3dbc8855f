"""Where libtfiseg_plugin.so is, what it is, and the one way to load it into TensorRT."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

from ..errors import EngineError, FormatError, MissingDependencyError, TfisegError
from ..schema import list_of, optional, read_file, record, text

PLUGIN_NAME = "DisplacementFieldClustering"
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "tfiseg"
LIBRARY = "libtfiseg_plugin.so"
AUTOREGISTER_LIBRARY = "libtfiseg_plugin_autoregister.so"
PATH_VARIABLE = "TFISEG_PLUGIN"
SOURCE = Path(__file__).parent
_WORD = text(500)
_FACTS = record(
    {},
    {
        "source": _WORD,
        "architectures": list_of(_WORD, 0, 64),
        "nvcc": optional(_WORD),
        "tensorrt_headers": optional(_WORD),
        "machine": _WORD,
        "kernels": list_of(record({}), 0, 10_000),
    },
)


@functools.cache
def source_hash() -> str:
    """Of everything that the library is built from: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    folders = (SOURCE / "cmake", SOURCE / "csrc")
    for path in [
        SOURCE / "CMakeLists.txt",
        *(file for folder in folders for file in sorted(folder.iterdir())),
    ]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Where tfiseg keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfiseg"


def default_path() -> Path:
    """Where `tfiseg plugin build` puts the library: a cache folder per state of the source, so a stale one is
    never loaded."""
    return cache_folder() / f"plugin-{source_hash()}" / LIBRARY


def plugin_path() -> Path:
    """The built library: what the variable TFISEG_PLUGIN names, else what `tfiseg plugin build` made. Raises
    TfisegError."""
    named = os.environ.get(PATH_VARIABLE)
    path = Path(named) if named else default_path()
    if path.is_file():
        return path
    said = f" (the variable {PATH_VARIABLE} names it)" if named else ""
    raise TfisegError(
        f"the TensorRT plugin is not built: there is no {path}{said}. Build it with `tfiseg plugin build`, "
        f"or let {PATH_VARIABLE} name a {LIBRARY}"
    )


def autoregister_path() -> Path:
    """Return the path of the library that registers the plugin when it is opened: trtexec --staticPlugins,
    Triton.

    Raises:
        TfisegError: it is not built.
    """
    path = plugin_path().with_name(AUTOREGISTER_LIBRARY)
    if path.is_file():
        return path
    raise TfisegError(
        f"the library that registers itself is not built: there is no {path}. "
        "Build it with `tfiseg plugin build --force`, with TensorRT's headers"
    )


def plugin_info(path: Path | None = None) -> dict[str, Any]:
    """What is known of a built library (default: the one in use): sha256, size, what its build wrote beside
    it. Raises TfisegError."""
    path = path or plugin_path()
    content = path.read_bytes()
    info: dict[str, Any] = {
        "path": str(path),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "name": PLUGIN_NAME,
        "version": PLUGIN_VERSION,
        "namespace": PLUGIN_NAMESPACE,
    }
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            info |= read_file(beside, _FACTS)
        except FormatError as wrong:
            raise EngineError(
                f"{beside} is damaged ({wrong}): run `tfiseg plugin build`, which writes it again"
            ) from wrong
    info["is_of_this_source"] = info.get("source") == source_hash()
    return info


def describe(info: dict[str, Any]) -> str:
    """``plugin_info()`` as a few lines of text."""
    lines = [
        info["path"],
        f"  {info['namespace']}::{info['name']} version {info['version']}, {info['bytes'] / 1e6:.1f} MB, "
        f"sha256 {info['sha256'][:16]}...",
    ]
    if "nvcc" in info:
        headers = info["tensorrt_headers"]
        lines.append(
            f"  for compute capabilities {', '.join(info['architectures'])}; nvcc {info['nvcc']}; "
            f"{info['machine']}"
        )
        lines.append(
            f"  TensorRT plugin, headers {headers}"
            if headers
            else "  C API only: built without TensorRT's headers"
        )
        kernels = info["kernels"]
        most = max((k["registers"] for k in kernels), default=0)
        spilling = sum(1 for k in kernels if k["spill_bytes"])
        lines.append(
            f"  {len({k['kernel'] for k in kernels})} kernels, at most {most} registers, "
            f"{spilling or 'none'} spilling"
        )
    if not info["is_of_this_source"]:
        lines.append("  not built from the source that is installed: `tfiseg plugin build --force`")
    return "\n".join(lines)


def load_plugin(tensorrt: Any = None) -> Path:
    """Register the operator with TensorRT. May be called any number of times, by anybody.

    Args:
        tensorrt: the module to load it into; default: ``tensorrt``, else ``tensorrt_rtx``.

    Returns:
        Path of the library; of the one that would be loaded, if the operator is registered already.

    Raises:
        TfisegError: the library is not built or TensorRT refuses it; lists the paths tried and the creators
            registered.
        MissingDependencyError: TensorRT is not installed.

    Example:
        >>> import tensorrt
        >>> tfiseg.load_plugin()
        >>> engine = tensorrt.Runtime(logger).deserialize_cuda_engine(Path("my.engine").read_bytes())
    """
    module = tensorrt if tensorrt is not None else _tensorrt()
    registry = module.get_plugin_registry()
    path = (
        plugin_path()
        if not is_registered(registry)
        else Path(os.environ.get(PATH_VARIABLE) or default_path())
    )
    if not is_registered(registry):
        registry.load_library(str(path))
    if not is_registered(registry):
        wanted = f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME} version {PLUGIN_VERSION}"
        raise TfisegError(
            f"{module.__name__} {module.__version__} did not take the plugin from {path}: its logger's "
            "message says why. "
            f"Wanted: {wanted}; registered: {', '.join(creators(registry)) or 'nothing'}. "
            "`tfiseg plugin info` says what the library was built from, `tfiseg plugin build --force` builds "
            "it anew"
        )
    return path


def creators(registry: Any) -> list[str]:
    """``namespace::name (version)`` of every plugin that a TensorRT registry knows."""
    return sorted(f"{c.plugin_namespace}::{c.name} ({c.plugin_version})" for c in registry.all_creators)


def is_registered(registry: Any) -> bool:
    """Does a TensorRT registry know the operator?"""
    return f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME} ({PLUGIN_VERSION})" in creators(registry)


def _tensorrt() -> Any:
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingDependencyError(
        "TensorRT is not installed: JetPack brings it; elsewhere `pip install tensorrt-cu13` from NVIDIA's "
        "index, or TensorRT-RTX by "
        'pip install ".[rtx]" in the repository'
    )
