"""``tfiseg triton``: a model repository of NVIDIA's Triton Inference Server from a network or an engine.

Triton batches requests if the first axis of all tensors is free. Then ``max_batch_size`` is the model's
maximum, and the axis isn't listed. Otherwise it is 0, and sizes are complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx

from ..errors import EngineError, InputError, ModelError, check_choice
from ..plugins.plugin_library import AUTOREGISTER_LIBRARY
from ..plugins.problem import TABLE_COLUMNS
from ..runtime.inspect.model_file import FRAME_HW, describe_tensor
from ..runtime.inspect.onnx_layers import layer_precisions
from ..runtime.networks.engine_file import SUFFIX, check_content, read_sidecar
from ..runtime.networks.onnx_runtime import start_session
from ..runtime.networks.onnx_session import OnnxSession
from ..runtime.sources.open_source import open_source
from .engine.batching import with_batch
from .engine.build import read_network
from .engine.clustering_node import MAX_INSTANCES
from .onnx_import.agreement import MIN_AGREEMENT

DEVICES = ("auto", "cpu", "gpu")
MAX_BATCH = 8
_PLUGIN_IN_CONTAINER = f"/plugins/{AUTOREGISTER_LIBRARY}"
_QUEUE_DELAY_US = 1000  # of a frame's 33 ms
_PARAMETER = "tfiseg"  # of config.pbtxt: the model's metadata, for clients
_FRAMES = 4  # frames of the synthetic source to test a quantized network on
_TYPES = {
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
_LABELLED = ("logits", "semantic_map")
_MARK = "# Written by `tfiseg triton`, which replaces this folder when it writes the model again."


@dataclass(frozen=True)
class _ServedModel:
    """A model for Triton.

    ``inputs`` and ``outputs`` have name, dtype and complete shape, with free sides by name. ``max_frames``
    is the number of frames per call, ``record`` the record of an engine, and ``save`` writes the file."""

    platform: str
    file: str
    metadata: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    max_frames: int
    warm_hw: tuple[int, int]
    save: Callable[[Path], object]
    record: Mapping[str, Any] | None = None


def write_repository(
    model: Path,
    folder: Path,
    name: str | None = None,
    batch: int | None = None,
    instances: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Write a model into a Triton model repository, atomically.

    Args:
        model: NAME.onnx in tfiseg's format, or a TensorRT NAME.engine with its record.
        folder: the repository, created if missing. Other models in it are kept.
        name: name of the model in Triton, and of its folder; default: the file's.
        batch: maximum number of frames per call of an ONNX network; default: 8, or 1 if it accepts single
            frames only. An engine has its own maximum.
        instances: copies that run in parallel on each device.
        device: "cpu", "gpu" or "auto" (a GPU if there is one). Engines run on GPUs.

    Returns:
        ``folder`` (of the model), ``name``, ``platform``, ``max_batch_size``, ``inputs`` and ``outputs`` with
        their ``dims``, and ``serve``, the command that starts a server.

    Raises:
        ModelError: the network isn't in tfiseg's format, Triton would run it wrongly, or it doesn't accept
            ``batch`` frames.
        EngineError: the engine is damaged, or Triton can't load it.
        InputError: the folder was not written by tfiseg, or a setting doesn't fit the model.
    """
    name = model.stem if name is None else name
    _check_settings(folder, name, batch, instances, device)
    if model.suffix not in (".onnx", SUFFIX):
        raise InputError(f"expected NAME.onnx or NAME{SUFFIX} for Triton, got {model}")
    if model.suffix == SUFFIX and (device == "cpu" or batch is not None):
        raise InputError(
            f"{model} is an engine, which runs on a GPU with its own batch size: omit --device and --batch"
        )
    served = _engine(model) if model.suffix == SUFFIX else _network(model, batch)
    config: dict[str, Any] = {
        "name": name,
        "platform": served.platform,
        "max_batch_size": served.max_frames if served.max_frames > 1 else 0,
    }
    for side, tensors in (("inputs", served.inputs), ("outputs", served.outputs)):
        config[side] = [_tensor(one, batched=bool(config["max_batch_size"])) for one in tensors]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    files = {
        "config.pbtxt": _config_text(config, served, digest, instances, "gpu" if served.record else device),
        "labels.txt": "".join(f"{label}\n" for label in served.metadata["class_names"]),
        "README.md": _readme(config, served, _server_options(served, _PLUGIN_IN_CONTAINER)),
    }
    _write(served, folder, name, files)
    return {
        "folder": str(folder / name),
        **config,
        "serve": f"tritonserver --model-repository={folder.resolve()}"
        + _server_options(served, "$(tfiseg plugin path --autoregister)"),
    }


def _server_options(served: _ServedModel, plugin: str) -> str:
    """Return an engine's options of the server's command; ``plugin``: path of the autoregister library."""
    if served.record is None:
        return ""
    if served.record["built_with"].get("version_compatible"):
        return " --backend-config=tensorrt,version-compatible=true"
    return f" --backend-config=tensorrt,plugins={plugin}" if served.record.get("plugin") else ""


def frames_per_call(max_batch_size: int) -> str:
    """Return ``max_batch_size`` in words."""
    return f"up to {max_batch_size} frames per call" if max_batch_size else "one frame per call"


def _check_settings(folder: Path, name: str, batch: int | None, instances: int, device: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"a model's name consists of letters, digits, _, . and -, got {name!r}. Pass another with --name"
        )
    if (batch is not None and batch < 1) or instances < 1:
        raise InputError(f"batch and instances must be at least 1, got {batch} and {instances}")
    check_choice("device", device, DEVICES)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder")
    if (folder / "config.pbtxt").exists():
        raise InputError(
            f"{folder} is the folder of a model (it has a config.pbtxt). Pass its parent, the repository"
        )
    target = folder / name
    if target.exists() and not _is_generated(target):
        raise InputError(
            f"{target} exists and was not written by `tfiseg triton`. Pass another --name, or move it away"
        )


def _is_generated(target: Path) -> bool:
    config = target / "config.pbtxt"
    return config.is_file() and config.read_text(errors="replace").startswith(_MARK)


def _network(path: Path, batch: int | None) -> _ServedModel:
    model, info = read_network(path)
    if any(layer.precision == "int8" for layer in layer_precisions(model)):
        _check_optimized(path)
    if not _is_free(model):
        try:
            model = with_batch(model, batch or MAX_BATCH)
        except ModelError:
            if batch is not None:
                raise
    return _ServedModel(
        platform="onnxruntime_onnx",
        file="model.onnx",
        metadata=info.extra,
        inputs=[describe_tensor(value) for value in model.graph.input],
        outputs=[describe_tensor(value) for value in model.graph.output],
        max_frames=(batch or MAX_BATCH) if _is_free(model) else 1,
        warm_hw=FRAME_HW,
        save=lambda target: onnx.save(model, target),
    )


def _is_free(model: onnx.ModelProto) -> bool:
    """Return whether the first axis of all inputs and outputs is free."""
    shapes = [describe_tensor(value)["shape"] for value in (*model.graph.input, *model.graph.output)]
    return all(shape and isinstance(shape[0], str) for shape in shapes)


def _check_optimized(path: Path) -> None:
    """Run a quantized network with and without the optimizer that Triton can't switch off.

    The optimizer damages some networks.

    Raises:
        ModelError: with the optimizer, the network predicts other classes.
    """
    network, served = OnnxSession(path), start_session(path, unwanted_optimizers=())
    for frame in islice(open_source("synthetic"), _FRAMES):
        logits = served.run(["logits"], {"frame": frame.image[None]})[0]
        same = float((logits.argmax(1) == network.infer(frame.image)["logits"].argmax(1)).mean())
        if same < MIN_AGREEMENT:
            raise ModelError(
                f"in Triton, {path} would predict the class of only {same:.1%} of the pixels correctly, "
                f"because of ONNX Runtime's "
                "optimizer WeightBiasQuantization. Serve the float network, or an int8 engine"
            )


def _engine(path: Path) -> _ServedModel:
    record = read_sidecar(path)
    plan = check_content(path, record)
    made, shapes = record["built_with"], record["built_from"]["shapes"]
    if made["flavour"] != "tensorrt":
        raise EngineError(
            f"{path} was built with {made['flavour']}, but Triton runs engines of TensorRT only. Build it "
            "with `tfiseg build --target tensorrt --portable`, or serve the ONNX network"
        )
    max_frames = int(shapes["batch"])
    n = "batch" if max_frames > 1 else 1
    outputs: list[dict[str, Any]] = []  # without the plugin, Triton reads the list from the engine
    if record.get("plugin"):
        size = shapes["opt_hw"] if shapes["min_hw"] == shapes["max_hw"] else ["height", "width"]
        outputs = [
            {"name": "label_map", "dtype": "int32", "shape": [n, *size]},
            {"name": "semantic_map", "dtype": "int32", "shape": [n, *size]},
            {"name": "count", "dtype": "int32", "shape": [n]},
            {"name": "table", "dtype": "float32", "shape": [n, MAX_INSTANCES, len(TABLE_COLUMNS)]},
        ]
    return _ServedModel(
        platform="tensorrt_plan",
        file="model.plan",
        metadata=record["model"],
        inputs=[{"name": "frame", "dtype": "uint8", "shape": [n, "height", "width", 3]}],
        outputs=outputs,
        max_frames=max_frames,
        warm_hw=tuple(shapes["opt_hw"]),
        save=lambda target: target.write_bytes(plan),
        record=record,
    )


def _tensor(one: Mapping[str, Any], batched: bool) -> dict[str, Any]:
    if one["dtype"] not in _TYPES:
        raise ModelError(
            f"{one['name']} is {one['dtype']}, for which Triton has no name; expected one of "
            f"{', '.join(_TYPES)}"
        )
    dims = [-1 if isinstance(side, str) else side for side in one["shape"]][batched:]
    made = {"name": one["name"], "data_type": _TYPES[one["dtype"]], "dims": dims or [1]}
    # a number per frame: Triton needs an axis, the model has none
    return made if dims else {**made, "reshape": []}


def _config_text(
    config: Mapping[str, Any], served: _ServedModel, digest: str, instances: int, device: str
) -> str:
    """Return config.pbtxt: a ``ModelConfig`` of Triton's model_config.proto, as text."""

    def lines() -> Iterator[str]:
        yield _MARK
        yield f"name: {_quote(config['name'])}"
        yield f"platform: {_quote(config['platform'])}"
        if config["max_batch_size"] == 0:
            yield "# one frame per call: Triton must not batch requests, and dims are complete"
        yield f"max_batch_size: {config['max_batch_size']}"
        for side in ("inputs", "outputs"):
            for one in config[side]:
                more = " reshape { shape: [] }" if "reshape" in one else ""
                if side == "outputs" and one["name"] in _LABELLED:
                    more += f" label_filename: {_quote('labels.txt')}"
                name, kind = _quote(one["name"]), one["data_type"]
                yield f"{side[:-1]} {{ name: {name} data_type: {kind} dims: {one['dims']}{more} }}"
        yield f"instance_group {{ count: {instances} kind: KIND_{device.upper()} }}"
        yield "version_policy { latest { num_versions: 1 } }"
        if config["max_batch_size"]:
            yield f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}"
        for one in config["inputs"]:
            frame = zip(one["dims"][-3:], (*served.warm_hw, 3), strict=True)
            sides = [*one["dims"][:-3], *(free if side == -1 else side for side, free in frame)]
            inputs = (
                f"key: {_quote(one['name'])} value "
                f"{{ data_type: {one['data_type']} dims: {sides} zero_data: true }}"
            )
            yield "# the first frame is slow: kernels are chosen or compiled"
            yield f'model_warmup {{ name: "first frame" batch_size: 1 inputs {{ {inputs} }} }}'
        for key, value in (
            (_PARAMETER, json.dumps(served.metadata, ensure_ascii=False)),
            (f"{_PARAMETER}.sha256", digest),
        ):
            yield f"parameters {{ key: {_quote(key)} value {{ string_value: {_quote(value)} }} }}"

    return "\n".join(lines()) + "\n"


def _quote(text: str) -> str:
    """Quote a string for protobuf's text format, which includes JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def _readme(config: Mapping[str, Any], served: _ServedModel, options: str) -> str:
    def list_tensors(side: str) -> str:
        tensors = (f"- `{one['name']}` {one['data_type']} {one['dims']}" for one in config[side])
        return "\n".join(tensors) or "- those of the engine"

    axis = ", of one size; the batch axis comes before the sizes" if config["max_batch_size"] else ""
    notes = [
        f"{frames_per_call(config['max_batch_size']).capitalize()}{axis}. Frames are BGR.",
        "`labels.txt` has the class names, the parameter `tfiseg` of the configuration all metadata.",
    ]
    if served.record:
        made, shapes = served.record["built_with"], served.record["built_from"]["shapes"]
        low, high = ("x".join(map(str, shapes[key])) for key in ("min_hw", "max_hw"))
        later = " or newer" if made.get("version_compatible") else ", exactly"
        notes.append(f"Frames of {low} to {high} (HxW). The server needs TensorRT {made['version']}{later}.")
        if served.record.get("plugin"):
            notes.append(
                "The engine contains the clustering plugin; the option `version-compatible` lets the server "
                "run its code."
                if made.get("version_compatible")
                else "The server opens the clustering plugin, which registers itself. Mount the library "
                f"into the container: `-v $(tfiseg plugin path --autoregister):{_PLUGIN_IN_CONTAINER}`."
            )
    return f"""# {config["name"]}

    tritonserver --model-repository=/models{options}

in NVIDIA's Triton container, where /models is the parent of this folder
(`docker run --gpus all -p 8001:8001 -v FOLDER:/models ...`).
A client of tfiseg: `python samples/triton_client.py SOURCE --model {config["name"]}`.

Input:
{list_tensors("inputs")}

Outputs:
{list_tensors("outputs")}

{chr(10).join(notes)}
"""


def _write(served: _ServedModel, folder: Path, name: str, files: Mapping[str, str]) -> None:
    """Write a temporary folder and rename it, so that a running server sees the old or the new model."""
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=folder))
    except OSError as wrong:
        raise InputError(f"can't write to {folder}: {wrong.strerror}") from wrong
    try:
        fresh.chmod(0o755)  # temporary folders are private, and a server runs as another user
        (fresh / "1").mkdir()
        served.save(fresh / "1" / served.file)
        for file, text in files.items():
            (fresh / file).write_text(text, encoding="utf-8")
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".old", dir=folder))
            target.rename(old / name)
            fresh.rename(target)
            shutil.rmtree(old)
        else:
            fresh.rename(target)
    except OSError as wrong:
        raise InputError(f"can't write {target}: {wrong.strerror}") from wrong
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
