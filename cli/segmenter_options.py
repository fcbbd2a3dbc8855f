"""The options that say how to segment, shared by the commands that do."""

from __future__ import annotations

import argparse
from typing import Any


def _split(text: str) -> str | float:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(
            f'wanted "auto" or a saddle / peak ratio in 0..1, got {text!r}'
        ) from wrong


def add_segmenter_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model",
        metavar="M",
        help="model file in tfiseg's format (default: the network that comes with tfiseg)",
    )
    verb.add_argument(
        "--things", metavar="NAMES", help="classes to segment, comma-separated (default: all of the model)"
    )
    verb.add_argument(
        "--split",
        type=_split,
        default="auto",
        metavar="S",
        help='"auto" (default) or a fixed saddle / peak ratio; 0 = never cut',
    )
    verb.add_argument(
        "--refine",
        choices=("components", "frame"),
        help="in place of shape alone: cut and join by what the instance network sees in each component, or cut by the model's own "
        "instance heads, in the same pass",
    )
    verb.add_argument(
        "--instance-model",
        metavar="M",
        help="with --refine components or --outlines: an instance network, or an engine of one (default: the one that comes with tfiseg)",
    )
    verb.add_argument(
        "--outlines",
        action=argparse.BooleanOptionalAction,
        help="draw outlines anew as the instance network sees them (default: with --refine components)",
    )
    verb.add_argument(
        "--thorough",
        action=argparse.BooleanOptionalAction,
        help="with --refine components: look at more components, and closer (default: if the instance network is for class maps of groups)",
    )
    verb.add_argument(
        "--max-views",
        type=int,
        metavar="N",
        help="with --refine components: look at so many components and classes of a frame at most, and at crowds in as many windows "
        "(default: 64; on a GPU, where each view costs whether it shows something or not, 16)",
    )
    verb.add_argument(
        "--min-score",
        type=float,
        metavar="P",
        help="leave out instances with a lower score (default: 0.3 with a score rule, else 0.5)",
    )
    verb.add_argument(
        "--min-area",
        type=int,
        metavar="PX",
        help="leave out instances of fewer pixels (default: 0.1 %% of the frame, at least 25, of true class maps 25; or what the "
        "instance network or the model was made for)",
    )
    verb.add_argument(
        "--scales",
        type=_scales,
        default=(1.0,),
        metavar="S[,S]",
        help="look several times, for finer class maps: 1,1.5 at the frame and at windows of two thirds of it, 2 or 4 passes more",
    )
    verb.add_argument("--flip", action="store_true", help="look at mirror images, too: twice the passes")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(
            f"wanted numbers separated by commas, like 1,1.5, got {text!r}"
        ) from wrong


def looks_often(args: argparse.Namespace) -> bool:
    return bool(args.flip or args.scales != (1.0,))


def segmenter_of(args: argparse.Namespace) -> Any:
    from ..runtime.segmenter import Segmenter

    things = [t.strip() for t in args.things.split(",")] if args.things else None
    return Segmenter(
        args.model,
        things=things,
        split=args.split,
        min_area=args.min_area,
        min_score=args.min_score,
        refine=args.refine,
        instance_model=args.instance_model,
        outlines=args.outlines,
        thorough=args.thorough,
        max_views=args.max_views,
        scales=args.scales,
        flip=args.flip,
        threads=args.threads,
    )
