"""Degradations of the default network, and the result of the accuracy check for each.

python tests/degraded_networks.py SOURCE [--frames N]

Prints a Markdown table that compares fp16, one gray level of noise and each degraded network with float32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import tfiseg
from tfiseg.calibration.frames import sample_frames
from tfiseg.calibration.gate import DEFAULTS, gate_report
from tfiseg.calibration.graph import Network
from tfiseg.export.engine.fp16_graph import find_overflowing_nodes, to_fp16
from tfiseg.runtime.evaluate.comparison import Comparison, compare, noise_floor
from tfiseg.runtime.networks.session import DEFAULT_MODEL

_LOGITS = tuple(
    f"network.{layer}.{kind}" for layer in ("heads.logits", "context") for kind in ("weight", "bias")
)


def _add_noise(network: Network, name: str, share: float) -> None:
    weight = network.weight(name)
    noise = np.random.default_rng(0).normal(0, share * weight.std(), weight.shape)
    network.set_weight(name, (weight + noise).astype(np.float32))


def weights(network: Network) -> None:
    """Add noise of a fifth of the standard deviation to the weights of one convolution per block."""
    for name in [i.name for i in network.graph.initializer if i.name.endswith("body.2.weight")]:
        _add_noise(network, name, 0.2)


def one_layer(network: Network) -> None:
    """Set the weights of one layer to 0."""
    name = "network.backbone.blocks.9.body.2.weight"
    network.set_weight(name, np.zeros_like(network.weight(name)))


def one_layer_noise(network: Network) -> None:
    """Add noise of half the standard deviation to the weights of one layer."""
    _add_noise(network, "network.backbone.blocks.7.body.2.weight", 0.5)


def scale(network: Network) -> None:
    """Multiply the logits by 0.3, which changes scores but few labels."""
    for name in _LOGITS:
        network.set_weight(name, network.weight(name) * np.float32(0.3))


def class_order(network: Network) -> None:
    """Rename car to dog, dog to person and person to car."""
    for name in _LOGITS:
        values = network.weight(name).copy()
        values[[7, 12, 15]] = values[[12, 15, 7]]
        network.set_weight(name, values)


DEGRADATIONS = (weights, one_layer, one_layer_noise, scale, class_order)


def write_degraded(degrade: object, folder: Path) -> Path:
    """Write the default network with a degradation."""
    network = Network(onnx.load(DEFAULT_MODEL))
    degrade(network)  # type: ignore[operator]
    path = folder / f"{degrade.__name__}.onnx"  # type: ignore[attr-defined]
    onnx.save(network.model, path)
    return path


def _row(name: str, comparison: Comparison, floor: Comparison) -> str:
    verdicts = []
    for precision in ("fp16", "int8"):
        report = gate_report(comparison, DEFAULTS[precision], lambda: floor)
        verdicts.append("passes" if report["passed"] else "**fails**")
    values = (comparison.label_agreement, comparison.quality, comparison.stable_quality)
    return (
        " | ".join([f"| {name}", *(f"{v:.2f}" for v in (*values, comparison.score_agreement)), *verdicts])
        + " |"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--frames", type=int, default=48)
    args = parser.parse_args()
    frames = sample_frames(args.source, args.frames)
    reference = tfiseg.Segmenter()
    floor = noise_floor(reference, frames)
    print("| network | labels % | PQ | PQ, stable | scores % | fp16 gate | int8 gate |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="tfiseg-") as folder:
        half = Path(folder, "fp16.onnx")
        model = Network(onnx.load(DEFAULT_MODEL)).model
        onnx.save(to_fp16(model, find_overflowing_nodes(model, frames.part(0, 8))), half)
        print(_row("fp16", compare(reference, tfiseg.Segmenter(half), frames), floor))
        print(_row("fp32, one gray level of noise", floor, floor))
        for degrade in DEGRADATIONS:
            path = write_degraded(degrade, Path(folder))
            name = degrade.__name__.replace("_", " ")
            print(_row(name, compare(reference, tfiseg.Segmenter(path), frames), floor), flush=True)


if __name__ == "__main__":
    main()
