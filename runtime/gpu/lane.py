"""Frames in flight: an execution context, a stream, and memory and a CUDA graph for each frame size."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.settings import ClusterSettings
from .captured_frame import CapturedFrame, DeviceNetwork
from .clusterer import cuda_library
from .cuda import device_address
from .execution_context import Context
from .view_refiner import DeviceViews, LookSettings

_KEPT_SHAPES = 3  # frame sizes and settings whose memory and graph are kept


class Lanes:
    """Lanes in the order of requests: a thread that returns a lane waits behind those that wait already."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._free = list(lanes)
        self._count = len(self._free)
        self._waiting: deque[queue.SimpleQueue[Lane | None]] = deque()
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._is_closed = False

    def take(self) -> Lane:
        """Wait for a free lane. Raises EngineError if the session is closed, now or while waiting."""
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
        """Refuse all further requests, and wait until every lane is back."""
        with self._lock:
            self._is_closed = True
            while self._waiting:
                self._waiting.popleft().put(None)
            self._returned.wait_for(lambda: len(self._free) == self._count)


class Lane:
    """What one frame in flight needs: an execution context, a stream, and memory and a graph per frame size
    and settings."""

    def __init__(self, network: DeviceNetwork, context: Context, stream: Any) -> None:
        self._network, self._context, self._stream = network, context, stream
        self._kept: OrderedDict[Any, CapturedFrame] = OrderedDict()
        self._active: CapturedFrame | None = None
        self._views: dict[Any, DeviceViews] = {}
        self._free = [context]  # contexts that belong to no frame size

    def run(
        self, image: Any, settings: ClusterSettings | None, looks: LookSettings | None = None
    ) -> dict[str, NDArray[Any]]:
        """Outputs by name, in pinned memory: valid until the next run."""
        cuda = self._network.cuda
        there = device_address(image)
        shape = self._network.checked_shape(there[1] if there else image.shape)
        fixed = self._fixed(shape, settings, looks)
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
            self._views[looks.views_key] = DeviceViews(self._network.cuda, cuda_library(), *opened, looks)
        return self._views[looks.views_key]

    def _fixed(
        self, shape: tuple[int, ...], settings: ClusterSettings | None, looks: LookSettings | None
    ) -> CapturedFrame:
        key = (shape, settings and settings.key, looks and looks.key)
        if key not in self._kept:
            self._active = None  # the shared context may have another shape after this, even if it fails
            while len(self._kept) >= _KEPT_SHAPES:
                self._release_oldest()
            views = None if looks is None else (self._views_of(looks), looks.wanted)
            context = self._free_context()
            try:
                self._kept[key] = CapturedFrame(self._network, context, self._stream, shape, settings, views)
            except BaseException:
                self._free.append(context)
                raise
        self._kept.move_to_end(key)
        fixed = self._kept[key]
        if fixed is not self._active:
            fixed.bind()
            self._active = fixed
        return fixed

    def _free_context(self) -> Context:
        """Return a context for one more frame size: a captured graph needs one that keeps its shape."""
        if self._free:
            return self._free.pop()
        return self._network.new_context() if self._network.new_context else self._context

    def _release_oldest(self) -> None:
        fixed = self._kept.popitem(last=False)[1]
        if self._network.new_context or not self._kept:
            self._free.append(fixed.context)
        fixed.release()

    def release(self) -> None:
        """Free graphs and memory."""
        while self._kept:
            self._kept.popitem()[1].release()
        self._active = None
        self._views.clear()
        self._free = [self._context]
