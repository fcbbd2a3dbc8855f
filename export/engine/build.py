"""``tfiseg build``: a TensorRT engine from NAME.onnx, or ONNX of lower precision for a CPU."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ...calibration.gate import require_passed
from ...errors import InputError, ModelError, check_choice
from ...files import write_whole
from ...plugins.plugin_library import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION, load_plugin, plugin_info
from ...plugins.settings import AFFINITY_OFFSETS, IGNORE, ClusterSettings
from ...runtime.inspect.onnx_layers import layer_precisions
from ...runtime.map_clusterer import default_min_area
from ...runtime.networks.engine_file import SUFFIX, write_engine
from ...runtime.networks.model_info import METADATA_KEY, ModelInfo
from ...runtime.networks.model_variants import Variant
from ..byte_pixels import with_float_pixels
from .batching import with_batch
from .clustering_node import MAX_INSTANCES, graft_clustering
from .instance_engine import build_instance_engine, is_instance_network
from .lower import LoweredNetwork, PrecisionSettings, lower
from .precision_proof import prove
from .tensorrt_builder import BuildSettings, build_plan, shapes_record, source_record, toolchain_record
from .tensorrt_flavors import TARGETS, Flavor, find_flavor

CPU_TARGET = "onnxruntime"
GATE_REPORT, GATE_SHEET = ".gate.json", ".gate.png"


def build(
    source: Path,
    output: Path,
    target: str = "auto",
    precision: PrecisionSettings | None = None,
    settings: BuildSettings | None = None,
    command: str = "tfiseg build",
    quiet: bool = True,
) -> dict[str, Any]:
    """Build an engine.

    Args:
        source: NAME.onnx in tfiseg's format (``tfiseg export``).
        output: NAME.engine, or NAME.onnx for "onnxruntime"; also writes .json, .gate.json and .gate.png.
        target: "tensorrt", "rtx", "auto" (whichever is installed) or "onnxruntime".
        precision, settings: precision and accuracy gate (default: fp16); shapes and modes.
        command, quiet: command that builds it again, for the record; show no progress bars.

    Returns:
        The record, with ``output``, ``bytes`` and ``timings_s``.

    Raises:
        GateError: the network differs too much from float32; only the report is written.
        EngineError: TensorRT can't build it, or built it in another precision.
    """
    precision, settings = precision or PrecisionSettings(), settings or BuildSettings()
    kind = _flavor(target)
    _check_output(output, kind)
    of_instances = is_instance_network(source)
    if not settings.operator and (kind is None or of_instances):
        raise InputError("--no-operator is for engines of semantic networks")
    began = time.perf_counter()
    if of_instances:
        return build_instance_engine(source, output, kind, precision, settings, command, quiet)
    model, info = read_network(source)
    plugin = _plugin(kind) if settings.operator else None  # a missing library is an error at once
    output.parent.mkdir(parents=True, exist_ok=True)
    compares = precision.gate and precision.precision != "fp32"
    sheet = output.with_name(output.name + GATE_SHEET) if compares else None
    lowered = lower(model, precision, for_cpu=kind is None, sheet=sheet, quiet=quiet)
    _write_gate(output, lowered)
    timings = {"precision": time.perf_counter() - began}
    searched = {"auto_exclude": lowered.searched} if lowered.searched else {}
    record: dict[str, Any] = {
        "built_from": source_record(source, command, precision.precision),
        "precision": {"asked": precision.precision, "kept_high": lowered.kept, **searched},
        "gate": lowered.gate,
        "model": info.extra,
    }
    plan = b""
    if kind is None:
        record["precision"]["layers"] = _counts(lowered.model)
    else:
        plan = _build_plan(lowered.model, info, kind, settings, plugin, record, timings, quiet)
        timings["total"] = time.perf_counter() - began
    record["timings_s"] = {key: round(value, 2) for key, value in timings.items()}
    if kind is None:
        return {**record, "output": str(output), "bytes": _write_onnx(output, lowered.model)}
    write_engine(output, plan, record)
    return {**record, "output": str(output), "bytes": len(plan)}


def _flavor(target: str) -> Flavor | None:
    """Return the TensorRT of a target; None for ONNX Runtime."""
    check_choice("target", target, (*TARGETS, "auto", CPU_TARGET))
    return None if target == CPU_TARGET else find_flavor(target)


def _build_plan(
    model: onnx.ModelProto,
    info: ModelInfo,
    kind: Flavor,
    settings: BuildSettings,
    plugin: dict[str, Any] | None,
    record: dict[str, Any],
    timings: dict[str, float],
    quiet: bool,
) -> bytes:
    """Build a plan, prove its precision, and complete ``record`` and ``timings``."""
    network = with_batch(model, settings.profile.batch)
    expected = {layer.name: layer.precision for layer in layer_precisions(network)}
    if kind.takes_plugins and settings.operator:
        network, record["operator"] = _add_clustering(network, info, settings)
        settings = replace(settings, plugin=Path(plugin["path"]) if plugin else None)
    built = build_plan(network.SerializeToString(), kind, settings, quiet)
    record["precision"] |= prove(expected, built.witnesses)
    timings["build"] = built.seconds
    record["built_from"]["shapes"] = shapes_record(settings)
    record["built_with"] = toolchain_record(kind, settings)
    record["plugin"] = plugin and {
        "name": PLUGIN_NAME,
        "version": PLUGIN_VERSION,
        "namespace": PLUGIN_NAMESPACE,
        "sha256": plugin["sha256"],
    }
    return built.plan


def semantic_network(path: Path) -> onnx.ModelProto:
    """Read a network without its instance heads, if any; raises the errors of ``read_network``."""
    model, _ = read_network(path)
    if all(o.name != "affinity" for o in model.graph.output):
        return model
    return onnx.load_from_string(Variant(heads=False).read(path))


def read_network(path: Path) -> tuple[onnx.ModelProto, ModelInfo]:
    """Read a network in tfiseg's format, with its weights.

    Raises:
        ModelError: the file is missing, isn't ONNX, lacks external data or tfiseg metadata, or has nodes of
            another domain.
    """
    if not path.is_file():
        raise ModelError(
            f"there is no network {path}: `tfiseg export default -o {path.name}` writes the one that comes "
            f"with tfiseg"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as wrong:
        raise ModelError(f"{path} is no ONNX network ({wrong})") from wrong
    if not model.graph.node or not model.graph.input:
        raise ModelError(f"{path} is no ONNX network: it holds no graph")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as wrong:  # onnx raises its checker's errors or the system's
        raise ModelError(
            f"{path} keeps its weights in another file that isn't there. Copy both files ({wrong})"
        ) from wrong
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign:
        raise ModelError(
            f"{path} has non-standard operators: {', '.join(foreign)}. Remove a clustering node with "
            "strip_clustering(); export networks that another tool quantized or fused again, in float32"
        )
    text = next((prop.value for prop in model.metadata_props if prop.key == METADATA_KEY), None)
    if text is None:
        raise ModelError(
            f"{path} has no tfiseg metadata. Convert it first: `tfiseg export {path.name} -o NAME.onnx`"
        )
    return with_float_pixels(model), ModelInfo.from_json(text, str(path))


def _check_output(output: Path, kind: Flavor | None) -> None:
    suffix = ".onnx" if kind is None else SUFFIX
    if output.suffix != suffix:
        raise InputError(
            f"the target {CPU_TARGET if kind is None else kind.target} writes NAME{suffix}, got {output}"
        )


def _plugin(kind: Flavor | None) -> dict[str, Any] | None:
    """Load the plugin library if the target supports plugins; returns its build information."""
    if kind is None or not kind.takes_plugins:
        return None
    load_plugin(kind.module)
    return plugin_info()


def _add_clustering(
    model: onnx.ModelProto, info: ModelInfo, settings: BuildSettings
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the network with the operator after it, and the operator's part of the record."""
    profile, parameters = settings.profile, info.extra.get("clustering", {})
    fixed = profile.opt_hw if profile.min_hw == profile.max_hw else None
    settings_of_node = ClusterSettings(
        things=[c for c in info.things if 0 < c < IGNORE],
        split=parameters.get("split", "auto"),
        min_area=parameters.get("min_area", default_min_area(profile.opt_hw, info)),
        max_instances=MAX_INSTANCES,
        affinity_offsets=parameters.get("affinity_offsets", AFFINITY_OFFSETS),
        merge_rule=parameters.get("merge_rule"),
        part_rule=parameters.get("part_rule"),
        sharpen=parameters.get("sharpen", 0),
    )
    grafted = graft_clustering(
        model,
        settings_of_node,
        output_size_hw=fixed,
        output_scale=info.stride,
        affinity_stride=parameters.get("affinity_stride", 1),
    )
    operator = {
        "things": [*info.things],
        "split": settings_of_node.split,
        "min_area": settings_of_node.min_area,
        "max_instances": MAX_INSTANCES,
        "heads": any(o.name == "affinity" for o in model.graph.output),
    }
    return grafted, operator


def _counts(model: onnx.ModelProto) -> dict[str, int]:
    counts = Counter(layer.precision for layer in layer_precisions(model))
    return {precision: counts.get(precision, 0) for precision in ("fp32", "fp16", "int8")}


def _write_gate(output: Path, lowered: LoweredNetwork) -> None:
    """Write the gate's report next to the output; raises GateError if the gate failed."""
    gate, path = lowered.gate, output.with_name(output.name + GATE_REPORT)
    if gate is None or "skipped" in gate:
        path.unlink(missing_ok=True)  # left by an older build
        return
    frames = lowered.comparison.frames if lowered.comparison else []
    per_frame = [
        {
            "name": f.name,
            "label_agreement": round(f.label_agreement, 3),
            "PQ": round(f.counts.quality, 2) if f.counts.true_positives else None,
            "stable_PQ": round(f.stable.panoptic.quality, 2) if f.stable.panoptic.true_positives else None,
        }
        for f in frames
    ]
    path.write_text(json.dumps({**gate, "kept_high": lowered.kept, "per_frame": per_frame}, indent=2) + "\n")
    require_passed(gate, f"{output} was not written; the report is in {path}")


def _write_onnx(output: Path, model: onnx.ModelProto) -> int:
    content = model.SerializeToString()
    write_whole(output, content)
    return len(content)
