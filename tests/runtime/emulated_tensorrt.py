"""TensorRT of the emulated GPU, whose plans are ONNX files that ONNX Runtime runs."""

import ctypes
import functools
import types

import numpy as np
import onnxruntime

TensorIOMode = types.SimpleNamespace(INPUT=1, OUTPUT=2)


def tensorrt_module(gpu, profile, fails=False, views=64):
    """Return ``tensorrt_rtx`` with the names of TensorRT-RTX 1.7 and TensorRT 10."""
    trt = types.ModuleType("tensorrt_rtx")
    trt.__version__ = "1.7.1.116"
    trt.float32, trt.float16, trt.int32, trt.uint8 = "float32", "float16", "int32", "uint8"
    trt.TensorIOMode = TensorIOMode
    trt.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(LAZY=0, EAGER=1)
    trt.caches, trt.configs = [], []

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if fails:
                self.logger.log(1, "the plan is of another world")
                return None
            return Engine(gpu, profile, views, functools.partial(Config, trt), plan)

    trt.ILogger, trt.Runtime = ILogger, Runtime
    return trt


class ILogger:
    ERROR = 1


class Cache:
    def __init__(self):
        self.content = b"empty"

    def deserialize(self, content):
        self.content = content

    def serialize(self):
        return self.content


class Config:
    dynamic_shapes_kernel_specialization_strategy = 0

    def __init__(self, trt):
        self.trt = trt
        trt.configs.append(self)

    def create_runtime_cache(self):
        self.trt.caches.append(Cache())
        return self.trt.caches[-1]

    def set_runtime_cache(self, cache):
        cache.content += b" warm" if cache.content == b"empty" else b""


class ExecutionContext:
    def __init__(self, gpu, engine):
        self.gpu = gpu
        self.engine, self.given, self.addresses, self.shapes = engine, {}, {}, {}

    def set_input_shape(self, name, shape):
        lower, _, upper = self.engine.get_tensor_profile_shape(name, 0)
        if not all(low <= side <= high for low, side, high in zip(lower, shape, upper, strict=True)):
            return False
        self.given[name] = tuple(shape)
        self.shapes = {}
        return True

    def get_tensor_shape(self, name):
        return self.out_shapes()[name]

    def out_shapes(self):
        if not self.shapes:
            values = self.engine.session.run(None, {n: np.zeros(s, np.uint8) for n, s in self.given.items()})
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
            memory = (ctypes.c_uint8 * size).from_address(self.gpu.at(addresses[name], size))
            return np.frombuffer(memory, np.uint8).reshape(given[name])

        def run():
            values = self.engine.session.run(None, {name: read(name) for name in given})
            for output, value in zip(self.engine.session.get_outputs(), values, strict=True):
                assert value.shape == shapes[output.name]
                ctypes.memmove(
                    self.gpu.at(addresses[output.name], value.nbytes),
                    np.ascontiguousarray(value).ctypes.data,
                    value.nbytes,
                )
            self.gpu.runs += 1

        self.gpu.enqueue(stream_handle, run)
        return True


class Engine:
    def __init__(self, gpu, profile, views, make_config, plan):
        gpu.check()
        self.gpu, self.profile, self.views = gpu, profile, views
        self.create_runtime_config = make_config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan, options)
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.names = [*self.inputs, *(o.name for o in self.session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, k):
        return self.names[k]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return "uint8" if name in self.inputs else "float32"

    def get_tensor_profile_shape(self, name, index):
        if name == "frame":
            return [(1, *hw, 3) for hw in self.profile]
        return [(n, 192, 192, 3)[: 4 if name == "views" else 3] for n in (1, min(8, self.views), self.views)]

    def create_execution_context(self, config=None):
        return ExecutionContext(self.gpu, self)
