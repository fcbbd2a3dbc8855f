"""CUDA through PyTorch, for machines without PyCUDA: the interface of ``Cuda``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import EngineError
from .cuda import Cuda, Graph, call, pointer


class TorchCuda(Cuda):
    """One GPU, in its primary context, with memory from PyTorch's allocator.

    Args:
        device: where memory is allocated: "cuda"; tests use "cpu".

    Raises:
        EngineError: PyTorch sees no GPU.
    """

    def __init__(self, device: str = "cuda") -> None:
        import torch

        if not torch.cuda.is_available():
            raise EngineError(
                f"PyTorch {torch.__version__} sees no CUDA GPU: install a CUDA build of it, or use "
                'device="cpu"'
            )
        self._torch, self._device = torch, torch.device(device)

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._torch.cuda.device(0):
            yield

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        on_gpu = self._device.type == "cuda"
        memory = self._torch.empty(size_bytes, dtype=self._torch.uint8, pin_memory=on_gpu)
        array: NDArray[Any] = memory.numpy().view(dtype).reshape(shape)
        return array

    def allocate(self, size_bytes: int) -> Any:
        return _Memory(self._torch.empty(max(1, size_bytes), dtype=self._torch.uint8, device=self._device))

    def stream(self) -> Any:
        return _Stream(self._torch.cuda.Stream())

    def upload(self, device: int, host: NDArray[Any], stream: Any) -> None:
        self.copy(device, host.ctypes.data, host.nbytes, stream)

    def download(self, host: NDArray[Any], device: int, stream: Any) -> None:
        self.copy(host.ctypes.data, device, host.nbytes, stream)

    def copy(self, to: int, source: int, size_bytes: int, stream: Any) -> None:
        """Copy between any host or device memory: addresses are unique across both."""
        call("cuMemcpyAsync", pointer(to), pointer(source), size_bytes, pointer(stream.handle))

    def _wait_for_all(self) -> None:
        self._torch.cuda.synchronize()

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Capture as ``Cuda.capture``; the graph has a memory pool of its own."""
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=stream.torch_stream, capture_error_mode="thread_local"):
            work()
        return _TorchGraph(graph, self._torch.cuda.stream)


class _Memory:
    """Device memory; ``int()`` of it is its address."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __int__(self) -> int:
        address: int = self._tensor.data_ptr()
        return address


class _Stream:
    """A PyTorch stream (they are all non-blocking) with the names of PyCUDA's."""

    def __init__(self, torch_stream: Any) -> None:
        self.torch_stream, self.handle = torch_stream, int(torch_stream.cuda_stream)

    def synchronize(self) -> None:
        self.torch_stream.synchronize()


class _TorchGraph(Graph):
    """A graph that PyTorch captured."""

    def __init__(self, graph: Any, on_stream: Callable[[Any], Any]) -> None:
        self._graph, self._on_stream = graph, on_stream

    def launch(self, stream: Any) -> None:
        with self._on_stream(stream.torch_stream):
            self._graph.replay()

    def release(self) -> None:
        self._graph = None
