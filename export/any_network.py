"""``tfiseg export SOURCE``: any semantic network into tfiseg's format, checked against the original."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..calibration.frames import FrameSample, sample_frames
from ..calibration.graph import Network, session
from ..errors import InputError, ModelError
from ..runtime.sessions import DEFAULT_MODEL, FORMAT_VERSION, METADATA_KEY, OnnxSession
from .agreement import Original, Reading, check_agreement
from .class_lists import LISTS, VOC21, guess
from .frame_graph import Preprocessing
from .onnx_network import Cut, Input, assemble, find_logits, load_network, recognise_input

DEFAULT = "default"
_SYNTHETIC_FRAMES, _PHOTOS = 4, 16


@dataclass(frozen=True)
class ExportSettings:
    """What a source doesn't say of itself. ``mean`` and ``std`` on the scale that ``value_range`` names, the network's largest input
    value (1 or 255); ``things`` names or ids; ``output`` the tensor to start at; ``align_corners`` of an upsampling left to the reader."""

    photos: str | None = None
    input_size_hw: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    value_range: float = 1.0
    bgr: bool = False
    class_names: tuple[str, ...] | None = None
    things: tuple[str, ...] | None = None
    output: str | None = None
    align_corners: bool = False
    random_weights: bool = False
    half_weights: bool = False
    training_data: str = "not stated"
    licence: str = "not stated"


def export_any(source: str, output: Path, settings: ExportSettings, quiet: bool = True) -> dict[str, Any]:
    """Write NAME.onnx.

    Args:
        source: "default", a .onnx file, "torchvision:NAME", "smp:ARCH/ENCODER", "hf:NAME_OR_FOLDER" or "python:module:function".
        output: written whole or not at all.

    Returns:
        bytes, frames, label_agreement (least share of pixels), cut (operators that were left out), metadata.

    Raises:
        ModelError: it can't be brought into the format, or the result disagrees with the original. InputError, MissingDependencyError.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if source == DEFAULT:
        shutil.copyfile(DEFAULT_MODEL, output)
        return {"bytes": output.stat().st_size, "frames": 0, "label_agreement": 1.0, "cut": [], "metadata": OnnxSession(output).info.extra}
    if source.endswith(".onnx"):
        network, names, weights = load_network(source), settings.class_names, Path(source).name
        taken = recognise_input(network)
        preprocessing = _preprocessing_of(taken, settings)
        original = _onnx_original(network, taken, settings.output)
    else:
        network, names, weights, preprocessing, original = _from_torch(source, settings)
        taken = recognise_input(network)
    _fix_size(network, taken, preprocessing)
    cut = find_logits(network, settings.output)
    cut.align_corners = cut.align_corners or settings.align_corners
    whole = _last_axis(network, settings.output)
    model = assemble(network, taken, cut, preprocessing, len(names) if names else None, settings.half_weights)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    metadata = _metadata(model, output, classes, names, settings, preprocessing, source, weights)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as wrong:
        raise ModelError(f"the result is no valid ONNX: {wrong}") from wrong
    frames = _frames(settings.photos, quiet)
    part = output.with_name(f".{output.name}.part")
    onnx.save(model, part)
    try:
        reading = _reading(cut, whole, classes)
        sheet = output.with_name(f"{output.name}.disagreement.png")
        sheet.unlink(missing_ok=True)
        agreement = check_agreement(original, reading, preprocessing, part, frames, frames.names, sheet, quiet)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return {
        "bytes": output.stat().st_size,
        "frames": len(frames),
        "label_agreement": agreement,
        "cut": cut.removed,
        "metadata": metadata,
    }


def _from_torch(source: str, settings: ExportSettings) -> tuple[Network, tuple[str, ...] | None, str, Preprocessing, Original]:
    try:
        import torch
    except ImportError as missing:
        from ..errors import MissingDependencyError

        raise MissingDependencyError(f'{source} needs torch: pip install ".[export]" in the repository') from missing
    from .torch_networks import load_torch, to_onnx

    loaded = load_torch(source, settings.random_weights, settings.input_size_hw)

    def original(seen: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(loaded.module(torch.from_numpy(seen)).numpy())

    preprocessing = loaded.preprocessing
    if settings.mean or settings.std or settings.bgr:
        preprocessing = _normalised(preprocessing, settings)
    return Network(to_onnx(loaded)), settings.class_names or loaded.class_names, loaded.weights, preprocessing, original


def _preprocessing_of(taken: Input, settings: ExportSettings) -> Preprocessing:
    size = settings.input_size_hw or (taken.size_hw if all(taken.size_hw) else None)
    if size is None:
        raise InputError("the network takes pictures of any size: say at which one it is to run, with --input-size HxW")
    if all(taken.size_hw) and size != taken.size_hw:
        raise InputError(f"the network takes pictures of {taken.size_hw[0]}x{taken.size_hw[1]} only, got --input-size {size[0]}x{size[1]}")
    plain = Preprocessing(size_hw=size, channels_last=taken.channels_last, uint8=taken.uint8)
    return plain if taken.uint8 else _normalised(plain, settings)


def _normalised(plain: Preprocessing, settings: ExportSettings) -> Preprocessing:
    """Mean and deviation are stated on the network's scale, frames come as 0..255."""
    unit = 255 / settings.value_range
    mean, std = settings.mean or (0.0, 0.0, 0.0), settings.std or (1.0, 1.0, 1.0)
    scale = tuple(1 / (unit * s) for s in std)
    return replace(plain, mean=tuple(unit * m for m in mean), scale=scale, rgb=not settings.bgr)  # type: ignore[arg-type]


def _fix_size(network: Network, taken: Input, preprocessing: Preprocessing) -> None:
    """Write the one size into the graph: shapes are known then, and TensorRT builds the faster engine."""
    assert preprocessing.size_hw is not None
    given = next(i for i in network.graph.input if i.name == taken.name)
    height, width = preprocessing.size_hw
    sides = (1, height, width, 3) if taken.channels_last else (1, 3, height, width)
    for dim, side in zip(given.type.tensor_type.shape.dim, sides, strict=True):
        dim.dim_value = side


def _onnx_original(network: Network, taken: Input, output: str | None) -> Original:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    model.ir_version = min(model.ir_version, 10)
    wanted = output or model.graph.output[0].name
    if wanted not in {o.name for o in model.graph.output}:
        model.graph.output.append(helper.make_empty_tensor_value_info(wanted))
    running = session(model)
    return lambda seen: np.asarray(running.run([wanted], {taken.name: seen})[0])


def _last_axis(network: Network, output: str | None) -> bool:
    """Does the original's own output carry its classes last?"""
    cut = find_logits(network, output)
    last = cut.channels_last
    for op in cut.removed:
        if op == "Transpose":
            last = not last
    return last


def _reading(cut: Cut, whole_last: bool, classes: int) -> Reading:
    """How the original's own answer is read; the cut knows what was found behind it."""
    told = {"ArgMax", "Transpose"} & set(cut.removed)
    binary = cut.binary or (classes == 2 and cut.kind == "probabilities")
    probabilities = "Sigmoid" in cut.removed or cut.kind == "probabilities"
    last = whole_last if told else cut.channels_last
    return Reading(channels_last=last, binary=binary, threshold=0.5 if probabilities else 0.0, align_corners=cut.align_corners)


def _metadata(
    model: onnx.ModelProto,
    output: Path,
    classes: int,
    names: Sequence[str] | None,
    settings: ExportSettings,
    preprocessing: Preprocessing,
    source: str,
    weights: str,
) -> dict[str, Any]:
    if names is None and classes == len(VOC21):
        names = VOC21
    names = tuple(names) if names else ("background", *(f"class {k}" for k in range(1, classes)))
    if len(names) != classes:
        raise InputError(f"the network has {classes} classes, got {len(names)} names: {', '.join(names[:8])}...")
    grid = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim][2:]
    assert preprocessing.size_hw is not None
    return {
        "format_version": FORMAT_VERSION,
        "name": output.stem,
        "class_names": list(names),
        "things": list(_things(names, settings.things)),
        "stride": max(1, round(preprocessing.size_hw[0] / grid[0])) if grid and grid[0] else 1,
        "input_size_hw": list(preprocessing.size_hw),
        "clustering": {"split": "auto"},
        "source": Path(source).name if source.endswith(".onnx") else source,
        "weights": weights,
        "training_data": settings.training_data,
        "licence": settings.licence,
        "weights_sha256": hashlib.sha256(b"".join(sorted(i.raw_data for i in model.graph.initializer))).hexdigest(),
    }


def _things(names: tuple[str, ...], asked: tuple[str, ...] | None) -> tuple[int, ...]:
    if asked is None:
        return guess(names)
    found = []
    for one in asked:
        if one in names:
            found.append(names.index(one))
        elif one.isdecimal() and int(one) < len(names):
            found.append(int(one))
        else:
            raise InputError(f"no class {one!r}; the network knows {', '.join(names)}")
    return tuple(found)


def named_classes(text: str) -> tuple[str, ...]:
    """Class names from a known list's name, a file with one name per line, or names with commas between them."""
    if text in LISTS:
        return LISTS[text][0]
    if Path(text).is_file():
        return tuple(line.strip() for line in Path(text).read_text().splitlines() if line.strip())
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2:
        raise InputError(f"no list of classes {text!r}: wanted {', '.join(LISTS)}, a file, or names with commas between them")
    return names


def _frames(photos: str | None, quiet: bool) -> FrameSample:
    """Photos to check on; the synthetic camera's frames where none are given."""
    return sample_frames(photos or "synthetic", _PHOTOS if photos else _SYNTHETIC_FRAMES, quiet=quiet)
