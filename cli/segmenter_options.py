"""The options that say how to segment, shared by the commands that do."""

from __future__ import annotations

import argparse
from typing import Any

QUALITY_NAMES = (
    "fast",
    "balanced",
    "best",
)  # as in runtime/segmenter_settings.py, which --help can't wait for


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
            f"expected numbers separated by commas, like 1,1.5, got {text!r}"
        ) from wrong


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def add_segmenter_options(verb: argparse.ArgumentParser) -> None:
    """Add the options that ``segmenter_settings`` reads."""
    quality = verb.add_argument_group("quality")
    quality.add_argument(
        "--quality",
        choices=QUALITY_NAMES,
        default="balanced",
        help="fast: by shape; balanced: by the model's instance heads, in the same pass; best: larger frames, "
        "each region refined by the instance network (default: balanced)",
    )
    quality.add_argument(
        "--things", type=_names, metavar="NAMES", help="classes to segment, comma-separated (default: all)"
    )
    quality.add_argument(
        "--min-score",
        type=float,
        metavar="P",
        help="leave out instances with a lower score, 0 to 1 (default: 0.3 with a calibrated score, else 0.5)",
    )
    quality.add_argument(
        "--min-area",
        type=int,
        metavar="PX",
        help="leave out instances of fewer pixels (default: what the network was made for, else 0.1 %% of the "
        "frame, at least 25)",
    )
    _add_expert_options(verb.add_argument_group("expert"))


def _add_expert_options(expert: Any) -> None:
    expert.add_argument(
        "--model", metavar="M", help="model file or engine (default: the network that comes with tfiseg)"
    )
    expert.add_argument(
        "--refine",
        choices=("shape", "frame", "components"),
        help="how objects of a class are separated, whatever --quality says: by shape, by the model's instance "
        "heads, or by the instance network",
    )
    expert.add_argument(
        "--split",
        type=_split,
        metavar="S",
        help='"auto" or a fixed saddle / peak ratio; 0 = never cut (default: what the model says, else auto)',
    )
    expert.add_argument(
        "--instance-model",
        metavar="M",
        help="instance network or its engine (default: the one that comes with tfiseg)",
    )
    expert.add_argument(
        "--outlines",
        action=argparse.BooleanOptionalAction,
        help="refine masks with the instance network (default: with components)",
    )
    expert.add_argument(
        "--thorough",
        action=argparse.BooleanOptionalAction,
        help="refine more regions, and parts again (default: as the instance network says)",
    )
    expert.add_argument(
        "--max-views",
        type=int,
        metavar="N",
        help="maximum number of regions to refine per frame (default: 64; in a GPU's graph 16)",
    )
    expert.add_argument(
        "--long-side",
        type=int,
        metavar="PX",
        help="longer side that the network scales frames to (default: the model's own; 512 with --quality best)",
    )
    expert.add_argument(
        "--scales",
        type=_scales,
        default=(1.0,),
        metavar="S[,S]",
        help="average class maps over windows: 1,1.5 is the frame and windows of two thirds of it, 2 to 4 more passes",
    )
    expert.add_argument(
        "--flip", action="store_true", help="average over mirror images, too: twice the passes"
    )
    expert.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")


def segmenter_settings(args: argparse.Namespace) -> Any:
    """Return the validated ``SegmenterSettings`` of a command line."""
    from ..runtime.segmenter_settings import SegmenterSettings

    return SegmenterSettings(
        model=args.model,
        quality=args.quality,
        things=args.things,
        split=args.split,
        min_area=args.min_area,
        min_score=args.min_score,
        refine=args.refine,
        instance_model=args.instance_model,
        outlines=args.outlines,
        thorough=args.thorough,
        max_views=args.max_views,
        long_side_px=args.long_side,
        scales=args.scales,
        flip=args.flip,
        threads=args.threads,
    )


def segmenter_of(args: argparse.Namespace) -> Any:
    """Return the ``Segmenter`` of a command line."""
    from ..runtime.segmenter import Segmenter

    return Segmenter.from_settings(segmenter_settings(args))
