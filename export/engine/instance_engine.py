"""``tfiseg build`` for an instance network: fp32 or fp16, compared on the views of real frames."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from tqdm import tqdm

from ...calibration.frames import sample_frames
from ...errors import GateError, InputError
from ...plugins.mask_refinement import ADD_ABOVE, REMOVE_BELOW
from ...runtime.inspect.onnx_layers import layer_precisions
from ...runtime.networks.engine_file import write_engine
from ...runtime.networks.instance_session import InstanceMaps
from ...runtime.networks.model_info import METADATA_KEY
from ...runtime.networks.open_session import open_instance_session
from ...runtime.refine.view_planning import (
    MAX_VIEWS,
    RenderedViews,
    plan_and_render_views,
    plan_mask_views,
    render_views,
)
from ...runtime.segmenter import Segmenter
from .fp16_graph import to_fp16
from .lower import PrecisionSettings
from .precision_proof import prove
from .tensorrt_builder import (
    BuildSettings,
    ViewProfile,
    build_plan,
    shapes_record,
    source_record,
    toolchain_record,
)
from .tensorrt_flavors import Flavor

_MIN_AGREEMENT = 99.5  # percent of equal decisions
_NEAR = 17  # cells: the window around an outline


def is_instance_network(path: Path) -> bool:
    """Return whether a file is an ONNX model that ``tfiseg train instance`` wrote."""
    try:
        model = onnx.load(path, load_external_data=False)
        return any(
            p.key == METADATA_KEY and "instance_format" in json.loads(p.value) for p in model.metadata_props
        )
    except Exception:  # no file, no ONNX or no JSON: the caller reports it
        return False


def build_instance_engine(
    source: Path,
    output: Path,
    kind: Flavor | None,
    precision: PrecisionSettings,
    settings: BuildSettings,
    command: str,
    quiet: bool,
) -> dict[str, Any]:
    """Build an instance network into an engine for 1 to 64 views per call (or the profile's batch).

    Arguments and result are those of ``engine.build``.

    Raises:
        InputError: the settings ask for int8, for the target onnxruntime, or for fp16 without frames.
        GateError: the network differs too much from float32.
    """
    if kind is None:
        raise InputError(
            f"{source} is an instance network, which ONNX Runtime runs as it is. For an engine, use "
            f"--target rtx or tensorrt"
        )
    if precision.precision == "int8":
        raise InputError("an instance network needs fp16 or fp32: its mask refinement doesn't survive int8")
    began = time.perf_counter()
    model = onnx.load(source)
    metadata = json.loads(next(p.value for p in model.metadata_props if p.key == METADATA_KEY))
    metadata["outline_px"] = metadata["view_px"]  # one side for all views: fixed sizes are fastest
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    for given in model.graph.input:
        for axis in (1, 2):
            given.type.tensor_type.shape.dim[axis].dim_value = metadata["view_px"]
    lowered = to_fp16(model) if precision.precision == "fp16" else model
    gate = _gate(model, lowered, precision, quiet) if precision.precision == "fp16" else None
    batch = settings.profile.batch if settings.profile.batch > 1 else MAX_VIEWS
    settings = replace(settings, profile=ViewProfile(batch=batch, view_px=metadata["view_px"]))
    expected = {layer.name: layer.precision for layer in layer_precisions(lowered)}
    precision_s = time.perf_counter() - began
    built = build_plan(lowered.SerializeToString(), kind, settings, quiet)
    record: dict[str, Any] = {
        "built_from": {
            **source_record(source, command, precision.precision),
            "shapes": shapes_record(settings),
        },
        "precision": {"asked": precision.precision, "kept_high": [], **prove(expected, built.witnesses)},
        "gate": gate,
        "model": {**metadata, "class_names": [], "things": []},  # it has no classes
        "built_with": toolchain_record(kind, settings),
        "plugin": None,
        "timings_s": {
            "precision": round(precision_s, 2),
            "build": round(built.seconds, 2),
            "total": round(time.perf_counter() - began, 2),
        },
    }
    write_engine(output, built.plan, record)
    return {**record, "output": str(output), "bytes": len(built.plan)}


def _gate(
    model: onnx.ModelProto, lowered: onnx.ModelProto, settings: PrecisionSettings, quiet: bool
) -> dict[str, Any]:
    """Compare the converted network with float32 on views of real frames; raises GateError."""
    if not settings.gate:
        return {"skipped": "--no-gate"}
    if settings.frames is None:
        raise InputError("fp16 is compared with fp32 on real frames: pass --frames SOURCE, or --no-gate")
    segmenter, frames = Segmenter(), 0
    pairs, outlines = np.zeros(2, np.int64), np.zeros(2, np.int64)  # equal decisions, all decisions
    with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
        sessions = []
        for name, network in (("fp32", model), ("lowered", lowered)):
            onnx.save(network, Path(folder, f"{name}.onnx"))
            sessions.append(open_instance_session(Path(folder, f"{name}.onnx")))
        sample = sample_frames(settings.frames, settings.gate_frames, settings.seed, quiet)
        for image in tqdm(sample, desc="gate", disable=quiet):
            components = segmenter.by_shape(image, 0.0)
            planned, rendered = plan_and_render_views(image, components, sessions[0].view_px)
            if not planned:
                continue
            one, other = (session.infer(rendered.images, rendered.masks) for session in sessions)
            pairs += _agreement(one, other, rendered)
            mask_views = plan_mask_views(components, sessions[0].view_px, MAX_VIEWS)
            if sessions[0].can_refine_masks and mask_views:
                views, masks = render_views(image, components, mask_views, sessions[0].outline_px)
                drawn, again = (session.foreground(views, masks) for session in sessions)
                outlines += outline_agreement(drawn, again, masks)
            frames += 1
    if not pairs[1]:
        raise InputError(
            f"{settings.frames}: no frame shows an object to compare on. Pass other frames, or --no-gate"
        )
    report: dict[str, Any] = {"passed": True}
    for key, unit, count in (
        ("pair_agreement", "the pairs of cells", pairs),
        ("outline_agreement", "the cells near outlines", outlines),
    ):
        if not count[1]:
            continue  # the network refines no masks
        percent = float(100 * count[0] / count[1])
        if percent < _MIN_AGREEMENT:
            raise GateError(
                f"fp16 agrees with fp32 on {percent:.2f} % of {unit}, expected {_MIN_AGREEMENT} %. Build it "
                f"in fp32"
            )
        report[key] = round(percent, 3)
    return {**report, "frames": frames, "reference": "fp32"}


def _agreement(one: InstanceMaps, other: InstanceMaps, rendered: RenderedViews) -> tuple[int, int]:
    """Count pairs of cells inside the masks: (equal decisions of both networks, all)."""
    step = rendered.masks.shape[1] // one.affinity.shape[-1]
    inside = np.broadcast_to(
        rendered.masks[:, None, step // 2 :: step, step // 2 :: step] > 0, one.affinity.shape
    )
    return int(((one.affinity > 0.5) == (other.affinity > 0.5))[inside].sum()), int(inside.sum())


def outline_agreement(
    one: NDArray[np.float32], other: NDArray[np.float32], masks: NDArray[np.uint8]
) -> tuple[int, int]:
    """Count decisions of mask refinement: (equal decisions of both networks, all).

    Each cell near a mask's outline has two: whether it would be removed, and whether it would be added.

    Args:
        one, other: foreground probabilities float32 (K, q, q).
        masks: uint8 (K, S, S), 0 or 1."""
    equal, total = 0, 0
    for a, b, mask in zip(one, other, masks, strict=True):
        cells = cv2.resize(mask, a.shape[::-1], interpolation=cv2.INTER_NEAREST)
        share = cv2.blur(cells.astype(np.float32), (_NEAR, _NEAR), borderType=cv2.BORDER_REPLICATE)
        near = (share > 0) & (share < 1)
        for threshold in (REMOVE_BELOW, ADD_ABOVE):
            equal += int(((a > threshold) == (b > threshold))[near].sum())
            total += int(near.sum())
    return equal, total
