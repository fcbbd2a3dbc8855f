"""Weights to int8 by second-order rounding: each rounding error is made good by the weights that are not
rounded yet.

The known method (optimal brain surgeon, GPTQ, arXiv 2210.17323), with two additions that matter for small
convolutions: it works group by group, so on depthwise convolutions too, and the bias takes part as the last
weight, which stays exact, so that it takes up the mean of all errors. On our default network it brings the
weights' noise from 26 dB under the logits to 43 (docs/engines.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 127
_DAMPING = 0.01
_SMALLEST_SCALE = float(
    np.finfo(np.float16).smallest_normal
)  # beside float16 layers scales are float16; dead channels have none


@dataclass(frozen=True)
class Rounded:
    """A layer's weights in int8: ``q`` int8 in the weight's shape, ``scale`` float32 (outputs,), ``bias``
    float32 (outputs,)."""

    q: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


class Moments:
    """Second moments of a layer's inputs, a constant 1 for the bias included: float64 (groups, n + 1, n +
    1)."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def see(self, samples: NDArray[np.float32]) -> None:
        """Take in samples (groups, n, count)."""
        x = np.concatenate([samples, np.ones((len(samples), 1, samples.shape[2]), np.float32)], 1)
        product = x @ x.transpose(0, 2, 1)
        if self._sum is None:
            self._sum = np.zeros(product.shape, np.float64)
        self._sum += product
        self._count += samples.shape[2]

    def mean(self) -> NDArray[np.float64]:
        """E[x x^T]; at least one sample must have been seen."""
        assert self._sum is not None
        return self._sum / self._count


def round_weights(
    matrix: NDArray[np.float64], bias: NDArray[np.float64], moments: NDArray[np.float64]
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Round a layer.

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
    # inputs of most energy first, the bias last
    order = np.concatenate(
        [np.argsort(-np.diagonal(moments, axis1=1, axis2=2)[:, :n], 1), np.full((groups, 1), n)], 1
    )
    group = np.arange(groups)[:, None]
    w = w[group[..., None], np.arange(outputs)[None, :, None], order[:, None, :]]
    h = moments[group[..., None], order[:, :, None], order[:, None, :]]
    damping = _DAMPING * np.trace(h, axis1=1, axis2=2) / (n + 1)
    h = h + np.maximum(damping, 1e-12)[:, None, None] * np.eye(n + 1)
    # row k of it is what the weights after k do about an error of weight k
    upper = np.linalg.cholesky(np.linalg.inv(h)).transpose(0, 2, 1)
    q = np.zeros((groups, outputs, n), np.int8)
    for k in range(n):
        q[:, :, k] = np.clip(np.round(w[:, :, k] / scale), -LIMIT, LIMIT)
        error = (w[:, :, k] - q[:, :, k] * scale) / upper[:, k, k, None]
        w[:, :, k + 1 :] -= error[..., None] * upper[:, None, k, k + 1 :]
    back = np.zeros_like(q)
    back[group[..., None], np.arange(outputs)[None, :, None], order[:, None, :n]] = q
    return back, scale, w[:, :, n]
