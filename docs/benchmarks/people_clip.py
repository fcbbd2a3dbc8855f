"""Make the demo's clip: four people who meet at a table and pass each other (cli/media/people.mp4).

The original shows one visitor at a time in a room. The difference from the empty room gives each visitor's
mask. The script shifts the visitors in space and time and composes them, nearer ones in front. --truth writes
the true masks.

    python docs/benchmarks/people_clip.py ONE-BY-ONE-PERSON-DETECTION.mp4 people.mp4 [--truth people.npz]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

FRAMES, FRAME_RATE = 118, 10
_EMPTY_ROOM = (0, 20, 40, 58, 464, 480, 871, 1219, 1210)  # frames of the original
_DIFFERENT = 34  # gray levels
_MIN_PERSON_PX, _MAX_HOLE_PX = 2500, 900


@dataclass(frozen=True)
class Visitor:
    """The frames of a visitor in the original and in the new clip, and the shift in pixels."""

    arrives: int
    stands: int
    leaves: int
    gone: int
    shift_px: int
    start: int
    end: int

    def frame_at(self, time: int) -> int | None:
        """Return the original's frame that shows the visitor at this time; None if absent."""
        if time < self.start:
            return None
        frame = self.arrives + time - self.start
        if frame < self.stands:
            return frame
        if time < self.end:  # while standing, play the original's frames forwards and backwards
            span = self.leaves - self.stands
            k = (frame - self.stands) % (2 * span)
            return self.stands + (k if k < span else 2 * span - 1 - k)
        frame = self.leaves + time - self.end
        return frame if frame < self.gone else None

    def shift_at(self, time: int) -> float:
        """Return the shift in pixels; visitors on the left leave at the right edge."""
        if self.shift_px > 0:
            return self.shift_px
        walked = (time - self.end) / (self.gone - self.leaves - 4)
        return self.shift_px * (1 - float(np.clip(walked, 0, 1)))


VISITORS = (
    Visitor(502, 535, 676, 700, 150, 0, 66),
    Visitor(921, 950, 1171, 1201, 14, 14, 82),
    Visitor(61, 85, 170, 200, -122, 30, 72),
    Visitor(745, 775, 834, 870, -250, 44, 88),
)


def matte(frame: Image, room: Image) -> Image | None:
    """Return the largest region that differs from the empty room, uint8 (H, W); None if there is none."""
    blurred = [cv2.GaussianBlur(image, (0, 0), 1.2) for image in (frame, room)]
    mask = (cv2.absdiff(*blurred).max(2) > _DIFFERENT).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[largest, cv2.CC_STAT_AREA] < _MIN_PERSON_PX:
        return None
    mask = (labels == largest).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    for hole in range(1, count):
        x, y, _, height, area = stats[hole]
        if area < _MAX_HOLE_PX and x > 0 and y + height < mask.shape[0]:
            mask[labels == hole] = 1
    return mask


def compose(original: list[Image], room: Image, time: int) -> tuple[Image, Image]:
    """Return a frame uint8 (H, W, 3) and its people uint8 (H, W), 0 = none."""
    height, width = room.shape[:2]
    layers = []
    for number, visitor in enumerate(VISITORS, start=1):
        k = visitor.frame_at(time)
        mask = None if k is None else matte(original[k], room)
        if k is None or mask is None:
            continue
        move = np.array([[1, 0, visitor.shift_at(time)], [0, 1, 0]], np.float32)
        image, mask = (cv2.warpAffine(a, move, (width, height)) for a in (original[k], mask))
        rows = np.flatnonzero(mask.any(1))
        if len(rows):  # lower in the image is nearer; visitors cut by the lower border are nearest
            nearness = rows[-1] if rows[-1] < height - 1 else rows[-1] + rows[0]
            layers.append((int(nearness), number, image, mask))
    frame, people = room.astype(np.float32), np.zeros((height, width), np.uint8)
    for _, number, image, mask in sorted(layers, key=lambda layer: layer[0]):
        alpha = np.clip((cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0) - 0.35) / 0.5, 0, 1)[
            ..., None
        ]
        frame = frame * (1 - alpha) + image * alpha
        people[mask > 0] = number
    return frame.astype(np.uint8), people


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--truth", type=Path, help="write the true masks there, uint8 (frames, H, W)")
    args = parser.parse_args()
    with av.open(str(args.original)) as video:
        original = [np.asarray(f.to_ndarray(format="bgr24"), np.uint8) for f in video.decode(video=0)]
    room = np.asarray(np.median([original[k] for k in _EMPTY_ROOM], axis=0), np.uint8)
    truth = []
    with av.open(str(args.output), "w") as clip:
        stream = clip.add_stream("libx264", rate=FRAME_RATE, options={"crf": "25", "preset": "slow"})
        stream.height, stream.width = room.shape[:2]
        stream.pix_fmt = "yuv420p"
        for time in range(FRAMES):
            frame, people = compose(original, room, time)
            truth.append(people)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        clip.mux(stream.encode())
    if args.truth is not None:
        np.savez_compressed(args.truth, people=np.stack(truth))


if __name__ == "__main__":
    main()
