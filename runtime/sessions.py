"""Network sessions: a frame in, the network's maps out. One class per engine kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, ModelError
from .engine_file import SUFFIX, check_content, check_machine, read_sidecar
from .machine import this_machine

FORMAT_VERSION = 1
METADATA_KEY = "tfiseg"
DEFAULT_MODEL = Path(__file__).parent / "models" / "tfiseg-voc21.onnx"
DEFAULT_FRAME_MODEL = DEFAULT_MODEL.with_name("tfiseg-voc21-frame.onnx")
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
# it quantises what a model leaves in float, one scale per tensor, and reads float16 biases wrongly (onnxruntime 1.21 to 1.32 at least)
UNWANTED_OPTIMIZERS = ("WeightBiasQuantization",)


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself (``metadata_props["tfiseg"]``, JSON)."""

    class_names: tuple[str, ...]
    things: tuple[int, ...]
    stride: int
    extra: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(text: str, source: str) -> ModelInfo:
        """Read the metadata; raises ModelError naming what is wrong with it."""
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ModelError(f"{source} has tfiseg format {version}, this version reads {FORMAT_VERSION}: export it again")
            info = ModelInfo(tuple(data["class_names"]), tuple(data["things"]), int(data["stride"]), data)
        except (json.JSONDecodeError, KeyError, TypeError) as wrong:
            raise ModelError(f"{source}: its tfiseg metadata is damaged ({wrong!r}): export it again") from wrong
        return info


def open_onnx(path: Path, threads: int, providers: Sequence[str]) -> Any:
    """An ``onnxruntime.InferenceSession`` as tfiseg wants it; raises ModelError naming what keeps it from starting."""
    import onnxruntime

    if not path.exists():
        raise ModelError(f"there is no model {path}; leave `model` out to use the network that comes with tfiseg")
    missing = [p for p in providers if p not in onnxruntime.get_available_providers()]
    if missing:
        raise ModelError(
            f"ONNX Runtime has no provider {missing}; this installation has {onnxruntime.get_available_providers()}; "
            "GPU providers come with onnxruntime-gpu in place of onnxruntime"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads may spin while a network runs, but not between frames: there are clustering and drawing to do on the same cores
    # (2 cores, ms per frame: 10.5 so, 12.9 without spinning, 18.9 with spinning throughout, which is the default)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers), disabled_optimizers=list(UNWANTED_OPTIMIZERS))
    except Exception as wrong:  # onnxruntime's errors share no base class
        raise ModelError(f"ONNX Runtime can't load {path}: {wrong}") from wrong
    if session.get_providers()[0] != providers[0]:  # ONNX Runtime falls back without an error
        raise ModelError(
            f"{providers[0]} could not start, ONNX Runtime fell back to {session.get_providers()[0]}: "
            "check that its libraries (CUDA, cuDNN, TensorRT) are installed in the versions that it wants"
        )
    return session


class OnnxSession:
    """A network through ONNX Runtime.

    Args:
        path: model in tfiseg's format: input ``frame`` uint8 (1, H, W, 3) BGR of any size, output ``logits`` (1, C, h, w).
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, first choice first.

    Raises:
        ModelError: the file is missing, no ONNX, or not in tfiseg's format.
    """

    def __init__(self, path: str | Path, threads: int = 0, providers: Sequence[str] = DEFAULT_PROVIDERS) -> None:
        self.path = Path(path)
        self._session = open_onnx(self.path, threads, providers)
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelError(
                f"{self.path} has no tfiseg metadata: to use your own network, run it yourself and hand its logits to tfiseg.cluster "
                "(samples/own_network.py shows how), or write it in tfiseg's format (docs/architecture.md)"
            )
        self.info = ModelInfo.from_json(text, str(self.path))
        names = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]
        if names != ["frame"] or "logits" not in self._outputs:
            raise ModelError(f"{self.path} has inputs {names} and outputs {self._outputs}; wanted input 'frame' and output 'logits'")

    def has(self, output: str) -> bool:
        """Whether the network gives this map."""
        return output in self._outputs

    def infer(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The network's maps for one picture uint8 (H, W, 3) BGR: name -> float32 (1, channels, h, w)."""
        values = self._session.run(self._outputs, {"frame": image[None]})
        return dict(zip(self._outputs, values, strict=True))


def open_session(path: str | Path, threads: int = 0, providers: Sequence[str] = DEFAULT_PROVIDERS) -> OnnxSession:
    """The session for a model file. An engine's record and content are checked before TensorRT would see a byte of it.

    Raises:
        ModelError: see ``OnnxSession``. EngineError: an engine that is damaged, not for this machine, or can't be run yet.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        return OnnxSession(path, threads, providers)
    record = read_sidecar(path)
    check_content(path, record)
    check_machine(path, record, this_machine())
    raise EngineError(
        f"{path} fits this machine, but this version of tfiseg builds, proves and checks engines and does not run them yet: "
        f"use {record['built_from']['onnx']}, from which it was built, or TensorRT's own runtime"
    )
