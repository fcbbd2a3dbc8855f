"""Measure recall and false positives of people on a street, 37 to 115 px tall.

    apt-get download opencv-doc && dpkg -x opencv-doc*.deb opencv-doc
    python docs/benchmarks/street_clip.py opencv-doc/usr/share/doc/opencv-doc/examples/data/vtest.avi

The clip is the pedestrian clip of OpenCV's samples, 768 x 576. It was annotated by hand: boxes of the people
in nine frames, each with at least six people of 40 to 100 px. A person is found if the IoU of their box and
an instance's box is at least 0.5. People who are more than half hidden are ignored.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tfiseg
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

HEIGHTS_PX = (40, 100)
_PERSON = "person"
_MIN_IOU = 0.5
# x0, y0, x1, y1 by frame number
PEOPLE = {
    159: "45 96 60 134, 367 174 395 245, 425 205 458 292, 461 203 503 286, 513 222 544 307, "
    "655 103 671 161, 680 113 699 180",
    247: "40 177 61 244, 210 153 238 227, 403 235 437 333, 567 192 599 267, 621 258 654 360, "
    "634 120 657 182, 662 124 686 183",
    265: "36 177 60 244, 148 145 173 212, 308 206 339 293, 454 175 483 246, 500 240 537 336, "
    "610 130 636 194, 636 134 656 198",
    283: "1 175 19 239, 124 148 148 217, 254 178 290 256, 335 163 365 230, 391 224 426 317, "
    "597 141 624 211, 629 146 650 215",
    300: "187 160 219 234, 245 160 269 222, 299 160 322 231, 312 210 343 296, 582 161 612 237, "
    "621 162 643 234",
    689: "118 310 163 425, 151 162 177 231, 319 163 346 241, 366 226 397 317, 433 144 451 208, "
    "457 154 486 226, 523 163 544 231",
    712: "57 261 99 360, 188 192 211 268, 235 176 260 253, 327 161 366 232, 489 181 515 253, "
    "525 129 546 191, 597 208 635 297",
    742: "3 168 25 233, 137 213 166 296, 259 202 291 284, 352 206 391 292, 548 184 577 256, "
    "595 218 620 319, 631 115 652 172",
    768: "269 182 295 257, 277 176 302 248, 281 240 325 337, 499 232 538 325, 626 201 661 292, "
    "682 127 706 188",
}
HIDDEN = {
    159: "678 106 703 150",
    689: "752 300 768 315",
    712: "427 188 448 277",
    742: "424 186 457 269, 746 70 764 98",
    768: "405 190 440 265, 750 73 764 97",
}


def boxes(text: str) -> NDArray[np.float64]:
    """Return boxes float64 (n, 4) from a line of PEOPLE."""
    return np.array([box.split() for box in text.split(",") if box], np.float64).reshape(-1, 4)


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each box (n, 4) with each box (m, 4): (n, m)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0, None).prod(-1)
    area_a, area_b = ((v[:, 2:] - v[:, :2]).prod(-1) for v in (a, b))
    return np.asarray(shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-9))


def score(segmenter: tfiseg.Segmenter, clip: Path, out: Path | None = None) -> dict[str, Any]:
    """Return the people found, the false positives per frame and the median time per frame."""
    person = segmenter.class_names.index(_PERSON)
    found = {"40 to 100 px": [0, 0], "all": [0, 0]}
    false_positives, ms = 0, []
    with tfiseg.open_source(clip) as source:
        for frame in source:
            if frame.index not in PEOPLE:
                continue
            began = time.perf_counter()
            instances = segmenter(frame)
            ms.append(1e3 * (time.perf_counter() - began))
            instances = instances[instances.class_id == person]
            detected = instances.box_xyxy.astype(np.float64)
            people, hidden = boxes(PEOPLE[frame.index]), boxes(HIDDEN.get(frame.index, ""))
            overlap = iou(people, detected)
            rows, columns = linear_sum_assignment(overlap, maximize=True)
            matched = {k: j for k, j in zip(rows, columns, strict=True) if overlap[k, j] >= _MIN_IOU}
            for k, height in enumerate(people[:, 3] - people[:, 1]):
                for group in ("all", "40 to 100 px")[: 1 + (HEIGHTS_PX[0] <= height <= HEIGHTS_PX[1])]:
                    found[group][0] += k in matched
                    found[group][1] += 1
            others = np.delete(detected, list(matched.values()), axis=0)
            false_positives += int((iou(others, hidden).max(1, initial=0) < 0.1).sum())
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(out / f"{frame.index:03}.jpg"), instances.draw(frame))
    return {
        "found": found,
        "false_positives_per_frame": round(false_positives / len(PEOPLE), 2),
        "ms": round(float(np.median(ms))),
    }


def main() -> None:
    """Print the result for one setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--long-side", type=int)
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--out", type=Path, help="folder for the frames with instances")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = {"tiles": args.tiles} if args.tiles else {}
    segmenter = tfiseg.Segmenter(quality=args.quality, long_side_px=args.long_side, **options)
    result = score(segmenter, args.clip, args.out)
    if args.json:
        print(json.dumps(result))
        return
    for group, (right, count) in result["found"].items():
        print(f"{group}: {right} of {count}, {100 * right / count:.1f}%")
    print(f"false positives per frame: {result['false_positives_per_frame']}; {result['ms']} ms per frame")


if __name__ == "__main__":
    main()
