"""Networks on the GPU, whatever runs them: copy in, network, clustering and copy out on one stream for each
frame in flight, replayed as a CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, InputError, TfisegError
from ...plugins.problem import Clustering
from ...plugins.settings import ClusterSettings
from ..gpu.captured_frame import DeviceNetwork
from ..gpu.clusterer import cuda_library
from ..gpu.cuda import Cuda
from ..gpu.execution_context import Context
from ..gpu.lane import Lane, Lanes
from ..gpu.refined_frame import RefinedFrame
from ..gpu.view_refiner import LookSettings
from .built_in_operator import BuiltInOperator
from .model_info import ModelInfo

_log = logging.getLogger("tfiseg")


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
        new_context: creates an execution context for one more frame size; None: sizes share a lane's context.
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
        new_context: Callable[[], Context] | None = None,
    ) -> None:
        self.path, self.info, self.cuda = path, info, cuda
        self.network = DeviceNetwork(path, cuda, types, self._checked_shape, self.set_up, new_context, graphs)
        self.outputs = list(types)
        self._sizes = sizes
        self._all_lanes = [Lane(self.network, context, stream) for context, stream in lanes]
        self._lanes = Lanes(self._all_lanes)
        self.clusters = self._clusters()
        self.operator: BuiltInOperator | None = None  # that the network carries

    def cluster_class_map_alone(self) -> None:
        """From the next frame on, cluster by shape: instance heads that the network has are not used."""
        self.network.heads = False

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

    def cluster(self, image: Any, settings: ClusterSettings) -> Clustering:
        """Instances of one picture uint8 (H, W, 3) BGR, in host memory or on the GPU, at size
        the frame's.

        An engine that carries the operator clusters as it was built to, on its own grid; its label map may be
        of another size."""
        with self._lane() as lane:
            found = lane.run(image, None if "label_map" in self.outputs else settings)
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].astype(np.uint8)
            count = found["count"].copy()
            if count[0] < 0:
                raise EngineError(
                    "this frame has more regions than the operator has room for on a GPU (plugins/README.md)"
                )
            return Clustering(label_map, semantic_map, count, found["table"][:, : int(count[0])].copy())

    @contextmanager
    def looked(self, image: Any, settings: ClusterSettings, looks: LookSettings) -> Iterator[RefinedFrame]:
        """The same, of components (``settings``: with a split of 0) that an instance network looked at, in
        one go; the frame's memory is held until the caller is through. Raises ModelError where that network
        doesn't run on the GPU."""
        with self._lane() as lane:
            found = lane.run(image, settings, looks)
            count, components = int(found["count"][0]), int(found["components.count"][0])
            if min(count, components) < 0:
                raise EngineError(
                    "this frame has more regions than the operator has room for on a GPU (plugins/README.md)"
                )
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].copy()
            yield RefinedFrame(
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
    def _lane(self) -> Iterator[Lane]:
        lane = self._lanes.take()
        try:
            with self.cuda.current():
                yield lane
        finally:
            self._lanes.give(lane)

    def set_up(self) -> None:
        """Called when a frame size has run for the first time: what the runtime made for it can be kept."""

    def close(self) -> None:
        """Free the GPU memory after the frames in progress. Later frames raise EngineError."""
        lanes, self._all_lanes = self._all_lanes, []
        self._lanes.close()
        with self.cuda.current():
            for lane in lanes:
                lane.release()

    def _checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
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
