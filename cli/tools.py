"""The verbs ``inspect``, ``doctor`` and ``triton``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import add_verb, as_json, need


def add_tools(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "inspect",
        "Describe a .onnx or .engine file; needs no GPU. Exit status 1 if the file has a problem.",
        _inspect,
    )
    verb.add_argument("file", type=Path, metavar="FILE")
    verb.add_argument(
        "--layers",
        action="store_true",
        help="list every convolution and matrix product with precision and work (.onnx)",
    )

    add_verb(
        verbs,
        "doctor",
        "Check the installation and print a fix for each problem. Exit status 1 if there is one.",
        _doctor,
    )

    verb = add_verb(verbs, "triton", "Write a model repository for NVIDIA's Triton server.", _triton)
    verb.add_argument(
        "model",
        type=Path,
        metavar="FILE",
        help="NAME.onnx, or a NAME.engine of TensorRT built with --portable",
    )
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="model repository; other models in it are kept",
    )
    verb.add_argument("--name", metavar="NAME", help="name of the model in Triton (default: the file's)")
    verb.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="maximum number of frames per call of an ONNX network (default: 8, or 1 if it takes no more)",
    )
    verb.add_argument(
        "--instances", type=int, default=1, metavar="N", help="number of model instances (default: 1)"
    )
    verb.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="device of an ONNX network (default: a GPU if there is one)",
    )


def _inspect(args: argparse.Namespace) -> int:
    if args.file.suffix == ".onnx":
        need("onnx", "calibration")
    from ..runtime.inspect.model_file import inspect_file
    from ..runtime.inspect.model_text import inspection_text

    report = inspect_file(args.file)
    if args.json:
        print(
            as_json(
                report if args.layers else {key: value for key, value in report.items() if key != "layers"}
            )
        )
    else:
        print(inspection_text(report, args.layers))
    return 1 if report["problems"] else 0


def _doctor(args: argparse.Namespace) -> int:
    from ..runtime.inspect.doctor import as_report, doctor_text, examine, healthy
    from ..runtime.inspect.installation import look

    facts = look()
    checks = examine(facts)
    print(as_json(as_report(facts, checks)) if args.json else doctor_text(facts, checks))
    return 0 if healthy(checks) else 1


def _triton(args: argparse.Namespace) -> int:
    need("onnx", "calibration")
    from ..export.triton import frames_per_call, write_repository

    report = write_repository(args.model, args.output, args.name, args.batch, args.instances, args.device)
    if args.json:
        print(as_json(report))
        return 0
    print(f"{report['folder']}: {report['platform']}, {frames_per_call(report['max_batch_size'])}")
    for side in ("inputs", "outputs"):
        print(
            f"  {side}: "
            + ", ".join(f"{one['name']} {one['data_type']} {one['dims']}" for one in report[side])
        )
    print(
        f"  serve it: {report['serve']}\n  try it: python samples/triton_client.py SOURCE --model {report['name']}"
    )
    return 0
