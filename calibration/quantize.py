"""Post-training quantization: calibrate a network on frames, then write it in int8."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import FormatError, InputError, ModelError, check_choice
from ..files import whole_file
from .cache_file import read_cache
from .equalize import equalize, residual_groups
from .frames import FrameSample
from .graph import IMAGE, Network, run_tensors
from .layers import Layer, find_layers
from .qdq import Scheme, insert_qdq
from .ranges import METHODS, range_finder
from .rounding import Moments, QuantizedWeights, round_weights

_SAMPLES_PER_FRAME = 256
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """Measurements of a network on calibration frames."""

    key: dict[str, str]  # digests of network and frames, and the method; a cache with another key is replaced
    peaks: dict[str, NDArray[np.float32]]  # largest magnitude of each channel, for tensors that are equalized
    ranges: dict[str, tuple[float, float]]  # (lowest, highest) value of the tensors around the layers
    rounded: dict[str, QuantizedWeights]  # int8 weights by layer name

    def save(self, path: Path) -> None:
        """Write a cache file (numpy's .npz)."""
        arrays: dict[str, NDArray[np.generic]] = {"key": np.array(json.dumps(self.key))}
        arrays |= {f"peak/{name}": peak for name, peak in self.peaks.items()}
        arrays |= {f"range/{name}": np.array(span, np.float64) for name, span in self.ranges.items()}
        for name, layer in self.rounded.items():
            arrays |= {f"q/{name}": layer.q, f"scale/{name}": layer.scale, f"bias/{name}": layer.bias}
        with whole_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Calibration:
        """Read a cache file; raises InputError for other files."""
        try:
            key, arrays = read_cache(path)
        except FormatError as wrong:
            raise InputError(
                f"{path} is not a calibration cache of tfiseg ({wrong}). Delete it; the next build writes it"
            ) from wrong
        scale, bias = arrays["scale"], arrays["bias"]
        rounded = {name: QuantizedWeights(q, scale[name], bias[name]) for name, q in arrays["q"].items()}
        ranges = {name: (float(low), float(high)) for name, (low, high) in arrays["range"].items()}
        return Calibration(key, arrays["peak"], ranges, rounded)


def calibrate(
    model: onnx.ModelProto,
    frames: FrameSample,
    method: str = "minmax",
    cache: Path | None = None,
    quiet: bool = True,
) -> Calibration:
    """Run the network on frames: measure the ranges of activations and round weights to int8.

    Args:
        model: float32 network with one input, uint8 (1, H, W, 3).
        frames: at least one; 128 is common.
        method: "minmax", "percentile" or "entropy".
        cache: file to read if it matches network, frames and method; otherwise it is written.

    Raises:
        InputError: there are no frames, or the method is unknown.
        ModelError: the network has no layer that can be quantized, or doesn't run.
    """
    check_choice("method", method, METHODS)  # an error now, not after the first pass over the frames
    if not len(frames):
        raise InputError(f"{frames.source} has no frames to calibrate on")
    network = Network(model)
    key = {
        "version": str(_CACHE_VERSION),
        "model_sha256": hashlib.sha256(network.model.SerializeToString(deterministic=True)).hexdigest(),
        "frames_sha256": frames.sha256(),
        "method": method,
    }
    if cache is not None and cache.is_file():
        known = Calibration.load(cache)
        if known.key == key:
            return known
    layers = find_layers(network)
    if not layers:
        raise ModelError(
            "the network has no convolution or matrix product with weights that could run in int8"
        )
    peaks = _peaks(network, frames, quiet)
    equalize(network, peaks)
    ranges, rounded = _observe(network, find_layers(network), frames, method, quiet)
    calibration = Calibration(key, peaks, ranges, rounded)
    if cache is not None:
        calibration.save(cache)
    return calibration


def quantize(
    model: onnx.ModelProto, calibration: Calibration, keep: Collection[str] = (), scheme: Scheme | None = None
) -> onnx.ModelProto:
    """Return the network with Q/DQ pairs.

    Args:
        keep: names of layers to keep in high precision; see ``edge_layers`` and ``matching_layers``.
        scheme: how activations are quantized (default: for ONNX Runtime on a CPU).
    """
    network = Network(model)
    equalize(network, calibration.peaks)
    layers = [layer for layer in find_layers(network) if layer.name not in keep]
    insert_qdq(network, layers, calibration.ranges, calibration.rounded, scheme or Scheme(signed=False))
    return network.model


def matching_layers(layers: Iterable[Layer], patterns: Sequence[str]) -> list[str]:
    """Return the layers that match patterns (``*``, ``?``) by name or weight; raises InputError."""
    layers = list(layers)
    found: list[str] = []
    for pattern in patterns:
        fits = [
            layer.name
            for layer in layers
            if fnmatchcase(layer.name, pattern) or fnmatchcase(layer.weight, pattern)
        ]
        if not fits:
            known = ", ".join(f"{layer.name} ({layer.weight})" for layer in layers)
            raise InputError(f"no layer is called {pattern!r}; there are: {known}")
        found += fits
    return list(dict.fromkeys(found))


def edge_layers(network: Network) -> list[str]:
    """Return the layers that always stay in high precision.

    They are the layers that read the image, where int8 costs most accuracy and saves no time with three
    channels, and the layers that write the outputs (logits, displacement, boundary, affinity).
    """
    layers = {layer.name: layer for layer in find_layers(network)}
    first = {IMAGE, *(i.name for i in network.graph.input)}
    found = [name for name, layer in layers.items() if layer.input in first]
    visited: set[str] = set()
    todo = sorted(network.outputs)
    while todo:
        node = network.producer.get(todo.pop())
        if node is None or node.name in visited:
            continue
        visited.add(node.name)
        if node.name in layers:
            found.append(node.name)
        elif node.op_type != "Shape":
            todo += node.input
    return found


def _peaks(network: Network, frames: FrameSample, quiet: bool) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of each channel, for tensors that are equalized."""
    names = [tensor for tensors, _, _ in residual_groups(network) for tensor in tensors]
    peaks: dict[str, NDArray[np.float32]] = {}
    if not names:
        return peaks
    found = run_tensors(network.model, names, frames)
    for values in tqdm(found, total=len(frames), desc="channels", unit="frame", disable=quiet):
        for name, value in values.items():
            peak = np.abs(value).max((0, 2, 3))
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return peaks


def _observe(
    network: Network, layers: Sequence[Layer], frames: FrameSample, method: str, quiet: bool
) -> tuple[dict[str, tuple[float, float]], dict[str, QuantizedWeights]]:
    """Return the ranges of tensors and the rounded weights of layers."""
    finder, rng = range_finder(method), np.random.default_rng(0)
    moments = {layer.name: Moments() for layer in layers}
    names = [name for layer in layers for name in (layer.input, layer.output)]
    found = run_tensors(network.model, names, frames)
    for values in tqdm(found, total=len(frames), desc="ranges", unit="frame", disable=quiet):
        for name, value in values.items():
            finder.add(name, value)
        for layer in layers:
            moments[layer.name].add(layer.samples(values[layer.input], _SAMPLES_PER_FRAME, rng))
    rounded = {}
    for layer in tqdm(layers, desc="rounding", unit="layer", disable=quiet):
        rounded[layer.name] = _round_layer(network, layer, moments.pop(layer.name))
    return finder.ranges(), rounded


def _round_layer(network: Network, layer: Layer, moments: Moments) -> QuantizedWeights:
    weight = network.weight(layer.weight)
    outputs = weight.shape[layer.axis]
    bias = network.weight(layer.bias) if layer.bias else np.zeros(outputs, np.float32)
    q, scale, shifted = round_weights(
        layer.matrix(weight), bias.reshape(layer.groups, -1).astype(np.float64), moments.mean()
    )
    whole = layer.unmatrix(q.astype(np.float64), weight).astype(np.int8)
    return QuantizedWeights(whole, scale.ravel().astype(np.float32), shifted.ravel().astype(np.float32))
