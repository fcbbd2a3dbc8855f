"""Sessions of networks in ONNX Runtime, with their maps in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...plugins.native import fit_frame
from .model_variants import AS_IS, Variant
from .native_preprocessing import SMALL, split_preprocessing
from .onnx_runtime import open_onnx, read_metadata, run_session
from .session import DEFAULT_PROVIDERS, check_interface, check_maps, parse_info


def _read(path: Path, variant: Variant) -> bytes | None:
    try:
        return variant.read(path)
    except OSError:  # ONNX Runtime reports the error
        return None


class OnnxSession:
    """A network in ONNX Runtime.

    Args:
        path: model in tfiseg's format: input ``frame`` uint8 (1, H, W, 3) BGR of any size, output ``logits``
            (1, C, h, w).
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, by priority.
        native: remove the preprocessing from the graph, if possible; ``preprocessing`` then describes it.
            None: on a CPU only.

    Raises:
        ModelError: the file is missing, is no ONNX file, or is not in tfiseg's format.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        provider_options: Sequence[dict[str, str]] | None = None,
        variant: Variant = AS_IS,
        native: bool | None = None,
    ) -> None:
        self.path = Path(path)
        if native is None:
            native = [*providers] == [*DEFAULT_PROVIDERS] and provider_options is None
        content = _read(self.path, variant) if native or variant != AS_IS else None
        parts = split_preprocessing(content) if native and content is not None else None
        self.preprocessing = parts[0] if parts is not None else None
        if parts is not None:
            content = parts[1]
        elif variant == AS_IS:  # ONNX Runtime reads the file itself: weights may be in other files
            content = None
        self.session = open_onnx(self.path, threads, providers, provider_options, content)
        self.info = parse_info(read_metadata(self.session, self.path), self.path)
        names = [
            "frame" if self.preprocessing and i.name == SMALL else i.name for i in self.session.get_inputs()
        ]
        self._outputs = [o.name for o in self.session.get_outputs()]
        check_interface(self.path, names, self._outputs)

    def has(self, output: str) -> bool:
        return output in self._outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the maps of an image uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        if self.preprocessing is None:
            values = run_session(self.session, self._outputs, {"frame": image[None]}, self.path)
        else:
            small = fit_frame(image, self.preprocessing.size_hw((image.shape[0], image.shape[1])))
            values = run_session(self.session, self._outputs, {SMALL: small[None]}, self.path)
        maps = dict(zip(self._outputs, values, strict=True))
        check_maps(self.path, self.info, maps)
        return maps

    def close(self) -> None:
        """Do nothing: memory is freed with the object."""
