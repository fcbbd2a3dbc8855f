"""Sessions of networks on the GPU, of every runtime.

Upload, preprocessing, network, clustering and download of a frame run on one stream, replayed as a CUDA
graph.
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
from ...plugins.operator import warn_if_merging_stopped
from ...plugins.problem import Clustering
from ...plugins.settings import ClusterSettings
from ..gpu.captured_frame import DeviceNetwork
from ..gpu.clusterer import cuda_library
from ..gpu.cuda import Cuda
from ..gpu.execution_context import Context
from ..gpu.frame_fitting import DevicePreprocessing
from ..gpu.lane import Lane, Lanes
from ..gpu.refined_frame import RefinedFrame
from ..gpu.view_refiner import ViewSettings
from .built_in_operator import BuiltInOperator
from .model_info import ModelInfo
from .native_preprocessing import SMALL, NativePreprocessing

ANY_SIZE = ((1, 1), (1 << 15, 1 << 15))  # smallest and largest frame of networks without a limit
_log = logging.getLogger("tfiseg")


class GpuSession:
    """A network on the GPU, which any number of threads may call.

    Args:
        lanes: execution context and stream of each frame in flight.
        sizes: smallest and largest frame (H, W) that it supports.
        graphs: capture CUDA graphs; if a capture fails, the log reports it and the network runs without.
        new_context: creates an execution context for another frame size; None: sizes share a lane's context.
        preprocessing: that was removed from the model; one of our kernels does it. None: the network does it.
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
        preprocessing: NativePreprocessing | None = None,
    ) -> None:
        self.path, self.info, self.cuda = path, info, cuda
        step = None if preprocessing is None else DevicePreprocessing(SMALL, preprocessing.size_hw)
        self.network = DeviceNetwork(
            path, cuda, types, self._checked_shape, self.set_up, new_context, graphs, preprocessing=step
        )
        self.outputs = list(types)
        self._sizes = sizes
        self._all_lanes = [Lane(self.network, context, stream) for context, stream in lanes]
        self._lanes = Lanes(self._all_lanes)
        self.clusters = self._clusters()
        self.operator: BuiltInOperator | None = None  # set if the network contains the operator

    def cluster_class_map_alone(self) -> None:
        """Cluster by shape from the next frame on, without the network's instance heads."""
        self.network.heads = False

    def _clusters(self) -> bool:
        """Return whether clustering runs on the GPU; if not, log the reason."""
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
        return output in self.outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the network's maps for an image.

        Args:
            image: uint8 (H, W, 3) BGR.

        Returns:
            Output name -> float32 (1, channels, h, w).

        Raises:
            EngineError: the network returns instances instead of maps.
        """
        if "logits" not in self.outputs:
            raise EngineError(
                f"{self.path} returns instances and no class logits. `tfiseg build --no-operator` builds an "
                "engine that returns logits."
            )
        with self._lane() as lane:
            found = lane.run(image, None)
            return {name: found[name].astype(np.float32) for name in self.outputs}

    def cluster(self, image: Any, settings: ClusterSettings) -> Clustering:
        """Find the instances of an image.

        Args:
            image: uint8 (H, W, 3) BGR, in host memory or on the GPU.
            settings: of the operator; an engine that contains the operator ignores them.

        Returns:
            A batch of one, at the image's size; at the size of its own grid from an engine that contains the
            operator.

        Raises:
            EngineError: the image has too many regions.
        """
        with self._lane() as lane:
            found = lane.run(image, None if "label_map" in self.outputs else settings)
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].astype(np.uint8)
            count = found["count"].copy()
            _check_count(int(count[0]))
            return Clustering(label_map, semantic_map, count, found["table"][:, : int(count[0])].copy())

    @contextmanager
    def refine(
        self, image: Any, settings: ClusterSettings, view_settings: ViewSettings
    ) -> Iterator[RefinedFrame]:
        """Find connected components and refine them with the instance network, in one CUDA graph.

        The frame's memory is held inside the ``with`` block.

        Args:
            image: uint8 (H, W, 3) BGR, in host memory or on the GPU.
            settings: of the operator, with a split of 0.

        Raises:
            EngineError: the image has too many regions. ModelError: the instance network runs on the CPU.
        """
        with self._lane() as lane:
            found = lane.run(image, settings, view_settings)
            count, components = int(found["count"][0]), int(found["components.count"][0])
            _check_count(min(count, components))
            has_parts = (found["views"][:, 3] > 0) & (found["view_counts"] > 0)
            warn_if_merging_stopped(found["view_tables"][has_parts, 0])  # each row has its view's flag
            label_map, semantic_map = found["label_map"].copy(), found["semantic_map"].copy()
            yield RefinedFrame(
                Clustering(label_map, semantic_map, found["count"].copy(), found["table"][:, :count].copy()),
                found["component_of"][:count].copy(),
                found["components.table"][0, :components].copy(),
                found["views"].copy(),
                found["regions"].copy(),
                int(found["components.regions"][0]),
                lane.join_inputs,
                lane.foreground,
                lane.frame,
                lane.refine_masks if lane.can_refine_masks else None,
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
        """Save what the runtime compiled; called after a frame size has run for the first time."""

    def close(self) -> None:
        """Free the GPU memory after the frames in progress. Later frames raise EngineError."""
        lanes, self._all_lanes = self._all_lanes, []
        self._lanes.close()
        with self.cuda.current():
            for lane in lanes:
                lane.release()

    def _checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return a frame's shape as (1, H, W, 3). Raises InputError for an unsupported size."""
        if any(
            not low <= s <= high for low, s, high in zip(self._sizes[0], shape, self._sizes[1], strict=False)
        ):
            sizes = " to ".join(f"{h}x{w}" for h, w in self._sizes)
            raise InputError(
                f"{self.path} takes frames of {sizes} (height x width), got {shape[0]}x{shape[1]}: "
                "build it with other --shape-min and --shape-max"
            )
        return 1, shape[0], shape[1], 3


def _check_count(count: int) -> None:
    """Raise EngineError for the operator's negative count, which reports too many regions."""
    if count < 0:
        raise EngineError(
            "this frame has more regions than the operator supports on a GPU (plugins/README.md)"
        )


def upsample_clustering(
    label_map: NDArray[np.int32],
    semantic_map: NDArray[np.uint8],
    table: NDArray[np.float32],
    size_hw: tuple[int, int],
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    """Upsample the result of an operator with a grid of its own to a frame's size.

    Args:
        label_map: int32 (h, w).
        semantic_map: uint8 (h, w).
        table: float32 (n, 10), columns ``TABLE_COLUMNS``.
        size_hw: size of the frame in pixels.

    Returns:
        Label map (H, W), semantic map (H, W) and table (n, 10).
    """
    height, width = size_hw
    scale_y, scale_x = height / label_map.shape[0], width / label_map.shape[1]
    rows = np.minimum((np.arange(height) + 0.5) / scale_y, label_map.shape[0] - 1).astype(np.intp)[:, None]
    columns = np.minimum((np.arange(width) + 0.5) / scale_x, label_map.shape[1] - 1).astype(np.intp)[None]
    larger = np.ascontiguousarray(label_map[rows, columns])
    table = table.copy()
    table[:, [2, 4, 7]] *= scale_x
    table[:, [3, 5, 8]] *= scale_y
    table[:, 2:6] = np.round(table[:, 2:6])
    table[:, 6] = np.bincount(larger.ravel(), minlength=len(table) + 1)[1 : len(table) + 1]
    return larger, np.ascontiguousarray(semantic_map[rows, columns]), table
