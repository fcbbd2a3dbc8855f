"""What is asked of a runtime on the GPU, whichever it is."""

from __future__ import annotations

from typing import Any, Protocol


class Context(Protocol):
    """What a frame in flight needs of a runtime: the names are those of TensorRT's IExecutionContext."""

    def set_input_shape(self, name: str, shape: Any) -> bool: ...

    def get_tensor_shape(self, name: str) -> Any: ...

    def set_tensor_address(self, name: str, address: int) -> bool: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


def is_capturable(context: Context) -> bool:
    """Tell whether a CUDA graph may hold the work of a context; by default, as for TensorRT's, it may."""
    return bool(getattr(context, "is_capturable", True))


def sizes_of(shape: Any) -> tuple[int, ...]:
    """TensorRT's Dims, or any sequence, as a tuple."""
    return tuple(int(shape[k]) for k in range(len(shape)))
