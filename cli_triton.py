"""The verb ``triton``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_common import add_verb, as_json, need


def add_triton(verbs: Any) -> None:
    verb = add_verb(verbs, "triton", "Write a network or an engine into a model repository of NVIDIA's Triton server.", _triton)
    verb.add_argument("model", type=Path, metavar="MODEL", help=".onnx in tfiseg's format, or a portable .engine of TensorRT")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the repository; other models in it are left alone")
    verb.add_argument("--name", help="of the model (default: the file's)")
    verb.add_argument("--max-batch", type=int, metavar="N", help="networks with a free batch axis: most frames at once (default: 8)")
    verb.add_argument("--instances", type=int, default=1, metavar="N", help="copies that run at once on each device (default: 1)")
    verb.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="of an .onnx (default: a GPU where there is one)")


def _triton(args: argparse.Namespace) -> int:
    need("onnx", "calibration")
    from .export.triton import write_triton_repository

    report = write_triton_repository(
        args.model, args.output, args.name, max_batch=args.max_batch, instances=args.instances, device=args.device
    )
    if args.json:
        print(as_json(report))
        return 0
    most = report["max_batch_size"]
    print(f"{report['folder']}: {report['platform']}, {f'up to {most}' if most else 'a fixed number of'} frames per call")
    for side in ("inputs", "outputs"):
        print(f"  {side}: " + ", ".join(f"{one['name']} {one['data_type']} {one['dims']}" for one in report[side]))
    print(f"  serve it: {report['serve']}")
    if most or report["inputs"][0]["dims"][0] == 1:  # the sample sends frame by frame
        print(f"  try it: python samples/triton_client.py SOURCE --model {report['name']}")
    return 0
