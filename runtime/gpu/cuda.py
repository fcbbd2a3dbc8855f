"""CUDA through PyCUDA, and CUDA graphs through the driver's C API."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import EngineError, MissingDependencyError

_LIBCUDA = "libcuda.so.1"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit order with the legacy default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate during a capture


class Cuda:
    """One GPU, in its primary context, which TensorRT, ONNX Runtime and PyTorch use too.

    Use and release memory, streams and graphs inside ``with cuda.current()``, from any thread.

    Raises:
        MissingDependencyError: PyCUDA isn't installed. EngineError: there is no such GPU.
    """

    def __init__(self) -> None:
        try:
            import pycuda.driver as driver
        except ImportError as missing:
            raise MissingDependencyError(
                f"PyCUDA, which this GPU backend needs, can't be imported ({missing}): pip install pycuda. "
                "It needs the CUDA toolkit and the driver"
            ) from missing
        self._driver = driver
        try:
            driver.init()
            self._context = _primary_context(driver)
        except driver.Error as wrong:
            raise EngineError(f"CUDA device 0 can't be used: {wrong}") from wrong

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current in this thread."""
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array in page-locked host memory, which the GPU copies asynchronously."""
        array: NDArray[Any] = self._driver.pagelocked_empty(shape, dtype)
        return array

    def allocate(self, size_bytes: int) -> Any:
        """Allocate device memory, freed with the object; ``int()`` of it is its address."""
        return self._driver.mem_alloc(max(1, size_bytes))

    def allocate_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Allocate device memory for an array."""
        return self.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)

    def stream(self) -> Any:
        """Create a non-blocking stream, so that other threads' work cannot break its capture."""
        return self._driver.Stream(_NON_BLOCKING)

    def upload(self, device: int, host: NDArray[Any], stream: Any) -> None:
        self._driver.memcpy_htod_async(device, host, stream)

    def download(self, host: NDArray[Any], device: int, stream: Any) -> None:
        self._driver.memcpy_dtoh_async(host, device, stream)

    def copy(self, to: int, source: int, size_bytes: int, stream: Any) -> None:
        """Copy within device memory."""
        self._driver.memcpy_dtod_async(to, source, size_bytes, stream)

    def wait_for_producer(self, image: Any) -> None:
        """Wait until a frame on the GPU is complete.

        This waits for the stream in ``__cuda_array_interface__`` (version 3), or for all streams.
        """
        interface = image.__cuda_array_interface__
        if "stream" not in interface:
            self._wait_for_all()
        elif interface["stream"] is not None:  # None: it is complete; 1 and 2: handles of the default streams
            call("cuStreamSynchronize", pointer(int(interface["stream"])))

    def _wait_for_all(self) -> None:
        self._driver.Context.synchronize()

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Capture what ``work`` enqueues on a stream. Raises EngineError if it can't be captured."""
        call("cuStreamBeginCapture_v2", pointer(stream.handle), ctypes.c_int(_THREAD_LOCAL))
        graph = ctypes.c_void_p()
        try:
            work()
        finally:  # a stream in capture mode can be used for nothing else
            call("cuStreamEndCapture", pointer(stream.handle), ctypes.byref(graph))
        return Graph(graph)


class Graph:
    """A captured CUDA graph, which can be launched any number of times."""

    def __init__(self, graph: ctypes.c_void_p) -> None:
        self._executable = ctypes.c_void_p()
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            call("cuGraphDestroy", graph)

    def launch(self, stream: Any) -> None:
        call("cuGraphLaunch", self._executable, pointer(stream.handle))

    def release(self) -> None:
        if self._executable:
            call("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()

    def __del__(self) -> None:  # of a segmenter that was not closed, unlike memory of PyCUDA
        with suppress(Exception):  # the driver may have ended
            self.release()


@functools.cache
def _primary_context(driver: Any) -> Any:
    """Retain the primary context of a device, once per process.

    PyCUDA compares Context objects, not CUDA handles, when it frees memory. With a second object of the same
    context, memory freed in another thread would leak with a warning.
    """
    return driver.Device(0).retain_primary_context()


@functools.cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL(_LIBCUDA)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the CUDA driver. Raises EngineError if it fails."""
    status = getattr(_libcuda(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _libcuda().cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        raise EngineError(f"{name} failed: {text.value.decode() if text.value else f'error {status}'}")


def pointer(handle: int) -> ctypes.c_void_p:
    """Convert a handle or an address to an argument of ``call``."""
    return ctypes.c_void_p(handle)


def device_address(image: Any) -> tuple[int, tuple[int, ...]] | None:
    """Return address and shape of a frame on the GPU; None for one in host memory.

    The frame must be uint8 (H, W, 3) and have ``__cuda_array_interface__`` (PyTorch, CuPy, PyCUDA).

    Raises:
        EngineError: it has another type or shape, or is not contiguous.
    """
    interface = getattr(image, "__cuda_array_interface__", None)
    if interface is None:
        return None
    shape = tuple(int(s) for s in interface["shape"])
    dense = interface.get("strides") in (None, (shape[-2] * 3, 3, 1) if len(shape) == 3 else None)
    if np.dtype(interface["typestr"]) != np.uint8 or len(shape) != 3 or shape[2] != 3 or not dense:
        raise EngineError(
            f"a frame on the GPU must be uint8 (H, W, 3) and contiguous, got {interface['typestr']} {shape}"
        )
    return int(interface["data"][0]), shape
