"""Descriptions of networks and engines as text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..networks.instance_session import is_for_groups


def inspection_text(report: Mapping[str, Any], with_layers: bool = False) -> str:
    """Return a description of ``inspect_file`` as text."""
    lines = [f"{report['file']}: {_kind(report)}, {_size(report['bytes'])}, sha256 {report['sha256']}"]
    lines += _onnx_lines(report, with_layers) if report["kind"] == "onnx" else _engine_lines(report)
    return "\n".join(lines + [f"WRONG: {problem}" for problem in report["problems"]])


def _kind(report: Mapping[str, Any]) -> str:
    if report["kind"] == "engine":
        return "TensorRT engine"
    return "network in tfiseg's format" if report["model"] else "ONNX network, not in tfiseg's format"


def _onnx_lines(report: Mapping[str, Any], with_layers: bool) -> list[str]:
    lines = []
    for side in ("inputs", "outputs"):
        tensors = (f"{t['name']} {t['dtype']} ({', '.join(map(str, t['shape']))})" for t in report[side])
        lines.append(_row(side, ", ".join(tensors)))
    lines += _model_lines(report["model"])
    if report["weights_unchanged"] is not None:
        changed = "changed since the export (`tfiseg build` does this)"
        state = "those of the export" if report["weights_unchanged"] else changed
        digest = report["model"]["weights_sha256"][:16]
        lines.append(_row("weights", f"{state}; the export's sha256 {digest}..."))
    lines.append(_row("layers", _precision(report)))
    opset = ", ".join(f"{domain} {version}" for domain, version in report["opset"].items())
    lines.append(
        _row("opset", f"{opset}; IR {report['ir_version']}; producer {report['producer'] or 'unknown'}")
    )
    for file in report["external_data"]:
        size = "missing" if file["bytes"] is None else _size(file["bytes"])
        lines.append(_row("weights in", f"{file['file']}, {size}"))
    nodes = [f"{n['op']} ({n['name']})" for n in report["plugin_nodes"]]
    lines.append(_row("plugins", ", ".join(nodes) if nodes else "none: standard operators only"))
    if with_layers:
        width = max((len(layer["name"]) for layer in report["layers"]), default=0)
        for layer in report["layers"]:
            macs = "" if layer["macs"] is None else f"{layer['macs'] / 1e6:10.2f} M"
            lines.append(f"    {layer['name']:<{width}}  {layer['op']:<13}  {layer['precision']:<5}{macs}")
    return lines


def _precision(report: Mapping[str, Any]) -> str:
    parts, total = [], 0
    for precision, found in report["precision"].items():
        if found["layers"]:
            share = "" if found["share"] is None else f" ({found['share']:.0%} of the work)"
            parts.append(f"{found['layers']} in {precision}{share}")
            total += found["macs"] or 0
    text = ", ".join(parts) or "no convolution or matrix product"
    if total:
        hw = report["macs_at_hw"]
        text += f"; {_count(total)} multiply-accumulates" + (f" for a frame of {hw[1]}x{hw[0]}" if hw else "")
    return text


def _engine_lines(report: Mapping[str, Any]) -> list[str]:
    record = report["record"]
    if record is None:
        if report["problems"]:
            return []
        sidecar = f"{Path(report['file']).name}.json"
        return [
            f"  there is no metadata file {sidecar}: an engine can be read only by the TensorRT that wrote it"
        ]
    builder, source, precision = record["built_with"], record["built_from"], record["precision"]
    intact = "intact: size and sha256 are those of the record"
    lines = [_row("file", "truncated, replaced or damaged" if report["problems"] else intact)]
    lines.append(_row("built from", f"{source['onnx']}, sha256 {source['onnx_sha256'][:16]}..."))
    lines.append(_row("command", source["command"]))
    lines.append(_inputs(source["shapes"]))
    cuda, driver = (
        f", {name} {builder[key]}" if builder.get(key) else ""
        for key, name in (("cuda", "CUDA"), ("driver", "driver"))
    )
    tools = f"{builder['flavour']} {builder['version']} on {builder['platform']}{cuda}{driver}"
    lines.append(_row("built with", tools))
    lines.append(_row("runs on", _gpus(builder)))
    differences = "; ".join(
        f"{mismatch['what']}: the engine has {mismatch['engine']}, this machine {mismatch['machine']}"
        for mismatch in report["differences"]
    )
    lines.append(_row("here", f"no. {differences}" if differences else "it fits this machine"))
    counts = ", ".join(f"{count} in {name}" for name, count in precision["layers"].items() if count)
    proof = ", ".join(f"{proof} ({count})" for proof, count in (precision.get("proved_by") or {}).items())
    lines.append(
        _row("precision", f"requested {precision['asked']}, layers {counts}; proved by {proof or 'nothing'}")
    )
    if precision.get("kept_high"):
        lines.append(_row("kept higher", ", ".join(precision["kept_high"])))
    lines.append(_row("gate", _gate(record.get("gate"))))
    plugin = record.get("plugin")
    text = "none: clustering runs after the network"
    if plugin:
        inside = " (inside the engine)" if builder.get("version_compatible") else ""
        name = f"{plugin['namespace']}::{plugin['name']} version {plugin['version']}"
        text = f"{name}, sha256 {plugin['sha256'][:16]}...{inside}"
    lines.append(_row("plugin", text))
    return lines + _model_lines(record["model"])


def _inputs(shapes: Mapping[str, Any]) -> str:
    if "view_px" in shapes:  # the instance network
        side = shapes["view_px"]
        return _row("views", f"uint8 BGR of {side}x{side} and their masks, 1 to {shapes['batch']} per call")
    low, best, high = ("x".join(map(str, shapes[key])) for key in ("min_hw", "opt_hw", "max_hw"))
    sizes = best if low == high else f"{low} to {high}, fastest at {best}"
    return _row("frames", f"uint8 BGR of {sizes} (HxW), at most {shapes['batch']} per call")


def _gpus(builder: Mapping[str, Any]) -> str:
    capabilities = ", ".join(builder.get("compute_capabilities") or [])
    if builder.get("hardware_compatibility") == "ampere_plus":
        gpus = "every NVIDIA GPU from Ampere on"
    elif capabilities:
        gpus = f"compute capability {capabilities}" + (f" ({builder['gpu']})" if builder.get("gpu") else "")
    elif builder.get("flavour") == "tensorrt_rtx":
        gpus = "every GPU that this TensorRT supports"
    else:
        gpus = str(builder.get("gpu") or "unknown GPUs")
    compatible = builder.get("version_compatible")
    return f"{gpus}; {'this TensorRT and newer ones' if compatible else 'this version of TensorRT only'}"


def _gate(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return "none needed: float32 is the reference"
    if "skipped" in gate:
        return f"skipped: {gate['skipped']}"
    if "pair_agreement" in gate:
        outlines = f", {gate['outline_agreement']}% of outlines" if "outline_agreement" in gate else ""
        return (
            f"passed: {gate['pair_agreement']}% of pairs of cells predicted as in fp32{outlines}, "
            f"{gate['frames']} frames"
        )
    result = (
        f"{gate.get('label_agreement')}% of labels as in {gate.get('reference', 'fp32')}, PQ "
        f"{gate.get('stable_PQ', gate.get('PQ'))}, {gate.get('frames')} frames"
    )
    return f"{'passed' if gate.get('passed') else 'FAILED'}: {result}"


def _model_lines(metadata: Mapping[str, Any] | None) -> list[str]:
    if metadata is None:
        return [_row("metadata", "none of tfiseg: `tfiseg export` converts a network to its format")]
    names, things = list(metadata["class_names"]), set(metadata["things"])
    classes = ", ".join(f"{k} {name}{'*' if k in things else ''}" for k, name in enumerate(names))
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode()).hexdigest()
    name = metadata.get("name", "unnamed")
    lines = [_row("model", f"{name}, stride {metadata['stride']}, metadata {digest[:16]}")]
    class_text = "none: the network separates objects of any class"
    if names:
        class_text = f"{len(names)}, of which {len(things)} countable (*): {classes}"
    lines.append(_row("classes", class_text))
    if "rules" in metadata:  # the instance network
        side = metadata["view_px"]
        lines.append(_row("rules", f"{', '.join(metadata['rules'])}; views of {side}x{side} px"))
        if "min_area" in metadata:
            lines.append(_row("made for", f"objects of {metadata['min_area']} px and more"))
        if "lone_odds" in metadata:
            ratio = metadata["lone_odds"]
            exhaustive = "; exhaustive refinement" if is_for_groups(ratio) else ""
            lines.append(_row("single objects", f"{ratio} for each group{exhaustive}"))
    for key in ("training_data", "licence"):
        if key in metadata:
            lines.append(_row(key.replace("_", " "), str(metadata[key])))
    return lines


def _row(name: str, text: str) -> str:
    return f"  {name + ':':<14} {text}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"


def _count(number: float) -> str:
    power = min(4, int(math.log10(number)) // 3) if number >= 1 else 0
    return f"{number / 1000**power:.3g}{' kMGT'[power].strip()}"
