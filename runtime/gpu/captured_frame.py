"""Memory at fixed addresses and the CUDA graph captured on it, for one frame size."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.settings import ClusterSettings
from .clusterer import DeviceClusterer
from .cuda import Cuda, Graph
from .execution_context import Context, is_capturable, sizes_of
from .view_refiner import DeviceRefiner, DeviceViews

_log = logging.getLogger("tfiseg")
Work: TypeAlias = "Graph | Callable[[], None]"  # a captured graph, or a step that is enqueued each time


def _run_all(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _release(works: Sequence[Work]) -> None:
    for work in works:
        if isinstance(work, Graph):
            work.release()


@dataclass
class DeviceNetwork:
    """A network in GPU memory, as far as frames in flight need it.

    Args:
        path: of the model, for messages.
        cuda: the GPU.
        types: of the outputs, by name.
        checked_shape: (1, H, W, 3) of a frame's (H, W, 3); raises InputError if the network doesn't take it.
        set_up: called when a frame size has run for the first time.
        new_context: creates an execution context for one more frame size; None: all sizes share the lane's.
        graphs: capture CUDA graphs. Set to False where something can't be captured.
        heads: whether instance heads, where there are some, are used to cluster.
    """

    path: Path
    cuda: Cuda
    types: Mapping[str, np.dtype[Any]]
    checked_shape: Callable[[tuple[int, ...]], tuple[int, int, int, int]]
    set_up: Callable[[], None]
    new_context: Callable[[], Context] | None = None
    graphs: bool = True
    heads: bool = True


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
        self._network, self.context, self._stream, self._shape = network, context, stream, shape
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
            unused = () if network.heads else ("affinity", "boundary")
            used = {name: memory for name, memory in self._memory.items() if name not in unused}
            if views is not None:
                used = {"logits": self._memory["logits"]}  # components are the class map's alone
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
        self._works: dict[bool, list[Work] | None] = {}
        self._is_bound = False

    def bind(self) -> None:
        """Set the context to this shape and this memory, unless it is set for good."""
        if self._is_bound and self._network.new_context:
            return
        self._is_bound = True
        addresses = {"frame": self.frame, **self._memory}
        if not self.context.set_input_shape("frame", self._shape):
            raise EngineError(f"{self._network.path} doesn't take frames of {self._shape}")
        for name, memory in addresses.items():
            self.context.set_tensor_address(name, int(memory))
        if is_capturable(
            self.context
        ):  # it was set to another shape meanwhile, which may invalidate a graph of it
            self.release_graphs()

    def run(self, on_gpu: bool) -> None:
        """Enqueue everything: the first time step by step, from the second time on as graphs."""
        steps = self._steps(on_gpu)
        if on_gpu not in self._works:
            for step, _ in steps:  # runtimes set themselves up in the first run: that cannot be captured
                step()
            self._works[on_gpu] = None
            self._network.set_up()
            if self._refiner is not None:
                self._refiner.views.settings.network.set_up()
            if self._network.graphs:
                self._stream.synchronize()
                self._works[on_gpu] = self._captured(steps)
            return
        works = self._works[on_gpu]
        for work in [step for step, _ in steps] if works is None else works:
            if isinstance(work, Graph):
                work.launch(self._stream)
            else:
                work()

    def _captured(self, steps: Sequence[tuple[Callable[[], None], bool]]) -> list[Work] | None:
        """The steps with a graph for each sequence of steps that can be captured; None if capture fails."""
        works: list[Work] = []
        try:
            for can_be_captured, sequence in itertools.groupby(steps, lambda step: step[1]):
                enqueue = [step for step, _ in sequence]
                if can_be_captured:
                    works.append(self._cuda.capture(self._stream, functools.partial(_run_all, enqueue)))
                else:
                    works += enqueue
        except Exception as wrong:  # an error of CUDA, or the runtime's own
            self._network.graphs = False
            _release(works)
            _log.warning("%s runs without CUDA graphs: %s", self._network.path, str(wrong))
            return None
        return works

    def _steps(self, on_gpu: bool) -> list[tuple[Callable[[], None], bool]]:
        """What a frame enqueues, in order, and whether a graph may hold it."""
        stream = self._stream.handle
        steps: list[tuple[Callable[[], None], bool]] = [] if on_gpu else [(self._upload, True)]
        steps.append((self._infer, is_capturable(self.context)))
        if self._clusterer is not None:
            steps.append((functools.partial(self._clusterer.enqueue, stream), True))
        if self._refiner is not None:
            steps += self._refiner.steps(stream)
        return [*steps, (self._download, True)]

    def _upload(self) -> None:
        self._cuda.upload(int(self.frame), self.host_frame, self._stream)

    def _infer(self) -> None:
        if not self.context.execute_async_v3(self._stream.handle):
            raise EngineError(f"{self._network.path}: it could not be run; the log says why")

    def _download(self) -> None:
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
        for works in self._works.values():
            _release(works or [])
        self._works.clear()

    def release(self) -> None:
        """Free graphs and memory (their objects free it, in the context that is current now)."""
        self.release_graphs()
        self._memory.clear()
        self._source = {}
        self._clusterer = self._refiner = None
        del self.frame, self.host_frame
        self.host = {}
