"""Engines through TensorRT or TensorRT-RTX, one class for both: copy in, network, clustering and copy out on one stream for each frame in
flight, replayed as a CUDA graph.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import queue
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError, MissingDependencyError, TfisegError
from ..plugins.plugin_library import load_plugin
from ..plugins.problem import Clustering
from .cuda import Cuda, Graph, device_address
from .device_cluster import Asked, DeviceClusterer, cuda_library
from .model_info import ModelInfo

if TYPE_CHECKING:
    import tensorrt as trt

FRAMES_IN_FLIGHT = 2  # one is copied while the other is computed, if the caller has two threads (Pipeline(workers=2))
_KEPT_SHAPES = 3  # frame sizes and settings whose memory and graph are kept

_log = logging.getLogger("tfiseg")


class EngineSession:
    """A network on the GPU.

    Args:
        path: NAME.engine; record and content have been checked (``open_session``).
        plan: its bytes. record: what lies beside it.
        graphs: capture CUDA graphs; where something can't be captured, the log says so once and it runs without.

    Raises:
        EngineError: TensorRT doesn't take it, with its own words. MissingDependencyError: TensorRT or PyCUDA isn't installed.
    """

    def __init__(self, path: Path, plan: bytes, record: dict[str, Any], graphs: bool = True) -> None:
        self.path = path
        self.info = ModelInfo.from_json(json.dumps(record["model"]), str(path))
        made = record["built_with"]
        self._trt = _module(str(made["flavour"]))
        self._cuda = Cuda()
        self._graphs = graphs
        if record.get("plugin"):
            load_plugin(self._trt)
        said: list[str] = []
        self._logger = _logger(self._trt, said)  # TensorRT keeps a pointer to it
        with self._cuda.current():
            self._runtime: trt.Runtime = self._trt.Runtime(self._logger)
            if made.get("version_compatible"):
                self._runtime.engine_host_code_allowed = True  # such a plan carries the runtime that it was built with
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                why = "; ".join(said[-3:]) or "no reason given"
                raise EngineError(f"{made['flavour']} {self._trt.__version__} doesn't take {path}: {why}")
            self._engine: trt.ICudaEngine = engine
            names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
            self.outputs = [n for n in names if self._engine.get_tensor_mode(n) == self._trt.TensorIOMode.OUTPUT]
            self._types = {n: _dtype(self._trt, self._engine.get_tensor_dtype(n)) for n in names}
            self._least, _, self._most = map(_sizes, self._engine.get_tensor_profile_shape("frame", 0))
            self._cache = _RuntimeCache(self._engine, plan, str(self._trt.__version__))
            lanes = [_Lane(self, self._cache.context()) for _ in range(FRAMES_IN_FLIGHT)]
        self._lanes: queue.Queue[_Lane] = queue.Queue()
        for lane in lanes:
            self._lanes.put(lane)
        self._all_lanes = lanes
        self.clusters = self._clusters()

    def _clusters(self) -> bool:
        """Whether instances come from the GPU: the engine carries the operator, or the library with the C API is built."""
        if "label_map" in self.outputs:
            return True
        try:
            cuda_library()
        except (TfisegError, OSError) as missing:
            _log.warning("clustering runs on the CPU: %s (`tfiseg plugin build --without-tensorrt` suffices)", missing)
            return False
        return True

    def has(self, output: str) -> bool:
        """Whether the network gives this map."""
        return output in self.outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The network's maps for one picture uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        if "logits" not in self.outputs:
            raise EngineError(f"{self.path} gives instances, and no class logits: the operator is built in")
        with self._lane() as lane:
            found = lane.run(image, None)
            return {name: found[name].astype(np.float32) for name in self.outputs}

    def cluster(self, image: Any, asked: Asked) -> Clustering:
        """Instances of one picture uint8 (H, W, 3) BGR, in host memory or on the GPU, at size ``asked.out_hw``.

        An engine that carries the operator clusters as it was built to, on its own grid; its label map may be of another size."""
        with self._lane() as lane:
            found = lane.run(image, None if "label_map" in self.outputs else asked)
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].astype(np.uint8)
            count = found["count"].copy()
            if count[0] < 0:
                raise EngineError("this frame has more regions than the operator has room for on a GPU (plugins/README.md)")
            return Clustering(label_map, semantic_map, count, found["table"][:, : int(count[0])].copy())

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._lanes.get()
        try:
            with self._cuda.current():
                yield lane
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        """Free what lies on the GPU, and keep RTX's compiled kernels for the next start."""
        with self._cuda.current():
            self._cache.save()
            for lane in self._all_lanes:
                lane.release()

    def checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """(1, H, W, 3), if the engine takes such frames; raises InputError."""
        wanted = (1, shape[0], shape[1], 3)
        if any(not low <= s <= high for low, s, high in zip(self._least[1:], wanted[1:], self._most[1:], strict=True)):
            sizes = " to ".join(f"{s[1]}x{s[2]}" for s in (self._least, self._most))
            raise InputError(
                f"{self.path} takes frames of {sizes} (height x width), got {shape[0]}x{shape[1]}: "
                "build it with other --shape-min and --shape-max"
            )
        return wanted


class _Lane:
    """What one frame in flight needs: an execution context, a stream, and memory and a graph per frame size and settings."""

    def __init__(self, session: EngineSession, context: trt.IExecutionContext) -> None:
        self._session, self._context = session, context
        self._stream = session._cuda.stream()
        self._kept: OrderedDict[Any, _Fixed] = OrderedDict()
        self._active: _Fixed | None = None

    def run(self, image: Any, asked: Asked | None) -> dict[str, NDArray[Any]]:
        """Outputs by name, in pinned memory: valid until the next run."""
        cuda = self._session._cuda
        there = device_address(image)
        shape = self._session.checked_shape(there[1] if there else image.shape)
        fixed = self._fixed(shape, asked)
        if there:
            cuda.copy(int(fixed.frame), there[0], int(np.prod(shape)), self._stream)
        else:
            np.copyto(fixed.host_frame, image[None])
        fixed.run(on_gpu=there is not None)
        self._stream.synchronize()
        return fixed.host

    def _fixed(self, shape: tuple[int, ...], asked: Asked | None) -> _Fixed:
        key = (shape, asked and asked.key)
        if key not in self._kept:
            while len(self._kept) >= _KEPT_SHAPES:
                self._kept.popitem(last=False)[1].release()
            self._kept[key] = _Fixed(self._session, self._context, self._stream, shape, asked)
            self._active = None
        self._kept.move_to_end(key)
        fixed = self._kept[key]
        if fixed is not self._active:
            fixed.bind()
            self._active = fixed
        return fixed

    def release(self) -> None:
        while self._kept:
            self._kept.popitem()[1].release()
        self._active = None


class _Fixed:
    """Memory of one frame size, at addresses that stay: what a CUDA graph needs."""

    def __init__(
        self, session: EngineSession, context: trt.IExecutionContext, stream: Any, shape: tuple[int, ...], asked: Asked | None
    ) -> None:
        cuda = self._cuda = session._cuda
        self._session, self._context, self._stream, self._shape = session, context, stream, shape
        if not context.set_input_shape("frame", shape):
            raise EngineError(f"TensorRT doesn't take frames of {shape}")
        self.host_frame = cuda.pinned(shape, np.uint8)
        self.frame = cuda.allocate(self.host_frame.nbytes)
        shapes = {name: _sizes(context.get_tensor_shape(name)) for name in session.outputs}
        types = {name: session._types[name] for name in session.outputs}
        self._memory = {name: cuda.allocate(int(np.prod(s)) * types[name].itemsize) for name, s in shapes.items()}
        self._clusterer: DeviceClusterer | None = None
        source, wanted = dict(self._memory), {name: (shapes[name], types[name]) for name in session.outputs}
        if asked is not None:
            maps = {name: (int(memory), shapes[name], types[name]) for name, memory in self._memory.items()}
            self._clusterer = DeviceClusterer(cuda, maps, asked)
            source, wanted = self._clusterer.memory, self._clusterer.shapes
        self.host = {name: cuda.pinned(shape, kind) for name, (shape, kind) in wanted.items()}
        self._source = source
        self._graphs: dict[bool, Graph | None] = {}

    def bind(self) -> None:
        """Let TensorRT's context work on this memory."""
        addresses = {"frame": self.frame, **self._memory}
        if not self._context.set_input_shape("frame", self._shape):
            raise EngineError(f"TensorRT doesn't take frames of {self._shape}")
        for name, memory in addresses.items():
            self._context.set_tensor_address(name, int(memory))
        self.release_graphs()  # TensorRT may set itself up anew for another shape: what was captured before isn't to be trusted

    def run(self, on_gpu: bool) -> None:
        """Enqueue everything: the first time as it is, from the second on as a graph."""
        if on_gpu not in self._graphs:
            self._enqueue(on_gpu)  # TensorRT sets itself up in the first run: that can't be captured
            self._graphs[on_gpu] = None
            if self._session._graphs:
                self._stream.synchronize()
                try:
                    self._graphs[on_gpu] = self._cuda.capture(self._stream, lambda: self._enqueue(on_gpu))
                except EngineError as wrong:
                    self._session._graphs = False
                    _log.warning("%s runs without CUDA graphs: %s", self._session.path, wrong)
            return
        graph = self._graphs[on_gpu]
        if graph is None:
            self._enqueue(on_gpu)
        else:
            graph.launch(self._stream)

    def _enqueue(self, on_gpu: bool) -> None:
        if not on_gpu:
            self._cuda.upload(int(self.frame), self.host_frame, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError(f"{self._session.path}: TensorRT could not run it; its log says why")
        if self._clusterer is not None:
            self._clusterer.enqueue(self._stream.handle)
        for name, host in self.host.items():
            self._cuda.download(host, int(self._source[name]), self._stream)

    def release_graphs(self) -> None:
        for graph in self._graphs.values():
            if graph is not None:
                graph.release()
        self._graphs.clear()

    def release(self) -> None:
        """Free graphs and memory (their objects free it, in the context that is current now)."""
        self.release_graphs()
        self._memory.clear()
        self._source = {}
        self._clusterer = None
        del self.frame, self.host_frame
        self.host = {}


class _RuntimeCache:
    """TensorRT-RTX compiles kernels when it first runs them: they are kept on disk for the next start. TensorRT has nothing of the kind."""

    def __init__(self, engine: trt.ICudaEngine, plan: bytes, version: str) -> None:
        self._engine = engine
        self._config = self._cache = None
        if not hasattr(engine, "create_runtime_config"):
            return
        config: Any = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return
        self._config, self._cache = config, config.create_runtime_cache()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfiseg" / "rtx"
        self._path = folder / f"{hashlib.sha256(plan).hexdigest()[:16]}-{version}.cache"
        self._before = b""
        if self._path.is_file():
            self._before = self._path.read_bytes()
            self._cache.deserialize(self._before)
        config.set_runtime_cache(self._cache)

    def context(self) -> trt.IExecutionContext:
        context = self._engine.create_execution_context() if self._config is None else self._engine.create_execution_context(self._config)
        if context is None:
            raise EngineError("TensorRT could not make an execution context: is there enough memory on the GPU?")
        return context

    def save(self) -> None:
        if self._cache is None:
            return
        content = bytes(memoryview(self._cache.serialize()))
        if content != self._before:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(self._path)


def enlarged(
    label_map: NDArray[np.int32], semantic_map: NDArray[np.uint8], table: NDArray[np.float32], size_hw: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    """Label map, semantic map and table (n, 10) of a smaller grid at a frame's size (H, W)."""
    height, width = size_hw
    up, right = height / label_map.shape[0], width / label_map.shape[1]
    rows = np.minimum((np.arange(height) + 0.5) / up, label_map.shape[0] - 1).astype(np.intp)[:, None]
    columns = np.minimum((np.arange(width) + 0.5) / right, label_map.shape[1] - 1).astype(np.intp)[None]
    larger = np.ascontiguousarray(label_map[rows, columns])
    table = table.copy()
    table[:, [2, 4, 7]] *= right
    table[:, [3, 5, 8]] *= up
    table[:, 2:6] = np.round(table[:, 2:6])
    table[:, 6] = np.bincount(larger.ravel(), minlength=len(table) + 1)[1 : len(table) + 1]
    return larger, np.ascontiguousarray(semantic_map[rows, columns]), table


def _module(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as missing:
        raise MissingDependencyError(f"this engine needs {name}, which can't be imported ({missing}); `tfiseg doctor` helps") from missing
    return module


def _logger(trt: Any, said: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                said.append(message)
                _log.error("TensorRT: %s", message)

    return Logger()


def _sizes(shape: trt.Dims) -> tuple[int, ...]:
    return tuple(int(shape[k]) for k in range(len(shape)))


def _dtype(trt: Any, kind: Any) -> np.dtype[Any]:
    known = {trt.float32: np.float32, trt.float16: np.float16, trt.int32: np.int32, trt.uint8: np.uint8}
    if kind not in known:
        raise EngineError(f"the engine has tensors of type {kind}, which tfiseg doesn't read")
    return np.dtype(known[kind])
