"""The verb ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_build import size_hw
from .cli_common import add_verb, as_json, need
from .errors import InputError


def add_export(verbs: Any) -> None:
    verb = add_verb(
        verbs, "export", "Bring any semantic network into tfiseg's format, NAME.onnx, and check it against the original.", _export
    )
    verb.add_argument(
        "source",
        metavar="SOURCE",
        help="default (the network we ship), a .onnx of any layout, torchvision:NAME, smp:ARCH/ENCODER, hf:NAME_OR_FOLDER, "
        "python:MODULE:FUNCTION, or a checkpoint of `tfiseg train`",
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.onnx")
    verb.add_argument("--photos", metavar="SOURCE", help="photos on which both must agree (default: the synthetic camera's frames)")
    verb.add_argument("--input-size", type=size_hw, metavar="HxW", help="what the network sees (default: the source's, else 512x512)")
    verb.add_argument("--mean", type=_three, metavar="R,G,B", help="subtracted from the picture (default: what the source says, else 0)")
    verb.add_argument("--std", type=_three, metavar="R,G,B", help="the picture is divided by it (default: what the source says, else 1)")
    verb.add_argument("--value-range", type=float, default=1.0, metavar="V", help="the network's white: 1 (default) or 255")
    verb.add_argument("--bgr", action="store_true", help="the network wants BGR (default: RGB)")
    verb.add_argument("--class-names", metavar="NAMES", help="comma-separated, background first; a file; or voc21, cityscapes19, person")
    verb.add_argument("--things", metavar="NAMES", help="countable classes (default: those of a known list, else all but the first)")
    verb.add_argument("--tensor", metavar="NAME", help="which output or inner tensor holds class map or logits, where there are several")
    verb.add_argument("--align-corners", action="store_true", help="whoever enlarges the logits maps corners onto corners (DeepLab)")
    verb.add_argument("--triton", type=Path, metavar="DIR", help="write a model repository for NVIDIA's Triton server there as well")
    verb.add_argument("--random-weights", action="store_true", help="load no weights: to try the export")
    verb.add_argument("--training-data", default="not stated", metavar="TEXT", help="what it was trained on, for the model's metadata")
    verb.add_argument("--licence", default="not stated", metavar="TEXT", help="terms of use, for the model's metadata")
    verb.add_argument(
        "--weights",
        choices=("fp16", "fp32"),
        help="how weights are stored; fp16 halves the file (default: fp16 for checkpoints, else fp32)",
    )


def _three(text: str) -> tuple[float, float, float]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"wanted one number or three with commas between them, got {text!r}")
    return values if len(values) == 3 else (values[0],) * 3  # type: ignore[return-value]


def _export(args: argparse.Namespace) -> int:
    need("onnx", "export")
    if Path(args.source).is_file() and not args.source.endswith(".onnx"):
        return _export_checkpoint(args)
    from .export.any_network import ExportSettings, export_any, named_classes

    settings = ExportSettings(
        photos=args.photos,
        input_size_hw=args.input_size,
        mean=args.mean,
        std=args.std,
        value_range=args.value_range,
        bgr=args.bgr,
        class_names=named_classes(args.class_names) if args.class_names else None,
        things=tuple(t.strip() for t in args.things.split(",")) if args.things else None,
        output=args.tensor,
        align_corners=args.align_corners,
        random_weights=args.random_weights,
        half_weights=args.weights == "fp16",
        training_data=args.training_data,
        licence=args.licence,
    )
    report = export_any(args.source, args.output, settings, quiet=args.json)
    if args.triton:
        from .export.triton import write_repository

        report["triton"] = write_repository(args.output, args.triton)
    if args.json:
        print(as_json(report))
        return 0
    metadata = report["metadata"]
    cut = f"; left out: {', '.join(reversed(report['cut']))}" if report["cut"] else ""
    print(f"{args.output}: {report['bytes'] / 1e6:.1f} MB, {len(metadata['class_names'])} classes, stride {metadata['stride']}{cut}")
    if report["frames"]:
        print(f"on {report['frames']} frames at least {report['label_agreement']:.3%} of the pixels as in the original")
    print(f"next: tfiseg run SOURCE --model {args.output}, or tfiseg build {args.output} --frames DIR")
    return 0


def _export_checkpoint(args: argparse.Namespace) -> int:
    for module in ("torch", "onnxscript", "onnxsim"):
        need(module, "export")
    if args.photos is None:
        raise InputError("a checkpoint's export is checked on photos: say where they lie with --photos DIR")
    from .export.semantic_onnx import export_semantic

    report = export_semantic(
        Path(args.source),
        args.output,
        Path(args.photos),
        half_weights=args.weights != "fp32",
        class_names=[n.strip() for n in args.class_names.split(",")] if args.class_names else None,
        training_data=args.training_data,
        licence=args.licence,
    )
    if args.json:
        print(as_json(report))
    else:
        print(
            f"{args.output}: {report['bytes'] / 1e6:.1f} MB; on {report['photos']} photos "
            f"at least {report['label_agreement']:.3%} of the pixels as in torch"
        )
    return 0
