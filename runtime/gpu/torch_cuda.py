"""The GPU through PyTorch, where PyCUDA isn't installed: the same calls as ``Cuda``'s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import EngineError
from .cuda import Cuda, Graph, call, pointer


class TorchCuda(Cuda):
    """One GPU, in PyTorch's primary context, with memory of PyTorch's allocator.

    Args:
        device: where memory is allocated, "cuda" but for tests.

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

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
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
        """From any memory to any other: addresses are unique across host and device."""
        call("cuMemcpyAsync", pointer(to), pointer(source), size_bytes, pointer(stream.handle))

    def _wait_for_all(self) -> None:
        self._torch.cuda.synchronize()

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """As ``Cuda.capture``; what ``work`` allocates lies in a pool of the graph's own."""
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=stream.of_torch, capture_error_mode="thread_local"):
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
    """A stream of PyTorch's, all of which are non-blocking, with PyCUDA's names."""

    def __init__(self, of_torch: Any) -> None:
        self.of_torch, self.handle = of_torch, int(of_torch.cuda_stream)

    def synchronize(self) -> None:
        self.of_torch.synchronize()


class _TorchGraph(Graph):
    """A graph that PyTorch captured."""

    def __init__(self, graph: Any, on_stream: Callable[[Any], Any]) -> None:
        self._graph, self._on_stream = graph, on_stream

    def launch(self, stream: Any) -> None:
        with self._on_stream(stream.of_torch):
            self._graph.replay()

    def release(self) -> None:
        self._graph = None
