"""``tfiseg inspect``: describe a network or an engine by its file and metadata, without GPU or TensorRT."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import EngineError, FormatError, InputError, ModelError
from ..networks.engine_file import SUFFIX, check_content, mismatches, read_sidecar, sidecar_path
from ..networks.machine import this_machine
from ..networks.model_info import METADATA_KEY, ModelInfo, instance_metadata, metadata_version, weights_digest
from ..networks.onnx_runtime import start_session
from ..networks.open_session import open_instance_session
from .onnx_layers import PRECISIONS, LayerPrecision, element_name, layer_precisions

if TYPE_CHECKING:
    import onnx

FRAME_HW = (480, 640)  # frame size for multiply-accumulates if the network accepts any size
_PLAN_SUFFIXES = (SUFFIX, ".plan", ".trt")
_CHUNK_BYTES = 1 << 20
_MAX_FRAME_BYTES = 1 << 28
_REQUIRED_KEYS = {  # of an engine's metadata
    "plan": ("sha256", "bytes"),
    "built_from": ("onnx", "onnx_sha256", "command", "shapes"),
    "built_with": ("flavour", "version", "platform"),
    "precision": ("asked", "layers"),
    "model": ("class_names", "things", "stride"),
}


def inspect_file(path: Path) -> dict[str, Any]:
    """Return a description of a network or an engine.

    Args:
        path: NAME.onnx, or NAME.engine with or without its metadata file.

    Returns:
        A JSON object with ``file``, ``kind`` ("onnx" or "engine"), ``bytes``, ``sha256``, ``problems`` (a
        list of sentences), and further keys of each kind, which ``inspection_text`` prints.

    Raises:
        InputError: there is no such file, or it is neither a network nor an engine.
        ModelError: the file is no ONNX network.
    """
    if path.suffix not in (".onnx", *_PLAN_SUFFIXES):
        raise InputError(f"{path} is neither a network (.onnx) nor an engine ({', '.join(_PLAN_SUFFIXES)})")
    if not path.is_file():
        sidecar, hint = sidecar_path(path), ""
        if sidecar.is_file():
            hint = f"; its metadata {sidecar.name} exists and states how it was built: see built_from in it"
        raise InputError(f"there is no file {path}{hint}")
    report = {
        "file": str(path),
        "kind": "onnx" if path.suffix == ".onnx" else "engine",
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
    }
    return report | (_onnx(path) if report["kind"] == "onnx" else _engine(path))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _engine(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"record": None, "fits_this_machine": None, "differences": [], "problems": []}
    if not sidecar_path(path).is_file():
        return report
    try:
        record = read_sidecar(path)
        missing = [
            f"{part}.{k}" for part, keys in _REQUIRED_KEYS.items() for k in keys if k not in record[part]
        ]
        if missing:
            raise EngineError(
                f"{sidecar_path(path)} is damaged ({', '.join(missing)} missing): build the engine again"
            )
        differences = [vars(mismatch) for mismatch in mismatches(record, this_machine())]
        report |= {"record": record, "fits_this_machine": not differences, "differences": differences}
        check_content(path, record)
    except EngineError as error:
        report["problems"].append(str(error))
    return report


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors and OSError
        raise ModelError(f"{path} is no ONNX network, or is truncated ({error})") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX network: it contains no graph")
    _check_nodes(path, model.graph.node)
    problems: list[str] = []
    external = _external_files(model, path.parent)
    missing = [file["file"] for file in external if file["bytes"] is None]
    if missing:
        problems.append(
            f"{path} stores weights in other files, which are missing: copy {', '.join(missing)} beside it"
        )
    text = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), None)
    metadata: dict[str, Any] | None = None
    if text is not None:
        try:
            instance_info = _instance_metadata(text, path)
            if instance_info is not None:
                open_instance_session(path, threads=1)  # raises ModelError if the network is damaged
            metadata = instance_info or ModelInfo.from_json(text, str(path)).extra
        except ModelError as error:
            problems.append(str(error))
    initial = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in initial]
    layers, shapes = layer_precisions(model), None
    if not missing and any(layer.macs is None for layer in layers):
        shapes = _measure_shapes(path, model, inputs)
        layers = layer_precisions(model, shapes)
    return {
        "inputs": [describe_tensor(v) for v in inputs],
        "outputs": [describe_tensor(v) for v in model.graph.output],
        "model": metadata,
        "weights_unchanged": _weights_unchanged(model, metadata),
        "precision": _shares(layers),
        "layers": [vars(layer) for layer in layers],
        "macs_at_hw": FRAME_HW if shapes else None,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))) or None,
        "external_data": external,
        "plugin_nodes": [
            {"name": n.name or n.output[0], "op": f"{n.domain}::{n.op_type}"}
            for n in model.graph.node
            if n.domain not in ("", "ai.onnx")
        ],
        "problems": problems,
    }


def _check_nodes(path: Path, nodes: Sequence[onnx.NodeProto]) -> None:
    """Raise ModelError if a node has no output or a name that is not UTF-8."""
    for node in nodes:
        names = (node.name, node.op_type, node.domain, *node.input, *node.output)
        if not node.output or not all(isinstance(name, str) for name in names):
            raise ModelError(
                f"{path} is damaged: it has a node without output, or a name that is no valid text"
            )


def _instance_metadata(text: str, path: Path) -> dict[str, Any] | None:
    """Return the metadata of an instance network; None for other networks."""
    try:
        is_instance_network = metadata_version(text, "instance_format") is not None
        return {**instance_metadata(text), "class_names": [], "things": []} if is_instance_network else None
    except FormatError as error:
        raise ModelError(f"{path}: its tfiseg metadata is damaged ({error}): export it again") from error


def describe_tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Return name, dtype and shape of a tensor; dynamic sides by their names, or "?"."""
    import onnx

    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    try:
        element = tensor.elem_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(element)) if element else "undefined"
    except KeyError:  # a damaged file
        dtype = element_name(element)
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _external_files(model: onnx.ModelProto, folder: Path) -> list[dict[str, Any]]:
    """Return the files with weights of this network; ``bytes`` is None if a file is missing."""
    names = {
        entry.value for i in model.graph.initializer for entry in i.external_data if entry.key == "location"
    }
    return [{"file": name, "bytes": _size_bytes(folder / name)} for name in sorted(names)]


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # a name that is too long, or with a zero byte
        return None


def _weights_unchanged(model: onnx.ModelProto, metadata: Mapping[str, Any] | None) -> bool | None:
    """Return whether the weights have the hash in the metadata; None if there is no hash."""
    if not metadata or "weights_sha256" not in metadata:
        return None
    return bool(weights_digest(model.graph.initializer) == metadata["weights_sha256"])


def _measure_shapes(
    path: Path, model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]
) -> dict[str, tuple[int, ...]] | None:
    """Run a frame of FRAME_HW and return the shapes of the tensors that layers read and write.

    Shape inference fails at the Resize nodes at the start of tfiseg's networks. Returns None if the network
    does not accept such a frame or ONNX Runtime cannot run it.
    """
    import onnx

    sides = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(sides) != 4 or sides[3].dim_value != 3:
        return None
    layers = {layer.name for layer in layer_precisions(model)}
    computed = {name for node in model.graph.node for name in node.output}
    nodes = [node for node in model.graph.node if (node.name or node.output[0]) in layers]
    names = sorted({name for node in nodes for name in (*node.input[:2], node.output[0])} & computed)
    shape = [d.dim_value or default for d, default in zip(sides, (1, *FRAME_HW, 3), strict=True)]
    if min(shape) < 1 or math.prod(shape) > _MAX_FRAME_BYTES:
        return None
    frame = np.zeros(shape, np.uint8)
    try:
        probe = onnx.load(path)  # with external weights
        del probe.graph.output[:]  # only shapes are output, because all tensors would fill the memory
        for k, name in enumerate(names):
            probe.graph.node.append(onnx.helper.make_node("Shape", [name], [f"tfiseg.size.{k}"]))
            probe.graph.output.append(
                onnx.helper.make_tensor_value_info(f"tfiseg.size.{k}", onnx.TensorProto.INT64, None)
            )
        session = start_session(probe.SerializeToString(), fuse=False)
        sizes = session.run(None, {inputs[0].name: frame})
    except Exception:  # the errors of onnxruntime and protobuf have no common base class
        return None
    return {name: tuple(int(side) for side in size) for name, size in zip(names, sizes, strict=True)}


def _shares(layers: Sequence[LayerPrecision]) -> dict[str, dict[str, Any]]:
    """Return the number of layers, their multiply-accumulates and the share of these for each precision."""
    is_known = all(layer.macs is not None for layer in layers)
    total = sum(layer.macs or 0 for layer in layers)
    shares = {}
    for precision in dict.fromkeys((*PRECISIONS, *(layer.precision for layer in layers))):
        group = [layer for layer in layers if layer.precision == precision]
        macs = sum(layer.macs or 0 for layer in group) if is_known else None
        shares[precision] = {
            "layers": len(group),
            "macs": macs,
            "share": macs / total if macs is not None and total else None,
        }
    return shares
