"""ONNX Runtime sessions: the one place that opens them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError
from .model_info import METADATA_KEY
from .session import DEFAULT_PROVIDERS, check_exists

# it quantizes what a model leaves in float, one scale per tensor, and reads float16 biases wrongly
# (onnxruntime 1.21 to 1.32 at least)
UNWANTED_OPTIMIZERS = ("WeightBiasQuantization",)


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
        model: a file, or a model's bytes.
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, first choice first. provider_options: of each.
        name: what errors call the model; default: the file, or "the network".
        fuse: False keeps every layer as it is in the graph.
        unwanted_optimizers: graph optimizers that don't run.

    Raises:
        ModelError: ONNX Runtime can't load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads may spin while a network runs, but not between frames: there are clustering and drawing to
    # do on the same cores
    # (2 cores, ms per frame: 10.5 so, 12.9 without spinning, 18.9 with spinning throughout, which is the
    # default)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(
            content,
            options,
            list(providers),
            provider_options,
            disabled_optimizers=list(unwanted_optimizers),
        )
    except Exception as wrong:  # onnxruntime's errors share no base class
        which = name or ("the network" if isinstance(model, bytes) else model)
        raise ModelError(f"ONNX Runtime can't load {which}: {wrong}") from wrong
    if isinstance(model, bytes):
        # onnxruntime keeps them for a session that falls back to another provider: a copy of all weights
        session._model_bytes = None
    return session


def run_session(session: Any, outputs: Sequence[str], inputs: dict[str, Any], name: object) -> list[Any]:
    """The values of outputs; raises ModelError where ONNX Runtime can't compute them."""
    try:
        values: list[Any] = session.run(list(outputs), inputs)
    except Exception as wrong:  # onnxruntime's errors share no base class
        raise ModelError(f"ONNX Runtime can't run {name}: {first_line(wrong)}") from wrong
    return values


def first_line(wrong: BaseException) -> str:
    """What an error says, in one line."""
    return (str(wrong).strip() or type(wrong).__name__).splitlines()[0]


def metadata_of(session: Any, name: object) -> str | None:
    """The text of tfiseg's metadata in an open model, None without; raises ModelError where it is no text."""
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
    """Open a model file for use, on the provider that was asked for and no other.

    Args:
        path: the file. threads, providers, provider_options: see ``start_session``.
        model: bytes to load instead of the file's.

    Raises:
        ModelError: the file or a provider is missing, or the session doesn't start.
    """
    import onnxruntime

    check_exists(path)
    missing = [p for p in providers if p not in onnxruntime.get_available_providers()]
    if missing:
        raise ModelError(
            f"ONNX Runtime has no provider {missing}; this installation has "
            f"{onnxruntime.get_available_providers()}; "
            "GPU providers come with onnxruntime-gpu in place of onnxruntime; where PyTorch sees a GPU, use "
            'backend="torch"'
        )
    content = path if model is None else model
    session = start_session(content, threads, providers, provider_options, name=path)
    if session.get_providers()[0] != providers[0]:  # ONNX Runtime falls back without an error
        raise ModelError(
            f"{providers[0]} could not start, ONNX Runtime fell back to {session.get_providers()[0]}: "
            "check that its libraries (CUDA, cuDNN, TensorRT) are installed in the versions that it wants"
        )
    return session
