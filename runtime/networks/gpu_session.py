"""Networks on the GPU, whatever runs them: copy in, network, clustering and copy out on one stream for each
frame in flight, replayed as a CUDA graph.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, InputError, TfisegError
from ...plugins.problem import Clustering
from ..gpu.clusterer import Asked, DeviceClusterer, cuda_library
from ..gpu.cuda import Cuda, Graph, device_address
from ..gpu.execution_context import Context, sizes_of
from ..gpu.view_refiner import DeviceRefiner, DeviceViews, LookSettings
from .model_info import ModelInfo

_KEPT_SHAPES = 3  # frame sizes and settings whose memory and graph are kept

_log = logging.getLogger("tfiseg")


@dataclass(frozen=True)
class Looked:
    """What was found in one frame by looking at its components (plugins/views.py).

    ``pieces``: of one picture; ``component_of`` int32 (n,), from 1, the component that each is of;
    ``components`` float32 (m, 10), their table; ``views`` int32 (K, 5); ``regions`` int32 (K,), how many each
    view's component has by its shape, ``frame_regions`` all of the frame's. While the frame is held,
    ``shown(k)``: image uint8 (S, S, 3), displacement and affinity of view k, ``foreground(k)``, where the
    looks were for outlines, too, and ``frame()`` uint8 (H, W, 3)."""

    pieces: Clustering
    component_of: NDArray[np.int32]
    components: NDArray[np.float32]
    views: NDArray[np.int32]
    regions: NDArray[np.int32]
    frame_regions: int
    shown: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]]
    foreground: Callable[[int], NDArray[np.float32]]
    frame: Callable[[], NDArray[np.uint8]]

    @property
    def component_at(self) -> NDArray[np.int32]:
        """``component_of`` by a piece's number, int32 (n + 1,): 0 first."""
        return np.concatenate([[0], self.component_of]).astype(np.int32)


class GpuSession:
    """A network on the GPU. Any number of threads may call it; as many frames as there are lanes are worked
    on at once.

    Args:
        path: of the model. info: what it says of itself.
        cuda: the GPU.
        lanes: a context and a stream for each frame in flight.
        types: of the outputs, by name.
        sizes: smallest and largest frame (H, W) that it takes.
        graphs: capture CUDA graphs; where something can't be captured, the log says so once and it runs
            without.
    """

    def __init__(
        self,
        path: Path,
        info: ModelInfo,
        cuda: Cuda,
        lanes: Sequence[tuple[Context, Any]],
        types: Mapping[str, np.dtype[Any]],
        sizes: tuple[tuple[int, int], tuple[int, int]],
        graphs: bool = True,
    ) -> None:
        self.path, self.info, self.cuda, self.types, self.graphs = path, info, cuda, types, graphs
        self.outputs = list(types)
        self._sizes = sizes
        self._all_lanes = [_Lane(self, context, stream) for context, stream in lanes]
        self._lanes = _Lanes(self._all_lanes)
        self.clusters = self._clusters()

    def _clusters(self) -> bool:
        """Whether instances come from the GPU: the network carries the operator, or the library with the C
        API is built."""
        if "label_map" in self.outputs:
            return True
        try:
            cuda_library()
        except (TfisegError, OSError) as missing:
            _log.warning(
                "clustering runs on the CPU: %s (`tfiseg plugin build --without-tensorrt` suffices)", missing
            )
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
        """Instances of one picture uint8 (H, W, 3) BGR, in host memory or on the GPU, at size
        ``asked.out_hw``.

        An engine that carries the operator clusters as it was built to, on its own grid; its label map may be
        of another size."""
        with self._lane() as lane:
            found = lane.run(image, None if "label_map" in self.outputs else asked)
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].astype(np.uint8)
            count = found["count"].copy()
            if count[0] < 0:
                raise EngineError(
                    "this frame has more regions than the operator has room for on a GPU (plugins/README.md)"
                )
            return Clustering(label_map, semantic_map, count, found["table"][:, : int(count[0])].copy())

    @contextmanager
    def looked(self, image: Any, asked: Asked, looks: LookSettings) -> Iterator[Looked]:
        """The same, of components (``asked``: with a split of 0) that an instance network looked at, in one
        go; the frame's memory is held until the caller is through. Raises ModelError where that network
        doesn't run on the GPU."""
        with self._lane() as lane:
            found = lane.run(image, asked, looks)
            count, components = int(found["count"][0]), int(found["components.count"][0])
            if min(count, components) < 0:
                raise EngineError(
                    "this frame has more regions than the operator has room for on a GPU (plugins/README.md)"
                )
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].copy()
            yield Looked(
                Clustering(label_map, semantic_map, found["count"].copy(), found["table"][:, :count].copy()),
                found["component_of"][:count].copy(),
                found["components.table"][0, :components].copy(),
                found["views"].copy(),
                found["regions"].copy(),
                int(found["components.regions"][0]),
                lane.shown,
                lane.foreground,
                lane.frame,
            )

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._lanes.take()
        try:
            with self.cuda.current():
                yield lane
        finally:
            self._lanes.give(lane)

    def set_up(self) -> None:
        """Called when a frame size has run for the first time: what the runtime made for it can be kept."""

    def close(self) -> None:
        """Free what lies on the GPU, when the frames in flight are through. The session can't be used
        afterwards."""
        lanes, self._all_lanes = self._all_lanes, []
        for _ in lanes:
            self._lanes.take()
        with self.cuda.current():
            for lane in lanes:
                lane.release()

    def checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """(1, H, W, 3), if the network takes such frames; raises InputError."""
        if any(
            not low <= s <= high for low, s, high in zip(self._sizes[0], shape, self._sizes[1], strict=False)
        ):
            sizes = " to ".join(f"{h}x{w}" for h, w in self._sizes)
            raise InputError(
                f"{self.path} takes frames of {sizes} (height x width), got {shape[0]}x{shape[1]}: "
                "build it with other --shape-min and --shape-max"
            )
        return 1, shape[0], shape[1], 3


class _Lanes:
    """Lanes for whoever comes first: a thread that has just given one back waits behind those that wait
    already."""

    def __init__(self, lanes: Sequence[_Lane]) -> None:
        self._free = list(lanes)
        self._waiting: deque[queue.SimpleQueue[_Lane]] = deque()
        self._lock = threading.Lock()

    def take(self) -> _Lane:
        with self._lock:
            if self._free:
                return self._free.pop()
            mine: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
            self._waiting.append(mine)
        return mine.get()

    def give(self, lane: _Lane) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(lane)
            else:
                self._free.append(lane)


class _Lane:
    """What one frame in flight needs: an execution context, a stream, and memory and a graph per frame size
    and settings."""

    def __init__(self, session: GpuSession, context: Context, stream: Any) -> None:
        self._session, self._context, self._stream = session, context, stream
        self._kept: OrderedDict[Any, _Fixed] = OrderedDict()
        self._active: _Fixed | None = None
        self._views: dict[Any, DeviceViews] = {}

    def run(
        self, image: Any, asked: Asked | None, looks: LookSettings | None = None
    ) -> dict[str, NDArray[Any]]:
        """Outputs by name, in pinned memory: valid until the next run."""
        cuda = self._session.cuda
        there = device_address(image)
        shape = self._session.checked_shape(there[1] if there else image.shape)
        fixed = self._fixed(shape, asked, looks)
        if there:
            cuda.wait_for_producer(image)
            cuda.copy(int(fixed.frame), there[0], int(np.prod(shape)), self._stream)
        else:
            np.copyto(fixed.host_frame, image[None])
        fixed.run(on_gpu=there is not None)
        self._stream.synchronize()
        return fixed.host

    def shown(self, k: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """What the instance network was shown in view k of the frame that ran last, and what it says of
        it."""
        assert self._active is not None
        image, displacement, affinity = self._active.of_view(k, ("views", "displacement", "affinity"))
        return image, displacement.astype(np.float32), affinity.astype(np.float32)

    def foreground(self, k: int) -> NDArray[np.float32]:
        """What it says of view k's outlines, float32 (S / 2, S / 2)."""
        assert self._active is not None
        foreground: NDArray[np.float32] = self._active.of_view(k, ("foreground",))[0][0].astype(np.float32)
        return foreground

    def frame(self) -> NDArray[np.uint8]:
        """The frame that ran last, uint8 (H, W, 3)."""
        assert self._active is not None
        return self._active.downloaded_frame()

    def _views_of(self, looks: LookSettings) -> DeviceViews:
        """What looks at components in this lane, whatever the frame's size and the classes that are
        wanted."""
        if looks.views_key not in self._views:
            opened = looks.network.device_context(self._stream, looks.outlines)
            self._views[looks.views_key] = DeviceViews(self._session.cuda, cuda_library(), *opened, looks)
        return self._views[looks.views_key]

    def _fixed(self, shape: tuple[int, ...], asked: Asked | None, looks: LookSettings | None) -> _Fixed:
        key = (shape, asked and asked.key, looks and looks.key)
        if key not in self._kept:
            self._active = None  # whatever comes of it, the context has another shape then
            while len(self._kept) >= _KEPT_SHAPES:
                self._kept.popitem(last=False)[1].release()
            views = None if looks is None else (self._views_of(looks), looks.wanted)
            self._kept[key] = _Fixed(self._session, self._context, self._stream, shape, asked, views)
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
        self._views.clear()


class _Fixed:
    """Memory of one frame size, at addresses that stay: what a CUDA graph needs."""

    def __init__(
        self,
        session: GpuSession,
        context: Context,
        stream: Any,
        shape: tuple[int, ...],
        asked: Asked | None,
        views: tuple[DeviceViews, NDArray[np.uint8]] | None,
    ) -> None:
        cuda = self._cuda = session.cuda
        self._session, self._context, self._stream, self._shape = session, context, stream, shape
        if not context.set_input_shape("frame", shape):
            raise EngineError(f"{session.path} doesn't take frames of {shape}")
        self.host_frame = cuda.pinned(shape, np.uint8)
        self.frame = cuda.allocate(self.host_frame.nbytes)
        shapes = {name: sizes_of(context.get_tensor_shape(name)) for name in session.outputs}
        types = {name: session.types[name] for name in session.outputs}
        self._memory = {name: cuda.room(s, types[name]) for name, s in shapes.items()}
        self._clusterer: DeviceClusterer | None = None
        source, wanted = dict(self._memory), {name: (shapes[name], types[name]) for name in session.outputs}
        self._refiner: DeviceRefiner | None = None
        if asked is not None:
            used = (
                self._memory if views is None else {"logits": self._memory["logits"]}
            )  # components are the class map's alone
            maps = {name: (int(memory), shapes[name], types[name]) for name, memory in used.items()}
            self._clusterer = DeviceClusterer(cuda, maps, asked)
            source, wanted = self._clusterer.memory, self._clusterer.shapes
        if views is not None and self._clusterer is not None:
            refiner = self._refiner = DeviceRefiner(cuda, *views, int(self.frame), self._clusterer)
            of_components = ("count", "regions", "table")
            source = {
                "semantic_map": source["semantic_map"],
                **{f"components.{n}": source[n] for n in of_components},
                **refiner.memory,
            }
            wanted = {
                "semantic_map": wanted["semantic_map"],
                **{f"components.{n}": wanted[n] for n in of_components},
                **refiner.shapes,
            }
        self.host = {name: cuda.pinned(shape, kind) for name, (shape, kind) in wanted.items()}
        self._source = source
        self._graphs: dict[bool, Graph | None] = {}

    def bind(self) -> None:
        """Let the context work on this memory."""
        addresses = {"frame": self.frame, **self._memory}
        if not self._context.set_input_shape("frame", self._shape):
            raise EngineError(f"{self._session.path} doesn't take frames of {self._shape}")
        for name, memory in addresses.items():
            self._context.set_tensor_address(name, int(memory))
        # it may set itself up anew for another shape: what was captured before isn't to be trusted
        self.release_graphs()

    def run(self, on_gpu: bool) -> None:
        """Enqueue everything: the first time as it is, from the second on as a graph."""
        if on_gpu not in self._graphs:
            self._enqueue(on_gpu)  # runtimes set themselves up in the first run: that can't be captured
            self._graphs[on_gpu] = None
            self._session.set_up()
            if self._refiner is not None:
                self._refiner.views.settings.network.set_up()
            if self._session.graphs:
                self._stream.synchronize()
                try:
                    self._graphs[on_gpu] = self._cuda.capture(self._stream, lambda: self._enqueue(on_gpu))
                except Exception as wrong:  # CUDA's word, or the runtime's own
                    self._session.graphs = False
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
            raise EngineError(f"{self._session.path}: it could not be run; the log says why")
        if self._clusterer is not None:
            self._clusterer.enqueue(self._stream.handle)
        if self._refiner is not None:
            self._refiner.enqueue(self._stream.handle)
        for name, host in self.host.items():
            self._cuda.download(host, int(self._source[name]), self._stream)

    def downloaded_frame(self) -> NDArray[np.uint8]:
        frame = np.empty(self._shape[1:], np.uint8)
        self._cuda.download(frame, int(self.frame), self._stream)
        self._stream.synchronize()
        return frame

    def of_view(self, k: int, names: Sequence[str]) -> list[NDArray[Any]]:
        """View k's part of what the instance network was shown or says."""
        assert self._refiner is not None
        found = []
        for name in names:
            shape, kind = self._refiner.views.shapes[name]
            found.append(np.empty(shape[1:], kind))
            self._cuda.download(found[-1], self._refiner.views.address(name, k), self._stream)
        self._stream.synchronize()
        return found

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
        self._clusterer = self._refiner = None
        del self.frame, self.host_frame
        self.host = {}


def enlarged(
    label_map: NDArray[np.int32],
    semantic_map: NDArray[np.uint8],
    table: NDArray[np.float32],
    size_hw: tuple[int, int],
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
