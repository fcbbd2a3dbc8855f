"""Networks through ONNX Runtime, their maps in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...plugins.native import fit_frame
from .model_info import ModelInfo
from .model_variants import AS_IS, Variant
from .native_preprocessing import SMALL, without_front
from .onnx_runtime import metadata_of, open_onnx, run_session
from .session import DEFAULT_PROVIDERS


def _read(path: Path, variant: Variant) -> bytes | None:
    try:
        return variant.read(path)
    except OSError:  # ONNX Runtime says what is wrong with it
        return None


class OnnxSession:
    """A network through ONNX Runtime.

    Args:
        path: model in tfiseg's format: input ``frame`` uint8 (1, H, W, 3) BGR of any size, output ``logits``
            (1, C, h, w).
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, first choice first; provider_options: of each.
        variant: what to change in the file while it is loaded.

    Raises:
        ModelError: the file is missing, no ONNX, or not in tfiseg's format.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        provider_options: Sequence[dict[str, str]] | None = None,
        variant: Variant = AS_IS,
    ) -> None:
        self.path = Path(path)
        on_cpu = [*providers] == [*DEFAULT_PROVIDERS] and provider_options is None
        content = _read(self.path, variant) if on_cpu or variant != AS_IS else None
        parts = without_front(content) if on_cpu and content is not None else None
        self._front = parts[0] if parts is not None else None
        if parts is not None:
            content = parts[1]
        elif variant == AS_IS:  # ONNX Runtime reads the file itself: its weights may lie in further files
            content = None
        self.session = open_onnx(self.path, threads, providers, provider_options, content)
        text = metadata_of(self.session, self.path)
        if text is None:
            raise ModelError(
                f"{self.path} has no tfiseg metadata: to use your own network, run it yourself and hand its "
                "logits to tfiseg.cluster "
                "(samples/own_network.py shows how), or write it in tfiseg's format (docs/architecture.md)"
            )
        self.info = ModelInfo.from_json(text, str(self.path))
        names = ["frame" if self._front and i.name == SMALL else i.name for i in self.session.get_inputs()]
        self._outputs = [o.name for o in self.session.get_outputs()]
        if names != ["frame"] or "logits" not in self._outputs:
            raise ModelError(
                f"{self.path} has inputs {names} and outputs {self._outputs}; wanted input 'frame' and "
                "output 'logits'"
            )

    def has(self, output: str) -> bool:
        """Whether the network gives this map."""
        return output in self._outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The network's maps for one picture uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        if self._front is None:
            values = run_session(self.session, self._outputs, {"frame": image[None]}, self.path)
        else:
            small = fit_frame(image, self._front.size_hw((image.shape[0], image.shape[1])))
            values = run_session(self.session, self._outputs, {SMALL: small[None]}, self.path)
        maps = dict(zip(self._outputs, values, strict=True))
        self._check(maps)
        return maps

    def _check(self, maps: dict[str, NDArray[np.float32]]) -> None:
        """Raise ModelError where a map can't be one of a frame's."""
        for name, value in maps.items():
            is_map = value.ndim == 4 and value.shape[0] == 1 and min(value.shape) >= 1
            if not is_map or not np.issubdtype(value.dtype, np.floating):
                raise ModelError(
                    f"{self.path}: its output {name} is {value.dtype} {value.shape}, expected float32 (1, C, "
                    "h, w)"
                )
        classes, names = maps["logits"].shape[1], len(self.info.class_names)
        if classes != names:
            raise ModelError(
                f"{self.path} gives logits of {classes} classes, its metadata names {names}: export it again"
            )

    def close(self) -> None:
        """Nothing is held that outlives this object."""
