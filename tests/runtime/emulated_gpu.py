"""A GPU whose memory is the host's: PyCUDA's and TensorRT's calls, as far as the GPU's sessions make them, on
the CPU.

No GPU is at hand where the tests run. What stands in here is what lies *below* the session: a driver that
copies, captures and replays, and a TensorRT whose plans are ONNX files that ONNX Runtime runs. Addresses,
shapes, orders of calls, threads and contexts are the session's own, and are checked: every call needs the
context current in its thread, and nothing may be in use after it was freed.
"""

import ctypes
import threading
import types

import numpy as np
import onnxruntime
from tfiseg.plugins import native
from tfiseg.plugins.views import views_workspace_bytes
from tfiseg.runtime.gpu import cuda as cuda_module


class Gpu:
    """The state of the one emulated GPU."""

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
        """Run at once, or record while the stream is capturing."""
        self.check()
        stream = self.streams[stream_handle]
        if stream.recorded is None:
            work()
        else:
            stream.recorded.append(work)

    def at(self, address, size):
        """The address, if so many bytes from it on are allocated."""
        for start, buffer in self.memory.items():
            if start <= address and address + size <= start + len(buffer):
                return address
        raise AssertionError(f"{size} bytes at {address} are not allocated")


def driver_module(gpu):
    """``pycuda.driver``; names and arguments as in PyCUDA 2026.1's wrap_cudadrv.cpp."""
    driver = types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class Context:
        def push(self):
            gpu.current.depth = getattr(gpu.current, "depth", 0) + 1

        @staticmethod
        def synchronize():
            gpu.check()
            gpu.waits.append("all")

        @staticmethod
        def pop():
            gpu.check()
            gpu.current.depth -= 1

    class Device:
        def __init__(self, ordinal):
            if ordinal:
                raise Error("cuDeviceGet failed: invalid device ordinal")

        def retain_primary_context(self):
            gpu.contexts += 1
            return Context()

    class Allocation:
        def __init__(self, size):
            self.buffer = ctypes.create_string_buffer(b"\xc3" * size, size)  # nobody clears memory on a GPU
            self.address = ctypes.addressof(self.buffer)
            gpu.memory[self.address] = self.buffer

        def __int__(self):
            return self.address

        def __del__(self):
            gpu.memory.pop(self.address, None)

    class Stream:
        def __init__(self, flags=0):
            gpu.check()
            assert flags == 1, "a blocking stream: other threads' default-stream work would fail in a capture"
            self.handle, self.recorded = gpu.handle(), None
            gpu.streams[self.handle] = self

        def synchronize(self):
            gpu.check()
            assert self.recorded is None, "a stream can't be waited for while it is captured"

    def mem_alloc(size):
        gpu.check()
        return Allocation(size)

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
        Error=Error,
        Context=Context,
        Device=Device,
        Stream=Stream,
        init=lambda: None,
        mem_alloc=mem_alloc,
        pagelocked_empty=pagelocked_empty,
    )
    driver.memcpy_htod_async, driver.memcpy_dtoh_async, driver.memcpy_dtod_async = (
        upload,
        download,
        device_to_device,
    )
    return driver


class LibCuda:
    """The calls of libcuda.so that capture and launch graphs."""

    def __init__(self, gpu):
        self.gpu = gpu

    def cuStreamBeginCapture_v2(self, stream, mode):
        if not self.gpu.may_capture:
            return 900
        self.gpu.streams[stream.value].recorded = []
        return 0

    def cuStreamEndCapture(self, stream, graph):
        one = self.gpu.streams[stream.value]
        if one.recorded is None:
            return 901
        handle = self.gpu.handle()
        self.gpu.graphs[handle], one.recorded = one.recorded, None
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

    def cuGetErrorName(self, status, text):
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        return 0


class OperatorLibrary:
    """The C API with its CUDA entry point on host memory: the CPU's."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.tfiseg_status_string = native.library().tfiseg_status_string

    def tfiseg_workspace_size(self, problem, device):
        assert device == 1
        return max(native.library().tfiseg_workspace_size(problem, on) for on in (native.ON_CPU, device))

    def tfiseg_cluster_cuda(self, problem, result, stream):
        self.gpu.enqueue(stream.value, lambda: native.library().tfiseg_cluster_cpu(problem, result))
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


def tensorrt_module(gpu, profile, fails=False, views=64):
    """``tensorrt_rtx``; names as in TensorRT-RTX 1.7 and TensorRT 10's stubs."""
    trt = types.ModuleType("tensorrt_rtx")
    trt.__version__ = "1.7.1.116"
    trt.float32, trt.float16, trt.int32, trt.uint8 = "float32", "float16", "int32", "uint8"
    trt.TensorIOMode = types.SimpleNamespace(INPUT=1, OUTPUT=2)
    trt.caches = []

    class ILogger:
        ERROR = 1

    class Cache:
        def __init__(self):
            self.content = b"empty"

        def deserialize(self, content):
            self.content = content

        def serialize(self):
            return self.content

    trt.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(LAZY=0, EAGER=1)
    trt.configs = []

    class Config:
        dynamic_shapes_kernel_specialization_strategy = 0

        def __init__(self):
            trt.configs.append(self)

        def create_runtime_cache(self):
            trt.caches.append(Cache())
            return trt.caches[-1]

        def set_runtime_cache(self, cache):
            cache.content += b" warm" if cache.content == b"empty" else b""

    class ExecutionContext:
        def __init__(self, engine):
            self.engine, self.given, self.addresses, self.shapes = engine, {}, {}, {}

        def set_input_shape(self, name, shape):
            least, _, most = self.engine.get_tensor_profile_shape(name, 0)
            if not all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True)):
                return False
            self.given[name] = tuple(shape)
            self.shapes = {}
            return True

        def get_tensor_shape(self, name):
            return self.out_shapes()[name]

        def out_shapes(self):
            if not self.shapes:
                values = self.engine.session.run(
                    None, {n: np.zeros(s, np.uint8) for n, s in self.given.items()}
                )
                self.shapes = {
                    o.name: v.shape for o, v in zip(self.engine.session.get_outputs(), values, strict=True)
                }
            return self.shapes

        def set_tensor_address(self, name, address):
            assert isinstance(address, int)
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream_handle):
            given, addresses, shapes = dict(self.given), dict(self.addresses), dict(self.out_shapes())

            def read(name):
                size = int(np.prod(given[name]))
                memory = (ctypes.c_uint8 * size).from_address(gpu.at(addresses[name], size))
                return np.frombuffer(memory, np.uint8).reshape(given[name])

            def run():
                values = self.engine.session.run(None, {name: read(name) for name in given})
                for output, value in zip(self.engine.session.get_outputs(), values, strict=True):
                    assert value.shape == shapes[output.name]
                    ctypes.memmove(
                        gpu.at(addresses[output.name], value.nbytes),
                        np.ascontiguousarray(value).ctypes.data,
                        value.nbytes,
                    )
                gpu.runs += 1

            gpu.enqueue(stream_handle, run)
            return True

    class Engine:
        def __init__(self, plan):
            gpu.check()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(plan, options)
            self.inputs = [i.name for i in self.session.get_inputs()]
            self.names = [*self.inputs, *(o.name for o in self.session.get_outputs())]
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, k):
            return self.names[k]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return trt.uint8 if name in self.inputs else trt.float32

        def get_tensor_profile_shape(self, name, index):
            if name == "frame":
                return [(1, *hw, 3) for hw in profile]
            return [(n, 192, 192, 3)[: 4 if name == "views" else 3] for n in (1, min(8, views), views)]

        def create_runtime_config(self):
            return Config()

        def create_execution_context(self, config=None):
            return ExecutionContext(self)

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if fails:
                self.logger.log(1, "the plan is of another world")
                return None
            return Engine(plan)

    trt.ILogger, trt.Runtime = ILogger, Runtime
    return trt


class DeviceArray:
    """A frame that lies on the GPU, as PyTorch or CuPy show it."""

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
    """Put the emulated GPU where the session looks for the real one; returns the TensorRT module."""
    import sys

    from tfiseg.runtime.gpu import clusterer, lane
    from tfiseg.runtime.networks import gpu_session

    pycuda = types.ModuleType("pycuda")
    pycuda.driver = driver_module(gpu)
    trt = tensorrt_module(gpu, profile, fails, views)
    for name, module in (("pycuda", pycuda), ("pycuda.driver", pycuda.driver), ("tensorrt_rtx", trt)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda_module, "_libcuda", lambda: LibCuda(gpu))
    if operator:
        library = OperatorLibrary(gpu)
        for module in (clusterer, lane, gpu_session):
            monkeypatch.setattr(module, "cuda_library", lambda: library)
    return trt
