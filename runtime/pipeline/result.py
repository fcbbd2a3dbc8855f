"""What a pipeline produces, and what takes it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ..sources.base import Frame


@dataclass(frozen=True, eq=False)
class Result:
    """What a pipeline gives: a frame, its instances, and with ``draw`` the overlay, uint8 (H, W, 3) BGR."""

    frame: Frame
    instances: Instances
    overlay: NDArray[np.uint8] | None = None

    @property
    def age_ms(self) -> float:
        """Milliseconds since the frame was captured, as of now."""
        return (time.monotonic_ns() - self.frame.capture_time_ns) / 1e6


class Sink(Protocol):
    """Where results go: ``write`` is called with each, in order, from one thread."""

    def write(self, result: Result) -> None: ...
