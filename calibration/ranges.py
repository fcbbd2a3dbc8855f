"""Ranges of activations: what a calibration frame may bring and int8 must hold. Methods: min-max, percentile, entropy."""

from __future__ import annotations

import contextlib
import io
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

METHODS = ("minmax", "percentile", "entropy")
_PERCENTILE = 99.99
_BINS = 2048


class RangeFinder(Protocol):
    """Sees the tensors of every calibration frame, then says the range of each."""

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        """Take in one tensor of one frame, any shape."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """(lowest, highest) value of each tensor that is to be kept; 0 lies within."""


class _MinMax:
    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        low, high = self._ranges.get(name, (0.0, 0.0))
        self._ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))

    def ranges(self) -> dict[str, tuple[float, float]]:
        return dict(self._ranges)


class _Histogram:
    """onnxruntime's own collector, fed tensor by tensor: its calibrator wants frames of one size."""

    def __init__(self, method: str) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        self._collector = HistogramCollector(method, False, _BINS, 128, _PERCENTILE, "same")

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each call
            self._collector.collect({name: values})

    def ranges(self) -> dict[str, tuple[float, float]]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._collector.compute_collection_result()
        # tuples (low, high, ...), arrays of one element
        return {name: (min(0.0, float(np.min(one[0]))), max(0.0, float(np.max(one[1])))) for name, one in found.items()}


def range_finder(method: str) -> RangeFinder:
    """A finder of one of ``METHODS``; raises InputError for another name.

    min-max keeps all that was seen, percentile cuts 0.005 % at either end, entropy cuts where the quantised histogram loses least (KL
    divergence, as TensorRT's calibrator did).
    """
    if method not in METHODS:
        raise InputError(f"no range method {method!r}: wanted one of {', '.join(METHODS)}")
    return _MinMax() if method == "minmax" else _Histogram(method)
