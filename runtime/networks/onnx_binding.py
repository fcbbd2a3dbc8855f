"""ONNX Runtime sessions on addresses in GPU memory and a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .native_preprocessing import input_type
from .session import CUDA_PROVIDER

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def stream_options(providers: Sequence[str], stream: Any) -> list[dict[str, str]]:
    """Return options that make the CUDA provider use our stream, without waiting."""
    return [{"user_compute_stream": str(stream.handle)} if p == CUDA_PROVIDER else {} for p in providers]


class BoundContext:
    """An ONNX Runtime session with the interface of TensorRT's execution context.

    ``types`` holds the dtypes of the outputs by name.
    """

    # two ONNX Runtime sessions in one captured graph end the process (onnxruntime issue 32081), and a graph
    # would replay the host callbacks that free ONNX Runtime's staging buffers
    is_capturable = False

    def __init__(self, session: Any, device: str = "cuda") -> None:
        self._session, self._device = session, device
        self.types = {o.name: np.dtype(_TYPES[o.type]) for o in session.get_outputs()}
        self._given: dict[str, tuple[int, ...]] = {}
        self._known: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        self._binding: Any = None

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._given[name] = tuple(shape)
        self._binding = self._session.io_binding()
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        key = tuple(sorted(self._given.items()))
        if key not in self._known:  # a run tells the shapes of the outputs
            zeros = {n: np.zeros(s, input_type(n)) for n, s in self._given.items()}
            values = self._session.run(list(self.types), zeros)
            self._known[key] = {n: v.shape for n, v in zip(self.types, values, strict=True)}
        return self._known[key][name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name in self.types:
            self._binding.bind_output(
                name, self._device, 0, self.types[name], self.get_tensor_shape(name), address
            )
        else:
            self._binding.bind_input(name, self._device, 0, input_type(name), self._given[name], address)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(self._binding, options)
        return True
