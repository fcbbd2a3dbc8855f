"""Layers that can be quantized: convolutions and matrix products with weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Network, attributes

KINDS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product with weights.

    ``output`` is the tensor after its activation, where Q/DQ nodes go; ``axis`` is the weight's axis of
    output channels.
    """

    name: str
    op: str
    input: str
    weight: str
    bias: str | None
    output: str
    axis: int
    groups: int = 1
    kernel_hw: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def matrix(self, weight: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the weight as (groups, outputs per group, inputs per output)."""
        rows = weight if self.axis == 0 else weight.T
        return np.ascontiguousarray(rows, np.float64).reshape(self.groups, rows.shape[0] // self.groups, -1)

    def unmatrix(self, matrix: NDArray[np.float64], like: NDArray[np.float32]) -> NDArray[np.float32]:
        """Invert ``matrix``; the result has the shape of ``like``."""
        if self.axis == 0:
            return np.ascontiguousarray(matrix.reshape(like.shape), np.float32)
        return np.ascontiguousarray(matrix.reshape(like.shape[::-1]).T, np.float32)

    def samples(self, x: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw inputs of the weights at random positions, float32 (groups, inputs per output, count)."""
        if self.op != "Conv":
            rows = x.reshape(-1, x.shape[-1])
            return np.ascontiguousarray(rows[rng.integers(0, len(rows), count)].T)[None]
        top, left, bottom, right = self.pads
        x = np.pad(x[0], ((0, 0), (top, bottom), (left, right))) if any(self.pads) else x[0]
        (kh, kw), (sy, sx), (dy, dx) = self.kernel_hw, self.strides, self.dilations
        out_h, out_w = (x.shape[1] - dy * (kh - 1) - 1) // sy + 1, (x.shape[2] - dx * (kw - 1) - 1) // sx + 1
        ys = rng.integers(0, out_h, count) * sy + (np.arange(kh) * dy)[:, None, None]
        xs = rng.integers(0, out_w, count) * sx + (np.arange(kw) * dx)[:, None]
        return x[:, ys, xs].reshape(self.groups, -1, count)  # from (channels, kh, kw, count)


def find_layers(network: Network) -> list[Layer]:
    """Return the layers of a network after its preprocessing, in execution order."""
    before = network.preprocessing()
    layers = [
        _layer(network, node)
        for node in network.graph.node
        if node.op_type in KINDS and node.output[0] not in before
    ]
    return [layer for layer in layers if layer is not None]


def _layer(network: Network, node: onnx.NodeProto) -> Layer | None:
    settings = attributes(node)
    if not network.has_weight(node.input[1]) or network.has_weight(node.input[0]):
        return None
    weight = network.weight(node.input[1])
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if (
        weight.dtype != np.float32
        or (bias and not network.has_weight(bias))
        or len(network.consumers[node.input[1]]) > 1
    ):
        return None
    after = network.activation_after(node)
    names = (node.name, node.op_type, node.input[0], node.input[1], bias, (after or node).output[0])
    if node.op_type == "Conv":
        if weight.ndim != 4 or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            return None  # 1-D and 3-D convolutions, padding that depends on the size: kept in high precision
        pads = tuple(settings.get("pads", (0, 0, 0, 0)))
        strides, dilations = tuple(settings.get("strides", (1, 1))), tuple(settings.get("dilations", (1, 1)))
        return Layer(*names, 0, settings.get("group", 1), weight.shape[2:], strides, dilations, pads)  # type: ignore[arg-type]
    plain = (
        settings.get("alpha", 1.0) == 1.0
        and settings.get("beta", 1.0) == 1.0
        and not settings.get("transA", 0)
    )
    if weight.ndim != 2 or not plain:
        return None
    return Layer(*names, 0 if settings.get("transB", 0) else 1)
