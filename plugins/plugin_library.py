"""Find, describe and load libtfiseg_plugin.so."""

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
    """Return a digest of the library's sources, 12 hex digits."""
    digest = hashlib.sha256()
    folders = (SOURCE / "cmake", SOURCE / "csrc")
    for path in [
        SOURCE / "CMakeLists.txt",
        *(file for folder in folders for file in sorted(folder.iterdir())),
    ]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Return the folder of files that tfiseg can create again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfiseg"


def default_path() -> Path:
    """Return the library's path in the cache, which depends on the source: an old build is never loaded."""
    return cache_folder() / f"plugin-{source_hash()}" / LIBRARY


def plugin_path() -> Path:
    """Return the path of the built library, by the variable TFISEG_PLUGIN if set; raises TfisegError."""
    named = os.environ.get(PATH_VARIABLE)
    path = Path(named) if named else default_path()
    if path.is_file():
        return path
    origin = f" (from the variable {PATH_VARIABLE})" if named else ""
    raise TfisegError(
        f"the TensorRT plugin is not built: there is no {path}{origin}. Build it with `tfiseg plugin build`, "
        f"or set {PATH_VARIABLE} to the path of a {LIBRARY}"
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
    """Return sha256, size and build information of a library (default: the one in use)."""
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
    """Return ``plugin_info()`` as a few lines of text."""
    lines = [
        info["path"],
        f"  {info['namespace']}::{info['name']} version {info['version']}, {info['bytes'] / 1e6:.1f} MB, "
        f"sha256 {info['sha256'][:16]}...",
    ]
    if "nvcc" in info:
        headers = info["tensorrt_headers"]
        kind = (
            f"TensorRT plugin, headers {headers}"
            if headers
            else "C API only: built without TensorRT's headers"
        )
        lines.append(
            f"  for compute capabilities {', '.join(info['architectures'])}; nvcc {info['nvcc']}; "
            f"{info['machine']}"
        )
        lines.append(f"  {kind}")
        kernels = info["kernels"]
        registers = max((k["registers"] for k in kernels), default=0)
        spilling = sum(1 for k in kernels if k["spill_bytes"])
        lines.append(
            f"  {len({k['kernel'] for k in kernels})} kernels, at most {registers} registers, "
            f"{spilling or 'none'} spilling"
        )
    if not info["is_of_this_source"]:
        lines.append("  not built from the source that is installed: `tfiseg plugin build --force`")
    return "\n".join(lines)


def load_plugin(tensorrt: Any = None) -> Path:
    """Register the operator with TensorRT; further calls have no effect.

    Args:
        tensorrt: the module to load it into; default: ``tensorrt``, else ``tensorrt_rtx``.

    Returns:
        Path of the library; if the operator is already registered, the path that would be loaded.

    Raises:
        TfisegError: the library is not built, or TensorRT rejects it.
        MissingDependencyError: TensorRT is not installed.

    Example:
        >>> import tensorrt
        >>> tfiseg.load_plugin()
        >>> engine = tensorrt.Runtime(logger).deserialize_cuda_engine(Path("my.engine").read_bytes())
    """
    module = tensorrt if tensorrt is not None else _tensorrt()
    registry = module.get_plugin_registry()
    if is_registered(registry):
        return Path(os.environ.get(PATH_VARIABLE) or default_path())
    path = plugin_path()
    registry.load_library(str(path))
    if not is_registered(registry):
        expected = f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME} version {PLUGIN_VERSION}"
        raise TfisegError(
            f"{module.__name__} {module.__version__} did not load the plugin from {path}; see its log. "
            f"Expected: {expected}; registered: {', '.join(creators(registry)) or 'nothing'}. "
            "`tfiseg plugin build --force` builds it again"
        )
    return path


def creators(registry: Any) -> list[str]:
    """Return ``namespace::name (version)`` of every plugin in a TensorRT registry."""
    return sorted(f"{c.plugin_namespace}::{c.name} ({c.plugin_version})" for c in registry.all_creators)


def is_registered(registry: Any) -> bool:
    """Return whether the operator is in a TensorRT registry."""
    return f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME} ({PLUGIN_VERSION})" in creators(registry)


def _tensorrt() -> Any:
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingDependencyError(
        "TensorRT is not installed: use JetPack's; elsewhere, `pip install tensorrt-cu13` from NVIDIA's "
        'index, or TensorRT-RTX by pip install ".[rtx]" in the repository'
    )
