"""Interface of a runtime's execution context on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ...errors import EngineError

# outputs of instance networks
MAPS, FOREGROUND = ("displacement", "affinity", "boundary"), "foreground"
ALL_OUTPUTS = (*MAPS, FOREGROUND)


class Context(Protocol):
    """An execution context, with the method names of TensorRT's IExecutionContext."""

    def set_input_shape(self, name: str, shape: Any) -> bool: ...

    def get_tensor_shape(self, name: str) -> Any: ...

    def set_tensor_address(self, name: str, address: int) -> bool: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


def is_capturable(context: Context) -> bool:
    """Return whether the work of a context can be captured in a CUDA graph; by default it can."""
    return bool(getattr(context, "is_capturable", True))


def run_context(context: Context, stream_handle: int, path: Path) -> None:
    """Enqueue the network of a file; raises EngineError."""
    if not context.execute_async_v3(stream_handle):
        raise EngineError(f"{path} could not be run: see the log")


def shape_tuple(shape: Any) -> tuple[int, ...]:
    """Return TensorRT's Dims, or any sequence, as a tuple."""
    return tuple(int(shape[k]) for k in range(len(shape)))
