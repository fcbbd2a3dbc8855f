"""``tfiseg demo``: segment a clip of people who meet and pass, or build an engine with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .build import run_build
from .common import add_verb, command_line, need, reject_options
from .live import VIEW_MIN_HITS, segment_source
from .parser import Example, integer, path
from .segmenter_options import add_segmenter_options, given_options

_CLIP = Path(__file__).parent / "media" / "people.mp4"
# options of `tfiseg run` that the demo lacks
_RUN_DEFAULTS = {
    "camera_size": None,
    "camera_fps": None,
    "pixel_format": None,
    "policy": None,
    "nth": 1,
    "format": "jsonl",
    "track": True,
    "min_hits": VIEW_MIN_HITS,
}


def add_demo(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "demo",
        "Segment a clip of people who meet and pass each other, and print where the result is.",
        _demo,
        [
            Example("tfiseg demo", "segment the clip into tfiseg-demo/"),
            Example("tfiseg demo --frames 30 --quality best", "the first frames, at the highest quality"),
            Example("tfiseg demo --engine", "build an fp16 engine instead", needs="TensorRT"),
        ],
    )
    verb.source.add_argument("--frames N", type=integer(1), help="stop after N frames")
    verb.output.add_argument(
        "--out DIR", type=path, default=Path("tfiseg-demo"), help="output folder (default: tfiseg-demo)"
    )
    verb.output.add_argument(
        "--engine",
        action="store_true",
        help="build the network into an fp16 engine instead of segmenting (needs TensorRT)",
    )
    verb.set_defaults(**_RUN_DEFAULTS, source=str(_CLIP), opens_first=True)
    add_segmenter_options(verb)


def _demo(args: argparse.Namespace) -> int:
    if args.engine:
        return _demo_engine(args)
    need("demo", "scipy")  # for the tracker
    return segment_source(args)


def _demo_engine(args: argparse.Namespace) -> int:
    from ..runtime.networks.session import DEFAULT_MODEL

    args.shutdown.start_work()
    options = [*(given_options(args).keys() - {"model"}), "frames"]
    reject_options(args, sorted(options), "with --engine, which builds an engine and segments nothing")
    network = str(args.model or DEFAULT_MODEL)
    engine = args.out / f"{Path(network).stem}.engine"
    command = ["build", network, "-o", str(engine), "--precision", "fp16", "--frames", args.source]
    if not args.json:
        print(command_line("tfiseg", *command))
    return run_build([*command, *(["--json"] if args.json else [])])
