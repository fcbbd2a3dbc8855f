"""Memory at fixed addresses and the CUDA graph captured on it, for one frame size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.settings import ClusterSettings
from .clusterer import DeviceClusterer
from .cuda import Cuda, Graph
from .execution_context import Context, sizes_of
from .view_refiner import DeviceRefiner, DeviceViews

_log = logging.getLogger("tfiseg")


@dataclass
class DeviceNetwork:
    """A network in GPU memory, as far as frames in flight need it.

    Args:
        path: of the model, for messages.
        cuda: the GPU.
        types: of the outputs, by name.
        checked_shape: (1, H, W, 3) of a frame's (H, W, 3); raises InputError if the network doesn't take it.
        set_up: called when a frame size has run for the first time.
        graphs: capture CUDA graphs. Set to False where something can't be captured.
    """

    path: Path
    cuda: Cuda
    types: Mapping[str, np.dtype[Any]]
    checked_shape: Callable[[tuple[int, ...]], tuple[int, int, int, int]]
    set_up: Callable[[], None]
    graphs: bool = True


class CapturedFrame:
    """Memory of one frame size, at addresses that stay: what a CUDA graph needs."""

    def __init__(
        self,
        network: DeviceNetwork,
        context: Context,
        stream: Any,
        shape: tuple[int, ...],
        settings: ClusterSettings | None,
        views: tuple[DeviceViews, NDArray[np.uint8]] | None,
    ) -> None:
        cuda = self._cuda = network.cuda
        self._network, self._context, self._stream, self._shape = network, context, stream, shape
        if not context.set_input_shape("frame", shape):
            raise EngineError(f"{network.path} doesn't take frames of {shape}")
        self.host_frame = cuda.pinned(shape, np.uint8)
        self.frame = cuda.allocate(self.host_frame.nbytes)
        shapes = {name: sizes_of(context.get_tensor_shape(name)) for name in network.types}
        types = {name: network.types[name] for name in network.types}
        self._memory = {name: cuda.room(s, types[name]) for name, s in shapes.items()}
        self._clusterer: DeviceClusterer | None = None
        source, wanted = dict(self._memory), {name: (shapes[name], types[name]) for name in network.types}
        self._refiner: DeviceRefiner | None = None
        if settings is not None:
            used = (
                self._memory if views is None else {"logits": self._memory["logits"]}
            )  # components are the class map's alone
            maps = {name: (int(memory), shapes[name], types[name]) for name, memory in used.items()}
            self._clusterer = DeviceClusterer(cuda, maps, settings, (shape[1], shape[2]))
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
            raise EngineError(f"{self._network.path} doesn't take frames of {self._shape}")
        for name, memory in addresses.items():
            self._context.set_tensor_address(name, int(memory))
        # it may set itself up anew for another shape: what was captured before isn't to be trusted
        self.release_graphs()

    def run(self, on_gpu: bool) -> None:
        """Enqueue everything: the first time as it is, from the second on as a graph."""
        if on_gpu not in self._graphs:
            self._enqueue(on_gpu)  # runtimes set themselves up in the first run: that can't be captured
            self._graphs[on_gpu] = None
            self._network.set_up()
            if self._refiner is not None:
                self._refiner.views.settings.network.set_up()
            if self._network.graphs:
                self._stream.synchronize()
                try:
                    self._graphs[on_gpu] = self._cuda.capture(self._stream, lambda: self._enqueue(on_gpu))
                except Exception as wrong:  # CUDA's word, or the runtime's own
                    self._network.graphs = False
                    _log.warning("%s runs without CUDA graphs: %s", self._network.path, wrong)
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
            raise EngineError(f"{self._network.path}: it could not be run; the log says why")
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
