"""What refinement on the GPU found in one frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...plugins.problem import Clustering


@dataclass(frozen=True)
class RefinedFrame:
    """What was found in one frame by looking at its components (plugins/views.py).

    ``pieces``: of one picture; ``component_of`` int32 (n,), from 1, the component that each is of;
    ``components`` float32 (m, 10), their table; ``views`` int32 (K, 5); ``regions`` int32 (K,), how many each
    view's component has by its shape, ``frame_regions`` all of the frame's. While the frame is held,
    ``shown(k)``: image uint8 (S, S, 3), displacement and affinity of view k, ``foreground(k)``, where the
    looks were for outlines, too, and ``frame()`` uint8 (H, W, 3)."""

    pieces: Clustering
    component_of: NDArray[np.int32]
    components: NDArray[np.float32]
    views: NDArray[np.int32]
    regions: NDArray[np.int32]
    frame_regions: int
    shown: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]]
    foreground: Callable[[int], NDArray[np.float32]]
    frame: Callable[[], NDArray[np.uint8]]

    @property
    def component_at(self) -> NDArray[np.int32]:
        """``component_of`` by a piece's number, int32 (n + 1,): 0 first."""
        return np.concatenate([[0], self.component_of]).astype(np.int32)
