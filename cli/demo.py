"""``tfiseg demo``: people who meet and pass, segmented or used to build an engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .build import run_build
from .common import add_verb, need
from .live import segment_source
from .segmenter_options import add_segmenter_options

_CLIP = Path(__file__).parent / "media" / "people.mp4"


def add_demo(verbs: Any) -> None:
    """Add the verb."""
    verb = add_verb(
        verbs,
        "demo",
        "Segment a clip of people who meet and pass each other, and print where the result is.",
        _demo,
    )
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("tfiseg-demo"),
        metavar="DIR",
        help="output folder (default: tfiseg-demo)",
    )
    verb.add_argument(
        "--engine",
        action="store_true",
        help="build the network into an fp16 engine instead of segmenting (needs TensorRT)",
    )
    verb.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    no_camera = {
        "camera_size": None,
        "camera_fps": None,
        "pixel_format": None,
        "policy": None,
        "nth": 1,
        "format": "jsonl",
    }
    verb.set_defaults(**no_camera, track=True, min_hits=None, source=str(_CLIP))
    add_segmenter_options(verb)


def _demo(args: argparse.Namespace) -> int:
    need("scipy", "demo")  # for the tracker
    return _demo_engine(args) if args.engine else segment_source(args)


def _demo_engine(args: argparse.Namespace) -> int:
    from ..runtime.networks.session import DEFAULT_MODEL

    network = str(args.model or DEFAULT_MODEL)
    engine = args.out / f"{Path(network).stem}.engine"
    print(f"tfiseg build {network} -o {engine} --precision fp16 --frames {args.source}")
    command = ["build", network, "-o", str(engine), "--precision", "fp16", "--frames", args.source]
    return run_build([*command, *(["--json"] if args.json else [])])
