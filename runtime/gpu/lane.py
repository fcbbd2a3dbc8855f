"""Lanes: each one holds what a frame in flight needs on the GPU."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.mask_refinement import RefinedMasks
from ...plugins.settings import ClusterSettings
from .captured_frame import CapturedFrame, DeviceNetwork, LaneViews
from .clusterer import cuda_library
from .cuda import device_address
from .execution_context import ALL_OUTPUTS, FOREGROUND, MAPS, Context
from .mask_refiner import DeviceMaskNetwork
from .view_refiner import DeviceViews, ViewSettings

_MAX_CAPTURED_FRAMES = 3  # per lane: frame sizes and settings whose memory and graph are kept


class Lanes:
    """A pool of lanes that serves waiting threads in the order of their requests."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._free = list(lanes)
        self._count = len(self._free)
        self._waiting: deque[queue.SimpleQueue[Lane | None]] = deque()
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._is_closed = False

    def take(self) -> Lane:
        """Wait for a free lane. Raises EngineError if the session is closed."""
        with self._lock:
            if not self._is_closed and self._free:
                return self._free.pop()
            mine: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
            if self._is_closed:
                mine.put(None)
            else:
                self._waiting.append(mine)
        lane = mine.get()
        if lane is None:
            raise EngineError(
                "the session was closed: open the model again, or close it after the last frame"
            )
        return lane

    def give(self, lane: Lane) -> None:
        """Return a lane."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(lane)
            else:
                self._free.append(lane)
                self._returned.notify_all()

    def close(self) -> None:
        """Refuse further requests, and wait until every lane is returned."""
        with self._lock:
            self._is_closed = True
            while self._waiting:
                self._waiting.popleft().put(None)
            self._returned.wait_for(lambda: len(self._free) == self._count)


class Lane:
    """An execution context and a stream, with memory and a graph per frame size."""

    def __init__(self, network: DeviceNetwork, context: Context, stream: Any) -> None:
        self._network, self._context, self._stream = network, context, stream
        self._captured: OrderedDict[Any, CapturedFrame] = OrderedDict()
        self._active: CapturedFrame | None = None
        self._views: dict[Any, tuple[DeviceViews, DeviceMaskNetwork | None]] = {}
        self._free = [context]  # contexts without a frame size

    def run(
        self, image: Any, settings: ClusterSettings | None, view_settings: ViewSettings | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run a frame.

        Args:
            image: uint8 (H, W, 3), in host memory or on the GPU.
            settings: of the clustering operator; None: only the network runs.
            view_settings: of refinement; None: components are not refined.

        Returns:
            Output name -> array in pinned memory, valid until the next run.
        """
        cuda = self._network.cuda
        on_gpu = device_address(image)
        shape = self._network.checked_shape(on_gpu[1] if on_gpu else image.shape)
        captured = self._captured_frame(shape, settings, view_settings)
        if on_gpu:
            cuda.wait_for_producer(image)
            cuda.copy(int(captured.frame), on_gpu[0], int(np.prod(shape)), self._stream)
        else:
            np.copyto(captured.host_frame, image[None])
        captured.run(on_gpu=on_gpu is not None)
        self._stream.synchronize()
        return captured.host

    def join_inputs(self, k: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Return image, displacement and affinity of view k of the last frame."""
        assert self._active is not None
        image, displacement, affinity = self._active.download_view(k, ("views", "displacement", "affinity"))
        return image, displacement.astype(np.float32), affinity.astype(np.float32)

    def foreground(self, k: int) -> NDArray[np.float32]:
        """Return the foreground map of view k of the last frame, float32 (S / 2, S / 2)."""
        assert self._active is not None
        (foreground,) = self._active.download_view(k, ("foreground",))
        result: NDArray[np.float32] = foreground[0].astype(np.float32)
        return result

    def frame(self) -> NDArray[np.uint8]:
        """Return the last frame, uint8 (H, W, 3)."""
        assert self._active is not None
        return self._active.download_frame()

    @property
    def can_refine_masks(self) -> bool:
        """Whether ``refine_masks`` can be called for the last frame."""
        return self._active is not None and self._active.can_refine_masks

    def refine_masks(self, numbers: NDArray[np.int32], table: NDArray[np.float32]) -> RefinedMasks:
        """Refine the masks of instances of the last frame; see ``DeviceMaskRefiner.give``."""
        assert self._active is not None
        return self._active.refine_masks(numbers, table)

    def _device_views(self, settings: ViewSettings) -> tuple[DeviceViews, DeviceMaskNetwork | None]:
        """Return the networks of this lane, which frames of all sizes and classes share."""
        if settings.views_key not in self._views:
            cuda, network, masks = self._network.cuda, settings.network, None
            opened = network.device_context(self._stream, ALL_OUTPUTS if settings.outlines else MAPS)
            views = DeviceViews(cuda, cuda_library(), *opened, settings)
            if settings.outlines:
                masks = DeviceMaskNetwork(cuda, views, *network.device_context(self._stream, (FOREGROUND,)))
            self._views[settings.views_key] = views, masks
        return self._views[settings.views_key]

    def _captured_frame(
        self, shape: tuple[int, ...], settings: ClusterSettings | None, view_settings: ViewSettings | None
    ) -> CapturedFrame:
        key = (shape, settings and settings.key, view_settings and view_settings.key)
        if key not in self._captured:
            self._active = None  # the shared context may have another shape after this, even if it fails
            while len(self._captured) >= _MAX_CAPTURED_FRAMES:
                self._release_oldest()
            views = None
            if view_settings is not None:
                views = LaneViews(*self._device_views(view_settings), view_settings.thing_flags)
            context = self._free_context()
            try:
                self._captured[key] = CapturedFrame(
                    self._network, context, self._stream, shape, settings, views
                )
            except BaseException:
                self._free.append(context)
                raise
        self._captured.move_to_end(key)
        captured = self._captured[key]
        if captured is not self._active:
            captured.bind()
            self._active = captured
        return captured

    def _free_context(self) -> Context:
        """Return a context for another frame size: graphs need one of fixed shape."""
        if self._free:
            return self._free.pop()
        return self._network.new_context() if self._network.new_context else self._context

    def _release_oldest(self) -> None:
        captured = self._captured.popitem(last=False)[1]
        if self._network.new_context or not self._captured:
            self._free.append(captured.context)
        captured.release()

    def release(self) -> None:
        """Free graphs and memory."""
        while self._captured:
            self._captured.popitem()[1].release()
        self._active = None
        self._views.clear()
        self._free = [self._context]
