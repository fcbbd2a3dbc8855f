"""``tfiseg triton``: a model repository of NVIDIA's Triton Inference Server from a network or an engine.

What decides the configuration: networks in tfiseg's format take one frame per call (the batch axis is 1), engines the number that they were
built for. Triton can put requests together only where the first axis is free, so for these ``max_batch_size`` is 0 and the sizes are whole.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import EngineError, InputError, ModelError
from ..plugins.problem import TABLE_COLUMNS
from ..runtime.inspect_file import FRAME_HW, inspect_file
from ..runtime.sessions import OnnxSession
from ..runtime.sources import open_source
from .agreement import MIN_AGREEMENT
from .clustering_node import MAX_INSTANCES

PLATFORMS = {"onnx": "onnxruntime_onnx", "engine": "tensorrt_plan"}
DEVICES = ("auto", "cpu", "gpu")
MAX_BATCH = 8  # of networks whose batch axis is free
PARAMETER = "tfiseg"  # of config.pbtxt: the model's metadata, for clients; also the mark by which we know a folder of ours
_FRAMES = 4  # of the synthetic camera, on which a quantised network is tried
_FILES = {"onnx": "model.onnx", "engine": "model.plan"}
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


def write_triton_repository(
    model_path: Path,
    folder: Path,
    name: str | None = None,
    *,
    max_batch: int | None = None,
    instances: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Write a model into a Triton model repository: whole, or not at all.

    Args:
        model_path: NAME.onnx in tfiseg's format, or NAME.engine with its record.
        folder: the repository; made where it isn't there. Other models in it are left alone.
        name: of the model, and of its folder; default: the file's.
        max_batch: most frames that Triton puts together; for networks with a free batch axis only (default there: 8).
        instances: copies that run at once on each device.
        device: "cpu", "gpu" or "auto" (a GPU where there is one). Engines run on GPUs.

    Returns:
        ``folder`` (of the model), ``name``, ``platform``, ``max_batch_size``, ``inputs`` and ``outputs`` with their ``dims``; and the
        command that starts a server, ``serve``.

    Raises:
        ModelError: no network in tfiseg's format, or one that Triton would run wrongly.
        EngineError: an engine that is damaged, or that Triton can't load.
        InputError: the folder is somebody else's, or a setting doesn't fit the model.
    """
    name = model_path.stem if name is None else name
    _check_settings(folder, name, instances, device)
    report = inspect_file(model_path)
    is_engine = report["kind"] == "engine"
    if report["problems"]:
        raise (EngineError if is_engine else ModelError)(report["problems"][0])
    if is_engine and device == "cpu":
        raise InputError(f"{model_path} is an engine, which runs on a GPU: leave --device out, or serve the ONNX network")
    tensors = _engine(report) if is_engine else _network(report)
    metadata = report["record"]["model"] if is_engine else report["model"]
    config: dict[str, Any] = {
        "name": name,
        "platform": PLATFORMS[report["kind"]],
        "max_batch_size": _batch(model_path, tensors, max_batch),
        **{side: [_tensor(one) for one in tensors[side]] for side in ("inputs", "outputs")},
    }
    if config["max_batch_size"]:  # Triton's batch axis isn't listed
        for one in (*config["inputs"], *config["outputs"]):
            del one["dims"][0]
    warm_hw = report["record"]["built_from"]["shapes"]["opt_hw"] if is_engine else FRAME_HW
    portable = is_engine and report["record"]["built_with"].get("version_compatible")
    options = " --backend-config=tensorrt,version-compatible=true" if portable else ""
    files = {
        "config.pbtxt": _config_text(config, metadata, report["sha256"], warm_hw, instances, "gpu" if is_engine else device),
        "labels.txt": "".join(f"{label}\n" for label in metadata["class_names"]),
        "README.md": _readme(config, report, options),
    }
    _write(model_path, folder, name, files, report)
    return {"folder": str(folder / name), **config, "serve": f"tritonserver --model-repository={folder.resolve()}{options}"}


def _check_settings(folder: Path, name: str, instances: int, device: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"a model's name is letters, digits, _, . and -, got {name!r}: give another with --name")
    if instances < 1:
        raise InputError(f"there must be at least 1 instance, got {instances}")
    if device not in DEVICES:
        raise InputError(f"no device {device!r}: wanted one of {', '.join(DEVICES)}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: the repository is a folder")
    if (folder / "config.pbtxt").exists():
        raise InputError(f"{folder} is the folder of a model (it has a config.pbtxt): give the repository, the folder above it")
    target = folder / name
    if target.exists() and not _is_ours(target):
        raise InputError(f"{target} is there already and was not written by `tfiseg triton`: give another --name, or move it away")


def _is_ours(target: Path) -> bool:
    config = target / "config.pbtxt"
    return config.is_file() and config.read_text(errors="replace").startswith(_MARK)


def _network(report: Mapping[str, Any]) -> dict[str, Any]:
    if report["model"] is None:
        raise ModelError(
            f"{report['file']} has no tfiseg metadata: `tfiseg export {report['file']} -o NAME.onnx` brings it into tfiseg's format"
        )
    if report["plugin_nodes"]:
        names = ", ".join(node["op"] for node in report["plugin_nodes"])
        raise ModelError(f"{report['file']} has nodes that Triton's ONNX Runtime doesn't know: {names}. Serve the network as exported")
    if report["precision"]["int8"]["layers"]:
        _check_optimised(Path(report["file"]))
    return {"inputs": report["inputs"], "outputs": report["outputs"]}


def _check_optimised(path: Path) -> None:
    """Triton can't switch off the optimiser that OnnxSession does without. It spoils some quantised networks, so: run both ways.

    Raises:
        ModelError: run as Triton runs it, the network names other classes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    network = OnnxSession(path)
    served = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for frame in islice(open_source("synthetic"), _FRAMES):
        logits = served.run(["logits"], {"frame": frame.image[None]})[0]
        same = float((logits.argmax(1) == network.infer(frame.image)["logits"].argmax(1)).mean())
        if same < MIN_AGREEMENT:
            raise ModelError(
                f"run by Triton, {path} would name the class of only {same:.1%} of the pixels as it does here: ONNX Runtime's optimiser "
                "WeightBiasQuantization, which Triton can't switch off, spoils it. Serve the float network, or an int8 engine"
            )


def _engine(report: Mapping[str, Any]) -> dict[str, Any]:
    record, file = report["record"], report["file"]
    if record is None:
        raise EngineError(
            f"{file} has no record {Path(file).name}.json beside it, so its inputs and outputs aren't known: bring the record along"
        )
    made, shapes = record["built_with"], record["built_from"]["shapes"]
    if made["flavour"] != "tensorrt":
        raise EngineError(
            f"{file} was built with {made['flavour']}, and Triton's backend runs engines of TensorRT alone: build it with "
            "`tfiseg build --target tensorrt --portable`, or serve the ONNX network"
        )
    if record.get("plugin") and not made.get("version_compatible"):
        # the backend's `plugins` option and LD_PRELOAD only open a library; ours registers when TensorRT itself loads it (getCreators)
        raise EngineError(
            f"{file} needs the plugin library, which Triton can open but not register with TensorRT. An engine that carries it works: "
            "build it with --portable; or serve the ONNX network"
        )
    n, fixed = shapes["batch"], shapes["min_hw"] == shapes["max_hw"]
    frame = {"name": "frame", "dtype": "uint8", "shape": [n, "height", "width", 3]}
    if not record.get("plugin"):
        return {"inputs": [frame], "outputs": []}  # which maps it puts out stands in the engine alone: Triton completes the list
    size = shapes["opt_hw"] if fixed else ["H", "W"]
    shown = {
        "label_map": ("int32", [n, *size]),
        "semantic_map": ("int32", [n, *size]),
        "count": ("int32", [n]),
        "table": ("float32", [n, MAX_INSTANCES, len(TABLE_COLUMNS)]),
    }
    return {"inputs": [frame], "outputs": [{"name": key, "dtype": dtype, "shape": shape} for key, (dtype, shape) in shown.items()]}


def _batch(path: Path, tensors: Mapping[str, Any], asked: int | None) -> int:
    """``max_batch_size``: 0 where any tensor's first axis is fixed."""
    free = all(one["shape"] and isinstance(one["shape"][0], str) for one in (*tensors["inputs"], *tensors["outputs"]))
    if asked is not None and asked < 1:
        raise InputError(f"--max-batch must be at least 1, got {asked}")
    if asked is not None and not free:
        raise InputError(f"{path} takes {tensors['inputs'][0]['shape'][0]} frames per call and no other number: leave --max-batch out")
    return (asked or MAX_BATCH) if free else 0


def _tensor(one: Mapping[str, Any]) -> dict[str, Any]:
    if one["dtype"] not in _TYPES:
        raise ModelError(f"{one['name']} is {one['dtype']}, which Triton has no name for; wanted one of {', '.join(_TYPES)}")
    return {
        "name": one["name"],
        "data_type": _TYPES[one["dtype"]],
        "dims": [-1 if isinstance(side, str) else side for side in one["shape"]],
    }


def _config_text(
    config: Mapping[str, Any], metadata: Mapping[str, Any], sha256: str, warm_hw: tuple[int, int], instances: int, device: str
) -> str:
    """config.pbtxt: a ``ModelConfig`` of Triton's model_config.proto, as text."""

    def lines() -> Iterator[str]:
        yield _MARK
        yield f"name: {_quoted(config['name'])}"
        yield f"platform: {_quoted(config['platform'])}"
        if config["max_batch_size"] == 0:
            yield "# a fixed number of frames per call: Triton must not put requests together, and dims are whole"
        yield f"max_batch_size: {config['max_batch_size']}"
        for side in ("inputs", "outputs"):
            for one in config[side]:
                label = f" label_filename: {_quoted('labels.txt')}" if side == "outputs" and one["name"] in _LABELLED else ""
                yield f"{side[:-1]} {{ name: {_quoted(one['name'])} data_type: {one['data_type']} dims: {one['dims']}{label} }}"
        yield f"instance_group {{ count: {instances} kind: KIND_{device.upper()} }}"
        yield "version_policy { latest { num_versions: 1 } }"
        if config["max_batch_size"]:
            yield "dynamic_batching { }"
        for one in config["inputs"]:
            frame = one["dims"][-3:]
            sides = one["dims"][:-3] + [free if side == -1 else side for side, free in zip(frame, (*warm_hw, 3), strict=True)]
            inputs = f"key: {_quoted(one['name'])} value {{ data_type: {one['data_type']} dims: {sides} zero_data: true }}"
            yield "# the first frame is slow: kernels are chosen or compiled"
            yield f'model_warmup {{ name: "first frame" batch_size: 1 inputs {{ {inputs} }} }}'
        for key, value in ((PARAMETER, json.dumps(metadata, ensure_ascii=False)), (f"{PARAMETER}.sha256", sha256)):
            yield f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"

    return "\n".join(lines()) + "\n"


def _quoted(text: str) -> str:
    """A string as protobuf's text format has it; JSON's escapes are a part of its own."""
    return json.dumps(text, ensure_ascii=False)


def _readme(config: Mapping[str, Any], report: Mapping[str, Any], options: str) -> str:
    def listed(side: str) -> str:
        return "\n".join(f"- `{one['name']}` {one['data_type']} {one['dims']}" for one in config[side]) or "- those of the engine"

    batch = f"Up to {config['max_batch_size']} frames of one size per call." if config["max_batch_size"] else "The first axis is fixed."
    notes = [batch, "Frames are BGR. `labels.txt` has the class names, the parameter `tfiseg` of the configuration all metadata."]
    if report["kind"] == "engine":
        made, shapes = report["record"]["built_with"], report["record"]["built_from"]["shapes"]
        low, high = ("x".join(map(str, shapes[key])) for key in ("min_hw", "max_hw"))
        later = " or newer" if made.get("version_compatible") else ", exactly"
        notes.append(f"Frames of {low} to {high} (HxW). The server needs TensorRT {made['version']}{later}.")
        if report["record"].get("plugin"):
            notes.append("The engine carries the clustering plugin: the option `version-compatible` lets the server run code from it.")
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


def _write(model_path: Path, folder: Path, name: str, files: Mapping[str, str], report: Mapping[str, Any]) -> None:
    """Into a temporary folder beside the place, then renamed: a server that looks meanwhile sees the old model or the new."""
    target = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=folder))
    except OSError as wrong:
        raise InputError(f"can't write to {folder}: {wrong.strerror}") from wrong
    try:
        fresh.chmod(0o755)  # temporary folders are the owner's alone, and a server is another user
        (fresh / "1").mkdir()
        shutil.copyfile(model_path, fresh / "1" / _FILES[report["kind"]])
        for one in report.get("external_data", []):
            (fresh / "1" / one["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model_path.parent / one["file"], fresh / "1" / one["file"])
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
