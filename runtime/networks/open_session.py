"""Open a session for a model file of any kind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ...errors import MissingDependencyError
from .engine_file import SUFFIX, checked_plan
from .engine_session import EngineSession
from .instance_engine import EngineInstanceSession
from .instance_onnx import OnnxInstanceSession
from .instance_session import DEFAULT_INSTANCE_MODEL, InstanceSession
from .model_variants import AS_IS, Variant
from .onnx_cuda_session import OnnxGpuSession
from .onnx_session import OnnxSession
from .session import CUDA_PROVIDER, DEFAULT_PROVIDERS, Session
from .torch_session import TorchGpuSession, TorchSession

_log = logging.getLogger("tfiseg")


def open_session(
    path: str | Path,
    threads: int = 0,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
    variant: Variant = AS_IS,
    torch_device: str | None = None,
) -> Session:
    """Open a semantic network.

    An engine is compared with its metadata and this machine before TensorRT loads it.

    Args:
        threads, providers: see ``OnnxSession``.
        torch_device: run an ONNX model in PyTorch, on "cpu" or "cuda".

    Raises:
        ModelError: see ``OnnxSession``. EngineError: an engine is damaged or not for this machine.
            MissingDependencyError: TensorRT, PyCUDA or PyTorch isn't installed.
    """
    path = Path(path)
    if path.suffix != SUFFIX and torch_device is not None:
        return TorchSession(path, variant) if torch_device == "cpu" else TorchGpuSession(path, variant)
    if path.suffix != SUFFIX:
        if [*providers[:1]] == [CUDA_PROVIDER]:
            return _open_on_gpu(path, threads, providers, variant)
        return OnnxSession(path, threads, providers, variant=variant)
    plan, record = checked_plan(path)
    return EngineSession(path, plan, record)


def _open_on_gpu(path: Path, threads: int, providers: Sequence[str], variant: Variant) -> Session:
    """Keep everything on the GPU; without PyCUDA, log a warning and cluster on the CPU."""
    try:
        return OnnxGpuSession(path, threads, providers, variant=variant)
    except MissingDependencyError as missing:
        _log.warning("clustering runs on the CPU: %s", missing)
        return OnnxSession(path, threads, providers, variant=variant)


def open_instance_session(
    path: str | Path = DEFAULT_INSTANCE_MODEL, threads: int = 0, providers: Sequence[str] = DEFAULT_PROVIDERS
) -> InstanceSession:
    """Open an instance network.

    Args:
        path: model that ``tfiseg train instance`` exported, or an engine of one; default: the one that comes
            with tfiseg.
        threads: CPU threads; 0 = ONNX Runtime's own choice. Engines use none.
        providers: ONNX Runtime execution providers, by priority.

    Raises:
        ModelError: see ``OnnxInstanceSession``. EngineError: see ``open_session``.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        return EngineInstanceSession(path)
    return OnnxInstanceSession(path, threads, providers)
