"""``tfiseg inspect``: what a network or an engine is, read from the file and its record. Needs no GPU and no
TensorRT."""

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

FRAME_HW = (480, 640)  # at which work is counted where a network takes any size
_PLANS = (SUFFIX, ".plan", ".trt")
_CHUNK_BYTES = 1 << 20
_MAX_FRAME_BYTES = 1 << 28  # of a frame that is measured with
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
        Plain values. Always ``file``, ``kind`` ("onnx" or "engine"), ``bytes``, ``sha256`` and ``problems``,
        sentences on what is wrong with it; ``inspection_text`` prints the rest.

    Raises:
        InputError: there is no such file, or it is neither.
        ModelError: it is no ONNX network. (Reading one needs the package onnx; engines need nothing.)
    """
    if path.suffix not in (".onnx", *_PLANS):
        raise InputError(f"{path} is neither a network (.onnx) nor an engine ({', '.join(_PLANS)})")
    if not path.is_file():
        beside = sidecar_path(path)
        made = (
            f"; its record {beside.name} is there, and says how it was built: see built_from in it"
            if beside.is_file()
            else ""
        )
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
    report: dict[str, Any] = {"record": None, "fits_this_machine": None, "differences": [], "problems": []}
    if not sidecar_path(path).is_file():
        return report
    try:
        record = read_sidecar(path)
        lacking = [f"{part}.{key}" for part, keys in _SAID.items() for key in keys if key not in record[part]]
        if lacking:
            raise EngineError(
                f"{sidecar_path(path)} is damaged ({', '.join(lacking)} missing): build the engine again"
            )
        found = [vars(one) for one in mismatches(record, this_machine())]
        report |= {"record": record, "fits_this_machine": not found, "differences": found}
        check_content(path, record)
    except EngineError as error:
        report["problems"].append(str(error))
    return report


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors, and the system's
        raise ModelError(f"{path} is no ONNX network, or is cut off ({error})") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX network: it holds no graph")
    _check_nodes(path, model.graph.node)
    problems: list[str] = []
    external = _external_files(model, path.parent)
    missing = [one["file"] for one in external if one["bytes"] is None]
    if missing:
        problems.append(
            f"{path} keeps weights in other files that aren't there: copy {', '.join(missing)} beside it"
        )
    text = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), None)
    metadata: dict[str, Any] | None = None
    if text is not None:
        try:
            of_instances = _instance_metadata(text, path)
            if of_instances is not None:
                open_instance_session(path, threads=1)  # raises where something is damaged
            metadata = of_instances or ModelInfo.from_json(text, str(path)).extra
        except ModelError as error:
            problems.append(str(error))
    initial = {i.name for i in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in initial]
    layers, measured = layer_precisions(model), None
    if not missing and any(layer.macs is None for layer in layers):
        measured = _measured(path, model, inputs)
        layers = layer_precisions(model, measured)
    return {
        "inputs": [described_tensor(v) for v in inputs],
        "outputs": [described_tensor(v) for v in model.graph.output],
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
            {"name": n.name or n.output[0], "op": f"{n.domain}::{n.op_type}"}
            for n in model.graph.node
            if n.domain not in ("", "ai.onnx")
        ],
        "problems": problems,
    }


def _check_nodes(path: Path, nodes: Sequence[onnx.NodeProto]) -> None:
    """Raise ModelError for nodes that no network has: without a result, or with names that are no text."""
    for node in nodes:
        names = (node.name, node.op_type, node.domain, *node.input, *node.output)
        if not node.output or not all(isinstance(name, str) for name in names):
            raise ModelError(
                f"{path} is damaged: it has a node without result, or a name that is no valid text"
            )


def _instance_metadata(text: str, path: Path) -> dict[str, Any] | None:
    """What an instance network says of itself; None: it is another kind of network."""
    try:
        of_instances = metadata_version(text, "instance_format") is not None
        return {**instance_metadata(text), "class_names": [], "things": []} if of_instances else None
    except FormatError as error:
        raise ModelError(f"{path}: its tfiseg metadata is damaged ({error}): export it again") from error


def described_tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, dtype and shape; free sides by their names, "?" without."""
    import onnx

    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "undefined"
    except KeyError:  # of a damaged file
        dtype = element_name(kind.elem_type)
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _external_files(model: onnx.ModelProto, folder: Path) -> list[dict[str, Any]]:
    """Files that hold weights of this network; ``bytes`` None where one is missing."""
    names = {
        entry.value for i in model.graph.initializer for entry in i.external_data if entry.key == "location"
    }
    return [
        {"file": n, "bytes": (folder / n).stat().st_size if (folder / n).is_file() else None}
        for n in sorted(names)
    ]


def _weights_unchanged(model: onnx.ModelProto, metadata: Mapping[str, Any] | None) -> bool | None:
    """Are the weights those that the metadata's hash was made of? None: it has no hash."""
    if not metadata or "weights_sha256" not in metadata:
        return None
    return bool(weights_digest(model.graph.initializer) == metadata["weights_sha256"])


def _measured(
    path: Path, model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]
) -> dict[str, tuple[int, ...]] | None:
    """Sizes of all tensors that layers read and write when a frame of FRAME_HW goes through: shape inference
    doesn't see through the resizing that tfiseg's networks begin with. None where the network doesn't take
    such a frame, or ONNX Runtime can't run it."""
    import onnx

    sides = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(sides) != 4 or sides[3].dim_value != 3:
        return None
    layers = {layer.name for layer in layer_precisions(model)}
    made = {name for node in model.graph.node for name in node.output}
    nodes = [node for node in model.graph.node if (node.name or node.output[0]) in layers]
    names = sorted({name for node in nodes for name in (*node.input[:2], node.output[0])} & made)
    shape = [d.dim_value or free for d, free in zip(sides, (1, *FRAME_HW, 3), strict=True)]
    if min(shape) < 1 or math.prod(shape) > _MAX_FRAME_BYTES:
        return None
    frame = np.zeros(shape, np.uint8)
    try:
        asked = onnx.load(path)  # with weights that lie in other files
        del asked.graph.output[
            :
        ]  # sizes alone: the tensors of a large network together would fill the memory
        for k, name in enumerate(names):
            asked.graph.node.append(onnx.helper.make_node("Shape", [name], [f"tfiseg.size.{k}"]))
            asked.graph.output.append(
                onnx.helper.make_tensor_value_info(f"tfiseg.size.{k}", onnx.TensorProto.INT64, None)
            )
        session = start_session(asked.SerializeToString(), fuse=False)
        sizes = session.run(None, {inputs[0].name: frame})
    except (
        Exception
    ):  # onnxruntime's and protobuf's errors share no base class; what the file declares must do
        return None
    return {name: tuple(int(side) for side in size) for name, size in zip(names, sizes, strict=True)}


def _shares(layers: Sequence[LayerPrecision]) -> dict[str, dict[str, Any]]:
    """By precision: ``layers``, ``macs`` (None where a layer's size is unknown) and their ``share`` of
    all."""
    known = all(layer.macs is not None for layer in layers)
    total = sum(layer.macs or 0 for layer in layers)
    found = {}
    for precision in dict.fromkeys((*PRECISIONS, *(layer.precision for layer in layers))):
        own = [layer for layer in layers if layer.precision == precision]
        macs = sum(layer.macs or 0 for layer in own) if known else None
        found[precision] = {
            "layers": len(own),
            "macs": macs,
            "share": macs / total if macs is not None and total else None,
        }
    return found
