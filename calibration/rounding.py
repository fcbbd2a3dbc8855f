"""Second-order rounding of weights to int8: later weights compensate each rounding error.

The method is known (optimal brain surgeon; GPTQ, arXiv 2210.17323), with two additions for small
convolutions. It works per group, which includes depthwise convolutions. The bias is treated as the last
weight and stays exact, so it absorbs the mean error. With the default network, the noise of the weights falls
from 26 dB to 43 dB below the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 127
_DAMPING = 0.01
# scales next to float16 layers are float16; dead channels would have scale 0
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)


@dataclass(frozen=True)
class QuantizedWeights:
    """A layer's weights in int8.

    ``q`` is int8 in the weight's shape; ``scale`` and ``bias`` are float32 (outputs,)."""

    q: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


class Moments:
    """Second moments of a layer's inputs, with a constant 1 for the bias: float64 (groups, n + 1, n + 1)."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def add(self, samples: NDArray[np.float32]) -> None:
        """Add samples, float32 (groups, n, count)."""
        x = np.concatenate([samples, np.ones((len(samples), 1, samples.shape[2]), np.float32)], 1)
        product = x @ x.transpose(0, 2, 1)
        if self._sum is None:
            self._sum = np.zeros(product.shape, np.float64)
        self._sum += product
        self._count += samples.shape[2]

    def mean(self) -> NDArray[np.float64]:
        """Return E[x x^T]; needs at least one sample."""
        assert self._sum is not None
        return self._sum / self._count


def round_weights(
    matrix: NDArray[np.float64], bias: NDArray[np.float64], moments: NDArray[np.float64]
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Round the weights of a layer.

    Args:
        matrix: (groups, outputs per group, n) weights.
        bias: (groups, outputs per group).
        moments: (groups, n + 1, n + 1) from ``Moments.mean``.

    Returns:
        int8 weights like ``matrix``, scale and bias like ``bias``; scale = max |w| / 127 of each output
        channel, at least float16's smallest.
    """
    groups, outputs, n = matrix.shape
    scale = np.maximum(np.abs(matrix).max(2) / LIMIT, _SMALLEST_SCALE)
    w = np.concatenate([matrix, bias[..., None]], 2)
    # inputs of the largest energy first, the bias last
    order = np.concatenate(
        [np.argsort(-np.diagonal(moments, axis1=1, axis2=2)[:, :n], 1), np.full((groups, 1), n)], 1
    )
    group = np.arange(groups)[:, None]
    w = w[group[..., None], np.arange(outputs)[None, :, None], order[:, None, :]]
    h = moments[group[..., None], order[:, :, None], order[:, None, :]]
    damping = _DAMPING * np.trace(h, axis1=1, axis2=2) / (n + 1)
    h = h + np.maximum(damping, 1e-12)[:, None, None] * np.eye(n + 1)
    # row k: change of the weights after k that compensates an error of weight k
    upper = np.linalg.cholesky(np.linalg.inv(h)).transpose(0, 2, 1)
    q = np.zeros((groups, outputs, n), np.int8)
    for k in range(n):
        q[:, :, k] = np.clip(np.round(w[:, :, k] / scale), -LIMIT, LIMIT)
        error = (w[:, :, k] - q[:, :, k] * scale) / upper[:, k, k, None]
        w[:, :, k + 1 :] -= error[..., None] * upper[:, None, k, k + 1 :]
    unordered = np.zeros_like(q)
    unordered[group[..., None], np.arange(outputs)[None, :, None], order[:, None, :n]] = q
    return unordered, scale, w[:, :, n]
