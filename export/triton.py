"""A model repository for NVIDIA's Triton inference server, which fleets serve through."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from ..errors import InputError, ModelError
from ..plugins.plugin_library import LIBRARY
from ..plugins.problem import TABLE_COLUMNS
from ..runtime.engine_file import SUFFIX, check_content, read_sidecar
from .batching import with_batch
from .clustering_node import MAX_INSTANCES
from .engine import read_network

_TYPES = {TensorProto.UINT8: "TYPE_UINT8", TensorProto.FLOAT: "TYPE_FP32", TensorProto.INT32: "TYPE_INT32"}
_USUAL_BATCH = 8
_QUEUE_DELAY_US = 1000  # of a frame's 33 ms
_MARK = "written by tfiseg"


def write_repository(model: Path, folder: Path, name: str | None = None, batch: int | None = None, instances: int = 1) -> dict[str, Any]:
    """Write ``folder/NAME/config.pbtxt``, ``folder/NAME/1/model.onnx`` or ``model.plan``, ``classes.txt`` and a README.

    Args:
        model: NAME.onnx in tfiseg's format, or a TensorRT NAME.engine with its record.
        folder: the repository; other models in it stay.
        name: the model's in Triton; default: the file's.
        batch: frames that an ONNX network may take per call; Triton joins requests of one size. Default: 8, or 1 where the network insists
            on single frames. An engine's is what it was built for.
        instances: copies that work side by side.

    Returns:
        name, platform, folder, max_batch_size.

    Raises:
        InputError: neither of the two kinds, a TensorRT-RTX engine (Triton doesn't load them), or a folder of somebody else's.
        EngineError, ModelError: the file is damaged.
    """
    if (batch is not None and batch < 1) or instances < 1:
        raise InputError(f"batch and instances are at least 1, got {batch} and {instances}")
    name = name or model.stem
    target = folder / name
    if target.exists() and _MARK not in _text(target / "config.pbtxt"):
        raise InputError(f"{target} is there and was not written by tfiseg: name another --name or folder")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tfiseg-") as scratch:
        made = Path(scratch, name)
        (made / "1").mkdir(parents=True)
        if model.suffix == SUFFIX:
            platform, most, metadata, inputs, outputs = _engine(model, made / "1")
        elif model.suffix == ".onnx":
            platform, most, metadata, inputs, outputs = _onnx(model, made / "1", batch)
        else:
            raise InputError(f"Triton is given NAME.onnx or NAME{SUFFIX}, got {model}")
        (made / "config.pbtxt").write_text(_config(name, platform, most, inputs, outputs, instances, metadata))
        (made / "classes.txt").write_text("\n".join(metadata["class_names"]) + "\n")
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    (folder / "README.md").write_text(_README)
    return {"name": name, "platform": platform, "folder": str(target), "max_batch_size": most}


Tensors = list[tuple[str, str, list[int]]]


def _onnx(path: Path, folder: Path, batch: int | None) -> tuple[str, int, dict[str, Any], Tensors, Tensors]:
    model, info = read_network(path)
    try:
        batched = with_batch(model, batch or _USUAL_BATCH)
        batch = batch or _USUAL_BATCH
    except ModelError:
        if batch is not None:
            raise
        batched, batch = model, 1
    onnx.save(batched, folder / "model.onnx")
    most = batch if batch > 1 else 0  # without a batch axis of Triton's own, dims are whole shapes

    def tensors(values: Any) -> Tensors:
        found = []
        for value in values:
            sides = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
            found.append((value.name, _TYPES[value.type.tensor_type.elem_type], sides[1:] if most else sides))
        return found

    return "onnxruntime_onnx", most, info.extra, tensors(batched.graph.input), tensors(batched.graph.output)


def _engine(path: Path, folder: Path) -> tuple[str, int, dict[str, Any], Tensors, Tensors]:
    record = read_sidecar(path)
    plan = check_content(path, record)
    if record["built_with"]["flavour"] != "tensorrt":
        raise InputError(f"{path} is an engine of {record['built_with']['flavour']}, which Triton doesn't load: give it the .onnx")
    (folder / "model.plan").write_bytes(plan)
    batch = int(record["built_from"]["shapes"]["batch"])
    most = batch if batch > 1 else 0
    first = [] if most else [1]
    inputs: Tensors = [("frame", "TYPE_UINT8", [*first, -1, -1, 3])]
    outputs: Tensors = [
        ("label_map", "TYPE_INT32", [*first, -1, -1]),
        ("semantic_map", "TYPE_INT32", [*first, -1, -1]),
        ("count", "TYPE_INT32", first or [1]),
        ("table", "TYPE_FP32", [*first, MAX_INSTANCES, len(TABLE_COLUMNS)]),
    ]
    if most:  # a scalar per frame
        outputs[2] = ("count", "TYPE_INT32", [1])
    return "tensorrt_plan", most, record["model"], inputs, outputs


def _config(name: str, platform: str, most: int, inputs: Tensors, outputs: Tensors, instances: int, metadata: dict[str, Any]) -> str:
    lines = [f"# {_MARK}", f"name: {json.dumps(name)}", f'platform: "{platform}"', f"max_batch_size: {most}"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor, dtype, dims in tensors:
            shape = ", ".join(map(str, dims))
            reshape = " reshape { shape: [ ] }" if tensor == "count" and most else ""
            lines.append(f'{kind} [ {{ name: "{tensor}" data_type: {dtype} dims: [ {shape} ]{reshape} }} ]')
    lines.append(f"instance_group [ {{ count: {instances} kind: KIND_AUTO }} ]")
    if most:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}")
    for key, value in (("class_names", metadata["class_names"]), ("things", metadata["things"]), ("stride", metadata["stride"])):
        lines.append(f"parameters {{ key: {json.dumps(f'tfiseg.{key}')} value {{ string_value: {json.dumps(json.dumps(value))} }} }}")
    return "\n".join(lines) + "\n"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


_README = f"""# A model repository for NVIDIA Triton

    docker run --gpus all --rm -p 8000:8000 -p 8001:8001 -v "$PWD":/models nvcr.io/nvidia/tritonserver:<release>-py3 \\
        tritonserver --model-repository=/models

Models of the platform `onnxruntime_onnx` give logits: the client clusters them (`tfiseg.cluster`, samples/triton_client.py in tfiseg).
Models of the platform `tensorrt_plan` hold the clustering operator and give instances; the server must know it before it loads them:

    tritonserver --model-repository=/models --backend-config=tensorrt,plugins=/path/to/{LIBRARY}

(older servers: LD_PRELOAD=/path/to/{LIBRARY}). `tfiseg plugin build` makes the library; a plan loads only in the TensorRT version that
built it, so take the Triton release that brings that version.
"""
