"""``Instances``: what a frame's segmentation is, as plain data. Masks are made on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True)
class Instance:
    """One instance, for loops: ``for i in instances: print(i.class_name, i.score)``.

    ``number`` is its value in the label map (1..n); ``index`` its row (0..n-1), what ``mask(i)`` and its kin
    take; ``track_id`` is its id over frames, if a ``Tracker`` gave it one.
    """

    number: int
    class_id: int
    class_name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    area: int
    centroid_xy: tuple[float, float]
    track_id: int | None = None

    @property
    def index(self) -> int:
        return self.number - 1

    @property
    def title(self) -> str:
        """For people: its class, and its id if it is tracked, like "person #7"."""
        return self.class_name if self.track_id is None else f"{self.class_name} #{self.track_id}"


@dataclass(frozen=True, eq=False)
class Instances:
    """Instance masks of one frame.

    Args:
        label_map: int32 (H, W); 0 = no instance, 1..n = the instance of that row plus one.
        semantic_map: uint8 (H, W) class ids; with label_map, a panoptic segmentation (where outlines were
            drawn anew, the class map's own differ from it).
        class_id: int32 (n,).
        score: float32 (n,) in [0, 1]: mean class probability; from a Segmenter whose model has a score rule,
            the probability of an object.
        box_xyxy: float32 (n, 4), pixels, upper ends exclusive.
        area: int32 (n,), pixels.
        centroid_xy: float32 (n, 2), pixels.
        class_names: name of each class id; ids beyond it are called "class N".
        frame_index: position of the frame in its source, from 0; -1 = no source.
        capture_time_ns: when the frame was taken, time.monotonic_ns(); 0 = unknown.
        stage_ms: milliseconds per stage, such as {"network": 12.0, "cluster": 0.4}.
        track_id: int32 (n,), ids over frames from a ``Tracker``; None: not tracked.
    """

    label_map: NDArray[np.int32]
    semantic_map: NDArray[np.uint8]
    class_id: NDArray[np.int32]
    score: NDArray[np.float32]
    box_xyxy: NDArray[np.float32]
    area: NDArray[np.int32]
    centroid_xy: NDArray[np.float32]
    class_names: Sequence[str] = ()
    frame_index: int = -1
    capture_time_ns: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    track_id: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.class_id)

    def __iter__(self) -> Iterator[Instance]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Instance:
        index = self._checked(index)
        class_id = int(self.class_id[index])
        x0, y0, x1, y1 = self.box_xyxy[index].tolist()
        cx, cy = self.centroid_xy[index].tolist()
        return Instance(
            number=index + 1,
            class_id=class_id,
            class_name=self.class_name(class_id),
            score=float(self.score[index]),
            box_xyxy=(x0, y0, x1, y1),
            area=int(self.area[index]),
            centroid_xy=(cx, cy),
            track_id=None if self.track_id is None else int(self.track_id[index]),
        )

    def class_name(self, class_id: int) -> str:
        """Name of a class id."""
        return self.class_names[class_id] if class_id < len(self.class_names) else f"class {class_id}"

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"instance {index} of {len(self)}: indices go from 0 to {len(self) - 1}")
        return int(index) % len(self)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Mask of one instance, bool (H, W)."""
        return self.label_map == self._checked(index) + 1

    def crop(self, index: int) -> NDArray[np.bool_]:
        """Mask of one instance inside its box, bool (box height, box width): a view's worth of work, not a
        frame's."""
        index = self._checked(index)
        x0, y0, x1, y1 = self.box_xyxy[index].astype(int)
        return self.label_map[y0:y1, x0:x1] == index + 1

    def rle(self, index: int) -> dict[str, Any]:
        """COCO run-length encoding of one mask: ``{"size": [H, W], "counts": str}``, as pycocotools reads
        it."""
        index = self._checked(index)
        height, width = self.label_map.shape
        x0, y0, x1, _ = self.box_xyxy[index].astype(int)
        columns = self.crop(index).T  # COCO runs go down the columns
        padded = np.zeros((x1 - x0, height), np.uint8)
        padded[:, y0 : y0 + columns.shape[1]] = columns
        edges = np.flatnonzero(np.diff(padded.ravel(), prepend=0, append=0)) + x0 * height
        counts = np.diff(edges, prepend=0, append=height * width)
        if counts[-1] == 0:
            counts = counts[:-1]
        return {"size": [int(height), int(width)], "counts": _coco_string(counts.tolist())}

    def polygon(self, index: int) -> list[NDArray[np.int32]]:
        """Outer outlines of one instance, largest first: int32 (k, 2) xy pixels each."""
        index = self._checked(index)
        x0, y0 = self.box_xyxy[index, :2].astype(int)
        found, _ = cv2.findContours(
            self.crop(index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        outlines = [np.asarray(c, np.int32).reshape(-1, 2) + np.array([x0, y0], np.int32) for c in found]
        return sorted(outlines, key=lambda c: -cv2.contourArea(c))

    def select(self, keep: ArrayLike) -> Instances:
        """The instances for which ``keep``, bool (n,), is true, numbered anew; the semantic map stays."""
        rows = np.asarray(keep, bool)
        if rows.shape != (len(self),):
            raise InputError(
                f"keep must be bool ({len(self)},), one for each instance, got shape {rows.shape}"
            )
        if rows.all():
            return self
        number = np.concatenate([[0], np.where(rows, np.cumsum(rows), 0)]).astype(np.int32)
        columns = {
            name: getattr(self, name)[rows]
            for name in ("class_id", "score", "box_xyxy", "area", "centroid_xy")
        }
        if self.track_id is not None:
            columns["track_id"] = self.track_id[rows]
        return replace(self, label_map=number[self.label_map], **columns)

    def draw(self, frame: Any) -> NDArray[np.uint8]:
        """The frame with masks, outlines and labels drawn over it: a new uint8 (H, W, 3) BGR picture.

        Args:
            frame: the ``Frame`` or BGR picture that these instances were found in.
        """
        from .drawing import draw_instances

        return draw_instances(getattr(frame, "image", frame), self)

    def to_supervision(self) -> supervision.Detections:
        """As ``supervision.Detections`` (needs ``pip install supervision``); this makes the dense (n, H, W)
        masks."""
        try:
            import supervision
        except ImportError as missing:
            raise MissingDependencyError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from missing
        masks = (
            np.stack([self.mask(i) for i in range(len(self))])
            if len(self)
            else np.zeros((0, *self.label_map.shape), bool)
        )
        return supervision.Detections(
            xyxy=self.box_xyxy.copy(),
            mask=masks,
            confidence=self.score.copy(),
            class_id=self.class_id.astype(int),
            data={"class_name": np.array([i.class_name for i in self])},
            tracker_id=None if self.track_id is None else self.track_id.astype(int),
        )


def instances_from_table(
    label_map: NDArray[np.int32], semantic_map: NDArray[np.uint8], table: NDArray[np.float32], **rest: Any
) -> Instances:
    """Instances of one picture from the operator's table rows (n, 10): class, score, x0, y0, x1, y1, area,
    cx, cy, flags."""
    return Instances(
        label_map=label_map,
        semantic_map=semantic_map,
        class_id=table[:, 0].astype(np.int32),
        score=table[:, 1].copy(),
        box_xyxy=table[:, 2:6].copy(),
        area=table[:, 6].astype(np.int32),
        centroid_xy=table[:, 7:9].copy(),
        **rest,
    )


def _coco_string(counts: list[int]) -> str:
    """COCO's compressed counts: differences to the last but one, six bits a character (cocoapi, maskApi.c,
    rleToString)."""
    out = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            out.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(out)
