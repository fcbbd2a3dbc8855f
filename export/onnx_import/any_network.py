"""Export any semantic network as ``NAME.onnx`` in tfiseg's format, checked against the original.

Every source is converted to plain ONNX first, and then imported like an ONNX file. This needs onnx and
onnxsim, and torch for PyTorch networks.
"""

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

from ...errors import InputError, ModelError, check_choice
from ...files import whole_file
from ...runtime.networks.model_info import FORMAT_VERSION, METADATA_KEY, weights_digest
from ...runtime.networks.model_variants import Variant
from ...runtime.networks.onnx_runtime import start_session
from ...runtime.networks.onnx_session import OnnxSession
from ...runtime.networks.session import DEFAULT_MODEL
from ..frame_graph import check_long_side
from .agreement import Agreement, check_frames, compare_labels, labels_of, network_input
from .class_lists import exported_classes, read_class_names
from .logit_nodes import logit_nodes
from .network_tail import Tail, cut_tail, grid_stride
from .onnx_network import (
    attach,
    fix_input_size,
    recognize_input,
    recognize_output,
    with_opset,
    with_output_shape,
)
from .originals import TORCH_KINDS, ExportSettings, Original, is_torch, load_original
from .output_evidence import collect_evidence, find_final_activation, require_numbers
from .output_layout import check_orientation, output_layout, spatial_sides, with_grid_output
from .output_reading import CHOICES, OutputReading, decide_reading

__all__ = ["DEFAULTS", "TORCH_KINDS", "ExportSettings", "export_any", "export_default"]

DEFAULTS = {"default": True, "default-semantic": False}  # whether it has instance heads
DEFAULT_SIZE_HW = (512, 512)


def export_default(output: Path, source: str = "default", long_side_px: int | None = None) -> dict[str, Any]:
    """Write the network that comes with tfiseg.

    Args:
        output: NAME.onnx, written atomically.
        source: one of ``DEFAULTS``.
        long_side_px: longer side in pixels that the network scales frames to; default: the model's own.
    """
    check_choice("source", source, tuple(DEFAULTS))
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
        output: NAME.onnx, written atomically.

    Returns:
        Report: output, bytes, input_size_hw, pixels, opset, grid_hw, stride, class_names, things,
        reading (kind, origin, evidence, thresholds: how the output is read), removed (operators removed from
        the end), photos, label_agreement (minimum over the photos), label_agreement_mean, worst_photo,
        labels_seen (number of different labels), shares (of the pixels, by class), notes, seconds.

    Raises:
        InputError: an option doesn't fit.
        ModelError: the network can't be loaded, converted or run; the reading of its output is ambiguous; all
            labels are equal; or labels agree on less than 99.5 % of the pixels of a photo.
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
        original = load_original(source, options, names)
        result = _convert(source, original, options, names, frames, say)
        _set_metadata(result, output.stem, source, original, options)
        _save(result.model, part)
        picture = output.with_name(f"{output.stem}-disagreement.png")
        agreement = _compare(
            result, original, OnnxSession(part), frames, picture, quiet, options.random_weights
        )
    return {
        "output": str(output),
        "source": source,
        "bytes": output.stat().st_size,
        **_report(result, str(original.pixels), agreement),
        "seconds": round(time.perf_counter() - began, 1),
    }


@dataclass(frozen=True)
class _Conversion:
    """A network in tfiseg's format, with the data for its comparison with the original.

    ``background``: a class that never wins was prepended. ``notes`` are sentences for the user.
    """

    model: onnx.ModelProto
    size_hw: tuple[int, int]
    tail: Tail
    grid_hw: tuple[int, int]
    class_names: tuple[str, ...]
    things: tuple[int, ...]
    background: bool
    reading: OutputReading
    notes: tuple[str, ...] = ()

    @property
    def stride(self) -> int:
        return grid_stride(self.size_hw[0], self.grid_hw[0])


def _convert(
    source: str,
    original: Original,
    options: ExportSettings,
    names: Sequence[str] | None,
    frames: Any,
    say: Callable[[str], None],
) -> _Conversion:
    """Put the original between preprocessing and logits; its reading is decided on ``frames``."""
    network = recognize_input(original.model)
    size_hw = network.size_hw or options.input_size_hw or DEFAULT_SIZE_HW
    if options.input_size_hw not in (None, size_hw):
        h, w = size_hw
        raise InputError(f"{source} accepts images of {h}x{w} only; omit --input-size")
    network = replace(network, size_hw=size_hw)

    def run(frame: NDArray[np.uint8]) -> NDArray[Any]:
        return original.run(network_input(frame, size_hw, original.pixels))

    name, first = next(iter(frames))
    raw = run(first)
    require_numbers(raw, name)
    layout = check_orientation(output_layout(raw.shape, size_hw, network.layout), size_hw, run, first)
    output = recognize_output(original.model, options.output_name)
    model, notes = with_opset(with_output_shape(original.model, output, raw), options.opset)
    say(f"simplifying {len(model.graph.node)} operators")
    model = fix_input_size(model, network, output)
    evidence = collect_evidence(run, frames, layout, find_final_activation(model), options.photos is None)
    class_names = names or original.class_names
    reading = decide_reading(
        layout, evidence, options.output_kind, class_names, options.thresholds, original.known_logits
    )
    say(f"output: {reading}")
    with_grid_output(model, raw.shape, layout)
    tail = cut_tail(model, network, reading)
    labels, things, background = exported_classes(reading, class_names, options.things)
    post = logit_nodes(tail, reading, background=background)
    model = attach(model, network, original.pixels, tail.tensor, post)
    grid_hw = _set_grid(model, first)
    if tail.finer > 1:
        notes += (
            f"its probabilities are resized from {tail.grid_hw[0]}x{tail.grid_hw[1]} to "
            f"{grid_hw[0]}x{grid_hw[1]} before logits are computed, so outlines are those of the resized "
            f"probabilities",
        )
    return _Conversion(model, size_hw, tail, grid_hw, labels, things, background, reading, notes)


def _report(result: _Conversion, pixels: str, agreement: Agreement) -> dict[str, Any]:
    return {
        "input_size_hw": list(result.size_hw),
        "pixels": pixels,
        "opset": max(o.version for o in result.model.opset_import if o.domain in ("", "ai.onnx")),
        "grid_hw": list(result.grid_hw),
        "stride": result.stride,
        "class_names": list(result.class_names),
        "things": list(result.things),
        "reading": {
            "kind": result.reading.kind,
            "origin": result.reading.origin,
            "evidence": result.reading.evidence,
            "thresholds": list(result.reading.thresholds),
            "sentence": str(result.reading),
        },
        "removed": result.tail.removed,
        "photos": agreement.photos,
        "label_agreement": agreement.minimum,
        "label_agreement_mean": agreement.mean,
        "worst_photo": agreement.worst,
        "labels_seen": agreement.labels,
        "shares": {result.class_names[k]: round(share, 6) for k, share in agreement.shares.items()},
        "notes": list(result.notes),
    }


def _set_metadata(
    result: _Conversion, name: str, source: str, original: Original, options: ExportSettings
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
    original: Original,
    session: OnnxSession,
    frames: Any,
    picture: Path,
    quiet: bool,
    random_weights: bool,
) -> Agreement:
    """Compare the labels of the original and the exported network at the size of the original's output.

    A single label proves nothing about the reading of the output; random weights often give no other."""
    reading = result.reading
    h, w = spatial_sides(reading.layout.shape, reading.layout.class_axis)
    # if the original leaves upsampling with aligned corners to its user, they matter only after it
    corner_aligned = result.tail.corners_hw is not None and (h, w) != result.tail.corners_hw
    compared_hw = result.tail.corners_hw if corner_aligned else (h, w)
    if result.tail.finer > 1 and (h, w) == result.tail.grid_hw:  # it leaves the resize to its user
        compared_hw = result.size_hw

    def original_labels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
        raw = original.run(network_input(image, result.size_hw, original.pixels))
        require_numbers(raw, "a photo")
        return reading.labels(raw, compared_hw, corner_aligned) + result.background

    def exported_labels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
        logits = session.infer(image)["logits"]
        require_numbers(logits, "a photo")
        return labels_of(logits, compared_hw)

    agreement = compare_labels(original_labels, exported_labels, frames, picture, quiet)
    if agreement.labels == 1 and not random_weights:
        (label,) = agreement.shares
        kind = "photos" if not isinstance(frames, list) else "synthetic frames"
        raise ModelError(
            f"every pixel of {agreement.photos} {kind} has the label {result.class_names[label]!r} with the "
            f"output read as {reading}: that proves nothing. Pass --photos with photos that show other "
            f"classes, or if the reading is wrong, {CHOICES}"
        )
    return agreement


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
