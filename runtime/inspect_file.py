"""``tfiseg inspect``: what a network or an engine is, read from the file and its record. Needs no GPU and no TensorRT."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError, InputError, ModelError
from .engine_file import SUFFIX, check_content, mismatches, read_sidecar, sidecar_path
from .machine import this_machine
from .onnx_layers import PRECISIONS, LayerPrecision, layer_precisions
from .sessions import METADATA_KEY, ModelInfo

if TYPE_CHECKING:
    import onnx

FRAME_HW = (480, 640)  # at which work is counted where a network takes any size
_PLANS = (SUFFIX, ".plan", ".trt")
_CHUNK_BYTES = 1 << 20
_SAID = {  # what is read of a record
    "plan": ("sha256", "bytes"),
    "built_from": ("onnx", "onnx_sha256", "command", "shapes"),
    "built_with": ("flavour", "version", "platform"),
    "precision": ("asked", "layers"),
    "model": ("class_names", "things", "stride"),
}


def inspect_file(path: Path) -> dict[str, Any]:
    """What a file is.

    Args:
        path: NAME.onnx, or NAME.engine with or without its record.

    Returns:
        Plain values. Always ``file``, ``kind`` ("onnx" or "engine"), ``bytes``, ``sha256`` and ``problems``, sentences on what is wrong
        with it; ``describe`` prints the rest.

    Raises:
        InputError: there is no such file, or it is neither.
        ModelError: it is no ONNX network. (Reading one needs the package onnx; engines need nothing.)
    """
    if path.suffix not in (".onnx", *_PLANS):
        raise InputError(f"{path} is neither a network (.onnx) nor an engine ({', '.join(_PLANS)})")
    if not path.is_file():
        beside = sidecar_path(path)
        made = f"; its record {beside.name} is there, and says how it was built: see built_from in it" if beside.is_file() else ""
        raise InputError(f"there is no file {path}{made}")
    report = {
        "file": str(path),
        "kind": "onnx" if path.suffix == ".onnx" else "engine",
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
    }
    return report | (_onnx(path) if report["kind"] == "onnx" else _engine(path))


def sha256(path: Path) -> str:
    """Of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while piece := content.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _engine(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"record": None, "problems": [], "unfit": []}
    if not sidecar_path(path).is_file():
        return report
    try:
        record = read_sidecar(path)
        lacking = [f"{part}.{key}" for part, keys in _SAID.items() for key in keys if key not in record[part]]
        if lacking:
            raise EngineError(f"{sidecar_path(path)} is damaged ({', '.join(lacking)} missing): build the engine again")
        report |= {"record": record, "unfit": [vars(one) for one in mismatches(record, this_machine())]}
        check_content(path, record)
    except EngineError as wrong:
        report["problems"].append(str(wrong))
    return report


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as wrong:  # protobuf's errors, and the system's
        raise ModelError(f"{path} is no ONNX network, or is cut off ({wrong})") from wrong
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX network: it holds no graph")
    problems: list[str] = []
    external = _external_files(model, path.parent)
    missing = [one["file"] for one in external if one["bytes"] is None]
    if missing:
        problems.append(f"{path} keeps weights in other files that aren't there: copy {', '.join(missing)} beside it")
    text = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), None)
    metadata: dict[str, Any] | None = None
    if text is not None:
        try:
            metadata = ModelInfo.from_json(text, str(path)).extra
        except ModelError as wrong:
            problems.append(str(wrong))
    initial = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in initial]
    layers, measured = layer_precisions(model), None
    if not missing and any(layer.macs is None for layer in layers):
        measured = _measured(path, model, inputs)
        layers = layer_precisions(model, measured)
    return {
        "inputs": [_tensor(v) for v in inputs],
        "outputs": [_tensor(v) for v in model.graph.output],
        "model": metadata,
        "weights_unchanged": _weights_unchanged(model, metadata),
        "precision": _shares(layers),
        "layers": [vars(layer) for layer in layers],
        "macs_at_hw": FRAME_HW if measured else None,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))) or None,
        "external_data": external,
        "plugin_nodes": [
            {"name": n.name or n.output[0], "op": f"{n.domain}::{n.op_type}"} for n in model.graph.node if n.domain not in ("", "ai.onnx")
        ],
        "problems": problems,
    }


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, dtype and shape; free sides by their names, "?" without."""
    import onnx

    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else "undefined"
    return {"name": value.name, "dtype": str(dtype), "shape": shape}


def _external_files(model: onnx.ModelProto, folder: Path) -> list[dict[str, Any]]:
    """Files that hold weights of this network; ``bytes`` None where one is missing."""
    names = {entry.value for i in model.graph.initializer for entry in i.external_data if entry.key == "location"}
    return [{"file": n, "bytes": (folder / n).stat().st_size if (folder / n).is_file() else None} for n in sorted(names)]


def _weights_unchanged(model: onnx.ModelProto, metadata: Mapping[str, Any] | None) -> bool | None:
    """Are the weights those that the metadata's hash was made of? None: it has no hash."""
    if not metadata or "weights_sha256" not in metadata:
        return None
    content = b"".join(sorted(i.raw_data for i in model.graph.initializer))
    return hashlib.sha256(content).hexdigest() == metadata["weights_sha256"]


def _measured(path: Path, model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]] | None:
    """Sizes of all tensors that layers read and write when a frame of FRAME_HW goes through: shape inference doesn't see through the
    resizing that tfiseg's networks begin with. None where the network doesn't take such a frame, or ONNX Runtime can't run it."""
    import onnx
    import onnxruntime

    sides = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(sides) != 4 or sides[3].dim_value != 3:
        return None
    layers = {layer.name for layer in layer_precisions(model)}
    made = {name for node in model.graph.node for name in node.output}
    nodes = [node for node in model.graph.node if (node.name or node.output[0]) in layers]
    names = sorted({name for node in nodes for name in (*node.input[:2], node.output[0])} & made)
    frame = np.zeros([d.dim_value or free for d, free in zip(sides, (1, *FRAME_HW, 3), strict=True)], np.uint8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # else layers are fused away
    options.log_severity_level = 4
    try:
        asked = onnx.load(path)  # with weights that lie in other files
        del asked.graph.output[:]  # sizes alone: the tensors of a large network together would fill the memory
        for k, name in enumerate(names):
            asked.graph.node.append(onnx.helper.make_node("Shape", [name], [f"tfiseg.size.{k}"]))
            asked.graph.output.append(onnx.helper.make_tensor_value_info(f"tfiseg.size.{k}", onnx.TensorProto.INT64, None))
        session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        sizes = session.run(None, {inputs[0].name: frame})
    except Exception:  # onnxruntime's and protobuf's errors share no base class; what the file declares must do
        return None
    return {name: tuple(int(side) for side in size) for name, size in zip(names, sizes, strict=True)}


def _shares(layers: Sequence[LayerPrecision]) -> dict[str, dict[str, Any]]:
    """By precision: ``layers``, ``macs`` (None where a layer's size is unknown) and their ``share`` of all."""
    known = all(layer.macs is not None for layer in layers)
    total = sum(layer.macs or 0 for layer in layers)
    found = {}
    for precision in dict.fromkeys((*PRECISIONS, *(layer.precision for layer in layers))):
        own = [layer for layer in layers if layer.precision == precision]
        macs = sum(layer.macs or 0 for layer in own) if known else None
        found[precision] = {"layers": len(own), "macs": macs, "share": macs / total if macs is not None and total else None}
    return found


def describe(report: Mapping[str, Any], with_layers: bool = False) -> str:
    """``inspect_file()`` as text."""
    lines = [f"{report['file']}: {_kind(report)}, {_size(report['bytes'])}, sha256 {report['sha256']}"]
    lines += _onnx_lines(report, with_layers) if report["kind"] == "onnx" else _engine_lines(report)
    return "\n".join(lines + [f"WRONG: {problem}" for problem in report["problems"]])


def _kind(report: Mapping[str, Any]) -> str:
    if report["kind"] == "engine":
        return "TensorRT engine"
    return "network in tfiseg's format" if report["model"] else "ONNX network, not in tfiseg's format"


def _onnx_lines(report: Mapping[str, Any], with_layers: bool) -> list[str]:
    lines = [_row(name, ", ".join(_signature(t) for t in report[name])) for name in ("inputs", "outputs")]
    lines += _model_lines(report["model"])
    if report["weights_unchanged"] is not None:
        said = "those of the export" if report["weights_unchanged"] else "changed since the export (`tfiseg build` does so)"
        lines.append(_row("weights", f"{said}; the export's sha256 {report['model']['weights_sha256'][:16]}..."))
    lines.append(_row("layers", _precision(report)))
    opset = ", ".join(f"{domain} {version}" for domain, version in report["opset"].items())
    lines.append(_row("opset", f"{opset}; IR {report['ir_version']}; made by {report['producer'] or 'nobody who says so'}"))
    for one in report["external_data"]:
        lines.append(_row("weights in", f"{one['file']}, {'missing' if one['bytes'] is None else _size(one['bytes'])}"))
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
    text = ", ".join(parts) or "none that multiply"
    if total:
        at = report["macs_at_hw"]
        text += f"; {_count(total)} multiply-accumulates" + (f" for a frame of {at[1]}x{at[0]}" if at else "")
    return text


def _engine_lines(report: Mapping[str, Any]) -> list[str]:
    record = report["record"]
    if record is None:
        if report["problems"]:
            return []
        beside = f"{Path(report['file']).name}.json"
        return [f"  no record {beside} beside it: an engine's content can be read only by the TensorRT that wrote it"]
    made, source, precision = record["built_with"], record["built_from"], record["precision"]
    lines = [_row("file", "cut off, replaced or damaged" if report["problems"] else "intact: size and sha256 are those of the record")]
    lines.append(_row("built from", f"{source['onnx']}, sha256 {source['onnx_sha256'][:16]}..."))
    lines.append(_row("command", source["command"]))
    low, best, high = ("x".join(map(str, source["shapes"][key])) for key in ("min_hw", "opt_hw", "max_hw"))
    sizes = best if low == high else f"{low} to {high}, fastest at {best}"
    lines.append(_row("frames", f"uint8 BGR of {sizes} (HxW), {source['shapes']['batch']} per call"))
    cuda, driver = (f", {word} {made[key]}" if made.get(key) else "" for key, word in (("cuda", "CUDA"), ("driver", "driver")))
    lines.append(_row("built with", f"{made['flavour']} {made['version']} on {made['platform']}{cuda}{driver}"))
    lines.append(_row("runs on", _gpus(made)))
    here = "; ".join(f"{one['what']}: the engine has {one['engine']}, this machine {one['machine']}" for one in report["unfit"])
    lines.append(_row("here", f"no. {here}" if here else "it fits this machine"))
    counts = ", ".join(f"{count} layers in {name}" for name, count in precision["layers"].items() if count)
    proof = precision.get("proved_by") or {}
    lines.append(_row("precision", f"{counts}; asked: {precision['asked']}; proved by {', '.join(proof) or 'nothing'}"))
    if precision.get("kept_high"):
        lines.append(_row("kept higher", ", ".join(precision["kept_high"])))
    lines.append(_row("gate", _gate(record.get("gate"))))
    plugin = record.get("plugin")
    if plugin:
        inside = " (inside the engine)" if made.get("version_compatible") else ""
        lines.append(
            _row(
                "plugin", f"{plugin['namespace']}::{plugin['name']} version {plugin['version']}, sha256 {plugin['sha256'][:16]}...{inside}"
            )
        )
    else:
        lines.append(_row("plugin", "none: clustering runs after the network"))
    return lines + _model_lines(record["model"])


def _gpus(made: Mapping[str, Any]) -> str:
    capabilities = ", ".join(made.get("compute_capabilities") or [])
    if made.get("hardware_compatibility") == "ampere_plus":
        gpus = "every NVIDIA GPU from Ampere on"
    elif capabilities:
        gpus = f"compute capability {capabilities}" + (f" ({made['gpu']})" if made.get("gpu") else "")
    else:
        gpus = "every GPU that this TensorRT knows" if made.get("flavour") == "tensorrt_rtx" else str(made.get("gpu") or "unknown GPUs")
    return f"{gpus}; {'this TensorRT and newer ones' if made.get('version_compatible') else 'this version of TensorRT only'}"


def _gate(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return "none needed: float32 is the measure itself"
    if "skipped" in gate:
        return f"skipped: {gate['skipped']}"
    said = (
        f"{gate.get('label_agreement')}% of labels as in {gate.get('reference', 'fp32')}, PQ {gate.get('PQ')}, {gate.get('frames')} frames"
    )
    return f"{'passed' if gate.get('passed') else 'FAILED'}: {said}"


def _model_lines(metadata: Mapping[str, Any] | None) -> list[str]:
    if metadata is None:
        return [_row("metadata", "none of tfiseg: `tfiseg export` brings a network into its format")]
    names, things = list(metadata["class_names"]), set(metadata["things"])
    classes = ", ".join(f"{k} {name}{'*' if k in things else ''}" for k, name in enumerate(names))
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode()).hexdigest()
    lines = [_row("model", f"{metadata.get('name', 'unnamed')}, stride {metadata['stride']}, metadata {digest[:16]}")]
    lines.append(_row("classes", f"{len(names)}, of which {len(things)} countable (*): {classes}"))
    lines += [_row(key.replace("_", " "), str(metadata[key])) for key in ("training_data", "licence") if key in metadata]
    return lines


def _signature(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} ({', '.join(map(str, tensor['shape']))})"


def _row(name: str, text: str) -> str:
    return f"  {name + ':':<14} {text}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"


def _count(number: float) -> str:
    power = min(4, int(math.log10(number)) // 3) if number >= 1 else 0
    return f"{number / 1000**power:.3g}{' kMGT'[power].strip()}"
