"""``tfiseg inspect FILE``: what a network or an engine is, told without a GPU and without TensorRT."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, ModelError
from .engine_file import SUFFIX, check_content, mismatches, read_sidecar, sidecar_path
from .machine import this_machine
from .onnx_layers import PRECISIONS, layer_precisions
from .sessions import METADATA_KEY

if TYPE_CHECKING:
    import onnx

_SHOWN = 8


def inspect_file(path: Path) -> dict[str, Any]:
    """What is known of a .onnx or .engine.

    Returns:
        Plain values; ``problems`` lists, a sentence each, what keeps the file from being used.

    Raises:
        ModelError: no such file, or neither of the two kinds.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    if path.suffix == SUFFIX:
        return _engine(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    raise ModelError(f"{path} is neither NAME.onnx nor NAME{SUFFIX}")


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    problems = []
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as wrong:  # protobuf's errors share no base class with onnx's
        raise ModelError(f"{path} is no ONNX network ({wrong})") from wrong
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX network: it holds no graph")
    outside = {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}
    problems += [f"its weights lie in {name}, which isn't there" for name in sorted(outside) if not (path.parent / name).is_file()]
    text = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), None)
    if text is None:
        problems.append(f"it is not in tfiseg's format: `tfiseg export {path.name} -o NAME.onnx` brings it there")
    layers = layer_precisions(model)
    known_macs = all(layer.macs for layer in layers)
    return {
        "file": str(path),
        "kind": "onnx",
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "opset": next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None),
        "producer": model.producer_name,
        "inputs": [_value(v) for v in model.graph.input if v.name not in {i.name for i in model.graph.initializer}],
        "outputs": [_value(v) for v in model.graph.output],
        "nodes": len(model.graph.node),
        "plugin_nodes": sorted({f"{n.domain}::{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")}),
        "layers": {precision: Counter(layer.precision for layer in layers).get(precision, 0) for precision in PRECISIONS},
        "macs": sum(layer.macs or 0 for layer in layers) if known_macs else None,
        "layer_list": [{"name": layer.name, "op": layer.op, "precision": layer.precision, "macs": layer.macs} for layer in layers],
        "model": json.loads(text) if text else None,
        "problems": problems,
    }


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"name": value.name, "dtype": str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), "shape": shape}


def _engine(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    report: dict[str, Any] = {
        "file": str(path),
        "kind": "engine",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "record": None,
        "fits_this_machine": None,
        "differences": [],
        "problems": [],
    }
    if not sidecar_path(path).is_file():
        report["problems"].append(
            f"there is no {sidecar_path(path).name} beside it: what a plan holds, only the TensorRT that wrote it can tell"
        )
        return report
    try:
        record = read_sidecar(path)
        report["record"] = record
        check_content(path, record)
    except EngineError as wrong:
        report["problems"].append(str(wrong))
        return report
    found = mismatches(record, this_machine())
    report["fits_this_machine"] = not found
    report["differences"] = [{"what": one.what, "engine": one.engine, "machine": one.machine} for one in found]
    return report


def inspection_text(report: dict[str, Any], layers: bool = False) -> str:
    """A report as lines for a terminal."""
    head = f"{report['file']}: {report['bytes'] / 1e6:.1f} MB, sha256 {report['sha256'][:16]}..."
    lines = [head, *(_engine_lines(report) if report["kind"] == "engine" else _onnx_lines(report, layers))]
    lines += [f"  problem: {text}" for text in report["problems"]]
    return "\n".join(lines)


def _onnx_lines(report: dict[str, Any], layers: bool) -> list[str]:
    lines = [f"  ONNX, opset {report['opset']}, {report['nodes']} nodes, written by {report['producer'] or 'an unknown program'}"]
    for side in ("inputs", "outputs"):
        lines += [f"  {side[:-1]:7}{v['name']}  {v['dtype']} ({', '.join(map(str, v['shape']))})" for v in report[side]]
    counts = ", ".join(f"{n} in {p}" for p, n in report["layers"].items() if n) or "none"
    macs = f", {report['macs'] / 1e9:.2f} G multiply-accumulates" if report["macs"] else ""
    lines.append(f"  layers {counts}{macs}")
    if report["plugin_nodes"]:
        lines.append(f"  plugin {', '.join(report['plugin_nodes'])}")
    if report["model"]:
        lines += _model_lines(report["model"])
    if layers:
        lines += [f"    {layer['precision']}  {layer['op']:14}{layer['name']}" for layer in report["layer_list"]]
    return lines


def _engine_lines(report: dict[str, Any]) -> list[str]:
    record = report["record"]
    if record is None:
        return []
    made, source, precision = record["built_with"], record["built_from"], record["precision"]
    sizes = {key: "x".join(map(str, value)) if isinstance(value, list) else value for key, value in source.get("shapes", {}).items()}
    gpus = ", ".join(made.get("compute_capabilities") or []) or made.get("gpu") or "every RTX GPU that it knows"
    lines = [
        f"  {made['flavour']} {made['version']}, {made['platform']}, for {gpus}",
        f"  from {source['onnx']} (sha256 {source['onnx_sha256'][:16]}...): {source['command']}",
    ]
    if sizes:
        lines.append(f"  frames {sizes['min_hw']} to {sizes['max_hw']}, best at {sizes['opt_hw']}, {sizes['batch']} per call")
    counts = ", ".join(f"{n} in {p}" for p, n in precision["layers"].items() if n)
    proof = ", ".join(f"{witness} ({n})" for witness, n in precision.get("proved_by", {}).items())
    lines.append(f"  precision {precision['asked']}: {counts}; proved by {proof or 'nobody'}")
    gate = record.get("gate")
    if gate is None:
        lines.append("  gate none: float32 is the measure itself")
    elif "skipped" in gate:
        lines.append(f"  gate skipped ({gate['skipped']})")
    else:
        lines.append(
            f"  gate passed on {gate['frames']} frames of {gate['source']}: {gate['label_agreement']:.2f}% of labels, PQ {gate['PQ']:.1f}"
        )
    plugin = record.get("plugin")
    lines.append(
        f"  plugin {plugin['namespace']}::{plugin['name']} {plugin['version']}, sha256 {plugin['sha256'][:16]}..."
        if plugin
        else "  plugin none"
    )
    lines += _model_lines(record["model"])
    if report["fits_this_machine"]:
        lines.append("  fits this machine")
    lines += [f"  not for this machine: {one['what']}: engine {one['engine']}, here {one['machine']}" for one in report["differences"]]
    return lines


def _model_lines(model: dict[str, Any]) -> list[str]:
    names, things = model["class_names"], model["things"]
    shown = ", ".join(names[k] for k in things[:_SHOWN]) + (", ..." if len(things) > _SHOWN else "")
    return [
        f"  {len(names)} classes, {len(things)} countable ({shown}), stride {model['stride']}",
        f"  trained on: {model.get('training_data', 'not stated')}; licence: {model.get('licence', 'not stated')}",
    ]
