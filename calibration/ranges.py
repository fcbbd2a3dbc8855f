"""Ranges of activations for int8, by min-max, percentile or entropy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import check_choice

METHODS = ("minmax", "percentile", "entropy")
_PERCENTILE = 99.99
_BINS, _LEVELS = 2048, 128


class RangeFinder(Protocol):
    """Collects the tensors of all calibration frames and returns the range of each."""

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        """Add a tensor of one frame, of any shape."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the (lowest, highest) value to represent for each tensor; 0 is included."""


class _MinMax:
    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        low, high = self._ranges.get(name, (0.0, 0.0))
        self._ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))

    def ranges(self) -> dict[str, tuple[float, float]]:
        return dict(self._ranges)


class _Magnitudes:
    """Histograms of magnitudes: 2,048 bins from 0, whose width doubles when a larger value appears.

    Zeros are counted separately, because int8 represents them exactly, and most values after a ReLU are 0.
    """

    def __init__(self) -> None:
        self._spans = _MinMax()
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._zeros: dict[str, int] = {}
        self._width: dict[str, float] = {}

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        self._spans.add(name, values)
        magnitudes = np.abs(values[values != 0])
        self._zeros[name] = self._zeros.get(name, 0) + values.size - magnitudes.size
        if not magnitudes.size:
            return
        peak = float(magnitudes.max())
        counts = self._counts.setdefault(name, np.zeros(_BINS, np.int64))
        width = self._width.setdefault(name, peak / _BINS)
        while peak > width * _BINS:
            counts[:] = np.concatenate([counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2, np.int64)])
            width *= 2
        self._width[name] = width
        bins = np.minimum((magnitudes / np.float32(width)).astype(np.int64), _BINS - 1)
        counts += np.bincount(bins, minlength=_BINS)

    def limit(self, counts: NDArray[np.int64], zeros: int) -> int:
        """Return the number of bins to keep."""
        raise NotImplementedError

    def ranges(self) -> dict[str, tuple[float, float]]:
        found = {}
        for name, (low, high) in self._spans.ranges().items():
            if name in self._counts:
                limit = self.limit(self._counts[name], self._zeros[name]) * self._width[name]
                low, high = max(low, -limit), min(high, limit)
            found[name] = (low, high)
        return found


class _Percentile(_Magnitudes):
    def limit(self, counts: NDArray[np.int64], zeros: int) -> int:
        within = zeros + np.cumsum(counts)
        return int(np.searchsorted(within, _PERCENTILE / 100 * within[-1])) + 1


class _Entropy(_Magnitudes):
    def limit(self, counts: NDArray[np.int64], zeros: int) -> int:
        """Return the cut at which 128 levels have the smallest Kullback-Leibler divergence."""
        best, kept = np.inf, _BINS
        for size in range(_LEVELS, _BINS + 1, _LEVELS // 8):
            true = counts[:size].astype(np.float64)
            held = np.zeros(size)
            level = np.arange(size) * _LEVELS // size
            filled = true > 0
            sums, bins = np.bincount(level, true, _LEVELS), np.bincount(level, filled, _LEVELS)
            held[filled] = (sums / np.maximum(bins, 1))[level[filled]]
            true[-1] += counts[size:].sum()  # values beyond the cut saturate into the last bin
            both = (true > 0) & (held > 0)
            if not both[-1] and true[-1] > 0:
                continue
            p, q = true / true.sum(), held / held.sum()
            divergence = float((p[both] * np.log(p[both] / q[both])).sum())
            if divergence < best:
                best, kept = divergence, size
        return kept


def range_finder(method: str) -> RangeFinder:
    """Return a range finder for one of ``METHODS``; raises InputError for another name.

    min-max keeps all values. Percentile cuts the 0.01 % of largest magnitude. Entropy cuts where the KL
    divergence of the quantized histogram is smallest, as in TensorRT's calibrator.
    """
    check_choice("method", method, METHODS)
    kinds: tuple[type[RangeFinder], ...] = (_MinMax, _Percentile, _Entropy)
    return kinds[METHODS.index(method)]()
