"""Sessions of instance networks in ONNX Runtime, on the CPU or by its CUDA provider."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ..gpu.execution_context import ALL_OUTPUTS, FOREGROUND, MAPS, Context
from .instance_session import InstanceInfo, InstanceSession
from .onnx_binding import BoundContext, stream_options
from .onnx_bytes import with_outputs
from .onnx_runtime import open_onnx, read_metadata, run_session
from .session import CUDA_PROVIDER, DEFAULT_PROVIDERS


class OnnxInstanceSession(InstanceSession):
    """An instance network in ONNX Runtime.

    Args:
        path: model that ``tfiseg train instance`` exported.
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, by priority.

    Raises:
        ModelError: the file is missing, is no ONNX file, or is no instance network of this version.
    """

    def __init__(self, path: Path, threads: int = 0, providers: Sequence[str] = DEFAULT_PROVIDERS) -> None:
        self.providers = tuple(providers)
        self._open = partial(open_onnx, path, threads)
        self._whole = whole = self._open(providers)
        info = InstanceInfo.from_json(read_metadata(whole, path) or "{}", path)
        outputs = [o.name for o in whole.get_outputs()]
        inputs = {i.name: i.shape for i in whole.get_inputs()}
        if {*inputs} != {"views", "masks"} or not {*MAPS} <= {*outputs} or len(inputs["views"]) != 4:
            raise ModelError(
                f"{path} has inputs {[*inputs]} and outputs {outputs}: expected views (K, S, S, 3) and "
                f"masks, and {', '.join(MAPS)}"
            )
        super().__init__(path, info, inputs["views"][1], outputs)
        # ONNX Runtime computes all outputs of a session, so each set of outputs has its own session
        self._sessions: dict[tuple[str, ...], Any] = {ALL_OUTPUTS if self.can_refine_masks else MAPS: whole}
        self._opening = Lock()

    @property
    def on_gpu(self) -> bool:
        return self.providers[0] == CUDA_PROVIDER

    def prepare(self, maps: bool, outlines: bool, maps_alone: bool = False) -> None:
        super().prepare(maps, outlines, maps_alone)
        if outlines:
            self._session_for((FOREGROUND,))
        if maps:
            self._session_for(ALL_OUTPUTS if outlines else MAPS)
        if maps_alone:
            self._session_for(MAPS)

    def device_context(
        self, stream: Any, outputs: tuple[str, ...]
    ) -> tuple[Context, dict[str, np.dtype[Any]]]:
        if not self.on_gpu:
            raise ModelError(f"{self.path} runs on the CPU")
        part = with_outputs(self.path.read_bytes(), outputs)
        context = BoundContext(self._open(self.providers, stream_options(self.providers, stream), part))
        return context, context.types

    def _session_for(self, outputs: tuple[str, ...]) -> Any:
        with self._opening:
            if outputs not in self._sessions:
                part = with_outputs(self.path.read_bytes(), outputs)
                self._sessions[outputs] = (
                    self._whole if part is None else self._open(self.providers, model=part)
                )
            return self._sessions[outputs]

    def _run_batch(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = run_session(
            self._session_for(outputs), outputs, {"views": views, "masks": masks}, self.path
        )
        for name, value in zip(outputs, found, strict=True):
            expected = self.map_shape(name, len(views), views.shape[1])
            if value.shape != expected:
                raise ModelError(
                    f"{self.path}: its output {name} has the shape {value.shape}, expected {expected}"
                )
        return found
