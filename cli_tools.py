"""The verbs ``inspect``, ``doctor`` and ``triton``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_common import add_verb, as_json, need


def add_tools(verbs: Any) -> None:
    verb = add_verb(
        verbs, "inspect", "Say what a .onnx or .engine is; needs no GPU. Exit status 1 if something is wrong with it.", _inspect
    )
    verb.add_argument("file", type=Path, metavar="FILE")
    verb.add_argument("--layers", action="store_true", help="list every convolution and matrix product with its precision (.onnx)")

    add_verb(verbs, "doctor", "Say what is installed, whether it fits together, and what mends it. Exit status 1 if not.", _doctor)

    verb = add_verb(verbs, "triton", "Write a model repository for NVIDIA's Triton server.", _triton)
    verb.add_argument("model", type=Path, metavar="FILE", help="NAME.onnx, or a TensorRT NAME.engine")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the repository; other models in it stay")
    verb.add_argument("--name", metavar="NAME", help="of the model in Triton (default: the file's)")
    verb.add_argument(
        "--batch", type=int, metavar="N", help="most frames per call of an ONNX network (default: 8, or 1 if it takes no more)"
    )
    verb.add_argument("--instances", type=int, default=1, metavar="N", help="copies that work side by side (default: 1)")


def _inspect(args: argparse.Namespace) -> int:
    if args.file.suffix == ".onnx":
        need("onnx", "calibration")
    from .runtime.inspect_file import inspect_file, inspection_text

    report = inspect_file(args.file)
    print(as_json(report) if args.json else inspection_text(report, args.layers))
    return 1 if report["problems"] else 0


def _doctor(args: argparse.Namespace) -> int:
    from .runtime.doctor import as_report, doctor_text, examine, healthy

    checks = examine()
    print(as_json(as_report(checks)) if args.json else doctor_text(checks))
    return 0 if healthy(checks) else 1


def _triton(args: argparse.Namespace) -> int:
    need("onnx", "calibration")
    from .export.triton import write_repository

    report = write_repository(args.model, args.output, args.name, args.batch, args.instances)
    print(
        as_json(report) if args.json else f"{report['folder']}: {report['platform']}, up to {report['max_batch_size'] or 1} frames per call"
    )
    return 0
