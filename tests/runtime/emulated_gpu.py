"""An emulated GPU for tests without a GPU: the calls of PyCUDA and TensorRT that our sessions use.

Its memory is host memory. The driver copies, captures and replays. TensorRT's plans are ONNX files, which
ONNX Runtime runs. The sessions are the real ones, and the emulation checks their calls: every call needs a
current context in its thread, and no freed memory may be used.
"""

import ctypes
import functools
import threading
import types

import numpy as np
from emulated_tensorrt import tensorrt_module
from tfiseg.plugins import native
from tfiseg.plugins.mask_views import mask_views_workspace_bytes
from tfiseg.plugins.views import views_workspace_bytes
from tfiseg.runtime.gpu import cuda as cuda_module


class Gpu:
    """The state of the emulated GPU."""

    def __init__(self):
        self.current = threading.local()
        self.memory = {}  # address -> buffer
        self.streams = {}
        self.graphs = {}
        self.captures = self.launches = self.runs = self.contexts = 0
        self.may_capture = True
        self.waits = []
        self.next_handle = 1

    def check(self):
        assert getattr(self.current, "depth", 0) > 0, "no context is current in this thread"

    def handle(self):
        self.next_handle += 1
        return self.next_handle

    def enqueue(self, stream_handle, work):
        """Run the work now, or record it while the stream is captured."""
        self.check()
        stream = self.streams[stream_handle]
        if stream.recorded is None:
            work()
        else:
            stream.recorded.append(work)

    def at(self, address, size):
        """Return the address if ``size`` bytes from there are allocated."""
        for start, buffer in self.memory.items():
            if start <= address and address + size <= start + len(buffer):
                return address
        raise AssertionError(f"{size} bytes at {address} are not allocated")


class DriverError(Exception):
    """An error of the driver."""


def driver_module(gpu):
    """Return ``pycuda.driver`` with the names and arguments of PyCUDA 2026.1 (wrap_cudadrv.cpp)."""
    driver = types.ModuleType("pycuda.driver")

    def mem_alloc(size):
        gpu.check()
        return Allocation(gpu, size)

    def upload(dest, src, stream=None):
        gpu.enqueue(
            stream.handle, lambda: ctypes.memmove(gpu.at(int(dest), src.nbytes), src.ctypes.data, src.nbytes)
        )

    def download(dest, src, stream=None):
        gpu.enqueue(
            stream.handle,
            lambda: ctypes.memmove(dest.ctypes.data, gpu.at(int(src), dest.nbytes), dest.nbytes),
        )

    def device_to_device(dest, src, size, stream=None):
        gpu.enqueue(stream.handle, lambda: ctypes.memmove(gpu.at(int(dest), size), int(src), size))

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        gpu.check()
        return np.empty(shape, dtype)

    driver.__dict__.update(
        Error=DriverError,
        Context=Context(gpu),
        Device=functools.partial(Device, gpu),
        Stream=functools.partial(Stream, gpu),
        init=lambda: None,
        mem_alloc=mem_alloc,
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
        memcpy_dtod_async=device_to_device,
    )
    return driver


class Context:
    def __init__(self, gpu):
        self.gpu = gpu

    def push(self):
        self.gpu.current.depth = getattr(self.gpu.current, "depth", 0) + 1

    def synchronize(self):
        self.gpu.check()
        self.gpu.waits.append("all")

    def pop(self):
        self.gpu.check()
        self.gpu.current.depth -= 1


class Device:
    def __init__(self, gpu, ordinal):
        if ordinal:
            raise DriverError("cuDeviceGet failed: invalid device ordinal")
        self.gpu = gpu

    def retain_primary_context(self):
        self.gpu.contexts += 1
        return Context(self.gpu)


class Allocation:
    def __init__(self, gpu, size):
        self.buffer = ctypes.create_string_buffer(b"\xc3" * size, size)  # new GPU memory is not cleared
        self.address = ctypes.addressof(self.buffer)
        self.gpu = gpu
        gpu.memory[self.address] = self.buffer

    def __int__(self):
        return self.address

    def __del__(self):
        self.gpu.memory.pop(self.address, None)


class Stream:
    def __init__(self, gpu, flags=0):
        gpu.check()
        assert flags == 1, (
            "a blocking stream: work of other threads on the default stream would fail during a capture"
        )
        self.gpu, self.handle, self.recorded = gpu, gpu.handle(), None
        gpu.streams[self.handle] = self

    def synchronize(self):
        self.gpu.check()
        assert self.recorded is None, "a stream can't be waited for while it is captured"


class LibCuda:
    """The functions of libcuda.so that capture and launch graphs."""

    def __init__(self, gpu):
        self.gpu = gpu

    def cuStreamBeginCapture_v2(self, stream, mode):
        if not self.gpu.may_capture:
            return 900
        self.gpu.streams[stream.value].recorded = []
        return 0

    def cuStreamEndCapture(self, stream, graph):
        captured = self.gpu.streams[stream.value]
        if captured.recorded is None:
            return 901
        handle = self.gpu.handle()
        self.gpu.graphs[handle], captured.recorded = captured.recorded, None
        ctypes.cast(graph, ctypes.POINTER(ctypes.c_void_p))[0] = handle
        self.gpu.captures += 1
        return 0

    def cuGraphInstantiateWithFlags(self, executable, graph, flags):
        handle = self.gpu.handle()
        self.gpu.graphs[handle] = list(self.gpu.graphs[graph.value])
        ctypes.cast(executable, ctypes.POINTER(ctypes.c_void_p))[0] = handle
        return 0

    def cuGraphLaunch(self, executable, stream):
        self.gpu.check()
        self.gpu.launches += 1
        for work in self.gpu.graphs[executable.value]:
            work()
        return 0

    def cuGraphDestroy(self, graph):
        del self.gpu.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    def cuStreamSynchronize(self, stream):
        self.gpu.check()
        self.gpu.waits.append(stream.value)
        return 0

    def cuMemcpyAsync(self, to, source, size, stream):
        self.gpu.enqueue(stream.value, lambda: ctypes.memmove(to.value, source.value, size))
        return 0

    def cuGetErrorName(self, status, text):
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        return 0


class OperatorLibrary:
    """The C API, whose CUDA functions run on the CPU."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.tfiseg_status_string = native.library().tfiseg_status_string

    def tfiseg_workspace_size(self, problem, device):
        assert device == 1
        return max(native.library().tfiseg_workspace_size(problem, on) for on in (native.ON_CPU, device))

    def tfiseg_cluster_cuda(self, problem, result, stream):
        self.gpu.enqueue(stream.value, lambda: native.library().tfiseg_cluster_cpu(problem, result))
        return 0

    def tfiseg_fit_frame_cuda(self, *arguments):
        *arguments, stream = arguments
        self.gpu.enqueue(stream.value, lambda: native.check(native.library().tfiseg_fit_frame(*arguments)))
        return 0

    def tfiseg_views_workspace_size(self, views, max_parts):
        return views_workspace_bytes(views._obj, max_parts)

    def tfiseg_cut_views_cuda(self, views, stream):
        self.gpu.enqueue(stream.value, lambda: native.check(native.library().tfiseg_cut_views_cpu(views)))
        return 0

    def tfiseg_place_pieces_cuda(self, views, pieces, stream):
        self.gpu.enqueue(
            stream.value, lambda: native.check(native.library().tfiseg_place_pieces_cpu(views, pieces))
        )
        return 0

    def tfiseg_mask_views_workspace_size(self, views):
        return mask_views_workspace_bytes(views._obj)

    def tfiseg_refine_masks_workspace_size(self, refinement):
        return native.library().tfiseg_refine_masks_workspace_size(refinement)

    def tfiseg_relabel_cuda(self, *arguments):
        *arguments, stream = arguments
        self.gpu.enqueue(stream.value, lambda: native.check(native.library().tfiseg_relabel_cpu(*arguments)))
        return 0

    def tfiseg_cut_mask_views_cuda(self, views, stream):
        work = native.library().tfiseg_cut_mask_views_cpu
        self.gpu.enqueue(stream.value, lambda: native.check(work(views)))
        return 0

    def tfiseg_refine_masks_cuda(self, refinement, stream):
        work = native.library().tfiseg_refine_masks_cpu
        self.gpu.enqueue(stream.value, lambda: native.check(work(refinement)))
        return 0


class DeviceArray:
    """A frame on the GPU with the interface of PyTorch and CuPy."""

    def __init__(self, image, **more):
        self.image = np.ascontiguousarray(image)
        self.shape = self.image.shape
        self.__cuda_array_interface__ = {
            "shape": self.image.shape,
            "typestr": self.image.dtype.str,
            "data": (self.image.ctypes.data, False),
            "strides": None,
            "version": 3,
            **more,
        }


def install(
    monkeypatch, gpu, profile=((32, 32), (96, 128), (512, 640)), fails=False, operator=True, views=64
):
    """Replace PyCUDA, TensorRT and libcuda by the emulation, and return the TensorRT module."""
    import sys

    from tfiseg.runtime.gpu import clusterer, frame_fitting, lane
    from tfiseg.runtime.networks import gpu_session

    pycuda = types.ModuleType("pycuda")
    pycuda.driver = driver_module(gpu)
    trt = tensorrt_module(gpu, profile, fails, views)
    for name, module in (("pycuda", pycuda), ("pycuda.driver", pycuda.driver), ("tensorrt_rtx", trt)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda_module, "_libcuda", lambda: LibCuda(gpu))
    if operator:
        library = OperatorLibrary(gpu)
        for module in (clusterer, frame_fitting, lane, gpu_session):
            monkeypatch.setattr(module, "cuda_library", lambda: library)
    return trt
