"""The networks that can be exported: loaded as ONNX, and run by their own library for the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...errors import InputError, ModelError, check_choice
from ...runtime.networks.onnx_runtime import start_session
from ..frame_graph import PixelFormat
from .onnx_network import OPSET, load_network, recognize_input, recognize_output
from .output_reading import OUTPUT_KINDS, OutputKind

TORCH_KINDS = ("torchvision", "smp", "hf", "python")
_LOGIT_KINDS = ("torchvision", "hf")


@dataclass(frozen=True)
class ExportSettings:
    """Options of an export; None: the value of the source, or a default."""

    # size that frames are scaled to; default: the source's own, else 512 x 512
    input_size_hw: tuple[int, int] | None = None
    # mean, std, scale, rgb: see ``PixelFormat``; default for an ONNX file: RGB in 0..1, or 0..255 if its
    # input is uint8
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float | None = None
    rgb: bool | None = None
    # source of photos to compare labels on (see ``open_source``); default: 4 synthetic frames
    photos: str | None = None
    # name of a known list, a file with one name per line, or names separated by commas
    class_names: str | None = None
    things: str | None = None  # countable classes, names or ids separated by commas
    # training_data, licence: sentences for the model's metadata
    training_data: str | None = None
    licence: str | None = None
    opset: int | None = None  # opset of the result; default: that of the ONNX file, 18 for PyTorch
    output_name: str | None = None  # output of an ONNX file that holds the classes
    weights: Path | None = None  # state dict for a PyTorch network
    random_weights: bool = False  # keep random weights if the source has none
    # how to read the output; default: from the evidence (see ``output_reading``)
    output_kind: OutputKind | None = None
    # probability above which a channel of a sigmoid output is a class, one or one per channel; default: 0.5
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.output_kind is not None:
            check_choice("output_kind", self.output_kind, OUTPUT_KINDS)


@dataclass(frozen=True)
class Original:
    """The original network, as ONNX and as a function of its library on the result of ``network_input``.

    ``known_logits``: its library documents that its outputs of several channels are logits."""

    model: onnx.ModelProto
    run: Callable[[NDArray[Any]], NDArray[Any]]
    pixels: PixelFormat
    class_names: tuple[str, ...] | None = None
    training_data: str | None = None
    known_logits: bool = False


def load_original(source: str, options: ExportSettings, names: Sequence[str] | None) -> Original:
    """Load a network; see ``export_any`` for sources and errors."""
    return (_from_torch if is_torch(source) else _from_onnx)(source, options, names)


def is_torch(source: str) -> bool:
    return source.partition(":")[0] in TORCH_KINDS


def _from_onnx(source: str, options: ExportSettings, names: Sequence[str] | None) -> Original:
    if options.weights or options.random_weights:
        raise InputError(
            "--weights and --random-weights are for PyTorch networks; an ONNX file has its own weights"
        )
    model = load_network(Path(source))
    network = recognize_input(model)
    output = recognize_output(model, options.output_name)
    session = start_session(Path(source))
    half = session.get_inputs()[0].type == "tensor(float16)"
    if network.uint8 and any(v is not None for v in (options.mean, options.std, options.scale)):
        raise InputError(f"{source} accepts bytes; omit --mean, --std and --scale")
    pixels = _with_options(PixelFormat(layout=network.layout, uint8=network.uint8), options)

    def run(picture: NDArray[Any]) -> NDArray[Any]:
        try:
            value = session.run([output], {network.name: picture.astype(np.float16) if half else picture})[0]
        except Exception as wrong:  # onnxruntime's errors share no base class
            raise ModelError(
                f"ONNX Runtime can't run {source} on an image {picture.shape}: {wrong}"
            ) from wrong
        return np.asarray(value)

    return Original(model, run, pixels)


def _from_torch(source: str, options: ExportSettings, names: Sequence[str] | None) -> Original:
    import torch

    from .torch_networks import load_torch_network, to_onnx

    if options.output_name:
        raise InputError("--output-name is for ONNX files with several outputs")
    classes = len(names) if names is not None else None
    network = load_torch_network(source, options.weights, options.random_weights, classes)
    size_hw = options.input_size_hw or network.size_hw

    def run(picture: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(network.module(torch.from_numpy(picture)).numpy())

    model = to_onnx(network.module, size_hw, max(options.opset or OPSET, OPSET))
    return Original(
        model,
        run,
        _with_options(network.pixels, options),
        network.class_names,
        network.training_data,
        known_logits=source.partition(":")[0] in _LOGIT_KINDS,
    )


def _with_options(pixels: PixelFormat, options: ExportSettings) -> PixelFormat:
    given = {k: v for k in ("mean", "std", "scale", "rgb") if (v := getattr(options, k)) is not None}
    return replace(pixels, **given)
