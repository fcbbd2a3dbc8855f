"""``tfiseg eval`` and ``tfiseg bench``: quality and speed, measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .common import add_verb, as_json
from .segmenter_options import add_segmenter_options, segmenter_of, segmenter_settings


def add_eval(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "eval",
        "Score an evaluation set (images/, instances/, semantic/, classes.json): PQ, AP, per class.",
        _eval,
    )
    verb.add_argument("folder", type=Path, metavar="DIR", help="the evaluation set")
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
        help="write contact sheets of the best, median and worst images to this folder",
    )
    verb.add_argument(
        "--against",
        nargs="+",
        choices=("components", "shape", "calibrated-components", "shipped"),
        default=(),
        help="baselines on the same class maps, without mask refinement (shipped: the included instance network); the gain in PQ is "
        "printed with its 95 %% interval over images",
    )
    add_segmenter_options(verb)


def _check_options_for_truth(args: argparse.Namespace) -> None:
    """Refuse options that have no effect on true class maps."""
    given = {
        "--model": args.model,
        "--things": args.things,
        "--min-score": args.min_score is not None,
        "--outlines": args.outlines,
        "--scales": args.scales != (1.0,),
        "--flip": args.flip,
        "--long-side": args.long_side,
        "--refine frame": args.refine == "frame",
    }
    without_effect = [option for option, value in given.items() if value]
    if without_effect:
        raise InputError(
            f"{', '.join(without_effect)}: no effect on true class maps. Use --semantic model to segment the pictures."
        )


def _eval(args: argparse.Namespace) -> int:
    from ..runtime.evaluate.evaluate import evaluate
    from ..runtime.refine.refiner import Refiner

    settings = segmenter_settings(args)
    by_truth = args.semantic == "truth"
    if by_truth:
        _check_options_for_truth(args)
    refiner = None
    if by_truth and settings.wanted_refine == "components":
        refiner = Refiner(
            args.instance_model, max_views=args.max_views, thorough=args.thorough, threads=args.threads
        )
    report = evaluate(
        args.folder,
        args.semantic,
        None if by_truth else segmenter_of(args),
        "auto" if args.split is None else args.split,
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
    for name, sizes in report["recall_by_size"].items():
        print(f"recall of {name}: " + ", ".join(f"{size} {found}" for size, found in sizes.items()))
    if "contact_sheets" in report:
        print(f"best, median and worst pictures: {report['contact_sheets']}")
    return 0


def add_bench(verbs: Any) -> None:
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
