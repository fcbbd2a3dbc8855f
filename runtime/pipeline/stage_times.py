"""Times of many frames in little memory: counts in buckets one percent wide, so that a process may run for
weeks."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np

_BUCKET = math.log(1.01)
_LEAST_MS = 1e-3
_BUCKETS = 2400
_MOST_MS = _LEAST_MS * math.exp((_BUCKETS - 1) * _BUCKET)  # six hours


class TimeHistogram:
    """Quantiles of times, within one percent, from 1 µs to six hours."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)

    def add(self, ms: float) -> None:
        bucket = int(math.log(max(_LEAST_MS, min(ms, _MOST_MS)) / _LEAST_MS) / _BUCKET)
        self._counts[bucket] += 1

    def quantile(self, share: float) -> float:
        """Milliseconds that this share (0..1) of the times doesn't exceed; NaN without times."""
        until = np.cumsum(self._counts)
        if not until[-1]:
            return math.nan
        bucket = int(np.searchsorted(until, max(1, math.ceil(share * until[-1]))))
        return _LEAST_MS * math.exp((bucket + 0.5) * _BUCKET)


class StageTimes:
    """Times of every stage of every frame, and their summary. One thread adds, any may read."""

    def __init__(self) -> None:
        self._histograms: dict[str, TimeHistogram] = {}
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self.frames = 0
        self.instances = 0

    def add(self, stage_ms: dict[str, float], instances: int) -> None:
        with self._lock:
            for stage, ms in stage_ms.items():
                self._histograms.setdefault(stage, TimeHistogram()).add(ms)
            self.frames += 1
            self.instances += instances

    def add_stage(self, stage: str, ms: float) -> None:
        """A time of one stage alone."""
        with self._lock:
            self._histograms.setdefault(stage, TimeHistogram()).add(ms)

    def summary(self) -> dict[str, Any]:
        """frames, instances, fps of the whole loop, and p50 / p99 milliseconds per stage."""
        with self._lock:
            seconds = time.perf_counter() - self._began
            stages = {
                stage: {"p50_ms": round(times.quantile(0.5), 3), "p99_ms": round(times.quantile(0.99), 3)}
                for stage, times in self._histograms.items()
            }
            return {
                "frames": self.frames,
                "instances": self.instances,
                "fps": round(self.frames / max(seconds, 1e-9), 2),
                "stages": stages,
            }
