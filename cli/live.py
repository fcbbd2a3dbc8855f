"""``tfiseg run`` and ``tfiseg view``: segment a source."""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, SourceError
from ..files import printable
from ..schema import to_json
from .archive import add_archive_options, check_archive_options, segment_archive_source
from .common import add_verb
from .parser import Example, Parser, integer, number, path, size
from .segmenter_options import add_segmenter_options

VIEW_MIN_HITS = 3  # for videos, in which most false positives appear in one or two frames
_MAX_WORKERS = 8  # each needs memory for a frame and a network
_SOURCES = 'file, folder, glob pattern (quoted), camera index, csi://N, "gst: ...", URL or "synthetic"'


def add_run(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "run",
        "Segment an image, folder, video, camera or stream; write overlay, instances.jsonl and summary.",
        _run,
        [
            Example("tfiseg run street.jpg", "overlay and masks in tfiseg-out/"),
            Example("tfiseg run photos/ --quality best --format coco --out result", "a folder, as COCO JSON"),
            Example("tfiseg run street.mp4 --things person,car --track", "persistent track IDs"),
            Example("tfiseg run 'photos/*.jpg' --model net.onnx --json", "your own network"),
            Example("tfiseg run photos/ --ray --out archive", "an archive on all cores", needs="Ray"),
            Example("tfiseg run 0 --frames 100", "100 frames of the first camera", needs="a camera"),
        ],
    )
    verb.set_defaults(opens_first=True)
    verb.source.add_argument("source SOURCE", help=_SOURCES)
    verb.source.add_argument("--frames N", type=integer(1), help="stop after N frames")
    _add_source_options(verb)
    verb.output.add_argument(
        "--out DIR", type=path, default=Path("tfiseg-out"), help="output folder (default: tfiseg-out)"
    )
    verb.output.add_argument(
        "--format",
        choices=("jsonl", "coco"),
        default="jsonl",
        help="coco: write the instances also as coco.json, which pycocotools loads (default: "
        "instances.jsonl only)",
    )
    verb.output.add_argument(
        "--track", action="store_true", help="assign persistent track IDs (needs tfiseg[live])"
    )
    _add_min_hits(verb, "1")
    add_segmenter_options(verb)
    add_archive_options(verb)


def _add_source_options(verb: Parser) -> None:
    source = verb.source
    source.add_argument(
        "--camera-size WxH", type=size("WxH"), help="requested camera resolution, e.g. 1280x720"
    )
    source.add_argument(
        "--camera-fps F", type=number(0, above=True), help="requested frames per second of a camera"
    )
    source.add_argument("--pixel-format CCCC", help="requested FourCC of a camera, e.g. MJPG or YUYV")
    source.add_argument(
        "--policy",
        choices=("latest", "all", "every_nth"),
        help="what to do with frames that arrive faster than they are segmented. latest: keep the newest "
        "(default for live sources); all: drop none (default for files); every_nth: take each --nth",
    )
    source.add_argument(
        "--nth N", type=integer(1), default=1, help="with --policy every_nth: take each N-th frame"
    )


def _add_min_hits(verb: Parser, default: str) -> None:
    verb.output.add_argument(
        "--min-hits N",
        type=integer(1),
        help=f"with track IDs: report an object from its N-th detection on (default: {default})",
    )


def _tracker(args: argparse.Namespace, track: bool, default_min_hits: int = 1) -> Any:
    """Return a tracker, or None without track IDs."""
    from ..runtime.pipeline.tracker import Tracker

    if not track and args.min_hits is not None:
        raise InputError("--min-hits has no effect without track IDs")
    return Tracker(min_hits=default_min_hits if args.min_hits is None else args.min_hits) if track else None


def _check_policy(args: argparse.Namespace) -> None:
    if args.nth > 1 and args.policy != "every_nth":
        raise InputError(f"--nth {args.nth} has no effect without --policy every_nth")


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


def _run(args: argparse.Namespace) -> int:
    check_archive_options(args)
    if args.ray is None:
        return segment_source(args)
    args.shutdown.start_work()
    return segment_archive_source(args)


def segment_source(args: argparse.Namespace) -> int:
    """Segment a source; returns the exit status."""
    from ..runtime.output.run import run, summary_table
    from ..runtime.output.run_writer import output_folder
    from ..runtime.segmenter import Segmenter

    if args.source == "synthetic" and args.frames is None:
        raise InputError("the synthetic source is endless: pass --frames N, e.g. --frames 100")
    _check_policy(args)
    with _source(args) as source:
        output_folder(args.out, source)  # before the network is loaded
        tracker = _tracker(args, args.track)
        settings, workers = _shared_threads(args, source)
        with Segmenter.from_settings(settings) as segmenter:
            args.shutdown.start_work()
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
    print(to_json(summary) if args.json else summary_table(summary))
    if summary["frames"] and not summary["instances"] and args.min_score is None:
        print("no instance was found: --min-score 0 also shows uncertain ones", file=sys.stderr)
    if summary["error"] == "interrupted":
        print(
            f"tfiseg {args.verb}: interrupted after {summary['frames']} frames, which are kept",
            file=sys.stderr,
        )
        return 130
    if summary["error"]:
        print(f"tfiseg {args.verb}: {summary['error']}; completed results are kept", file=sys.stderr)
        return 1
    return 0


def _shared_threads(args: argparse.Namespace, source: Any) -> tuple[Any, int]:
    """Return settings and number of workers: several frames in parallel, or one frame on all threads."""
    from ..plugins.native import usable_threads

    frames = min((n for n in (source.frame_count, args.frames) if n is not None), default=_MAX_WORKERS)
    workers = min(usable_threads(), _MAX_WORKERS, frames)
    if source.is_live or args.settings.threads or workers < 2:
        return args.settings, 1
    return replace(args.settings, threads=max(1, usable_threads() // workers)), workers


def add_view(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "view",
        "Show a camera, stream or file live, in a window or in the web viewer, with persistent track IDs.",
        _view,
        [
            Example("tfiseg view 0", "the first camera", needs="a camera"),
            Example(
                "tfiseg view street.mp4 --serve --frames 5", "the first frames of a video in the web viewer"
            ),
            Example(
                "tfiseg view synthetic --serve 127.0.0.1:8766 --record tape --frames 5", "no camera needed"
            ),
            Example(
                "tfiseg view rtsp://camera/stream --serve 0.0.0.0:8765", "for other machines", needs="network"
            ),
        ],
    )
    verb.set_defaults(opens_first=True)
    verb.source.add_argument(
        "source SOURCE",
        help=_SOURCES
        + "; videos are played at their own frame rate, photos shown for 2 s each and the last one "
        "until Ctrl-C (with --frames, --camera-fps or --record: like a video)",
    )
    verb.source.add_argument("--frames N", type=integer(1), help="stop after N frames of the source")
    _add_source_options(verb)
    verb.output.add_argument(
        "--serve HOST:PORT",
        nargs="?",
        const="",
        help="open the web viewer instead of a window (default without a display: 127.0.0.1:8765; for other "
        "machines: 0.0.0.0:8765, with a token)",
    )
    verb.output.add_argument(
        "--record DIR",
        type=path,
        help="write overlay, instances.jsonl and recording.mcap (for Foxglove) into a new folder in DIR",
    )
    verb.output.add_argument(
        "--no-track", action="store_true", help="assign no track IDs (tracking needs tfiseg[live])"
    )
    _add_min_hits(verb, "3; 1 for photos")
    add_segmenter_options(verb)


def _view(args: argparse.Namespace) -> int:
    from ..runtime.output.live_view import has_window, view
    from ..runtime.output.web_viewer import DEFAULT_ADDRESS
    from ..runtime.segmenter import Segmenter

    _check_policy(args)
    _check_file(args)
    serve = DEFAULT_ADDRESS if args.serve == "" or (args.serve is None and not has_window()) else args.serve
    # open the network first, because a camera's frames would get old meanwhile
    with Segmenter.from_settings(args.settings) as segmenter, _view_source(args) as source:
        args.shutdown.start_work()
        report = view(
            source,
            segmenter,
            serve=serve,
            record=args.record,
            policy=args.policy,
            nth=args.nth,
            tracker=_tracker(args, not args.no_track, VIEW_MIN_HITS if source.is_video else 1),
            max_frames=args.frames,
            log=lambda text: print(text, file=sys.stderr if args.json else sys.stdout, flush=True),
        )
    print(to_json(report) if args.json else _view_text(report))
    for wrong in (report["error"], report["recording"]):
        if wrong:
            print(f"tfiseg {args.verb}: {wrong}", file=sys.stderr)
    return 1 if report["error"] or report["recording"] else 0


def _view_source(args: argparse.Namespace) -> Any:
    from ..runtime.sources.realtime import Realtime, SlideShow

    source = _source(args, realtime=True)
    once = args.frames or args.camera_fps or args.record  # a recording must not repeat photos without end
    is_show = isinstance(source, Realtime) and not source.is_video and not once
    return SlideShow(source.source) if is_show else source


def _check_file(args: argparse.Namespace) -> None:
    """Raise SourceError for a file that cannot be opened, before a network is loaded."""
    from ..runtime.sources.open_source import open_source

    path = Path(args.source)
    if path.is_file() or path.is_dir():
        open_source(args.source).close()
    elif path.suffix and not path.exists() and ":" not in args.source and not glob.has_magic(args.source):
        raise SourceError(f"there is no file {printable(args.source)}")


def _view_text(report: dict[str, Any]) -> str:
    times, age = report["times"], report["times"]["stages"].get("age", {"p50_ms": 0.0, "p99_ms": 0.0})
    return (
        f"{report['captured']} frames captured, {report['dropped']} dropped, {times['frames']} shown at "
        f"{times['fps']:.1f} frames/s; age of masks: {age['p50_ms']:.0f} ms (median), {age['p99_ms']:.0f} "
        f"ms (99 %)"
    )
