"""Recall by class and object size."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...plugins.settings import IGNORE

# COCO's size ranges: area in pixels
SIZES = {"under 32x32": (0, 32**2), "32x32 to 96x96": (32**2, 96**2), "over 96x96": (96**2, 2**62)}


@dataclass
class RecallBySize:
    """Numbers of found and true instances by class and size; an instance is found at IoU > 0.5."""

    counts: dict[tuple[int, str], list[int]] = field(default_factory=dict)

    def add(
        self, truth: NDArray[np.int32], truth_semantic: NDArray[np.uint8], matches: list[tuple[int, int]]
    ) -> None:
        """Add one picture.

        Args:
            truth: true label map, int32 (H, W), 0 = none.
            truth_semantic: true class map, uint8 (H, W), 255 = ignore.
            matches: (predicted, true) instance numbers.
        """
        known = (truth > 0) & (truth_semantic != IGNORE)
        found = {true for _, true in matches}
        numbers, first, areas = np.unique(truth[known], return_index=True, return_counts=True)
        classes = truth_semantic[known][first]
        for number, class_id, area in zip(numbers.tolist(), classes.tolist(), areas.tolist(), strict=True):
            size = next(name for name, (low, high) in SIZES.items() if low <= area < high)
            pair = self.counts.setdefault((class_id, size), [0, 0])
            pair[0] += number in found
            pair[1] += 1

    def report(self, names: dict[int, str]) -> dict[str, dict[str, str]]:
        """Return class name -> size -> "found of all"."""
        table: dict[str, dict[str, str]] = {}
        for (class_id, size), (found, total) in sorted(self.counts.items()):
            row = table.setdefault(names.get(class_id, f"class {class_id}"), {})
            row[size] = f"{found} of {total}"
        return table
