"""The verbs ``build`` and ``compare``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from .common import add_verb, as_json, need, size_hw


def add_build(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "build",
        "Build a TensorRT engine, or an fp16/int8 ONNX network for a CPU; prove its precision, check its accuracy.",
        _build,
    )
    verb.add_argument(
        "network",
        type=Path,
        metavar="NAME.onnx",
        help="network in tfiseg's format (see `tfiseg export`), or an instance network",
    )
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="output file (default: NAME.engine, or NAME-PRECISION.onnx for onnxruntime)",
    )
    verb.add_argument(
        "--target",
        choices=("auto", "tensorrt", "rtx", "onnxruntime"),
        default="auto",
        help="what to build for (default: the TensorRT that is installed)",
    )
    verb.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp16", help="(default: fp16)")
    verb.add_argument(
        "--frames",
        metavar="SOURCE",
        help="real frames for calibration and the accuracy check: a folder of images, a video or a recording",
    )

    shapes = verb.add_argument_group("frame sizes (HxW) that a TensorRT engine takes")
    shapes.add_argument("--shape", type=size_hw, metavar="HxW", help="the only frame size; this is fastest")
    shapes.add_argument("--shape-min", type=size_hw, metavar="HxW", help="smallest frame (default: 240x320)")
    shapes.add_argument(
        "--shape-opt", type=size_hw, metavar="HxW", help="frame size to optimize for (default: 480x640)"
    )
    shapes.add_argument("--shape-max", type=size_hw, metavar="HxW", help="largest frame (default: 1080x1920)")
    shapes.add_argument(
        "--batch", type=int, default=1, metavar="N", help="maximum number of frames per call (default: 1)"
    )

    int8 = verb.add_argument_group("int8")
    int8.add_argument(
        "--calibration-frames", type=int, default=128, metavar="N", help="number of frames (default: 128)"
    )
    int8.add_argument(
        "--method",
        choices=("minmax", "percentile", "entropy"),
        default="minmax",
        help="how ranges are found (default: minmax)",
    )
    int8.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="calibration cache; used if it belongs to this network, frames and method",
    )
    int8.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="LAYER",
        help="layer that stays in higher precision: a name or a pattern; repeatable",
    )
    int8.add_argument(
        "--auto-exclude",
        type=int,
        nargs="?",
        const=24,
        metavar="N",
        help="if the accuracy check fails, keep up to N of the most sensitive layers in higher precision (default: 8; without N: 24)",
    )

    gate = verb.add_argument_group(
        "accuracy check: comparison with fp32 on frames that were not used for calibration"
    )
    gate.add_argument(
        "--gate-frames", type=int, default=128, metavar="N", help="number of frames (default: 128)"
    )
    gate.add_argument(
        "--min-agreement",
        type=float,
        metavar="PCT",
        help="minimum share of pixels with the same class (default: 99.5 for fp16, 98 for int8)",
    )
    gate.add_argument(
        "--min-pq",
        type=float,
        metavar="PQ",
        help="minimum panoptic quality against fp32 instances (default: 99 for fp16, 95 for int8)",
    )
    gate.add_argument(
        "--no-gate", action="store_true", help="skip the accuracy check; recorded in the engine's metadata"
    )
    gate.add_argument("--seed", type=int, default=0, metavar="N", help="seed for the choice of frames")

    builder = verb.add_argument_group("TensorRT")
    builder.add_argument("--workspace", type=int, metavar="MIB", help="maximum workspace memory")
    builder.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="timing cache, read and written (TensorRT only)"
    )
    builder.add_argument(
        "--opt-level", type=int, choices=range(6), metavar="0..5", help="builder optimization level"
    )
    builder.add_argument(
        "--portable",
        action="store_true",
        help="run on newer TensorRT versions and all GPUs from Ampere on; somewhat slower",
    )
    builder.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="CC",
        help="GPUs to build for, e.g. 8.6 (rtx only; repeatable; default: all)",
    )
    builder.add_argument(
        "--no-operator",
        action="store_true",
        help="leave out the clustering plugin: the engine returns class logits, and clustering follows on the GPU with the program's settings "
        "(--refine components, --things, --min-area, ...); RTX engines never carry it",
    )
    builder.add_argument("--tf32", action="store_true", help="allow TF32 in fp32 layers")


def run_build(argv: list[str]) -> int:
    """Run ``tfiseg build`` on behalf of another command.

    Args:
        argv: words as on the command line, "build" first; engines record them as the command that made them.
    """
    parser = argparse.ArgumentParser(prog="tfiseg")
    add_build(parser.add_subparsers(dest="verb"))
    args = parser.parse_args(argv)
    args.argv = argv
    return _build(args)


def _build(args: argparse.Namespace) -> int:
    need("onnx", "calibration")
    from ..export.engine.build import CPU_TARGET, build
    from ..export.engine.lower import PrecisionSettings
    from ..export.engine.tensorrt_builder import BuildSettings, Profile

    if args.shape and (args.shape_min or args.shape_opt or args.shape_max):
        raise InputError("--shape is one size for all: leave --shape-min, --shape-opt and --shape-max out")
    usual = Profile()
    best = args.shape or args.shape_opt or usual.opt_hw
    least = args.shape or args.shape_min or _each(min, usual.min_hw, best)
    most = args.shape or args.shape_max or _each(max, usual.max_hw, best)
    profile = Profile(least, best, most, args.batch)
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
        profile=profile,
        workspace_mib=args.workspace,
        timing_cache=args.timing_cache,
        optimisation_level=args.opt_level,
        portable=args.portable,
        compute_capabilities=tuple(args.compute_capability),
        tf32=args.tf32,
        operator=not args.no_operator,
    )
    if args.output is None:
        name = (
            f"{args.network.stem}-{args.precision}.onnx"
            if args.target == CPU_TARGET
            else f"{args.network.stem}.engine"
        )
        args.output = Path(name)
    command = "tfiseg " + shlex.join(args.argv)
    report = build(args.network, args.output, args.target, precision, settings, command, quiet=args.json)
    print(as_json(report) if args.json else _described(report))
    return 0


def _each(pick: Any, one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return pick(one[0], other[0]), pick(one[1], other[1])


def _described(report: dict[str, Any]) -> str:
    precision, gate, made = report["precision"], report["gate"], report.get("built_with")
    layers = ", ".join(f"{count} in {name}" for name, count in precision["layers"].items() if count)
    lines = [
        f"{report['output']}: {report['bytes'] / 1e6:.1f} MB in {report['timings_s'].get('total', report['timings_s']['precision']):.1f} s"
    ]
    if made:
        for_gpus = ", ".join(made["compute_capabilities"]) or "every RTX GPU that it knows"
        lines.append(f"  {made['flavour']} {made['version']} on {made['platform']}, for {for_gpus}")
        proof = ", ".join(f"{witness} ({count} layers)" for witness, count in precision["proved_by"].items())
        lines.append(f"  precision: {layers}; proved by {proof}")
    else:
        lines.append(f"  precision: {layers}")
    if gate is None:
        lines.append("  gate: float32 is the measure itself")
    elif "skipped" in gate:
        lines.append(f"  gate: skipped ({gate['skipped']})")
    elif "pair_agreement" in gate:
        outlines = f", {gate['outline_agreement']:.2f}% of outlines" if "outline_agreement" in gate else ""
        lines.append(
            f"  gate passed on {gate['frames']} frames: {gate['pair_agreement']:.2f}% of pairs of cells told as in fp32{outlines}"
        )
    else:
        worst = gate["worst_frame"]
        lines.append(
            f"  gate passed on {gate['frames']} frames: {gate['label_agreement']:.2f}% of labels as in fp32, PQ {gate['PQ']:.1f}; "
            f"worst frame {worst['name']}, {worst['label_agreement']:.2f}%"
        )
    return "\n".join(lines)


def add_compare(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "compare",
        "Compare two networks on the same frames: outputs, labels, instances and times.",
        _compare,
    )
    verb.add_argument(
        "reference",
        metavar="A",
        help=".onnx, .engine, or what `tfiseg export` takes (torchvision:NAME, hf:NAME, ...)",
    )
    verb.add_argument("candidate", metavar="B")
    verb.add_argument(
        "--frames", required=True, metavar="SOURCE", help="a folder of images, a video or a recording"
    )
    verb.add_argument(
        "--count", type=int, default=64, metavar="N", help="number of frames, a seeded sample (default: 64)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N")
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("comparison.png"),
        metavar="FILE",
        help="image of the worst frames (default: comparison.png)",
    )
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")


def _compare(args: argparse.Namespace) -> int:
    from ..export.compare import compare_networks

    report = compare_networks(
        args.reference,
        args.candidate,
        args.frames,
        args.count,
        args.seed,
        args.out,
        args.threads,
        quiet=args.json,
    )
    if args.json:
        print(as_json(report))
        return 0
    worst, same = report["worst_frame"], report["instances"]
    print(
        f"{report['frames']} frames: {report['label_agreement']:.3f}% of labels alike, PQ {report['PQ']:.2f} "
        f"({same['same']} instances alike, {same['only_reference']} only in A, {same['only_candidate']} only in B)"
    )
    times = report["network_ms"]
    faster = f"B is {report['times_as_fast']:.2f} times as fast"
    print(f"network: {times['reference']:.1f} ms and {times['candidate']:.1f} ms, {faster} (medians)")
    print(
        "signal to noise: "
        + ", ".join(
            f"{name} {'no difference' if db is None else f'{db:.1f} dB'}"
            for name, db in report["snr_db"].items()
        )
    )
    print(
        f"worst frame {worst['name']}: {worst['label_agreement']:.2f}%; the worst are in {report['sheet']}",
        file=sys.stdout,
    )
    return 0
