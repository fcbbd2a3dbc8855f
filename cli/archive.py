"""``tfiseg run SOURCE --ray``: segment an archive of images on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..errors import InputError
from ..schema import to_json
from .common import options_given
from .parser import Parser, integer

_LOCAL = "local"
# options of `run` for videos and cameras
_FOR_VIDEOS = ("frames", "camera_size", "camera_fps", "pixel_format", "policy", "nth", "track", "min_hits")


def add_archive_options(verb: Parser) -> None:
    """Add ``--ray`` and ``--ray-workers``."""
    verb.expert.add_argument(
        "--ray ADDRESS",
        nargs="?",
        const=_LOCAL,
        help="segment a folder, glob pattern or Parquet files of paths on a Ray cluster and write Parquet; "
        "files that are done are skipped (default: a cluster on this machine; needs tfiseg[ray])",
    )
    verb.expert.add_argument(
        "--ray-workers N",
        type=integer(1),
        help="with --ray: number of segmenters (default: one per CPU, or per GPU with an engine)",
    )


def check_archive_options(args: argparse.Namespace) -> None:
    """Raise InputError for options that have no effect together."""
    if args.ray is None:
        if args.ray_workers is not None:
            raise InputError("--ray-workers has no effect without --ray")
        return
    for option in options_given(args, _FOR_VIDEOS):
        raise InputError(f"{option} has no effect with --ray, which takes images only")


def segment_archive_source(args: argparse.Namespace) -> int:
    """Segment the archive; returns the exit status, 1 if an image failed."""
    from ..runtime.archive.ray_archive import segment_archive

    summary = segment_archive(
        args.source,
        args.out,
        args.settings,
        address=args.ray,
        workers=args.ray_workers,
        output_format=args.format,
        quiet=args.json,
    )
    print(to_json(summary) if args.json else _text(summary))
    if summary["error"]:
        print(f"tfiseg {args.verb}: {summary['error']}; completed results are kept", file=sys.stderr)
    return 130 if summary["error"] == "interrupted" else int(bool(summary["error"]))


def _text(summary: dict[str, Any]) -> str:
    rate = summary["segmented"] / max(summary["seconds"], 1e-9)
    lines = [
        f"{summary['pictures']} images: {summary['segmented']} segmented by {summary['workers']} workers "
        f"({rate:.1f} images/s, start included), {summary['done_before']} done before, {summary['failed']} "
        "failed",
        *(f"  {one['error']}" for one in summary["errors"][:5]),
        f"masks:   {summary['coco_json'] or summary['parts']}",
    ]
    return "\n".join(lines)
