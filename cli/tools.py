"""The verbs ``inspect``, ``doctor`` and ``triton``."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from ..schema import to_json
from .common import add_verb, command_line, need, require
from .parser import Example, existing_file, existing_network, integer, path


def add_tools(verbs: Any) -> None:
    """Add the verbs ``inspect``, ``doctor`` and ``triton``."""
    verb = add_verb(
        verbs,
        "inspect",
        "Describe an .onnx model or an .engine, without a GPU. Exit status 1 if something is wrong with it.",
        _inspect,
        [
            Example("tfiseg inspect net.onnx", "format, classes, precision, problems"),
            Example("tfiseg inspect net.onnx --layers --json", "with each layer"),
        ],
    )
    verb.source.add_argument("file FILE", type=existing_file, help="NAME.onnx or NAME.engine")
    verb.output.add_argument(
        "--layers",
        action="store_true",
        help="list every convolution and matrix product with precision and work (.onnx)",
    )
    add_verb(
        verbs,
        "doctor",
        "Check the installation and print a fix for each problem. Exit status 1 if there is a problem.",
        _doctor,
        [
            Example("tfiseg doctor", "what is installed, and what is wrong"),
            Example("tfiseg doctor --json", "for a bug report"),
        ],
    )
    _add_triton(verbs)


def _add_triton(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "triton",
        "Write a model repository for NVIDIA's Triton server.",
        _triton,
        [
            Example("tfiseg triton net.onnx -o models", "the model is called net"),
            Example(
                "tfiseg triton net.onnx -o models --name street --batch 4 --device cpu", "for a CPU server"
            ),
        ],
    )
    verb.source.add_argument(
        "model FILE",
        type=existing_network,
        help="NAME.onnx, or a NAME.engine of TensorRT built with --portable",
    )
    verb.output.add_argument(
        "-o", "--output DIR", type=path, help="required: the model repository; other models in it are kept"
    )
    verb.output.add_argument("--name NAME", help="name of the model in Triton (default: the file's)")
    verb.expert.add_argument(
        "--batch N",
        type=integer(1),
        help="maximum number of frames per call of an ONNX model (default: 8, or 1 if it accepts no more)",
    )
    verb.expert.add_argument(
        "--instances N", type=integer(1), default=1, help="copies that run in parallel (default: 1)"
    )
    verb.expert.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="device of an ONNX model (default: a GPU if there is one)",
    )


def _inspect(args: argparse.Namespace) -> int:
    if args.file.suffix == ".onnx":
        need("calibration", "onnx")
    if args.layers and args.file.suffix != ".onnx":
        raise InputError("--layers has no effect on an engine: its record counts layers by precision")
    from ..runtime.inspect.model_file import inspect_file
    from ..runtime.inspect.model_text import inspection_text

    report = inspect_file(args.file)
    hidden = () if args.layers else ("layers",)
    shown = {key: value for key, value in report.items() if key not in hidden}
    print(to_json(shown) if args.json else inspection_text(report, args.layers))
    return 1 if report["problems"] else 0


def _doctor(args: argparse.Namespace) -> int:
    from ..runtime.inspect.doctor import doctor_text, examine, is_healthy, make_report
    from ..runtime.inspect.installation import collect_facts

    facts = collect_facts()
    checks = examine(facts)
    print(to_json(make_report(facts, checks)) if args.json else doctor_text(facts, checks))
    return 0 if is_healthy(checks) else 1


def _triton(args: argparse.Namespace) -> int:
    require(args, "--output DIR")
    need("calibration", "onnx")
    from ..export.triton import frames_per_call, write_repository

    report = write_repository(args.model, args.output, args.name, args.batch, args.instances, args.device)
    if args.json:
        print(to_json(report))
        return 0
    print(f"{report['folder']}: {report['platform']}, {frames_per_call(report['max_batch_size'])}")
    for side in ("inputs", "outputs"):
        tensors = (f"{one['name']} {one['data_type']} {one['dims']}" for one in report[side])
        print(f"  {side}: {', '.join(tensors)}")
    client = ("python", "samples/triton_client.py", "synthetic", "--frames", 1, "--model", report["name"])
    print(f"  serve it: {report['serve']}\n  test it: {command_line(*client)}")
    return 0
