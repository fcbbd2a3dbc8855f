"""``tfiseg export``: write any semantic network as ``NAME.onnx`` in tfiseg's format."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ..errors import InputError, SourceError, did_you_mean
from ..files import printable
from ..schema import to_json
from .common import add_verb, command_line, need, reject_options, require
from .parser import Example, Parser, existing_file, integer, path, size

_SOURCES = """a checkpoint of `tfiseg train`; an .onnx file of any layout; torchvision:NAME; smp:ARCH/ENCODER
(segmentation-models-pytorch); hf:NAME_OR_FOLDER (transformers); python:module:function (returns a
torch.nn.Module); or default or default-semantic, the network that comes with tfiseg (with and without its
instance heads)"""
_MAX_LISTED = 6  # classes in the report
_OUTPUT_KINDS = ("logits", "softmax", "sigmoid", "binary", "class-map")
# options without effect on a checkpoint of tfiseg or the default network
_FOREIGN_ONLY = (
    *("input_size", "mean", "std", "scale", "rgb", "things", "opset", "output_name", "output_kind"),
    *("threshold", "weights", "random_weights"),
)
# options with the name of their field in ExportSettings
_SETTINGS = (
    *("mean", "std", "scale", "rgb", "photos", "class_names", "things", "training_data", "licence", "opset"),
    *("output_name", "output_kind", "weights"),
)
_EXTRAS = {"torchvision": "zoo", "smp": "zoo", "hf": "hf", "python": "torch"}  # all include `export`
_EXAMPLES = (
    Example("tfiseg export default -o net.onnx", "the network that comes with tfiseg"),
    Example(
        "tfiseg export deeplab.onnx -o street.onnx --class-names voc21 --photos photos/",
        "your own ONNX model",
        needs="deeplab.onnx",
    ),
    Example(
        "tfiseg export hf:nvidia/segformer-b0-finetuned-cityscapes-1024-1024 -o city.onnx --photos photos/",
        needs="network access and transformers",
    ),
    Example(
        "tfiseg export torchvision:lraspp_mobilenet_v3_large -o lraspp.onnx",
        needs="network access and torchvision",
    ),
)


def add_export(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "export",
        "Write any semantic network as an ONNX model in tfiseg's format (needs tfiseg[export]).",
        _export,
        _EXAMPLES,
    )
    source = verb.source
    source.add_argument("source SOURCE", help=_SOURCES)
    source.add_argument(
        "--weights FILE",
        type=existing_file,
        help="state dict (torch.save) for torchvision:, smp:, hf: or python:",
    )
    source.add_argument(
        "--random-weights",
        action="store_true",
        default=None,
        help="export an architecture without trained weights",
    )
    source.add_argument(
        "--photos DIR", help="photos on which original and export must agree (default: 4 synthetic frames)"
    )
    verb.quality.add_argument(
        "--long-side PX",
        type=int,
        help="for networks made by tfiseg: longer side that frames are scaled to (default: 384); 448 finds "
        "more, in 1.2 times the time",
    )
    verb.quality.add_argument(
        "--input-size HxW",
        type=size("HxW"),
        help="size that frames are scaled to (default: the source's own, else 512x512)",
    )
    _add_output_options(verb)
    _add_pixel_options(verb.expert)


def _add_output_options(verb: Parser) -> None:
    output = verb.output
    output.add_argument(
        "-o",
        "--output NAME.onnx|KIND",
        action=_OutputAction,
        help="required: the model to write. Given again with logits, softmax, sigmoid, binary or "
        "class-map: how to read the network's output (default: by its last operator and its values)",
    )
    output.set_defaults(output_kind=None)
    output.add_argument(
        "--class-names NAMES",
        help="names of all classes in order of their ids: voc21, cityscapes19, ade20k150, coco81 or "
        "person2; a file with one name per line; or names separated by commas (default: the source's own, "
        "else class 1, class 2, ...)",
    )
    output.add_argument(
        "--things NAMES", help="countable classes, names or ids separated by commas (default: by their names)"
    )
    output.add_argument(
        "--training-data TEXT", help="what the network was trained on, for the model's metadata"
    )
    output.add_argument("--licence TEXT", help="terms of use, for the model's metadata")
    output.add_argument(
        "--triton DIR", type=path, help="also write a model repository for NVIDIA's Triton server"
    )


class _OutputAction(argparse.Action):
    """Separates the two meanings of --output: the file to write, and the kind of the network's output."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values in _OUTPUT_KINDS:
            namespace.output_kind = values
        elif "." not in values and option_string == "--output":
            known = ", ".join(_OUTPUT_KINDS)
            parser.error(
                f"argument --output: expected NAME.onnx, or one of {known}, got {values!r}."
                f"{did_you_mean(values, _OUTPUT_KINDS)}"
            )
        else:
            namespace.output = Path(values)


def _add_pixel_options(expert: Any) -> None:
    expert.add_argument(
        "--mean M[,M,M]",
        type=_one_or_three,
        help="subtracted from scaled pixels, in the network's channel order",
    )
    expert.add_argument(
        "--std S[,S,S]", type=_one_or_three, help="divisor of the pixels after the mean is subtracted"
    )
    expert.add_argument("--scale F", type=_number, help="factor of pixels 0..255 (default: 1/255)")
    order = expert.add_mutually_exclusive_group()
    order.add_argument("--rgb", action="store_true", default=None, help="the network takes RGB (default)")
    order.add_argument("--bgr", action="store_false", dest="rgb", default=None, help="the network takes BGR")
    expert.add_argument(
        "--threshold P[,P...]",
        type=_probabilities,
        help="for sigmoid and binary outputs: probability above which a pixel has a class, one for all "
        "channels or one per channel (default: 0.5)",
    )
    expert.add_argument(
        "--output-name NAME", help="output of an .onnx file that holds the classes, if it has several"
    )
    expert.add_argument(
        "--opset N",
        type=integer(1),
        help="opset of the result, 13 or later (default: 18, or the .onnx file's own)",
    )
    expert.add_argument(
        "--fp32-weights",
        action="store_true",
        help="for a checkpoint: store weights as float32 (default: float16)",
    )


def _probabilities(text: str) -> tuple[float, ...]:
    values = tuple(_number(part) for part in text.split(","))
    if not all(0 < v < 1 for v in values):
        raise argparse.ArgumentTypeError(f"expected probabilities between 0 and 1, got {text!r}")
    return values


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / (float(bottom) if slash else 1)
    except (ValueError, ZeroDivisionError) as wrong:
        raise argparse.ArgumentTypeError(
            f"expected a number or a fraction, e.g. 1/255, got {text!r}"
        ) from wrong
    return value


def _one_or_three(text: str) -> tuple[float, float, float]:
    values = [_number(part) for part in text.split(",")]
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"expected one number or three separated by commas, got {text!r}")
    return (values[0], values[0], values[0]) if len(values) == 1 else (values[0], values[1], values[2])


def _export(args: argparse.Namespace) -> int:
    kind = args.source.partition(":")[0]
    extra = _EXTRAS.get(kind, "export")
    need(extra, "onnx")
    from ..export.onnx_import.any_network import DEFAULTS, TORCH_KINDS, export_any, export_default

    is_ours = kind not in TORCH_KINDS and not args.source.endswith(".onnx")
    _check_options(args, is_ours, args.source in DEFAULTS)
    if kind not in TORCH_KINDS and args.source not in DEFAULTS:
        _check_source(args.source, [*DEFAULTS, *(f"{name}:" for name in TORCH_KINDS)])
    require(args, "--output NAME.onnx")
    if args.source in DEFAULTS:
        report = export_default(args.output, args.source, args.long_side)
    elif is_ours:
        report = _export_checkpoint(args)
    else:
        need(extra, "onnxsim", *(("torch", "onnxscript") if kind in TORCH_KINDS else ()))
        report = export_any(args.source, args.output, _options(args), quiet=args.json)
    if args.triton:
        from ..export.triton import write_repository

        report["triton"] = write_repository(args.output, args.triton)
    print(to_json(report) if args.json else _export_text(report, args.photos))
    return 0


def _check_options(args: argparse.Namespace, is_ours: bool, is_default: bool) -> None:
    """Raise InputError for options that have no effect on this kind of source."""
    if is_ours:
        reject_options(args, _FOREIGN_ONLY, f"on {args.source}, a network made by tfiseg")
    if args.long_side is not None and not is_ours:
        raise InputError("--long-side is for networks made by tfiseg; for others, use --input-size HxW")
    if args.fp32_weights and (not is_ours or is_default):
        raise InputError(
            "--fp32-weights is for checkpoints of `tfiseg train`; other networks keep their weights"
        )


def _check_source(source: str, known: list[str]) -> None:
    """Raise SourceError if a source is not a file."""
    if not Path(source).is_file():
        hint = did_you_mean(source, known)
        if own := re.fullmatch(r"([A-Za-z_][\w.]*?)(?:\.py)?:([A-Za-z_]\w*)", source):
            hint = f" For a function of your own: python:{own[1]}:{own[2]}"
        raise SourceError(
            f"there is no file {printable(source)}: a source is a file, or one of {', '.join(known)}.{hint}"
        )


def _export_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    need("torch", "torch", "onnxscript", "onnxsim")
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

    return ExportSettings(
        input_size_hw=args.input_size,
        random_weights=bool(args.random_weights),
        thresholds=args.threshold,
        **{name: getattr(args, name) for name in _SETTINGS},
    )


def _classes_text(report: dict[str, Any]) -> str:
    """Return a line with the classes in the photos; a class without pixels was not checked."""
    shares, names = report["shares"], report["class_names"]
    present = sorted(shares, key=lambda name: -shares[name])
    text = f"classes on the photos: {_shortened([f'{name} {shares[name]:.1%}' for name in present])}"
    absent = [name for name in names if name not in shares]
    return f"{text}; never seen: {_shortened(absent)}" if absent else text


def _shortened(items: list[str]) -> str:
    """Join items with commas, at most ``_MAX_LISTED``."""
    more = len(items) - _MAX_LISTED
    return ", ".join(items[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _export_text(report: dict[str, Any], photos: str | None) -> str:
    lines = [f"{report['output']}: {report['bytes'] / 1e6:.1f} MB"]
    if "pixels" in report:
        (h, w), (rows, columns) = report["input_size_hw"], report["grid_hw"]
        names, things = report["class_names"], report["things"]
        lines += [
            f"input: frames of any size, scaled to {h}x{w}; {report['pixels']}",
            f"output: logits of {len(names)} classes at {rows}x{columns} (stride {report['stride']}), "
            f"{len(things)} of them countable",
            f"output read as: {report['reading']['sentence']}",
            f"removed from its end: {', '.join(report['removed']) or 'nothing'}",
            _classes_text(report),
            *(f"note: {note}" for note in report["notes"]),
        ]
    if "label_agreement" in report:
        count = f" ({report['labels_seen']} different labels)" if "labels_seen" in report else ""
        lines.append(
            f"labels: on each of {report['photos']} photos at least {report['label_agreement']:.3%} of the "
            f"pixels as in the original{count}"
        )
    if "triton" in report:
        triton = report["triton"]
        lines.append(f"for Triton: {triton['folder']}, up to {triton['max_batch_size'] or 1} frames per call")
    source = [photos] if photos else ["synthetic", "--frames", 10]
    lines.append(f"next: {command_line('tfiseg', 'run', *source, '--model', report['output'])}")
    return "\n".join(lines)
