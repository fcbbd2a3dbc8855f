"""Which layers cost most in int8: measured one by one, then left out, the worst first, until the gate is
passed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from .graph import Network, session
from .layers import find_layers
from .qdq import Scheme
from .quantise import Calibration, quantise


def rank_layers(
    model: onnx.ModelProto,
    calibration: Calibration,
    frames: Sequence[NDArray[np.uint8]],
    scheme: Scheme,
    skip: Collection[str] = (),
    quiet: bool = True,
) -> list[tuple[str, float]]:
    """(layer, noise) of every layer, the worst first: noise energy in the outputs, as a share of the
    signal's, with it alone in int8.

    Args:
        model: float32. calibration: of it.
        frames: uint8 (H, W, 3) each; a dozen are enough for the order.
        scheme: how activations are held.
        skip: layers that stay in high precision anyway.
    """
    names = [layer.name for layer in find_layers(Network(model)) if layer.name not in skip]
    everything = {layer.name for layer in find_layers(Network(model))}
    source = model.graph.input[0].name
    images = [frame[None] for frame in frames]
    truth = [session(model).run(None, {source: image}) for image in images]
    signal = sum(float(np.square(o, dtype=np.float64).sum()) for outputs in truth for o in outputs)
    found = []
    for name in tqdm(names, desc="layers", unit="layer", disable=quiet):
        running = session(quantise(model, calibration, everything - {name}, scheme))
        noise = 0.0
        for image, outputs in zip(images, truth, strict=True):
            noise += sum(
                float(np.square(a - b, dtype=np.float64).sum())
                for a, b in zip(running.run(None, {source: image}), outputs, strict=True)
            )
        found.append((name, noise / signal))
    return sorted(found, key=lambda one: -one[1])


def exclude_until(
    rank: Callable[[], Sequence[tuple[str, float]]], most: int, judge: Callable[[list[str]], dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The fewest layers, worst first, without which the gate is passed.

    Args:
        rank: gives what ``rank_layers`` does; asked only where the gate fails without it.
        most: at most this many.
        judge: the gate's verdict with these layers in high precision.

    Returns:
        Their names, and what was tried ({"excluded", "label_agreement", "PQ", "passed"}). Where nothing
        passes, the try of best PQ.
    """
    names: list[str] = []
    tried: list[dict[str, Any]] = []

    def passes(count: int) -> bool:
        gate = judge(names[:count])
        tried.append({"excluded": count, **{key: gate[key] for key in ("label_agreement", "PQ", "passed")}})
        return bool(gate["passed"])

    if passes(0):
        return [], tried
    names = [name for name, _ in rank()][:most]
    if not names:
        return [], tried
    failed, count = 0, min(len(names), 2)
    while not passes(count):
        if count >= len(names):
            best = max(tried, key=lambda one: (one["PQ"], -one["excluded"]))
            return names[: best["excluded"]], tried
        failed, count = count, min(len(names), max(2, 2 * count))
    while count - failed > max(1, count // 8):  # between the last that failed and the first that passed
        middle = (count + failed) // 2
        if passes(middle):
            count = middle
        else:
            failed = middle
    return names[:count], tried
