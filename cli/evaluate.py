"""``tfiseg eval`` and ``tfiseg bench``: measure quality and speed."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from ..schema import to_json
from .common import add_verb, options_given
from .parser import Example, existing_file, existing_folder, integer, path
from .segmenter_options import add_segmenter_options


def add_eval(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "eval",
        "Score instances (PQ, AP, recall by size) on an evaluation set (images/, instances/, semantic/, "
        "classes.json) or COCO annotations.",
        _eval,
        [
            Example("tfiseg eval people/", "clustering alone, on true class maps"),
            Example("tfiseg eval people/ --semantic model --quality fast --json", "network and clustering"),
            Example("tfiseg eval photos/ --annotations photos.json --semantic model", "COCO annotations"),
            Example(
                "tfiseg eval people/ --against components --out sheets", "with a baseline and contact sheets"
            ),
        ],
    )
    verb.source.add_argument(
        "folder DIR", type=existing_folder, help="the evaluation set, or the images of --annotations"
    )
    verb.source.add_argument(
        "--annotations FILE",
        type=existing_file,
        help="true instances as a COCO file of polygons or RLE masks, e.g. of CVAT or Label Studio",
    )
    verb.source.add_argument(
        "--semantic",
        choices=("truth", "model"),
        default="truth",
        help="class maps to cluster: the true ones, or those of --model (default: truth)",
    )
    verb.output.add_argument(
        "--out DIR", type=path, help="write contact sheets of the best, median and worst images there"
    )
    verb.output.add_argument(
        "--against",
        nargs="+",
        choices=("components", "shape", "calibrated-components", "shipped"),
        default=(),
        help="baselines on the same class maps, without mask refinement (shipped: the instance network "
        "that comes with tfiseg); the gain in PQ is printed with its 95 %% interval over images",
    )
    add_segmenter_options(verb)


# segmenter options that have no effect on true class maps
_MODEL_ONLY = ("model", "things", "min_score", "outlines", "long_side", "scales", "flip")


def _check_options_for_truth(args: argparse.Namespace) -> None:
    """Raise InputError for options that have no effect on true class maps."""
    without_effect = options_given(args, _MODEL_ONLY)
    if args.refine == "frame":
        without_effect.append("--refine frame")
    if without_effect:
        raise InputError(
            f"{', '.join(without_effect)}: no effect on true class maps. Use --semantic model to segment the "
            "images."
        )


def _eval(args: argparse.Namespace) -> int:
    from ..runtime.evaluate.evaluate import evaluate, open_eval_set
    from ..runtime.refine.refiner import Refiner
    from ..runtime.segmenter import Segmenter

    settings = args.settings
    by_truth = args.semantic == "truth"
    if by_truth:
        _check_options_for_truth(args)
    open_eval_set(args.folder, args.annotations)  # before a network is loaded
    refiner = None
    if by_truth and settings.wanted_refine == "components":
        refiner = Refiner(
            settings.instance_model,
            max_views=settings.max_views,
            thorough=settings.thorough,
            threads=settings.threads,
        )
    report = evaluate(
        args.folder,
        args.semantic,
        None if by_truth else Segmenter.from_settings(settings),
        "auto" if settings.split is None else settings.split,
        args.out,
        quiet=args.json,
        refiner=refiner,
        against=args.against,
        min_area=settings.min_area,
        annotations=args.annotations,
    )
    print(to_json(report) if args.json else _eval_text(report))
    return 0


def _eval_text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['set']} ({report['pictures']} images, {report['semantic']} masks): PQ "
        f"{report['PQ']:.1f}  AP {report['AP']:.1f}  AP50 {report['AP50']:.1f}  AP75 {report['AP75']:.1f}  "
        f"boundary IoU {report['boundary_IoU']:.1f}  ({report['true_positives']} true positives, "
        f"{report['false_positives']} false positives, {report['false_negatives']} false negatives; "
        f"{report['median_ms']:.0f} ms per image)"
    ]
    if "mIoU" in report:
        per_class = ", ".join(f"{k} {v:.2f}" for k, v in report["per_class_IoU"].items())
        lines.append(f"mIoU {report['mIoU']:.3f}: {per_class}")
    lines.append("PQ per class: " + ", ".join(f"{k} {v:.1f}" for k, v in report["per_class_PQ"].items()))
    for name, gain in report.get("gain", {}).items():
        low, high = gain["interval_95"]
        lines.append(
            f"against {name}: PQ {gain['PQ']:.1f}, gain {gain['PQ_gain']:+.1f} "
            f"(95 % of bootstraps: {low:+.1f} to {high:+.1f})"
        )
    for name, sizes in report["recall_by_size"].items():
        lines.append(f"recall of {name}: " + ", ".join(f"{part} {found}" for part, found in sizes.items()))
    if "contact_sheets" in report:
        lines.append(f"best, median and worst images: {report['contact_sheets']}")
    return "\n".join(lines)


def add_bench(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "bench",
        "Time the clustering operator against OpenCV, scikit-image and 300-step following.",
        _bench,
        [
            Example("tfiseg bench --side 256 --no-peers", "tfiseg alone, on a synthetic class map"),
            Example("tfiseg bench --set people/ --side 256 --json", "on the class maps of an evaluation set"),
        ],
    )
    verb.source.add_argument(
        "--set DIR",
        type=existing_folder,
        dest="folder",
        help="evaluation set whose class maps to use (default: synthetic)",
    )
    verb.source.add_argument(
        "--side PX", type=int, default=1024, help="side of the class map (default: 1024)"
    )
    verb.expert.add_argument("--threads N", type=integer(1), default=1, help="CPU threads (default: 1)")
    verb.output.add_argument("--no-peers", action="store_true", help="time tfiseg alone")


def _bench(args: argparse.Namespace) -> int:
    from ..runtime.evaluate.bench import bench, bench_table

    report = bench(args.folder, args.side, args.threads, peers=not args.no_peers)
    print(to_json(report) if args.json else bench_table(report))
    return 0
