"""Find the layers that lose most accuracy in int8, and keep them in high precision until the gate passes."""

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
from .quantize import Calibration, quantize

_TRIED = ("label_agreement", "stable_PQ", "passed")


def rank_layers(
    model: onnx.ModelProto,
    calibration: Calibration,
    frames: Sequence[NDArray[np.uint8]],
    scheme: Scheme,
    skip: Collection[str] = (),
    quiet: bool = True,
) -> list[tuple[str, float]]:
    """Rank layers by the noise that they add in int8, the noisiest first.

    Args:
        model: float32 network.
        frames: uint8 (H, W, 3) each; a dozen is enough for the order.

    Returns:
        (layer, noise): noise energy in the outputs as a share of the signal's, with this layer alone in int8.
    """
    names = [layer.name for layer in find_layers(Network(model)) if layer.name not in skip]
    everything = {layer.name for layer in find_layers(Network(model))}
    source = model.graph.input[0].name
    images = [frame[None] for frame in frames]
    truth = [session(model).run(None, {source: image}) for image in images]
    signal = sum(float(np.square(o, dtype=np.float64).sum()) for outputs in truth for o in outputs)
    found = []
    for name in tqdm(names, desc="layers", unit="layer", disable=quiet):
        running = session(quantize(model, calibration, everything - {name}, scheme))
        noise = 0.0
        for image, outputs in zip(images, truth, strict=True):
            noise += sum(
                float(np.square(a - b, dtype=np.float64).sum())
                for a, b in zip(running.run(None, {source: image}), outputs, strict=True)
            )
        found.append((name, noise / signal))
    return sorted(found, key=lambda one: -one[1])


def exclude_until(
    rank: Callable[[], Sequence[tuple[str, float]]], limit: int, judge: Callable[[list[str]], dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Find the fewest layers to keep in high precision so that the gate passes.

    Args:
        rank: returns the result of ``rank_layers``; called only if the gate fails with all layers in int8.
        judge: returns the gate's report with these layers in high precision.

    Returns:
        Names of the layers, and all trials ({"excluded", "label_agreement", "stable_PQ", "passed"}). If
        none passes, the trial with the best PQ of stable instances.
    """
    names: list[str] = []
    tried: list[dict[str, Any]] = []

    def passes(count: int) -> bool:
        gate = judge(names[:count])
        tried.append({"excluded": count, **{key: gate[key] for key in _TRIED}})
        return bool(gate["passed"])

    if passes(0):
        return [], tried
    names = [name for name, _ in rank()][:limit]
    if not names:
        return [], tried
    failed, count = 0, min(len(names), 2)
    while not passes(count):
        if count >= len(names):
            best = max(tried, key=lambda one: (one["stable_PQ"], -one["excluded"]))
            return names[: best["excluded"]], tried
        failed, count = count, min(len(names), max(2, 2 * count))
    while count - failed > max(1, count // 8):  # between the last that failed and the first that passed
        middle = (count + failed) // 2
        if passes(middle):
            count = middle
        else:
            failed = middle
    return names[:count], tried
