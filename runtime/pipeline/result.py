"""Results of a pipeline, and the sinks that receive them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...instances import Instances
from ..sources.base import Frame


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A frame with its instances.

    Attributes:
        frame: the frame.
        instances: its instances.
        overlay: uint8 (H, W, 3) BGR; None unless the pipeline draws.
    """

    frame: Frame
    instances: Instances
    overlay: NDArray[np.uint8] | None = None

    def __repr__(self) -> str:
        return f"<Result: {self.frame!r}, {self.instances!r}, {self.age_ms:.0f} ms old>"

    @property
    def age_ms(self) -> float:
        """Milliseconds from the frame's capture until now."""
        return (time.monotonic_ns() - self.frame.capture_time_ns) / 1e6


class Sink(Protocol):
    """A receiver of results: ``write`` is called with each result, in order, in one thread."""

    def write(self, result: Result) -> None: ...
