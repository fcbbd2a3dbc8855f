"""Networks through ONNX Runtime, their maps in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...plugins.native import fit_frame
from .model_info import METADATA_KEY, ModelInfo
from .model_variants import AS_IS, Variant
from .native_preprocessing import SMALL, without_front
from .session import DEFAULT_PROVIDERS

# it quantises what a model leaves in float, one scale per tensor, and reads float16 biases wrongly
# (onnxruntime 1.21 to 1.32 at least)
UNWANTED_OPTIMIZERS = ("WeightBiasQuantization",)


def open_onnx(
    path: Path,
    threads: int,
    providers: Sequence[str],
    provider_options: Sequence[dict[str, str]] | None = None,
    model: bytes | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` as tfiseg wants it, of ``model`` where that stands for what lies at
    ``path``; raises ModelError naming what keeps it from starting."""
    import onnxruntime

    if not path.exists():
        raise ModelError(
            f"there is no model {path}; leave `model` out to use the network that comes with tfiseg"
        )
    missing = [p for p in providers if p not in onnxruntime.get_available_providers()]
    if missing:
        raise ModelError(
            f"ONNX Runtime has no provider {missing}; this installation has {onnxruntime.get_available_providers()}; "
            "GPU providers come with onnxruntime-gpu in place of onnxruntime"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads may spin while a network runs, but not between frames: there are clustering and drawing to
    # do on the same cores
    # (2 cores, ms per frame: 10.5 so, 12.9 without spinning, 18.9 with spinning throughout, which is the
    # default)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            model or str(path),
            options,
            list(providers),
            provider_options,
            disabled_optimizers=list(UNWANTED_OPTIMIZERS),
        )
    except Exception as wrong:  # onnxruntime's errors share no base class
        raise ModelError(f"ONNX Runtime can't load {path}: {wrong}") from wrong
    if model is not None:
        # onnxruntime keeps them for a session that falls back to another provider: a copy of all weights
        session._model_bytes = None
    if session.get_providers()[0] != providers[0]:  # ONNX Runtime falls back without an error
        raise ModelError(
            f"{providers[0]} could not start, ONNX Runtime fell back to {session.get_providers()[0]}: "
            "check that its libraries (CUDA, cuDNN, TensorRT) are installed in the versions that it wants"
        )
    return session


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
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelError(
                f"{self.path} has no tfiseg metadata: to use your own network, run it yourself and hand its logits to tfiseg.cluster "
                "(samples/own_network.py shows how), or write it in tfiseg's format (docs/architecture.md)"
            )
        self.info = ModelInfo.from_json(text, str(self.path))
        names = ["frame" if self._front and i.name == SMALL else i.name for i in self.session.get_inputs()]
        self._outputs = [o.name for o in self.session.get_outputs()]
        if names != ["frame"] or "logits" not in self._outputs:
            raise ModelError(
                f"{self.path} has inputs {names} and outputs {self._outputs}; wanted input 'frame' and output 'logits'"
            )

    def has(self, output: str) -> bool:
        """Whether the network gives this map."""
        return output in self._outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The network's maps for one picture uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        if self._front is None:
            values = self.session.run(self._outputs, {"frame": image[None]})
        else:
            small = fit_frame(image, self._front.size_hw((image.shape[0], image.shape[1])))
            values = self.session.run(self._outputs, {SMALL: small[None]})
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Nothing is held that outlives this object."""
