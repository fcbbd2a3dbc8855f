"""``tfiseg triton``: a model repository of NVIDIA's Triton Inference Server from a network or an engine.

Triton puts requests together where the first axis of all tensors is free: then ``max_batch_size`` is what the
model takes, and that axis isn't listed. Else it is 0, and sizes are whole.
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

from ..errors import EngineError, InputError, ModelError
from ..plugins.problem import TABLE_COLUMNS
from ..runtime.inspect.model_file import FRAME_HW, described_tensor
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
_QUEUE_DELAY_US = 1000  # of a frame's 33 ms
_PARAMETER = "tfiseg"  # of config.pbtxt: the model's metadata, for clients
_FRAMES = 4  # of the synthetic camera, on which a quantized network is tried
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
class _Served:
    """A model as Triton gets it. ``inputs`` and ``outputs``: name, dtype and whole shape, free sides by name;
    ``most``: frames per call; ``record``: of an engine; ``save``: writes the file."""

    platform: str
    file: str
    metadata: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    most: int
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
    """Write a model into a Triton model repository: whole, or not at all.

    Args:
        model: NAME.onnx in tfiseg's format, or a TensorRT NAME.engine with its record.
        folder: the repository; made where it isn't there. Other models in it stay.
        name: the model's in Triton, and of its folder; default: the file's.
        batch: most frames that an ONNX network may take per call; default: 8, or 1 where it insists on single
            frames. An engine's is what it was built for.
        instances: copies that work side by side on each device.
        device: "cpu", "gpu" or "auto" (a GPU where there is one). Engines run on GPUs.

    Returns:
        ``folder`` (of the model), ``name``, ``platform``, ``max_batch_size``, ``inputs`` and ``outputs`` with
        their ``dims``; and the command that starts a server, ``serve``.

    Raises:
        ModelError: no network in tfiseg's format, one that Triton would run wrongly, or that doesn't take
            ``batch`` frames.
        EngineError: an engine that is damaged, or that Triton can't load.
        InputError: the folder is somebody else's, or a setting doesn't fit the model.
    """
    name = model.stem if name is None else name
    _check_settings(folder, name, batch, instances, device)
    if model.suffix not in (".onnx", SUFFIX):
        raise InputError(f"Triton is given NAME.onnx or NAME{SUFFIX}, got {model}")
    if model.suffix == SUFFIX and (device == "cpu" or batch is not None):
        raise InputError(
            f"{model} is an engine: it runs on a GPU and takes as many frames as it was built for; leave --device and --batch out"
        )
    served = _engine(model) if model.suffix == SUFFIX else _network(model, batch)
    config: dict[str, Any] = {
        "name": name,
        "platform": served.platform,
        "max_batch_size": served.most if served.most > 1 else 0,
    }
    for side, tensors in (("inputs", served.inputs), ("outputs", served.outputs)):
        config[side] = [_tensor(one, batched=bool(config["max_batch_size"])) for one in tensors]
    portable = served.record is not None and served.record["built_with"].get("version_compatible")
    options = " --backend-config=tensorrt,version-compatible=true" if portable else ""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    files = {
        "config.pbtxt": _config_text(config, served, digest, instances, "gpu" if served.record else device),
        "labels.txt": "".join(f"{label}\n" for label in served.metadata["class_names"]),
        "README.md": _readme(config, served, options),
    }
    _write(served, folder, name, files)
    return {
        "folder": str(folder / name),
        **config,
        "serve": f"tritonserver --model-repository={folder.resolve()}{options}",
    }


def frames_per_call(most: int) -> str:
    """``max_batch_size`` in words."""
    return f"up to {most} frames per call" if most else "one frame per call"


def _check_settings(folder: Path, name: str, batch: int | None, instances: int, device: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"a model's name is letters, digits, _, . and -, got {name!r}: give another with --name"
        )
    if (batch is not None and batch < 1) or instances < 1:
        raise InputError(f"batch and instances are at least 1, got {batch} and {instances}")
    if device not in DEVICES:
        raise InputError(f"no device {device!r}: wanted one of {', '.join(DEVICES)}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: the repository is a folder")
    if (folder / "config.pbtxt").exists():
        raise InputError(
            f"{folder} is the folder of a model (it has a config.pbtxt): give the repository, the folder above it"
        )
    target = folder / name
    if target.exists() and not _is_ours(target):
        raise InputError(
            f"{target} is there already and was not written by `tfiseg triton`: give another --name, or move it away"
        )


def _is_ours(target: Path) -> bool:
    config = target / "config.pbtxt"
    return config.is_file() and config.read_text(errors="replace").startswith(_MARK)


def _network(path: Path, batch: int | None) -> _Served:
    model, info = read_network(path)
    if any(layer.precision == "int8" for layer in layer_precisions(model)):
        _check_optimised(path)
    if not _is_free(model):
        try:
            model = with_batch(model, batch or MAX_BATCH)
        except ModelError:
            if batch is not None:
                raise
    return _Served(
        platform="onnxruntime_onnx",
        file="model.onnx",
        metadata=info.extra,
        inputs=[described_tensor(value) for value in model.graph.input],
        outputs=[described_tensor(value) for value in model.graph.output],
        most=(batch or MAX_BATCH) if _is_free(model) else 1,
        warm_hw=FRAME_HW,
        save=lambda target: onnx.save(model, target),
    )


def _is_free(model: onnx.ModelProto) -> bool:
    """Is the first axis of everything that goes in and comes out free?"""
    shapes = [described_tensor(value)["shape"] for value in (*model.graph.input, *model.graph.output)]
    return all(shape and isinstance(shape[0], str) for shape in shapes)


def _check_optimised(path: Path) -> None:
    """Triton can't switch off the optimiser that OnnxSession does without. It spoils some quantized networks,
    so: run both ways.

    Raises:
        ModelError: run as Triton runs it, the network names other classes.
    """
    network, served = OnnxSession(path), start_session(path, unwanted_optimizers=())
    for frame in islice(open_source("synthetic"), _FRAMES):
        logits = served.run(["logits"], {"frame": frame.image[None]})[0]
        same = float((logits.argmax(1) == network.infer(frame.image)["logits"].argmax(1)).mean())
        if same < MIN_AGREEMENT:
            raise ModelError(
                f"run by Triton, {path} would name the class of only {same:.1%} of the pixels as it does here: ONNX Runtime's optimiser "
                "WeightBiasQuantization, which Triton can't switch off, spoils it. Serve the float network, or an int8 engine"
            )


def _engine(path: Path) -> _Served:
    record = read_sidecar(path)
    plan = check_content(path, record)
    made, shapes = record["built_with"], record["built_from"]["shapes"]
    if made["flavour"] != "tensorrt":
        raise EngineError(
            f"{path} was built with {made['flavour']}, and Triton's backend runs engines of TensorRT alone: build it with "
            "`tfiseg build --target tensorrt --portable`, or serve the ONNX network"
        )
    if record.get("plugin") and not made.get("version_compatible"):
        # the backend's `plugins` option and LD_PRELOAD only open a library; ours registers when TensorRT
        # itself loads it (getCreators)
        raise EngineError(
            f"{path} needs the plugin library, which Triton can open but not register with TensorRT. An engine that carries it works: "
            "build it with --portable; or serve the ONNX network"
        )
    most = int(shapes["batch"])
    n = "batch" if most > 1 else 1
    outputs: list[
        dict[str, Any]
    ] = []  # without the plugin they stand in the engine alone: Triton completes the list
    if record.get("plugin"):
        size = shapes["opt_hw"] if shapes["min_hw"] == shapes["max_hw"] else ["height", "width"]
        outputs = [
            {"name": "label_map", "dtype": "int32", "shape": [n, *size]},
            {"name": "semantic_map", "dtype": "int32", "shape": [n, *size]},
            {"name": "count", "dtype": "int32", "shape": [n]},
            {"name": "table", "dtype": "float32", "shape": [n, MAX_INSTANCES, len(TABLE_COLUMNS)]},
        ]
    return _Served(
        platform="tensorrt_plan",
        file="model.plan",
        metadata=record["model"],
        inputs=[{"name": "frame", "dtype": "uint8", "shape": [n, "height", "width", 3]}],
        outputs=outputs,
        most=most,
        warm_hw=tuple(shapes["opt_hw"]),
        save=lambda target: target.write_bytes(plan),
        record=record,
    )


def _tensor(one: Mapping[str, Any], batched: bool) -> dict[str, Any]:
    if one["dtype"] not in _TYPES:
        raise ModelError(
            f"{one['name']} is {one['dtype']}, which Triton has no name for; wanted one of {', '.join(_TYPES)}"
        )
    dims = [-1 if isinstance(side, str) else side for side in one["shape"]][batched:]
    made = {"name": one["name"], "data_type": _TYPES[one["dtype"]], "dims": dims or [1]}
    return (
        made if dims else {**made, "reshape": []}
    )  # a number per frame: Triton wants an axis, the model has none


def _config_text(config: Mapping[str, Any], served: _Served, digest: str, instances: int, device: str) -> str:
    """config.pbtxt: a ``ModelConfig`` of Triton's model_config.proto, as text."""

    def lines() -> Iterator[str]:
        yield _MARK
        yield f"name: {_quoted(config['name'])}"
        yield f"platform: {_quoted(config['platform'])}"
        if config["max_batch_size"] == 0:
            yield "# one frame per call: Triton must not put requests together, and dims are whole"
        yield f"max_batch_size: {config['max_batch_size']}"
        for side in ("inputs", "outputs"):
            for one in config[side]:
                more = " reshape { shape: [] }" if "reshape" in one else ""
                more += (
                    f" label_filename: {_quoted('labels.txt')}"
                    if side == "outputs" and one["name"] in _LABELLED
                    else ""
                )
                yield f"{side[:-1]} {{ name: {_quoted(one['name'])} data_type: {one['data_type']} dims: {one['dims']}{more} }}"
        yield f"instance_group {{ count: {instances} kind: KIND_{device.upper()} }}"
        yield "version_policy { latest { num_versions: 1 } }"
        if config["max_batch_size"]:
            yield f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}"
        for one in config["inputs"]:
            frame = zip(one["dims"][-3:], (*served.warm_hw, 3), strict=True)
            sides = [*one["dims"][:-3], *(free if side == -1 else side for side, free in frame)]
            inputs = f"key: {_quoted(one['name'])} value {{ data_type: {one['data_type']} dims: {sides} zero_data: true }}"
            yield "# the first frame is slow: kernels are chosen or compiled"
            yield f'model_warmup {{ name: "first frame" batch_size: 1 inputs {{ {inputs} }} }}'
        for key, value in (
            (_PARAMETER, json.dumps(served.metadata, ensure_ascii=False)),
            (f"{_PARAMETER}.sha256", digest),
        ):
            yield f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"

    return "\n".join(lines()) + "\n"


def _quoted(text: str) -> str:
    """A string as protobuf's text format has it; JSON's escapes are a part of its own."""
    return json.dumps(text, ensure_ascii=False)


def _readme(config: Mapping[str, Any], served: _Served, options: str) -> str:
    def listed(side: str) -> str:
        return (
            "\n".join(f"- `{one['name']}` {one['data_type']} {one['dims']}" for one in config[side])
            or "- those of the engine"
        )

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
                "The engine carries the clustering plugin: the option `version-compatible` lets the server run code from it."
            )
    return f"""# {config["name"]}

    tritonserver --model-repository=/models{options}

in NVIDIA's Triton container, where /models is the folder above this one (`docker run --gpus all -p 8001:8001 -v FOLDER:/models ...`).
`python samples/triton_client.py SOURCE --model {config["name"]}`, of tfiseg, is a client.

Input:
{listed("inputs")}

Outputs:
{listed("outputs")}

{chr(10).join(notes)}
"""


def _write(served: _Served, folder: Path, name: str, files: Mapping[str, str]) -> None:
    """Into a temporary folder beside the place, then renamed: a server that looks meanwhile sees the old
    model or the new."""
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=folder))
    except OSError as wrong:
        raise InputError(f"can't write to {folder}: {wrong.strerror}") from wrong
    try:
        fresh.chmod(0o755)  # temporary folders are the owner's alone, and a server is another user
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
