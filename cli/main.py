"""``tfiseg``: one program with verbs. ``tfiseg VERB --help`` says what each does."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError, TfisegError
from .build import add_build, add_compare
from .common import add_verb, as_json
from .export import add_export
from .live import add_live, add_segmenter_options, looks_often, segmenter_of
from .tools import add_tools
from .train import add_train


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status is 0 only if what was asked was done."""
    parser = _parser()
    args = parser.parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    if not hasattr(args, "handler"):
        parser.print_help()
        return 2
    try:
        return int(args.handler(args))
    except TfisegError as wrong:
        print(f"tfiseg {args.verb}: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tfiseg {args.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `tfiseg ... | head`: nobody reads on
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - so that the interpreter's last flush finds an open file
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfiseg", description="Real-time instance masks from any semantic segmentation network."
    )
    parser.add_argument("--version", action="version", version=f"tfiseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_live(verbs)
    _add_eval(verbs)
    _add_bench(verbs)
    add_train(verbs)
    add_export(verbs)
    add_build(verbs)
    add_compare(verbs)
    _add_plugin(verbs)
    add_tools(verbs)
    return parser


def _add_eval(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "eval",
        "Score an evaluation set (images/, instances/, semantic/, classes.json): PQ, AP, per class.",
        _eval,
    )
    verb.add_argument("folder", type=Path, metavar="DIR")
    verb.add_argument(
        "--semantic",
        choices=("truth", "model"),
        default="truth",
        help="class maps to cluster (default: truth)",
    )
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write contact sheets of the best, median and worst pictures there",
    )
    verb.add_argument(
        "--against",
        nargs="+",
        choices=("components", "shape", "rated-components", "shipped"),
        default=(),
        help="baselines on the same class maps, without outlines (shipped: the instance network that comes with tfiseg); the gain in PQ "
        "comes with its 95 %% interval over pictures",
    )
    add_segmenter_options(verb)


def _eval(args: argparse.Namespace) -> int:
    from ..runtime.evaluate.evaluate import evaluate
    from ..runtime.refine.refiner import Refiner

    segmenting = args.model or args.things or args.min_score is not None or args.outlines or looks_often(args)
    if args.semantic == "truth" and segmenting:
        raise InputError(
            "--model, --things, --min-score, --outlines, --scales and --flip say how to segment pictures: they need --semantic model"
        )
    if args.semantic == "truth" and args.refine == "frame":
        raise InputError("--refine frame reads the model's own features: it needs --semantic model")
    segmenter = segmenter_of(args) if args.semantic == "model" else None
    if args.thorough is not None and not args.refine:
        raise InputError("--thorough says how to look at components: it needs --refine components")
    if args.max_views is not None and not args.refine:
        raise InputError("--max-views says how to look at components: it needs --refine components")
    by_truth = args.semantic == "truth" and args.refine
    refiner = None
    if by_truth:
        refiner = Refiner(
            args.instance_model, max_views=args.max_views, thorough=args.thorough, threads=args.threads
        )
    report = evaluate(
        args.folder,
        args.semantic,
        segmenter,
        args.split,
        args.out,
        quiet=args.json,
        refiner=refiner,
        against=args.against,
        min_area=args.min_area,
    )
    if args.json:
        print(as_json(report))
        return 0
    print(
        f"{report['set']} ({report['pictures']} pictures, {report['semantic']} masks): PQ {report['PQ']:.1f}  AP {report['AP']:.1f}  "
        f"AP50 {report['AP50']:.1f}  AP75 {report['AP75']:.1f}  boundary IoU {report['boundary_IoU']:.1f}  "
        f"({report['true_positives']} right, {report['false_positives']} too many, {report['false_negatives']} missed; "
        f"{report['median_ms']:.0f} ms a picture)"
    )
    if "mIoU" in report:
        print(
            f"mIoU {report['mIoU']:.3f}: "
            + ", ".join(f"{k} {v:.2f}" for k, v in report["per_class_IoU"].items())
        )
    print("PQ per class: " + ", ".join(f"{k} {v:.1f}" for k, v in report["per_class_PQ"].items()))
    for name, gain in report.get("gain", {}).items():
        low, high = gain["interval_95"]
        print(
            f"against {name}: PQ {gain['PQ']:.1f}, gain {gain['PQ_gain']:+.1f} (95 % of bootstraps: {low:+.1f} to {high:+.1f})"
        )
    if "contact_sheets" in report:
        print(f"best, median and worst pictures: {report['contact_sheets']}")
    return 0


def _add_bench(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "bench",
        "Time the clustering operator against OpenCV, scikit-image and 300-step following.",
        _bench,
    )
    verb.add_argument(
        "--set",
        type=Path,
        dest="folder",
        metavar="DIR",
        help="evaluation set whose class maps to use (default: synthetic)",
    )
    verb.add_argument(
        "--side", type=int, default=1024, metavar="PX", help="side of the class map (default: 1024)"
    )
    verb.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    verb.add_argument("--no-peers", action="store_true", help="time tfiseg alone")


def _bench(args: argparse.Namespace) -> int:
    from ..runtime.evaluate.bench import bench, bench_table

    report = bench(args.folder, args.side, args.threads, peers=not args.no_peers)
    print(as_json(report) if args.json else bench_table(report))
    return 0


def _add_plugin(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "plugin",
        "Build, describe or find libtfiseg_plugin.so: the operator for TensorRT and CUDA.",
        _plugin,
    )
    verb.add_argument(
        "what",
        choices=("build", "info", "path"),
        help="compile it; what is known of the built one; where that lies",
    )
    verb.add_argument(
        "--arch",
        action="append",
        metavar="CC",
        help='build: compute capability, like 87 or "native"; repeatable (default: 87 89 90 110 120)',
    )
    verb.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="build: where to put it (default: a cache folder, where it is looked for)",
    )
    verb.add_argument(
        "--without-tensorrt", action="store_true", help="build: only the C API; needs no headers of TensorRT"
    )
    verb.add_argument("--force", action="store_true", help="build: also if it is there already")


def _plugin(args: argparse.Namespace) -> int:
    from ..plugins.plugin_build import ARCHITECTURES, build_plugin
    from ..plugins.plugin_library import default_path, describe, plugin_info, plugin_path

    if args.what == "build":
        path = args.output or default_path()
        asked = bool(args.force or args.arch or args.without_tensorrt)
        if asked or not path.is_file():
            build_plugin(args.arch or ARCHITECTURES, path, not args.without_tensorrt)
        info = plugin_info(path)
        print(as_json(info) if args.json else describe(info))
    elif args.what == "info":
        info = plugin_info()
        print(as_json(info) if args.json else describe(info))
    else:
        path = plugin_path()
        print(as_json({"path": str(path)}) if args.json else path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
