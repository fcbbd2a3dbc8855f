"""``tfiseg export``: any semantic network as ``NAME.onnx`` in tfiseg's format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .common import add_verb, as_json, need, size_hw

_SOURCES = """an .onnx file of any layout; a checkpoint of `tfiseg train`; torchvision:NAME; smp:ARCH/ENCODER
(segmentation-models-pytorch); hf:NAME_OR_FOLDER (transformers); python:module:function (returns a torch.nn.Module); or default or
default-semantic, the included network with and without instance heads"""
# options that a checkpoint of ours and the default network have no use for: both bring their own
_OTHERS_ONLY = (
    "input_size",
    "mean",
    "std",
    "scale",
    "rgb",
    "things",
    "opset",
    "output_name",
    "weights",
    "random_weights",
)


def add_export(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "export",
        "Write any semantic network as an ONNX model in tfiseg's format (needs tfiseg[export]; PyTorch networks need tfiseg[torch]).",
        _export,
    )
    verb.add_argument("source", metavar="SOURCE", help=_SOURCES)
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.onnx")
    verb.add_argument(
        "--photos",
        metavar="DIR",
        help="photos for the comparison with the original (default: 4 synthetic frames)",
    )
    verb.add_argument(
        "--class-names",
        metavar="NAMES",
        help="names of all classes in the order of their IDs: voc21, cityscapes19, ade20k150, coco81 or person2; a file with one name per "
        "line; or names separated by commas (default: the source's own, else class 1, class 2, ...)",
    )
    verb.add_argument(
        "--things",
        metavar="NAMES",
        help="countable classes: names or IDs separated by commas (default: recognized by name)",
    )
    verb.add_argument(
        "--input-size",
        type=size_hw,
        metavar="HxW",
        help="size that frames are scaled to (default: the source's own, else 512x512)",
    )
    verb.add_argument(
        "--long-side",
        type=int,
        metavar="PX",
        help="longer side that a network of tfiseg's own scales frames to (default: 384)",
    )
    verb.add_argument(
        "--mean",
        type=_three,
        metavar="M[,M,M]",
        help="mean, subtracted from scaled pixels, in the network's channel order",
    )
    verb.add_argument(
        "--std", type=_three, metavar="S[,S,S]", help="standard deviation, by which they are then divided"
    )
    verb.add_argument("--scale", type=_number, metavar="F", help="factor for pixels 0..255 (default: 1/255)")
    order = verb.add_mutually_exclusive_group()
    order.add_argument("--rgb", action="store_true", default=None, help="the network takes RGB (default)")
    order.add_argument("--bgr", action="store_false", dest="rgb", default=None, help="the network takes BGR")
    verb.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict (torch.save) for torchvision:, smp:, hf: or python:",
    )
    verb.add_argument(
        "--random-weights",
        action="store_true",
        default=None,
        help="export an architecture without trained weights",
    )
    verb.add_argument(
        "--output-name", metavar="NAME", help="output with the classes, if an .onnx file has several outputs"
    )
    verb.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="opset of the result, 13 or later (default: 18, or the .onnx file's own)",
    )
    verb.add_argument(
        "--training-data", metavar="TEXT", help="description of the training data, for the metadata"
    )
    verb.add_argument("--licence", metavar="TEXT", help="terms of use, for the metadata")
    verb.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="also write a model repository for Triton Inference Server to this folder",
    )
    verb.add_argument(
        "--fp32-weights",
        action="store_true",
        help="store the weights of a checkpoint as float32 (default: float16)",
    )


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / (float(bottom) if slash else 1)
    except (ValueError, ZeroDivisionError) as wrong:
        raise argparse.ArgumentTypeError(f"wanted a number or a fraction like 1/255, got {text!r}") from wrong
    return value


def _three(text: str) -> tuple[float, float, float]:
    values = [_number(part) for part in text.split(",")]
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"wanted one number or three separated by commas, got {text!r}")
    return (values[0], values[0], values[0]) if len(values) == 1 else (values[0], values[1], values[2])


def _export(args: argparse.Namespace) -> int:
    need("onnx", "export")
    from ..export.onnx_import.any_network import DEFAULTS, TORCH_KINDS, export_any, export_default

    kind = args.source.partition(":")[0]
    ours = kind not in TORCH_KINDS and not args.source.endswith(".onnx")
    if ours and (given := [f"--{k.replace('_', '-')}" for k in _OTHERS_ONLY if getattr(args, k) is not None]):
        raise InputError(
            f"{', '.join(given)}: {args.source} needs none of it, as it is taken for a network of tfiseg's own"
        )
    if args.long_side is not None and not ours:
        raise InputError(
            "--long-side is for networks of tfiseg's own: other networks see frames at --input-size HxW"
        )
    if args.fp32_weights and (not ours or kind in DEFAULTS):
        raise InputError(
            "--fp32-weights is for checkpoints of `tfiseg train`: other networks keep their weights as they are"
        )
    if args.source in DEFAULTS:
        report = export_default(args.output, args.source, args.long_side)
    elif ours:
        report = _export_checkpoint(args)
    else:
        need("onnxsim", "export")
        for module in ("torch", "onnxscript") if kind in TORCH_KINDS else ():
            need(module, "torch")
        report = export_any(args.source, args.output, _options(args), quiet=args.json)
    if args.triton:
        from ..export.triton import write_repository

        report["triton"] = write_repository(args.output, args.triton)
    print(as_json(report) if args.json else _said(report))
    return 0


def _export_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    for module in ("torch", "onnxscript", "onnxsim"):
        need(module, "torch")
    from ..export.onnx_import.class_lists import read_class_names
    from ..export.semantic.export_onnx import export_semantic
    from ..export.semantic.train import LONG_SIDE_PX

    report = export_semantic(
        Path(args.source),
        args.output,
        args.photos,
        LONG_SIDE_PX if args.long_side is None else args.long_side,
        half_weights=not args.fp32_weights,
        class_names=read_class_names(args.class_names) if args.class_names else None,
        training_data=args.training_data or "not stated",
        licence=args.licence or "not stated",
    )
    return {"output": str(args.output), "source": args.source, **report}


def _options(args: argparse.Namespace) -> Any:
    from ..export.onnx_import.any_network import ExportSettings

    taken = (
        "mean",
        "std",
        "scale",
        "rgb",
        "photos",
        "class_names",
        "things",
        "training_data",
        "licence",
        "opset",
        "output_name",
        "weights",
    )
    return ExportSettings(
        input_size_hw=args.input_size,
        random_weights=bool(args.random_weights),
        **{name: getattr(args, name) for name in taken},
    )


def _said(report: dict[str, Any]) -> str:
    lines = [f"{report['output']}: {report['bytes'] / 1e6:.1f} MB"]
    if "pixels" in report:
        (h, w), (rows, columns) = report["input_size_hw"], report["grid_hw"]
        names, things = report["class_names"], report["things"]
        lines += [
            f"input: any frame, scaled to {h}x{w}; {report['pixels']}",
            f"output: logits of {len(names)} classes at {rows}x{columns} (stride {report['stride']}), {len(things)} of them countable",
            f"cut from its end: {', '.join(report['removed']) or 'nothing'}",
        ]
    if "label_agreement" in report:
        seen = f" ({report['labels_seen']} different labels)" if "labels_seen" in report else ""
        lines.append(
            f"labels: on {report['photos']} photos at least {report['label_agreement']:.3%} of the pixels as in the original{seen}"
        )
    if "triton" in report:
        lines.append(
            f"for Triton: {report['triton']['folder']}, up to {report['triton']['max_batch_size'] or 1} frames per call"
        )
    lines.append(f"next: tfiseg run DIR --model {report['output']}, or tfiseg build {report['output']}")
    return "\n".join(lines)
