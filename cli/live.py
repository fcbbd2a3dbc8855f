"""``tfiseg run`` and ``tfiseg view``: sources through a segmenter."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from .common import add_verb, as_json
from .segmenter_options import add_segmenter_options, segmenter_of

_VIEW_MIN_HITS = 3  # of moving pictures: what networks see once or twice is nothing to look at
_MOST_WORKERS = 8  # each holds a frame and a network's working memory
_SOURCES = 'file, folder, glob pattern (quoted), camera index, csi://N, "gst: ...", URL or "synthetic"'


def add_run(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "run",
        "Segment an image, folder, video, camera or stream; write overlay, instances.jsonl and summary.",
        segment_source,
    )
    verb.add_argument("source", metavar="SOURCE", help=_SOURCES)
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("tfiseg-out"),
        metavar="DIR",
        help="output folder (default: tfiseg-out)",
    )
    verb.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    verb.add_argument(
        "--format",
        choices=("jsonl", "coco"),
        default="jsonl",
        help="coco: write the instances also as coco.json, which pycocotools loads (default: instances.jsonl only)",
    )
    _add_source_options(verb)
    _add_policy(verb)
    verb.add_argument("--track", action="store_true", help="add persistent track IDs (needs tfiseg[live])")
    _add_min_hits(verb, "1")
    add_segmenter_options(verb)


def _add_source_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--camera-size", type=_size_wh, metavar="WxH", help="requested camera resolution, e.g. 1280x720"
    )
    verb.add_argument("--camera-fps", type=float, metavar="F", help="requested frames per second of a camera")
    verb.add_argument(
        "--pixel-format", metavar="CCCC", help="requested FourCC of a camera, e.g. MJPG or YUYV"
    )


def _add_policy(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--policy",
        choices=("latest", "all", "every_nth"),
        help="if frames arrive faster than they are segmented: keep the newest (latest; default for live sources), "
        "drop none (all; default for files), or take each --nth",
    )
    verb.add_argument(
        "--nth",
        type=int,
        default=1,
        metavar="N",
        help="which frames --policy every_nth takes (default: 1, each one)",
    )


def _add_min_hits(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument(
        "--min-hits",
        type=int,
        metavar="N",
        help=f"with track IDs: report an object once it was detected in N frames (default: {default})",
    )


def _tracker(args: argparse.Namespace, wanted: bool, min_hits: int = 1) -> Any:
    """Return a tracker if one is wanted; ``min_hits`` is the default of --min-hits."""
    from ..runtime.pipeline.tracker import Tracker

    if not wanted and args.min_hits is not None:
        raise InputError(
            "--min-hits has no effect without track IDs: add --track to run, or drop --no-track from view"
        )
    return Tracker(min_hits=min_hits if args.min_hits is None else args.min_hits) if wanted else None


def _size_wh(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, e.g. 1280x720, got {text!r}")
    return int(found[1]), int(found[2])


def _source(args: argparse.Namespace, realtime: bool = False) -> Any:
    from ..runtime.sources.open_source import open_source

    logging.basicConfig(format="tfiseg: %(message)s", level=logging.WARNING if args.json else logging.INFO)
    return open_source(
        args.source,
        size_wh=args.camera_size,
        fps=args.camera_fps,
        pixel_format=args.pixel_format,
        realtime=realtime,
    )


def segment_source(args: argparse.Namespace) -> int:
    from ..files import writable_folder
    from ..plugins.native import usable_threads
    from ..runtime.output.run import run, summary_table

    if args.source == "synthetic" and args.frames is None:
        raise InputError("the synthetic camera never ends: say how many frames with --frames N")
    writable_folder(args.out)  # before the network is loaded
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends like Ctrl-C, where that is ignored as well: outputs stay valid
    tracker = _tracker(args, args.track)
    with _source(args) as source:
        workers = 1
        if not source.is_live and args.threads == 0:  # whole frames in parallel are faster than parts of one
            args.threads, workers = 1, min(usable_threads(), _MOST_WORKERS)
        with segmenter_of(args) as segmenter:
            summary = run(
                source,
                segmenter,
                args.out,
                args.frames,
                quiet=args.json,
                policy=args.policy,
                nth=args.nth,
                workers=workers,
                tracker=tracker,
                output_format=args.format,
            )
    print(as_json(summary) if args.json else summary_table(summary))
    if summary["error"] == "interrupted":
        print(
            f"tfiseg {args.verb}: interrupted after {summary['frames']} frames, which are kept",
            file=sys.stderr,
        )
        return 130
    if summary["error"]:
        print(f"tfiseg {args.verb}: {summary['error']}; what was done is kept", file=sys.stderr)
        return 1
    return 0


def add_view(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "view",
        "Show a camera, stream or file live, in a window or on a web page, with persistent track IDs.",
        _view,
    )
    verb.add_argument("source", metavar="SOURCE", help=_SOURCES + "; files are played at their own speed")
    verb.add_argument(
        "--serve",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="serve the web viewer (default without a display: 127.0.0.1:8765; use 0.0.0.0:8765 for other machines, which need a token)",
    )
    verb.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="write overlay, instances.jsonl and recording.mcap (for Foxglove) to a new folder in DIR",
    )
    verb.add_argument("--no-track", action="store_true", help="no track IDs (tracking needs tfiseg[live])")
    _add_min_hits(verb, "3; 1 for images")
    verb.add_argument("--frames", type=int, metavar="N", help="stop after N frames of the source")
    _add_source_options(verb)
    _add_policy(verb)
    add_segmenter_options(verb)


def _view(args: argparse.Namespace) -> int:
    from ..runtime.output.live_view import has_window, view
    from ..runtime.output.web_viewer import DEFAULT_ADDRESS

    if args.model is None and args.refine is None:
        args.refine = "frame"
    serve = DEFAULT_ADDRESS if args.serve == "" or (args.serve is None and not has_window()) else args.serve
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # the network first: a camera's pictures would wait meanwhile
    with segmenter_of(args) as segmenter, _source(args, realtime=True) as source:
        report = view(
            source,
            segmenter,
            serve=serve,
            record=args.record,
            policy=args.policy,
            nth=args.nth,
            tracker=_tracker(args, not args.no_track, _VIEW_MIN_HITS if source.is_video else 1),
            max_frames=args.frames,
            say=lambda text: print(text, file=sys.stderr if args.json else sys.stdout, flush=True),
        )
    if args.json:
        print(as_json(report))
    else:
        times, age = report["times"], report["times"]["stages"].get("age", {"p50_ms": 0.0, "p99_ms": 0.0})
        print(
            f"{report['captured']} frames captured, {report['dropped']} dropped, {times['frames']} shown at {times['fps']:.1f} frames/s; "
            f"age of masks: {age['p50_ms']:.0f} ms (median), {age['p99_ms']:.0f} ms (99 %)"
        )
    for wrong in (report["error"], report["recording"]):
        if wrong:
            print(f"tfiseg {args.verb}: {wrong}", file=sys.stderr)
    return 1 if report["error"] or report["recording"] else 0
