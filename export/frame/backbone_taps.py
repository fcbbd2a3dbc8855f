"""Find the tensors of a semantic network that feed the instance heads: one per stride.

The search runs the network once and needs no layer names, so it works for any network in tfiseg's format.
Weights are not changed, so class maps stay identical bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...errors import ModelError
from ...runtime.networks.onnx_runtime import start_session
from ..frame_graph import POSTPROCESSING_PREFIX

INPUT = "image"  # result of the preprocessing (frame_graph.py)
_FINEST, _COARSEST = 4, 32  # strides of taps
_MIN_CHANNELS = 8
_FRAME_HW = (288, 384)
_SLACK = 1.5  # tolerance factor between strides, which double


@dataclass(frozen=True)
class Tap:
    """A float tensor (1, ``channels``, H / ``stride``, W / ``stride``) of the network."""

    name: str
    channels: int
    stride: int


def find_taps(model: onnx.ModelProto) -> list[Tap]:
    """Find the taps of a network in tfiseg's format, fine to coarse.

    They are the encoder's last tensor of each stride from 4 to 32, then the decoder's last tensor before the
    logits if its stride is 4. Sizes are measured by running the network.

    Raises:
        ModelError: the network has no features at stride 4, or no preprocessing of tfiseg.
    """
    shapes = _shapes(model)
    if INPUT not in shapes:
        raise ModelError(f"the network has no tensor {INPUT!r}: export it with this version of tfiseg")
    height = max(shapes[INPUT][2:]) if shapes[INPUT][1] == 3 else max(shapes[INPUT][1:3])
    names = [
        name
        for name in _from_image(model)
        if len(shapes[name]) == 4 and not name.startswith(POSTPROCESSING_PREFIX)
    ]
    stride_of = {name: height / max(shapes[name][2:]) for name in names}
    at = {name: k for k, name in enumerate(names)}
    logits = shapes["logits"]
    last: dict[int, str] = {}
    deepest = 1.0
    for name in names:
        deepest = max(deepest, stride_of[name])
        stride = round(2.0 ** round(np.log2(stride_of[name])))
        encodes = stride_of[name] > deepest / _SLACK  # encoder: at the deepest stride so far
        fits = (
            abs(stride_of[name] - stride) < 0.1 * stride
            and _FINEST <= stride <= _COARSEST
            and shapes[name][1] >= _MIN_CHANNELS
        )
        if encodes and fits:
            last[stride] = name
    if _FINEST not in last:
        raise ModelError(
            "the network has no features at stride 4, which instance heads need; use refine='components'"
        )
    taps = [Tap(name, shapes[name][1], stride) for stride, name in sorted(last.items())]
    decoder = [
        n
        for n in names
        if at[n] > max(at[t.name] for t in taps) and shapes[n][2:] == shapes[taps[0].name][2:]
    ]
    decoder = [n for n in decoder if shapes[n][1] >= _MIN_CHANNELS and shapes[n][1] != logits[1]]
    if decoder:
        taps.append(Tap(decoder[-1], shapes[decoder[-1]][1], _FINEST))
    return taps


def _from_image(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that depend on the image, in the graph's order."""
    known, found = {INPUT}, []
    for node in model.graph.node:
        if known & set(node.input):
            known |= set(node.output)
            found += [name for name in node.output if name]
    return found


def _with_outputs(model: onnx.ModelProto, taps: Sequence[Tap]) -> onnx.ModelProto:
    """Return the network with its taps as additional outputs."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    outputs = {o.name for o in tapped.graph.output}
    tapped.graph.output.extend(
        helper.make_tensor_value_info(t.name, TensorProto.FLOAT, None) for t in taps if t.name not in outputs
    )
    return tapped


def start_model_session(model: onnx.ModelProto | Path, threads: int = 0) -> Any:
    """Start an ONNX Runtime session of a model in memory or in a file."""
    return start_session(model.SerializeToString() if isinstance(model, onnx.ModelProto) else model, threads)


class FeatureReader:
    """Computes a network's features at its taps with ONNX Runtime.

    Each process opens the session on first use, because a session does not survive a fork.

    Args:
        taps: see ``find_taps``.
        others: names of additional outputs, which come first.
        threads: CPU threads; 0 = ONNX Runtime's own choice.
    """

    def __init__(
        self, model: onnx.ModelProto, taps: Sequence[Tap], others: Sequence[str] = (), threads: int = 0
    ) -> None:
        self._names = [*others, *(t.name for t in taps)]
        self._model = _with_outputs(model, taps)
        self._threads = threads
        self._session: Any = None

    def __call__(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the features of an image uint8 (H, W, 3) BGR: float32 (1, C, h, w) each."""
        if self._session is None:
            self._session = start_model_session(self._model, self._threads)
        values: list[NDArray[np.float32]] = self._session.run(self._names, {"frame": image[None]})
        return values


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every node's result for a blank frame, in the graph's order."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    names = [name for node in tapped.graph.node for name in node.output if name]
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = start_model_session(tapped).run(names, {"frame": np.zeros((1, *_FRAME_HW, 3), np.uint8)})
    return {name: tuple(np.shape(v)) for name, v in zip(names, values, strict=True)}
