"""Measure recall (IoU > 0.5) and false positives of small people, 40 to 100 px tall.

Each frame of 768 x 576 is a grid of twelve street photos of eval/pennfudan.

    python docs/benchmarks/pedestrians.py DATA/eval/pennfudan [--quality best] [--out DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tfiseg.runtime.evaluate.evaluation_set import load_eval_set
from tfiseg.runtime.evaluate.metrics import panoptic_counts
from tfiseg.runtime.segmenter import Segmenter

FRAME_HW = (576, 768)
GRID = (3, 4)  # rows and columns of photos
HEIGHTS_PX = (40, 100)
_PERSON = "person"


def frames(folder: Path) -> list[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Return pairs: a frame uint8 (576, 768, 3), and its people int32 (576, 768), 0 = none."""
    pictures, _ = load_eval_set(folder)
    tile_hw = (FRAME_HW[0] // GRID[0], FRAME_HW[1] // GRID[1])
    made = []
    per_frame = GRID[0] * GRID[1]
    for first in range(0, len(pictures) - per_frame + 1, per_frame):
        image, people = np.full((*FRAME_HW, 3), 127, np.uint8), np.zeros(FRAME_HW, np.int32)
        for k in range(per_frame):
            picture = pictures[first + k]
            h, w = picture.truth.shape
            zoom = min(tile_hw[0] / h, tile_hw[1] / w)
            size = (round(w * zoom), round(h * zoom))
            y = k // GRID[1] * tile_hw[0] + (tile_hw[0] - size[1]) // 2
            x = k % GRID[1] * tile_hw[1] + (tile_hw[1] - size[0]) // 2
            image[y : y + size[1], x : x + size[0]] = cv2.resize(
                picture.image, size, interpolation=cv2.INTER_AREA
            )
            small = cv2.resize(picture.truth.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
            numbered = np.where(small > 0, small + people.max(), 0).astype(np.int32)
            people[y : y + size[1], x : x + size[0]] = numbered
        made.append((image, people))
    return made


def score(segmenter: Segmenter, folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Return the recall of people of 40 to 100 px and of all people, and false positives per frame."""
    person = segmenter.class_names.index(_PERSON)
    found = {"40 to 100 px": [0, 0], "all": [0, 0]}
    fewest, false_positives, count = 10**9, 0, 0
    for number, (image, people) in enumerate(frames(folder)):
        instances = segmenter(image)
        instances = instances.select(instances.class_id == person)
        semantic = np.where(people > 0, person, 0).astype(np.uint8)
        result = panoptic_counts(instances.label_map, instances.class_id, people, semantic)
        matched = {j for _, j in result.matches}
        false_positives += result.pooled.false_positives
        count += 1
        fitting = 0
        for j in range(1, int(people.max()) + 1):
            rows = np.flatnonzero((people == j).any(1))
            if not len(rows):
                continue
            groups = ["all"]
            if HEIGHTS_PX[0] <= rows[-1] - rows[0] + 1 <= HEIGHTS_PX[1]:
                groups.append("40 to 100 px")
                fitting += 1
            for group in groups:
                found[group][0] += j in matched
                found[group][1] += 1
        fewest = min(fewest, fitting)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(out / f"{number:02}.jpg"), instances.draw(image))
    return {
        "frames": count,
        "fewest_of_40_to_100_px": fewest,
        **{name: f"{a} of {b}, {a / max(b, 1):.1%}" for name, (a, b) in found.items()},
        "false_positives_per_frame": round(false_positives / max(count, 1), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality")
    parser.add_argument("--model")
    parser.add_argument("--refine")
    parser.add_argument("--long-side", type=int, dest="long_side_px")
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--out", type=Path, help="folder for overlays")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = ("model", "refine", "quality", "long_side_px", "tiles")
    options = {name: value for name, value in vars(args).items() if name in names and value is not None}
    report = score(Segmenter(**options), args.folder, args.out)
    print(json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
