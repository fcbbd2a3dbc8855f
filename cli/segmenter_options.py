"""Options of the segmenter, shared by the verbs that segment.

``SegmenterSettings`` has their defaults and checks. Only given options are passed to it.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from ..errors import InputError
from .parser import Parser

_OPTIONS = (
    *("model", "quality", "things", "min_score", "min_area", "refine", "split", "instance_model", "outlines"),
    *("thorough", "max_views", "long_side", "tiles", "scales", "flip", "threads", "device", "backend"),
)
# option -> field of SegmenterSettings
_FIELDS = {name: name for name in _OPTIONS} | {"long_side": "long_side_px"}


def _split(text: str) -> str | float:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(
            f'expected "auto" or a saddle / peak ratio in 0..1, got {text!r}'
        ) from wrong


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(
            f"expected numbers separated by commas, e.g. 1,1.5, got {text!r}"
        ) from wrong


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def add_segmenter_options(verb: Parser) -> None:
    """Add the options that ``segmenter_settings`` reads."""
    verb.set_defaults(segments=True)
    quality = verb.quality
    quality.add_argument(
        "--quality {fast,balanced,best}",
        help="fast: by shape; balanced: by the model's instance heads, in the same pass; best: larger "
        "frames, each region refined by the instance network (default: balanced)",
    )
    quality.add_argument(
        "--things NAMES",
        type=_names,
        help="classes to segment, comma-separated (default: all countable classes)",
    )
    quality.add_argument(
        "--min-score P",
        type=float,
        help="leave out instances with a lower score, 0 to 1 (default: 0.3 if the model's score is "
        "calibrated, else 0.5)",
    )
    quality.add_argument(
        "--min-area PX",
        type=int,
        help="leave out instances of fewer pixels (default: from the model, else 0.1 %% of the frame, at "
        "least 25; less with --tiles or a larger --long-side)",
    )
    _add_expert_options(verb.expert)
    _add_pass_options(verb.expert)


def _add_expert_options(expert: Any) -> None:
    expert.add_argument(
        "--model M", help="model file or engine (default: the network that comes with tfiseg)"
    )
    expert.add_argument(
        "--refine {shape,frame,components}",
        help="how to separate objects of a class; overrides --quality. shape: by the shape of the class map; "
        "frame: by the model's instance heads; components: refine each region with the instance network",
    )
    expert.add_argument(
        "--split S",
        type=_split,
        help='"auto" or a fixed saddle / peak ratio; 0 = never split (default: from the model, else auto)',
    )
    expert.add_argument(
        "--instance-model M", help="instance network or its engine (default: the one that comes with tfiseg)"
    )
    expert.add_argument(
        "--outlines",
        action=argparse.BooleanOptionalAction,
        help="refine masks with the instance network (default: with components)",
    )
    expert.add_argument(
        "--thorough",
        action=argparse.BooleanOptionalAction,
        help="exhaustive refinement: refine more regions, and parts again (default: from the instance "
        "network)",
    )
    expert.add_argument(
        "--max-views N",
        type=int,
        help="maximum number of regions to refine per frame (default: 64; in a GPU's graph 16)",
    )


def _add_pass_options(expert: Any) -> None:
    expert.add_argument(
        "--long-side PX",
        type=int,
        help="longer side that the network scales frames to (default: the model's own; 640 with --quality "
        "best)",
    )
    expert.add_argument(
        "--tiles N",
        type=int,
        help="for small objects in large frames: the frame and overlapping windows of 1/N of it, with class "
        "maps N times as fine (default: 1, the frame alone)",
    )
    expert.add_argument(
        "--scales S[,S]",
        type=_scales,
        help="average class maps over windows: 1,1.5 is the frame and windows of two thirds of it, 2 to 4 "
        "more passes",
    )
    expert.add_argument(
        "--flip",
        action="store_const",
        const=True,
        help="average class maps with those of the mirrored frame: twice the passes",
    )
    expert.add_argument("--threads N", type=int, help="CPU threads (default: all)")
    expert.add_argument(
        "--device {cpu,cuda}", help="where a model in ONNX runs (default: cpu); engines need none"
    )
    expert.add_argument(
        "--backend {onnxruntime,torch}", help="what runs a model in ONNX (default: onnxruntime)"
    )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the segmenter options in the command line: {option without dashes: value}."""
    return {name: value for name in _FIELDS if (value := getattr(args, name)) is not None}


def segmenter_settings(args: argparse.Namespace) -> Any:
    """Return the validated ``SegmenterSettings``; raises InputError, which names options."""
    from ..runtime.segmenter_settings import SegmenterSettings

    try:
        return SegmenterSettings(**{_FIELDS[name]: value for name, value in given_options(args).items()})
    except InputError as wrong:
        raise InputError(_in_options(str(wrong))) from wrong


def _in_options(message: str) -> str:
    """Return a message of the API with the names of its arguments replaced by options."""
    for name, field in _FIELDS.items():
        option = "--" + name.replace("_", "-")
        message = re.sub(rf'\b{field}="(\w+)"', rf"{option} \1", message)
        message = re.sub(rf"(?<![-\w]){field}(?= (must|has|is|and|average)\b)", option, message)
    return message.replace(" or outlines", " or --outlines")
