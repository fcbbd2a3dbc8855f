"""Measure the panoptic quality of touching disks, by shape and with refine="components".

    python docs/benchmarks/crowds.py

Prints Markdown. All disks of an image are one component. These synthetic images show which sizes of objects
can be separated. They do not show how well real objects are separated.
"""

import sys
import time
from pathlib import Path

import numpy as np
import tfiseg
from tfiseg.runtime.evaluate.metrics import panoptic_counts

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "runtime"))
from scenes import pile


def quality(found: tfiseg.Instances, truth: np.ndarray) -> float:
    return panoptic_counts(
        found.label_map, found.class_id, truth, (truth > 0).astype(np.uint8)
    ).pooled.quality


def main() -> None:
    refiner = tfiseg.Refiner()
    print("| image, px | diameter, px | disks | shape | components | ms |\n|---|---|---|---|---|---|")
    for gap in (1.9, 1.75):
        for side, radius in ((400, 8), (640, 12), (1024, 15), (768, 20), (1024, 30), (1024, 45), (1024, 90)):
            image, truth = pile(side, radius, gap=gap)
            class_map = (truth > 0).astype(np.uint8)
            components = tfiseg.cluster(class_map, split=0)
            began = time.perf_counter()
            found = refiner(image, components)
            ms = (time.perf_counter() - began) * 1e3
            by_shape, refined = quality(tfiseg.cluster(class_map), truth), quality(found, truth)
            touching = "touching" if gap == 1.9 else "overlapping"
            print(
                f"| {side} | {2 * radius}, {touching} | {truth.max()} | {by_shape:.1f} | {refined:.1f} | "
                f"{ms:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
