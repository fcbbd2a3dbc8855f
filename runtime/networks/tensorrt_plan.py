"""Plans in TensorRT or TensorRT-RTX, and a cache of compiled kernels."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...errors import EngineError, MissingDependencyError
from ...files import write_whole
from ...plugins.plugin_library import cache_folder, load_plugin
from ..gpu.cuda import Cuda
from ..gpu.execution_context import shape_tuple

if TYPE_CHECKING:
    import tensorrt as trt

_log = logging.getLogger("tfiseg")
_T = TypeVar("_T")


class OpenedPlan:
    """A plan that TensorRT has loaded.

    Args:
        path: NAME.engine, checked by ``checked_plan``.

    Raises:
        EngineError: TensorRT can't load it; the message has TensorRT's reason. MissingDependencyError:
            TensorRT or PyCUDA isn't installed.
    """

    def __init__(self, path: Path, plan: bytes, record: dict[str, Any]) -> None:
        made = record["built_with"]
        self._module = module = _module(str(made["flavour"]))
        self.cuda = cuda = Cuda()
        if record.get("plugin"):
            load_plugin(module)
        messages: list[str] = []
        self._logger = _logger(module, messages)  # TensorRT keeps a pointer to it
        with cuda.current():
            self._runtime: trt.Runtime = start(
                lambda: module.Runtime(self._logger), module, lambda: "; ".join(messages[-3:])
            )
            if made.get("version_compatible"):
                # such a plan contains the runtime with which it was built
                self._runtime.engine_host_code_allowed = True
            engine = _deserialize(self._runtime, plan)
            if engine is None:
                reason = "; ".join(messages[-3:]) or "no reason given"
                raise EngineError(f"{made['flavour']} {module.__version__} can't load {path}: {reason}")
            self._engine = engine
            self._cache = _RuntimeCache(module, engine, plan)

    def interface(self, input_name: str) -> tuple[dict[str, np.dtype[Any]], tuple[int, ...], tuple[int, ...]]:
        """Return dtypes of the outputs by name, and the smallest and largest shape of an input."""
        return _interface(self._module, self._engine, input_name)

    def context(self) -> trt.IExecutionContext:
        """Make an execution context, inside ``with cuda.current()``. Raises EngineError."""
        return self._cache.context()

    def set_up(self) -> None:
        """Save the kernels that TensorRT-RTX compiled for the next start."""
        self._cache.save()


def start(create: Callable[[], _T], module: Any, reasons: Callable[[], str]) -> _T:
    """Return a builder or runtime of TensorRT.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        reasons: returns what TensorRT's logger received.

    Raises:
        EngineError: TensorRT can't use the GPU. Its bindings say only "factory function returned nullptr".
    """
    try:
        return create()
    except TypeError as wrong:
        raise EngineError(
            f"{module.__name__} {module.__version__} can't start here: {reasons() or wrong}. It needs an "
            f"NVIDIA GPU and a driver that is new enough, which `tfiseg doctor` checks"
        ) from wrong


# typed parameters, so that each call is checked against TensorRT's bindings
# (tests/export/engine/test_tensorrt_versions.py)
def _deserialize(runtime: trt.Runtime, plan: bytes) -> trt.ICudaEngine | None:
    return runtime.deserialize_cuda_engine(plan)


def _interface(
    module: Any, engine: trt.ICudaEngine, input_name: str
) -> tuple[dict[str, np.dtype[Any]], tuple[int, ...], tuple[int, ...]]:
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    outputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.OUTPUT]
    min_shape, _, max_shape = map(shape_tuple, engine.get_tensor_profile_shape(input_name, 0))
    return {n: _dtype(module, engine.get_tensor_dtype(n)) for n in outputs}, min_shape, max_shape


class _RuntimeCache:
    """Kernels that TensorRT-RTX compiled, on disk; it does nothing for TensorRT."""

    def __init__(self, module: Any, engine: trt.ICudaEngine, plan: bytes) -> None:
        self._engine = engine
        self._config = self._cache = None
        if not hasattr(engine, "create_runtime_config"):
            return
        config: Any = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return
        # by default, kernels for a frame size are compiled in the background, and a captured graph would keep
        # the slow fallback kernels
        strategies = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None:
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._config, self._cache = config, config.create_runtime_cache()
        self._path = (
            cache_folder() / "rtx" / f"{hashlib.sha256(plan).hexdigest()[:16]}-{module.__version__}.cache"
        )
        self._saved = b""
        if self._path.is_file():
            self._saved = self._path.read_bytes()
            self._cache.deserialize(self._saved)
        config.set_runtime_cache(self._cache)

    def context(self) -> trt.IExecutionContext:
        context = (
            self._engine.create_execution_context()
            if self._config is None
            else self._engine.create_execution_context(self._config)
        )
        if context is None:
            raise EngineError("TensorRT could not create an execution context: free memory on the GPU")
        return context

    def save(self) -> None:
        if self._cache is None:
            return
        content = bytes(memoryview(self._cache.serialize()))
        if content != self._saved:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, content)
            self._saved = content


def _module(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as missing:
        raise MissingDependencyError(
            f"this engine needs {name}, which can't be imported ({missing}): run `tfiseg doctor` for a fix"
        ) from missing
    return module


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                messages.append(message)
                _log.error("TensorRT: %s", message)

    return Logger()


def _dtype(trt: Any, kind: Any) -> np.dtype[Any]:
    known = {trt.float32: np.float32, trt.float16: np.float16, trt.int32: np.int32, trt.uint8: np.uint8}
    if kind not in known:
        raise EngineError(f"the engine has tensors of type {kind}, which tfiseg doesn't support")
    return np.dtype(known[kind])
