"""The verb ``inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_common import add_verb, as_json, need


def add_inspect(verbs: Any) -> None:
    verb = add_verb(verbs, "inspect", "Say what a network (.onnx) or an engine (.engine and its record) is; needs no GPU.", _inspect)
    verb.add_argument("file", type=Path, metavar="FILE")
    verb.add_argument("--layers", action="store_true", help="list every layer with its precision and work")


def _inspect(args: argparse.Namespace) -> int:
    if args.file.suffix == ".onnx":
        need("onnx", "calibration")
    from .runtime.inspect_file import describe, inspect_file

    report = inspect_file(args.file)
    if args.json:
        print(as_json(report if args.layers else {key: value for key, value in report.items() if key != "layers"}))
    else:
        print(describe(report, args.layers))
    return 1 if report["problems"] else 0
