"""Networks through ONNX Runtime on an NVIDIA GPU, for those that TensorRT can't serve: its CUDA provider works on our memory and
stream, and the operator clusters right behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cuda import Cuda
from .gpu_session import GpuSession
from .sessions import CUDA_PROVIDER, OnnxSession

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ANY_SIZE = ((1, 1), (1 << 15, 1 << 15))


class OnnxGpuSession(GpuSession):
    """A network through ONNX Runtime's CUDA provider, its outputs staying on the GPU.

    Args:
        path: model in tfiseg's format. threads: CPU threads for what the provider leaves to the CPU.
        providers: the first is CUDA's.

    Raises:
        ModelError: see ``OnnxSession``. EngineError, MissingDependencyError: see ``Cuda``.
    """

    def __init__(self, path: Path, threads: int, providers: Sequence[str], device: str = "cuda") -> None:
        cuda = Cuda()
        with cuda.current():
            stream = cuda.stream()
            # what the provider enqueues is then in order with our copies and kernels, without waiting in between
            options = [{"user_compute_stream": str(stream.handle)} if p == CUDA_PROVIDER else {} for p in providers]
            opened = OnnxSession(path, threads, providers, options)
            types = {o.name: np.dtype(_TYPES[o.type]) for o in opened.session.get_outputs()}
            context = _BoundContext(opened.session, types, device)
        # one lane: a second stream would need a second session, weights and all
        super().__init__(path, opened.info, cuda, [(context, stream)], types, _ANY_SIZE)


class _BoundContext:
    """ONNX Runtime bound to addresses, with the calls of TensorRT's execution context."""

    def __init__(self, session: Any, types: dict[str, np.dtype[Any]], device: str) -> None:
        self._session, self._types, self._device = session, types, device
        self._frame_shape: tuple[int, ...] = ()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._known: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
        self._binding: Any = None

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._frame_shape = tuple(shape)
        if self._frame_shape not in self._known:  # run once to see what comes out
            values = self._session.run(list(self._types), {name: np.zeros(self._frame_shape, np.uint8)})
            self._known[self._frame_shape] = {n: v.shape for n, v in zip(self._types, values, strict=True)}
        self._shapes = self._known[self._frame_shape]
        self._binding = self._session.io_binding()
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name in self._types:
            self._binding.bind_output(name, self._device, 0, self._types[name], self._shapes[name], address)
        else:
            self._binding.bind_input(name, self._device, 0, np.uint8, self._frame_shape, address)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(self._binding, options)
        return True
