"""Opening and running of ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError
from .model_info import METADATA_KEY
from .onnx_bytes import with_own_int8
from .session import DEFAULT_PROVIDERS, check_exists

# it quantizes layers that a model keeps in float, with one scale per tensor, and misreads float16 biases (at
# least in onnxruntime 1.21 to 1.32)
UNWANTED_OPTIMIZERS = ("WeightBiasQuantization",)
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# when sums must be exact, ONNX Runtime 1.32 can't convert weights or zero points that several layers share
_SHARED_INT8 = "replace the existing tensor"  # in ONNX Runtime's error


def start_session(
    model: Path | bytes,
    threads: int = 0,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
    provider_options: Sequence[dict[str, str]] | None = None,
    *,
    name: object = None,
    fuse: bool = True,
    unwanted_optimizers: Sequence[str] = UNWANTED_OPTIMIZERS,
) -> Any:
    """Open an ``onnxruntime.InferenceSession``.

    Args:
        model: path of a file, or the content of one.
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, by priority.
        name: name of the model in errors; default: the path, or "the network".
        fuse: False disables all graph optimizations.

    Raises:
        ModelError: ONNX Runtime can't load the model.
    """
    import onnxruntime

    def opened(content: Path | bytes) -> Any:
        options = _session_options(threads, fuse, providers)
        if isinstance(model, Path):
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(model.parent))
        return onnxruntime.InferenceSession(
            content if isinstance(content, bytes) else str(content),
            options,
            list(providers),
            provider_options,
            disabled_optimizers=list(unwanted_optimizers),
        )

    try:
        try:
            session = opened(model)
        except Exception as wrong:  # onnxruntime's errors share no base class
            if _SHARED_INT8 not in str(wrong):
                raise
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
            session = opened(with_own_int8(content))
    except Exception as wrong:
        which = name or ("the network" if isinstance(model, bytes) else model)
        is_other = isinstance(which, Path) and which.suffix.lower() != ".onnx"
        hint = " A model is an .onnx file, as `tfiseg export` writes it." if is_other else ""
        raise ModelError(f"ONNX Runtime can't load {which}: {wrong}{hint}") from wrong
    if isinstance(model, bytes):
        # onnxruntime keeps this copy of all weights only to fall back to another provider
        session._model_bytes = None
    return session


def _session_options(threads: int, fuse: bool, providers: Sequence[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads may spin while a network runs, but not between frames, when clustering and drawing need the
    # cores (ms per frame on 2 cores: 10.5; without spinning 12.9; with the default, always spinning, 18.9)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # on x86 without VNNI, sums of uint8 times int8 would saturate at 16 bits; has no effect on other CPUs
    options.add_session_config_entry("session.x64quantprecision", "1")
    # other providers log why they don't start; the CPU's errors are exceptions, and some are handled here
    options.log_severity_level = 4 if tuple(providers) == DEFAULT_PROVIDERS else 3
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def run_session(session: Any, outputs: Sequence[str], inputs: dict[str, Any], name: object) -> list[Any]:
    """Run a session; return the outputs. Raises ModelError if ONNX Runtime fails."""
    try:
        values: list[Any] = session.run(list(outputs), inputs)
    except Exception as wrong:  # onnxruntime's errors share no base class
        raise ModelError(f"ONNX Runtime can't run {name}: {first_line(wrong)}") from wrong
    return values


def first_line(wrong: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(wrong).strip() or type(wrong).__name__).splitlines()[0]


def read_metadata(session: Any, name: object) -> str | None:
    """Return tfiseg's metadata of a model, or None. Raises ModelError if it is no text."""
    try:
        text: str | None = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except UnicodeDecodeError as wrong:
        raise ModelError(f"{name}: its metadata is no valid text: export it again") from wrong
    return text


def open_onnx(
    path: Path,
    threads: int,
    providers: Sequence[str],
    provider_options: Sequence[dict[str, str]] | None = None,
    model: bytes | None = None,
) -> Any:
    """Open a model file on the first provider, without falling back to others.

    Args:
        threads, providers, provider_options: see ``start_session``.
        model: content to load instead of the file's.

    Raises:
        ModelError: the file or a provider is missing, or the session doesn't start.
    """
    import onnxruntime

    check_exists(path)
    missing = [p for p in providers if p not in onnxruntime.get_available_providers()]
    if missing:
        raise ModelError(
            f"ONNX Runtime has no provider {missing}; this installation has "
            f"{onnxruntime.get_available_providers()}. Install onnxruntime-gpu instead of onnxruntime, or "
            'backend="torch" if PyTorch finds a GPU.'
        )
    content = path if model is None else model
    session = start_session(content, threads, providers, provider_options, name=path)
    if session.get_providers()[0] != providers[0]:  # ONNX Runtime falls back silently
        raise ModelError(
            f"{providers[0]} could not start, and ONNX Runtime fell back to {session.get_providers()[0]}: "
            "install the versions of its libraries (CUDA, cuDNN, TensorRT) that it needs"
        )
    return session
