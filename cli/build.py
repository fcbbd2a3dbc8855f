"""``tfiseg build``: build an engine, or an ONNX model of lower precision, from a network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..schema import to_json
from .common import add_verb, command_line, need, reject_options
from .parser import Example, Parser, existing_network, integer, number, path, size

_EXAMPLES = (
    Example("tfiseg build net.onnx -o net.engine --frames street.mp4", "TensorRT, fp16", needs="TensorRT"),
    Example(
        "tfiseg build net.onnx --target onnxruntime --precision int8 --frames photos/ --calibration-frames 1 "
        "--gate-frames 2 --min-agreement 80 --min-pq 0",
        "int8 for a CPU",
    ),
    Example("tfiseg build net.onnx --shape 480x640 --no-gate", "one frame size", needs="TensorRT"),
)


def add_build(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "build",
        "Build NAME.onnx into a TensorRT engine, or into fp16/int8 ONNX for a CPU. Its precision is proved "
        "and its accuracy compared with fp32.",
        _build,
        _EXAMPLES,
    )
    verb.source.add_argument(
        "network NAME.onnx",
        type=existing_network,
        help="a model in tfiseg's format (see `tfiseg export`), or an instance network",
    )
    verb.source.add_argument(
        "--frames SOURCE",
        help="real frames for calibration and the accuracy check: folder of images, video, recording",
    )
    verb.output.add_argument(
        "-o", "--output FILE", type=path, help="default: NAME.engine (NAME-PRECISION.onnx for onnxruntime)"
    )
    verb.output.add_argument(
        "--target",
        choices=("auto", "tensorrt", "rtx", "onnxruntime"),
        default="auto",
        help="default: the TensorRT that is installed",
    )
    _add_accuracy_options(verb)
    _add_shape_options(verb)
    _add_int8_options(verb)
    _add_builder_options(verb)


def _add_accuracy_options(verb: Parser) -> None:
    quality = verb.quality
    quality.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp16", help="default: fp16"
    )
    quality.add_argument(
        "--min-agreement PCT",
        type=number(0, 100),
        help="minimum share of pixels with the same class as in fp32 (default: 99.5 for fp16, 98 for int8; "
        "lower if one gray level of noise on the frames has a larger effect)",
    )
    quality.add_argument(
        "--min-pq PQ",
        type=number(0),
        help="minimum panoptic quality against the instances of fp32 that are clear of the thresholds "
        "(default: 99 for fp16, 95 for int8; lower if one gray level of noise has a larger effect)",
    )
    quality.add_argument(
        "--gate-frames N",
        type=integer(1),
        default=128,
        help="frames for the accuracy check; none of them is used for calibration (default: 128)",
    )
    quality.add_argument(
        "--no-gate", action="store_true", help="skip the accuracy check (recorded in the engine's metadata)"
    )
    quality.add_argument("--seed N", type=int, default=0, help="random seed of the sample of frames")


def _add_shape_options(verb: Parser) -> None:
    shapes = verb.add_argument_group("output: frame sizes that a TensorRT engine accepts")
    hw = size("HxW", low=1)
    shapes.add_argument("--shape HxW", type=hw, help="this size only: the fastest")
    shapes.add_argument("--shape-min HxW", type=hw, help="default: 240x320")
    shapes.add_argument("--shape-opt HxW", type=hw, help="the size to optimize for (default: 480x640)")
    shapes.add_argument("--shape-max HxW", type=hw, help="default: 1080x1920")
    shapes.add_argument(
        "--batch N", type=integer(1), default=1, help="maximum number of frames per call (default: 1)"
    )


def _add_int8_options(verb: Parser) -> None:
    int8 = verb.add_argument_group("expert: int8")
    int8.add_argument("--calibration-frames N", type=integer(1), default=128, help="default: 128")
    int8.add_argument(
        "--method",
        choices=("minmax", "percentile", "entropy"),
        default="minmax",
        help="how to find the ranges of activations (default: minmax)",
    )
    int8.add_argument(
        "--cache FILE",
        type=path,
        help="calibration cache: written, and read again for the same network and frames",
    )
    int8.add_argument(
        "--keep LAYER",
        action="append",
        default=[],
        help="keep this layer in higher precision (fp16 too): name or pattern; repeatable",
    )
    int8.add_argument(
        "--auto-exclude N",
        type=integer(0),
        help="if the accuracy check fails, keep the most sensitive layers in higher precision until it "
        "passes, at most N (default: half of the layers)",
    )


def _add_builder_options(verb: Parser) -> None:
    builder = verb.add_argument_group("expert: TensorRT")
    builder.add_argument("--workspace MIB", type=integer(1), help="maximum scratch memory in MiB")
    builder.add_argument(
        "--timing-cache FILE", type=path, help="timing cache to read and update (TensorRT only)"
    )
    builder.add_argument("--opt-level 0..5", type=integer(0, 5), help="builder optimization level")
    builder.add_argument(
        "--portable",
        action="store_true",
        help="for newer TensorRT versions and all GPUs from Ampere on; somewhat slower",
    )
    builder.add_argument(
        "--compute-capability CC",
        action="append",
        default=[],
        help="GPU generation, e.g. 8.6 (rtx; repeatable; default: all)",
    )
    builder.add_argument(
        "--no-operator",
        action="store_true",
        help="leave the clustering plugin out: the engine outputs class logits, and tfiseg clusters them "
        "on the GPU with the options of `tfiseg run`. RTX engines never contain the plugin",
    )
    builder.add_argument("--tf32", action="store_true", help="let fp32 layers use TF32")


def run_build(argv: list[str]) -> int:
    """Run ``tfiseg build`` with these words, which engines record; returns the exit status."""
    parser = Parser(prog="tfiseg")
    add_build(parser.add_subparsers(dest="verb"))
    args = parser.parse_args(argv)
    args.argv = argv
    return _build(args)


def _build(args: argparse.Namespace) -> int:
    need("calibration", "onnx")
    from ..export.engine.build import CPU_TARGET, build
    from ..export.engine.instance_engine import is_instance_network
    from ..export.engine.lower import PrecisionSettings
    from ..export.engine.tensorrt_builder import BuildSettings

    if args.shape and (args.shape_min or args.shape_opt or args.shape_max):
        raise InputError("--shape sets a single size: omit --shape-min, --shape-opt and --shape-max")
    _check_effects(args, args.target == CPU_TARGET, is_instance_network(args.network))
    precision = PrecisionSettings(
        precision=args.precision,
        frames=args.frames,
        calibration_frames=args.calibration_frames,
        gate_frames=args.gate_frames,
        method=args.method,
        cache=args.cache,
        keep=tuple(args.keep),
        auto_exclude=args.auto_exclude,
        label_agreement=args.min_agreement,
        quality=args.min_pq,
        gate=not args.no_gate,
        seed=args.seed,
    )
    settings = BuildSettings(
        profile=_profile(args),
        workspace_mib=args.workspace,
        timing_cache=args.timing_cache,
        optimization_level=args.opt_level,
        portable=args.portable,
        compute_capabilities=tuple(args.compute_capability),
        tf32=args.tf32,
        operator=not args.no_operator,
    )
    if args.output is None:
        suffix = f"-{args.precision}.onnx" if args.target == CPU_TARGET else ".engine"
        args.output = Path(f"{args.network.stem}{suffix}")
    command = command_line("tfiseg", *args.argv)
    report = build(args.network, args.output, args.target, precision, settings, command, quiet=args.json)
    print(to_json(report) if args.json else _build_text(report))
    return 0


_SHAPES = ("shape", "shape_min", "shape_opt", "shape_max")
_INT8 = ("calibration_frames", "method", "cache", "auto_exclude")
_BUILDER = ("workspace", "timing_cache", "opt_level", "portable", "compute_capability", "tf32")


def _check_effects(args: argparse.Namespace, for_cpu: bool, is_instance: bool) -> None:
    """Raise InputError for options without effect on this kind of network, target or precision."""
    if for_cpu:
        reject_options(args, (*_SHAPES, "batch", *_BUILDER), "with --target onnxruntime")
    if is_instance:
        options = (*_SHAPES, *_INT8, "keep", "min_agreement", "min_pq")
        reject_options(args, options, "on an instance network, which takes views of one size")
    if args.precision != "int8":
        reject_options(args, _INT8, f"with --precision {args.precision}")
    if args.precision == "fp32":
        reject_options(args, ("keep",), "with --precision fp32")


def _profile(args: argparse.Namespace) -> Any:
    """Return the frame sizes of an engine; defaults are adapted to the given sizes."""
    from ..export.engine.tensorrt_builder import Profile

    default = Profile()
    best = args.shape or args.shape_opt or default.opt_hw
    smallest = args.shape or args.shape_min or tuple(map(min, default.min_hw, best))
    largest = args.shape or args.shape_max or tuple(map(max, default.max_hw, best))
    return Profile(smallest, best, largest, args.batch)


def _build_text(report: dict[str, Any]) -> str:
    precision, made = report["precision"], report.get("built_with")
    layers = ", ".join(f"{count} in {name}" for name, count in precision["layers"].items() if count)
    seconds = report["timings_s"].get("total", report["timings_s"]["precision"])
    lines = [f"{report['output']}: {report['bytes'] / 1e6:.1f} MB in {seconds:.1f} s"]
    if made:
        gpus = ", ".join(made["compute_capabilities"]) or "every RTX GPU that it supports"
        lines.append(f"  {made['flavour']} {made['version']} on {made['platform']}, for {gpus}")
        proof = ", ".join(f"{witness} ({count} layers)" for witness, count in precision["proved_by"].items())
        lines.append(f"  precision: {layers}; proved by {proof}")
    else:
        lines.append(f"  precision: {layers}")
    lines.append(f"  accuracy check: {_gate_text(report['gate'])}")
    return "\n".join(lines)


def _gate_text(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "none, as fp32 is the reference"
    if "skipped" in gate:
        return f"skipped ({gate['skipped']})"
    passed = f"passed on {gate['frames']} frames"
    if "pair_agreement" in gate:
        masks = f", {gate['outline_agreement']:.2f}% of mask pixels" if "outline_agreement" in gate else ""
        return f"{passed}: {gate['pair_agreement']:.2f}% of cell pairs agree with fp32{masks}"
    worst = gate["worst_frame"]
    return (
        f"{passed}: {gate['label_agreement']:.2f}% of labels agree with fp32, PQ of stable instances "
        f"{gate['stable_PQ']:.1f}; worst frame {worst['name']}, {worst['label_agreement']:.2f}%"
    )
