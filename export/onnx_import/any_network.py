"""Export any semantic network as ``NAME.onnx`` in tfiseg's format, checked against the original.

All sources take the same way: first to plain ONNX, then through the import of ONNX files. It needs onnx and
onnxsim, and torch for PyTorch networks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import helper

from ...errors import InputError, ModelError
from ...files import whole_file
from ...runtime.networks.model_info import FORMAT_VERSION, METADATA_KEY, weights_digest
from ...runtime.networks.model_variants import Variant
from ...runtime.networks.onnx_runtime import start_session
from ...runtime.networks.onnx_session import OnnxSession
from ...runtime.networks.session import DEFAULT_MODEL
from ..frame_graph import PixelFormat, check_long_side
from .agreement import Agreement, check_frames, compare_labels, labels_of, network_input
from .class_lists import exported_classes, read_class_names
from .network_tail import Tail, class_axis_of, cut_tail, logit_nodes
from .onnx_network import (
    OPSET,
    at_fixed_size,
    attach,
    load_network,
    recognize_input,
    recognize_output,
    with_opset,
)

DEFAULTS = {"default": True, "default-semantic": False}  # whether it has instance heads
TORCH_KINDS = ("torchvision", "smp", "hf", "python")
DEFAULT_SIZE_HW = (512, 512)


@dataclass(frozen=True)
class ExportSettings:
    """Options of an export; None: the value of the source, or a default.

    Args:
        input_size_hw: size that frames are scaled to; default: the source's own, else 512 x 512.
        mean, std, scale, rgb: see ``PixelFormat``; default for an ONNX file: RGB in 0..1, or 0..255 if its
            input is uint8.
        photos: source of photos to compare labels on (see ``open_source``); default: 4 synthetic frames.
        class_names: name of a known list, a file with one name per line, or names separated by commas.
        things: countable classes, names or ids separated by commas.
        training_data, licence: sentences for the model's metadata.
        opset: opset of the result; default: that of the ONNX file, 18 for PyTorch.
        output_name: output of an ONNX file that holds the classes.
        weights: state dict for a PyTorch network.
        random_weights: keep random weights where the source has none.
    """

    input_size_hw: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float | None = None
    rgb: bool | None = None
    photos: str | None = None
    class_names: str | None = None
    things: str | None = None
    training_data: str | None = None
    licence: str | None = None
    opset: int | None = None
    output_name: str | None = None
    weights: Path | None = None
    random_weights: bool = False


@dataclass(frozen=True)
class _Original:
    """The original network: as ONNX, and run by its own library on the result of ``network_input``."""

    model: onnx.ModelProto
    run: Callable[[NDArray[Any]], NDArray[Any]]
    pixels: PixelFormat
    class_names: tuple[str, ...] | None = None
    training_data: str | None = None


def export_default(output: Path, source: str = "default", long_side_px: int | None = None) -> dict[str, Any]:
    """Write the network that comes with tfiseg.

    Args:
        output: NAME.onnx, written whole or not at all.
        source: one of ``DEFAULTS``.
        long_side_px: longer side in pixels that the network scales frames to; default: the model's own.
    """
    if long_side_px is not None:
        check_long_side(long_side_px)
    with _new_model_file(output) as part:
        part.write_bytes(Variant(DEFAULTS[source], long_side_px).read(DEFAULT_MODEL))
        info = OnnxSession(part).info
    return {
        "output": str(output),
        "source": source,
        "bytes": output.stat().st_size,
        "class_names": list(info.class_names),
    }


def export_any(
    source: str, output: Path, options: ExportSettings | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Write any semantic network in tfiseg's format.

    Args:
        source: ``default``, ``default-semantic``, ``torchvision:NAME``, ``smp:ARCH/ENCODER``,
            ``hf:NAME_OR_FOLDER``, ``python:module:function`` or an ONNX file.
        output: NAME.onnx, written whole or not at all.
        quiet: show no progress on stderr.

    Returns:
        Report: output, bytes, input_size_hw, pixels, opset, grid_hw, stride, class_names, things,
        removed (operators removed from the end), photos, label_agreement (minimum over the photos),
        label_agreement_mean, worst_photo, labels_seen (number of different labels), seconds.

    Raises:
        InputError: an option doesn't fit.
        ModelError: the network doesn't load, convert or run, or labels of a photo agree by less than 99.5 %.
        MissingDependencyError: a package isn't installed.
    """
    if source in DEFAULTS:
        return export_default(output, source)
    options = options or ExportSettings()
    began = time.perf_counter()

    def say(text: str) -> None:
        if not quiet:
            print(f"export: {text}", file=sys.stderr)

    frames = check_frames(options.photos)
    names = read_class_names(options.class_names) if options.class_names is not None else None
    with _new_model_file(output) as part:
        say(f"reading {source}")
        original = (_from_torch if is_torch(source) else _from_onnx)(source, options, names)
        _, first = next(iter(frames))
        result = _convert(source, original, options, names, first, say)
        _set_metadata(result, output.stem, source, original, options)
        _save(result.model, part)
        picture = output.with_name(f"{output.stem}-disagreement.png")
        agreement = _compare(result, original, OnnxSession(part), frames, picture, quiet)
    return {
        "output": str(output),
        "source": source,
        "bytes": output.stat().st_size,
        "input_size_hw": list(result.size_hw),
        "pixels": str(original.pixels),
        "opset": max(o.version for o in result.model.opset_import if o.domain in ("", "ai.onnx")),
        "grid_hw": list(result.grid_hw),
        "stride": result.stride,
        "class_names": list(result.class_names),
        "things": list(result.things),
        "removed": result.tail.removed,
        "photos": agreement.photos,
        "label_agreement": agreement.minimum,
        "label_agreement_mean": agreement.mean,
        "worst_photo": agreement.worst,
        "labels_seen": agreement.labels,
        "seconds": round(time.perf_counter() - began, 1),
    }


@dataclass(frozen=True)
class _Conversion:
    """A network in tfiseg's format, and what is needed to compare it with the original.

    ``raw`` is the original's result for the first frame, ``axis`` its class axis, ``background`` whether a
    background class was prepended, and ``threshold`` separates the two classes of a network with one channel.
    """

    model: onnx.ModelProto
    size_hw: tuple[int, int]
    tail: Tail
    grid_hw: tuple[int, int]
    class_names: tuple[str, ...]
    things: tuple[int, ...]
    background: bool
    raw: NDArray[Any]
    axis: int | None
    threshold: float

    @property
    def stride(self) -> int:
        return max(1, round(self.size_hw[0] / self.grid_hw[0]))


def _convert(
    source: str,
    original: _Original,
    options: ExportSettings,
    names: Sequence[str] | None,
    first: NDArray[np.uint8],
    say: Callable[[str], None],
) -> _Conversion:
    """Put the original between preprocessing and logits; ``first`` is a frame to run it on."""
    model = with_opset(original.model, options.opset)
    network = recognize_input(model)
    if network.size_hw is None:
        network = replace(network, size_hw=options.input_size_hw or DEFAULT_SIZE_HW)
    elif options.input_size_hw not in (None, network.size_hw):
        h, w = network.size_hw
        raise InputError(f"{source} accepts images of {h}x{w} only; omit --input-size")
    assert network.size_hw is not None
    say(f"simplifying {len(model.graph.node)} operators")
    model = at_fixed_size(model, network, recognize_output(model, options.output_name))
    tail = cut_tail(model, network)
    raw = original.run(network_input(first, network.size_hw, original.pixels))
    is_map = "ArgMax" in tail.removed or tail.class_axis is None
    axis = None if is_map else class_axis_of(raw.shape, network.size_hw, network.layout)
    probabilities = not (is_map or tail.squashed) and _are_probabilities(raw, axis)
    labels, things, background = exported_classes(tail, names or original.class_names, options.things)
    post = logit_nodes(
        tail,
        probabilities=probabilities,
        map_classes=len(labels) - background if tail.class_axis is None else None,
        background=background,
    )
    model = attach(model, network, original.pixels, tail.tensor, post)
    grid_hw = _set_grid(model, first)
    threshold = 0.5 if probabilities or "Sigmoid" in tail.removed else 0.0
    return _Conversion(
        model, network.size_hw, tail, grid_hw, labels, things, background, raw, axis, threshold
    )


def _set_metadata(
    result: _Conversion, name: str, source: str, original: _Original, options: ExportSettings
) -> None:
    metadata = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "class_names": list(result.class_names),
        "things": list(result.things),
        "stride": result.stride,
        "input_size_hw": list(result.size_hw),
        "clustering": {"split": "auto"},
        "source": source if is_torch(source) else Path(source).name,
        "training_data": options.training_data or original.training_data or "not stated",
        "licence": options.licence or "not stated",
        "weights_sha256": weights_digest(result.model.graph.initializer),
    }
    helper.set_model_props(result.model, {METADATA_KEY: json.dumps(metadata)})


def _compare(
    result: _Conversion,
    original: _Original,
    session: OnnxSession,
    frames: Any,
    picture: Path,
    quiet: bool,
) -> Agreement:
    """Compare the labels of the original and the exported network at the size of the original's output."""
    own_hw = labels_of(result.raw, None, result.axis, result.threshold).shape
    # aligned corners that the original leaves to its user matter only after upsampling
    corner_aligned = result.tail.corners_hw is not None and own_hw != result.tail.corners_hw
    compared_hw = result.tail.corners_hw if corner_aligned else own_hw

    def original_labels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
        scores = original.run(network_input(image, result.size_hw, original.pixels))
        return labels_of(scores, compared_hw, result.axis, result.threshold, corner_aligned)

    def exported_labels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
        return labels_of(session.infer(image)["logits"], compared_hw) - result.background

    return compare_labels(original_labels, exported_labels, frames, picture, quiet)


def is_torch(source: str) -> bool:
    return source.partition(":")[0] in TORCH_KINDS


@contextmanager
def _new_model_file(output: Path) -> Iterator[Path]:
    """Yield a file to write; it becomes ``output`` if the block succeeds and is removed otherwise."""
    if output.suffix != ".onnx":
        raise InputError(f"the output {output} must be called NAME.onnx")
    with whole_file(output) as part:
        try:
            part.touch()
        except OSError as wrong:
            raise InputError(f"can't write {output}: {wrong.strerror}") from wrong
        yield part


def _from_onnx(source: str, options: ExportSettings, names: Sequence[str] | None) -> _Original:
    if options.weights or options.random_weights:
        raise InputError(
            "--weights and --random-weights are for PyTorch networks; an ONNX file brings its own"
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

    return _Original(model, run, pixels)


def _from_torch(source: str, options: ExportSettings, names: Sequence[str] | None) -> _Original:
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
    return _Original(
        model, run, _with_options(network.pixels, options), network.class_names, network.training_data
    )


def _with_options(pixels: PixelFormat, options: ExportSettings) -> PixelFormat:
    asked = {k: v for k in ("mean", "std", "scale", "rgb") if (v := getattr(options, k)) is not None}
    return replace(pixels, **asked)


def _are_probabilities(scores: NDArray[Any], axis: int | None) -> bool:
    """Return whether scores are in 0..1 and, with several per pixel, add up to 1."""
    if scores.min() < 0 or scores.max() > 1 + 1e-3:
        return False
    several = bool(axis) and scores.shape[axis or 0] > 1
    return bool(np.allclose(scores.astype(np.float32).sum(axis), 1, atol=1e-2)) if several else True


def _set_grid(model: onnx.ModelProto, image: NDArray[np.uint8]) -> tuple[int, int]:
    """Run the network once, write the size of its logits into it and return their height and width."""
    try:
        session = start_session(model.SerializeToString(), name="the exported network")
    except (ValueError, EncodeError) as wrong:
        raise ModelError(f"the network is too large for one ONNX file (2 GB): {wrong}") from wrong
    (logits,) = session.run(["logits"], {"frame": image[None]})
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, logits.shape)
    )
    return int(logits.shape[2]), int(logits.shape[3])


def _save(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as wrong:
        raise ModelError(f"the network isn't sound ONNX: {wrong}") from wrong
