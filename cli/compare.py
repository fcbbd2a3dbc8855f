"""``tfiseg compare``: compare two networks on the same frames."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..schema import to_json
from .common import add_verb, require
from .parser import Example, existing_file, integer, path


def add_compare(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "compare",
        "Run two networks on the same frames and compare outputs, labels and instances; draw the worst "
        "frames.",
        _compare,
        [
            Example("tfiseg compare net.onnx net.onnx --frames photos/ --count 2", "two models"),
            Example(
                "tfiseg compare net.onnx net.engine --frames street.mp4",
                "a model and its engine",
                needs="a GPU",
            ),
            Example(
                "tfiseg compare hf:nvidia/segformer-b0-finetuned-cityscapes-1024-1024 city.onnx --frames "
                "street/",
                needs="network access, transformers and city.onnx",
            ),
        ],
    )
    verb.source.add_argument(
        "reference A", help=".onnx, .engine, or a source of `tfiseg export` (torchvision:NAME, hf:NAME, ...)"
    )
    verb.source.add_argument("candidate B", help="like A")
    verb.source.add_argument("--frames SOURCE", help="required: folder of images, video, recording")
    verb.source.add_argument(
        "--count N", type=integer(1), default=64, help="number of frames, a seeded sample (default: 64)"
    )
    verb.source.add_argument("--seed N", type=int, default=0, help="seed of the sample (default: 0)")
    verb.output.add_argument(
        "--out FILE",
        type=path,
        default=Path("comparison.png"),
        help="contact sheet of the worst frames (default: comparison.png)",
    )
    verb.expert.add_argument("--threads N", type=integer(0), default=0, help="CPU threads (default: all)")


def _compare(args: argparse.Namespace) -> int:
    for network in (args.reference, args.candidate):
        if Path(network).suffix in (".onnx", ".engine"):
            existing_file(network)
    require(args, "--frames SOURCE")
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
    print(to_json(report) if args.json else _compare_text(report))
    return 0


def _compare_text(report: dict[str, Any]) -> str:
    worst, same, times = report["worst_frame"], report["instances"], report["network_ms"]
    signal_to_noise = ", ".join(
        f"{name} {'no difference' if db is None else f'{db:.1f} dB'}" for name, db in report["snr_db"].items()
    )
    return "\n".join(
        [
            f"{report['frames']} frames: {report['label_agreement']:.3f}% of labels agree, PQ "
            f"{report['PQ']:.2f} ({same['same']} instances in both, {same['only_reference']} only in A, "
            f"{same['only_candidate']} only in B)",
            f"instances clear of the thresholds: PQ {report['stable_PQ']:.2f}, agreement of scores "
            f"{report['score_agreement']:.2f}%",
            f"network: {times['reference']:.1f} ms and {times['candidate']:.1f} ms, B is "
            f"{report['times_as_fast']:.2f} times as fast (medians)",
            f"signal to noise: {signal_to_noise}",
            f"worst frame {worst['name']}: {worst['label_agreement']:.2f}%; the worst frames are in "
            f"{report['sheet']}",
        ]
    )
