"""Sessions of instance networks in TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, ModelError
from ..gpu.execution_context import Context, run_context, shape_tuple
from .engine_file import checked_plan
from .instance_session import InstanceInfo, InstanceSession
from .tensorrt_plan import OpenedPlan


class EngineInstanceSession(InstanceSession):
    """An instance network in TensorRT, for views in host memory and on the GPU.

    Args:
        path: NAME.engine, built from an instance network.

    Raises:
        EngineError, MissingDependencyError: see ``open_session``. ModelError: it is an engine of another kind
            of network.
    """

    def __init__(self, path: Path) -> None:
        plan, record = checked_plan(path)
        if "instance_format" not in record["model"]:
            raise ModelError(
                f"{path} is no engine of an instance network: `tfiseg build` makes one from the output of "
                "`tfiseg train instance`"
            )
        self._opened = opened = OpenedPlan(path, plan, record)
        self.cuda = opened.cuda
        self.types, _, (max_batch, side, *_) = opened.interface("views")
        info = InstanceInfo.from_json(json.dumps(record["model"]), path)
        super().__init__(path, info, side, list(self.types), max_batch)
        self._max_views = max_batch
        with self.cuda.current():
            self._context, self._stream = opened.context(), self.cuda.stream()
        self._lock = Lock()
        self._set_up: set[int] = set()
        self._memory: dict[str, Any] = {}
        self._size: dict[str, int] = {}

    def set_up(self) -> None:
        """Save the kernels that TensorRT-RTX compiled for the next start."""
        self._opened.set_up()

    def close(self) -> None:
        """Free the memory of calls; the engine is freed with the object."""
        with self._lock, self.cuda.current():
            self._memory.clear()

    @property
    def on_gpu(self) -> bool:
        return True

    def device_context(
        self, stream: Any, outputs: tuple[str, ...]
    ) -> tuple[Context, dict[str, np.dtype[Any]]]:
        return self._opened.context(), self.types

    def _run_batch(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        # few sizes: RTX compiles kernels for each
        count = min(1 << (len(views) - 1).bit_length(), self._max_views)
        with self._lock, self.cuda.current():
            given = {
                "views": np.zeros((count, *views.shape[1:]), np.uint8),
                "masks": np.zeros((count, *masks.shape[1:]), np.uint8),
            }
            given["views"][: len(views)], given["masks"][: len(views)] = views, masks
            if not all(self._context.set_input_shape(name, array.shape) for name, array in given.items()):
                raise EngineError(
                    f"{self.path} doesn't support {count} views of {views.shape[1]} px per call"
                )
            found = {
                name: np.empty(shape_tuple(self._context.get_tensor_shape(name)), kind)
                for name, kind in self.types.items()
            }
            for name, array in (given | found).items():
                self._context.set_tensor_address(name, self._allocate(name, array.nbytes))
            for name, array in given.items():
                self.cuda.upload(int(self._memory[name]), array, self._stream)
            run_context(self._context, self._stream.handle, self.path)
            for name in outputs:
                self.cuda.download(found[name], int(self._memory[name]), self._stream)
            self._stream.synchronize()
            if count not in self._set_up:
                self._set_up.add(count)
                self.set_up()
        return [found[name][: len(views)].astype(np.float32) for name in outputs]

    def _allocate(self, name: str, size: int) -> int:
        """Return the address of a buffer, kept because freeing it synchronizes the GPU."""
        if name not in self._memory or self._size[name] < size:
            self._memory[name], self._size[name] = self.cuda.allocate(size), size
        return int(self._memory[name])
