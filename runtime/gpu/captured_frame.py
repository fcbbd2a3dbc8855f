"""Memory of one frame size at fixed addresses, and the CUDA graphs captured on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.mask_refinement import RefinedMasks
from ...plugins.settings import MAX_SIDE, ClusterSettings
from .captured_steps import CapturedSteps, Step
from .clusterer import DeviceClusterer
from .cuda import Cuda
from .execution_context import Context, is_capturable, run_context, shape_tuple
from .frame_fitting import DevicePreprocessing, FittedFrame
from .mask_refiner import DeviceMaskNetwork, DeviceMaskRefiner
from .view_refiner import DeviceRefiner, DeviceViews


@dataclass
class DeviceNetwork:
    """What frames in flight need of a network in GPU memory."""

    path: Path
    cuda: Cuda
    types: Mapping[str, np.dtype[Any]]  # output name -> dtype
    # converts a frame's (H, W, 3) to (1, H, W, 3); raises InputError if the network doesn't support that size
    checked_shape: Callable[[tuple[int, ...]], tuple[int, int, int, int]]
    set_up: Callable[[], None]  # called after a frame size has run for the first time
    # creates an execution context for another frame size; None: all sizes share the lane's
    new_context: Callable[[], Context] | None = None
    graphs: bool = True  # capture CUDA graphs; False after a capture has failed
    heads: bool = True  # cluster with the model's instance heads, if it has any
    # a step before the network; None: the network's input is the frame
    preprocessing: DevicePreprocessing | None = None


@dataclass(frozen=True)
class LaneViews:
    """The instance network of a lane, for views of a fixed number."""

    views: DeviceViews  # to split components
    masks: DeviceMaskNetwork | None  # to refine masks; None: they are not refined on the GPU
    thing_flags: NDArray[np.uint8]  # 1 for the classes to refine, uint8 (256,)


class CapturedFrame:
    """Memory of one frame size at fixed addresses, which CUDA graphs need.

    Args:
        shape: of the frame, (1, H, W, 3).
        settings: of the clustering operator; None: only the network runs.
        views: of the lane; None: no refinement.

    Raises:
        EngineError: the network, the operator or the instance network doesn't support this size.
    """

    def __init__(
        self,
        network: DeviceNetwork,
        context: Context,
        stream: Any,
        shape: tuple[int, ...],
        settings: ClusterSettings | None,
        views: LaneViews | None,
    ) -> None:
        cuda = self._cuda = network.cuda
        self._network, self.context, self._stream, self._shape = network, context, stream, shape
        self.host_frame = cuda.allocate_pinned(shape, np.uint8)
        self.frame = cuda.allocate(self.host_frame.nbytes)
        self._fitted = self._allocate_fitted()
        self._set_input_shape()
        shapes = {name: shape_tuple(context.get_tensor_shape(name)) for name in network.types}
        types = {name: network.types[name] for name in network.types}
        self._memory = {name: cuda.allocate_array(s, types[name]) for name, s in shapes.items()}
        self._clusterer: DeviceClusterer | None = None
        source, fetched = dict(self._memory), {name: (shapes[name], types[name]) for name in network.types}
        self._refiner: DeviceRefiner | None = None
        self._mask_refiner: DeviceMaskRefiner | None = None
        if settings is not None:
            unused = () if network.heads else ("affinity", "boundary")
            used = {name: memory for name, memory in self._memory.items() if name not in unused}
            if views is not None:
                used = {"logits": self._memory["logits"]}  # components come from the class map only
            maps = {name: (int(memory), shapes[name], types[name]) for name, memory in used.items()}
            self._clusterer = DeviceClusterer.of_maps(cuda, maps, settings, (shape[1], shape[2]))
            source, fetched = self._clusterer.memory, self._clusterer.shapes
        if views is not None and self._clusterer is not None:
            frame = int(self.frame)
            refiner = DeviceRefiner(cuda, views.views, views.thing_flags, frame, self._clusterer)
            self._refiner = refiner
            if views.masks is not None and max(shape) <= MAX_SIDE:  # else components need a coarser grid
                self._mask_refiner = DeviceMaskRefiner(cuda, stream, views.masks, refiner, frame)
            component_outputs = ("count", "regions", "table")
            source = {
                "semantic_map": source["semantic_map"],
                **{f"components.{n}": source[n] for n in component_outputs},
                **refiner.memory,
            }
            fetched = {
                "semantic_map": fetched["semantic_map"],
                **{f"components.{n}": fetched[n] for n in component_outputs},
                **refiner.shapes,
            }
        self.host = {name: cuda.allocate_pinned(shape, kind) for name, (shape, kind) in fetched.items()}
        self._source = source
        self._steps: dict[str, CapturedSteps] = {}
        self._is_bound = False

    def bind(self) -> None:
        """Set the context to this shape and memory, unless no other frame size uses it."""
        if self._is_bound and self._network.new_context:
            return
        self._is_bound = True
        input_name, _, address = self._input()
        self._set_input_shape()
        for name, memory in {input_name: address, **self._memory}.items():
            self.context.set_tensor_address(name, int(memory))
        if is_capturable(self.context):  # another shape, set in between, may have invalidated its graphs
            self.release_graphs()

    def _allocate_fitted(self) -> FittedFrame | None:
        """Allocate the network's input, unless it is the frame."""
        preprocessing, frame_hw = self._network.preprocessing, (self._shape[1], self._shape[2])
        if preprocessing is None:
            return None
        return FittedFrame(self._cuda, int(self.frame), frame_hw, preprocessing.size_hw(frame_hw))

    def _input(self) -> tuple[str, tuple[int, ...], int]:
        """Return name, shape and address of the network's input."""
        if self._network.preprocessing is None or self._fitted is None:
            return "frame", self._shape, int(self.frame)
        return self._network.preprocessing.input_name, self._fitted.shape, int(self._fitted.memory)

    def _set_input_shape(self) -> None:
        name, shape, _ = self._input()
        if not self.context.set_input_shape(name, shape):
            raise EngineError(f"{self._network.path} doesn't support frames of {self._shape}")

    def run(self, on_gpu: bool) -> None:
        """Enqueue all steps: one by one the first time, then as CUDA graphs."""
        name = "frame on the GPU" if on_gpu else "frame"
        if name not in self._steps:
            steps = self._frame_steps(on_gpu)
            self._steps[name] = CapturedSteps(self._network, self._stream, steps, self._set_up)
        self._steps[name].run()

    @property
    def can_refine_masks(self) -> bool:
        """Whether ``refine_masks`` can be called."""
        return self._mask_refiner is not None

    def refine_masks(self, numbers: NDArray[np.int32], table: NDArray[np.float32]) -> RefinedMasks:
        """Refine the masks of instances; see ``DeviceMaskRefiner.give``."""
        assert self._mask_refiner is not None
        if "masks" not in self._steps:
            steps = self._mask_refiner.steps()
            self._steps["masks"] = CapturedSteps(self._network, self._stream, steps, self._set_up)
        self._mask_refiner.give(numbers, table)
        self._steps["masks"].run()
        self._stream.synchronize()
        return self._mask_refiner.found()

    def _set_up(self) -> None:
        self._network.set_up()
        if self._refiner is not None:
            self._refiner.views.settings.network.set_up()

    def _frame_steps(self, on_gpu: bool) -> list[Step]:
        """Return the steps of a frame, in order, each with whether a graph can capture it."""
        stream = self._stream.handle
        steps: list[Step] = [] if on_gpu else [(self._upload, True)]
        if self._fitted is not None:
            steps.append((functools.partial(self._fitted.enqueue, stream), True))
        steps.append((self._infer, is_capturable(self.context)))
        if self._clusterer is not None:
            steps.append((functools.partial(self._clusterer.enqueue, stream), True))
        if self._refiner is not None:
            steps += self._refiner.steps(stream)
        return [*steps, (self._download, True)]

    def _upload(self) -> None:
        self._cuda.upload(int(self.frame), self.host_frame, self._stream)

    def _infer(self) -> None:
        run_context(self.context, self._stream.handle, self._network.path)

    def _download(self) -> None:
        for name, host in self.host.items():
            self._cuda.download(host, int(self._source[name]), self._stream)

    def download_frame(self) -> NDArray[np.uint8]:
        """Copy the frame to the host, uint8 (H, W, 3)."""
        frame = np.empty(self._shape[1:], np.uint8)
        self._cuda.download(frame, int(self.frame), self._stream)
        self._stream.synchronize()
        return frame

    def download_view(self, k: int, names: Sequence[str]) -> list[NDArray[Any]]:
        """Copy inputs or outputs of the instance network for view k to the host, by name."""
        assert self._refiner is not None
        found = []
        for name in names:
            shape, kind = self._refiner.views.shapes[name]
            found.append(np.empty(shape[1:], kind))
            self._cuda.download(found[-1], self._refiner.views.address(name, k), self._stream)
        self._stream.synchronize()
        return found

    def release_graphs(self) -> None:
        for steps in self._steps.values():
            steps.release()
        self._steps.clear()

    def release(self) -> None:
        """Free graphs and memory; call it inside ``with cuda.current()``."""
        self.release_graphs()
        self._memory.clear()
        self._source = {}
        self._clusterer = self._refiner = self._mask_refiner = self._fitted = None
        del self.frame, self.host_frame
        self.host = {}
