"""Results of refinement on the GPU for one frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...plugins.mask_refinement import RefinedMasks
from ...plugins.problem import Clustering


@dataclass(frozen=True)
class RefinedFrame:
    """The parts of one frame's components, and access to the maps of its views on the GPU.

    The functions may be called only while the lane that ran the frame is held.
    """

    parts: Clustering  # the n parts, a batch of one frame
    component_of: NDArray[np.int32]  # component of each part, int32 (n,), from 1
    components: NDArray[np.float32]  # table of the m components, float32 (m, 10), columns ``TABLE_COLUMNS``
    views: NDArray[np.int32]  # int32 (K, 5), columns ``VIEW_COLUMNS`` of plugins/views.py
    regions: NDArray[np.int32]  # regions by shape of each view's component, int32 (K,)
    frame_regions: int  # regions by shape of the whole frame
    # function of k that returns image uint8 (S, S, 3), displacement and affinity of view k
    join_inputs: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]]
    # function of k that returns the foreground map of view k, if the graph predicts it
    foreground: Callable[[int], NDArray[np.float32]]
    frame: Callable[[], NDArray[np.uint8]]  # function that returns the frame, uint8 (H, W, 3)
    # function that refines the masks of instances on the GPU, with the arguments of
    # ``DeviceMaskRefiner.give``; None: it can't for frames of this size, or with these settings
    refine_masks: Callable[[NDArray[np.int32], NDArray[np.float32]], RefinedMasks] | None = None

    @property
    def component_by_label(self) -> NDArray[np.int32]:
        """Component of each label, int32 (n + 1,); 0 for the background."""
        return np.concatenate([[0], self.component_of]).astype(np.int32)
