"""``Instances``: the instance masks of one frame as arrays. Dense masks are computed on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import as_numpy, check_array, describe_array, renumber, row_number, row_numbers
from .conversions import data_frame_of, detections_of
from .depth import check_intrinsics, depth_in_meters, measure_depths
from .drawing import ALPHA, draw_instances, instance_colors, outlines_of
from .errors import InputError, OutputError
from .files import write_whole
from .images import to_bgr
from .instance import Instance
from .notebook import HTML_ROWS, html_of
from .rle import coco_annotation, encode_rle
from .schema import to_json

if TYPE_CHECKING:
    import pandas
    import supervision

# column with one row per instance -> dtype and shape of a row
_COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "class_id": (np.int32, ()),
    "score": (np.float32, ()),
    "box_xyxy": (np.float32, (4,)),
    "area": (np.int32, ()),
    "centroid_xy": (np.float32, (2,)),
    "track_id": (np.int32, ()),
    "distance_m": (np.float32, ()),
    "centroid_xyz_m": (np.float32, (3,)),
    "nearest_xyz_m": (np.float32, (3,)),
}
_OPTIONAL = ("track_id", "distance_m", "centroid_xyz_m", "nearest_xyz_m")  # may be None


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The instance masks of one frame.

    Index it like an array: a number returns an ``Instance``; a slice, a bool mask (n,) or a list of numbers
    returns ``Instances`` whose label map is renumbered 1..n in that order. Treat it as read-only:
    ``dataclasses.replace`` returns a changed copy.

    Args:
        label_map: int32 (H, W); 0 = no instance, 1..n = instance of row 0..n-1.
        semantic_map: uint8 (H, W), class IDs; with label_map, a panoptic segmentation.
        class_id: int32 (n,), class IDs.
        score: float32 (n,) in [0, 1]: mean class probability, or the probability of being an object if the
            model has score calibration.
        box_xyxy: float32 (n, 4), pixels, upper ends exclusive.
        area: int32 (n,), pixels.
        centroid_xy: float32 (n, 2), pixels.
        class_names: name of each class ID; larger IDs are called "class N".
        frame_index: position of the frame in its source, from 0; -1 without source.
        capture_time_ns: time.monotonic_ns() of the frame's capture; 0 if unknown.
        media_time_s: seconds from the start of the video; None without video.
        stage_ms: milliseconds per stage, such as {"network": 12.0, "cluster": 0.4}.
        track_id: int32 (n,), persistent track IDs from a ``Tracker``; None if not tracked.
        distance_m: float32 (n,), meters, see ``with_depth``; None without depth.
        centroid_xyz_m: float32 (n, 3), meters, see ``with_depth``; None without depth.
        nearest_xyz_m: float32 (n, 3), meters, see ``with_depth``; None without depth.

    Raises:
        InputError: an array has the wrong shape or dtype.

    Example:
        >>> people = instances[[i.class_name == "person" for i in instances]]
        >>> people[people.score > 0.8].save("people.json")
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
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    track_id: NDArray[np.int32] | None = None
    media_time_s: float | None = None
    distance_m: NDArray[np.float32] | None = None
    centroid_xyz_m: NDArray[np.float32] | None = None
    nearest_xyz_m: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if np.ndim(self.label_map) != 2:
            raise InputError(
                f"Instances: label_map must be int32 (H, W), got {describe_array(self.label_map)}: "
                "pass the label map of one frame, without a batch axis"
            )
        size_hw, rows = np.shape(self.label_map), np.shape(self.class_id)[:1]
        check_array("Instances", "label_map", self.label_map, np.int32, size_hw)
        check_array("Instances", "semantic_map", self.semantic_map, np.uint8, size_hw)
        for name, (dtype, shape) in _COLUMNS.items():
            if name not in _OPTIONAL or getattr(self, name) is not None:
                check_array("Instances", name, getattr(self, name), dtype, (*(rows or (0,)), *shape))

    def __len__(self) -> int:
        return len(self.class_id)

    def __repr__(self) -> str:
        height, width = self.size_hw
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return f"<Instances: {counts or 'none'} in {width}x{height} pixels>"

    def __iter__(self) -> Iterator[Instance]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Instance: ...

    @overload
    def __getitem__(self, index: slice | ArrayLike) -> Instances: ...

    def __getitem__(self, index: Any) -> Instance | Instances:
        if not isinstance(index, Integral) or isinstance(index, bool):
            return self._rows(row_numbers(index, len(self)))
        row = row_number(index, len(self))
        class_id = int(self.class_id[row])
        return Instance(
            number=row + 1,
            class_id=class_id,
            class_name=self.class_name(class_id),
            score=float(self.score[row]),
            box_xyxy=tuple(self.box_xyxy[row].tolist()),
            area=int(self.area[row]),
            centroid_xy=tuple(self.centroid_xy[row].tolist()),
            instances=self,
            **{name: self._optional(name, row) for name in _OPTIONAL},
        )

    def _optional(self, name: str, row: int) -> Any:
        column = getattr(self, name)
        if column is None:
            return None
        return tuple(column[row].tolist()) if column.ndim > 1 else column[row].item()

    def _rows(self, rows: NDArray[np.intp]) -> Instances:
        """Return these rows in this order, with a renumbered label map and the same semantic map."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        number = np.zeros(len(self) + 1, np.int32)
        number[rows + 1] = np.arange(1, len(rows) + 1)
        columns = {name: column[rows] for name in _COLUMNS if (column := getattr(self, name)) is not None}
        return replace(self, label_map=renumber(self.label_map, number), **columns)

    def select(self, keep: ArrayLike) -> Instances:
        """Return the instances for which ``keep``, bool (n,) or a list of 0 and 1, is true.

        Raises:
            InputError: ``keep`` has another length or other values, such as the numbers of instances.
        """
        flags = as_numpy(keep, "keep")
        if flags.dtype != bool and not np.isin(flags, (0, 1)).all():
            raise InputError(
                f"select takes bools, or 0 and 1, for each instance, got {flags}: "
                "select numbers of instances by an index, instances[[0, 2]]"
            )
        return self[flags.astype(bool)]

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) of the frame in pixels."""
        return self.label_map.shape[0], self.label_map.shape[1]

    @property
    def names(self) -> list[str]:
        """Class names of the instances, n texts."""
        return [self.class_name(c) for c in self.class_id.tolist()]

    def class_name(self, class_id: int) -> str:
        """Return the name of a class ID."""
        return self.class_names[class_id] if class_id < len(self.class_names) else f"class {class_id}"

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the mask of one instance, bool (H, W)."""
        return self.label_map == row_number(index, len(self)) + 1

    def masks(self) -> NDArray[np.bool_]:
        """Return the masks of all instances, bool (n, H, W), computed on each call."""
        return self.label_map[None] == np.arange(1, len(self) + 1, dtype=np.int32)[:, None, None]

    def crop(self, index: int) -> NDArray[np.bool_]:
        """Return the mask of one instance inside its box, bool (box height, box width); fast."""
        index = row_number(index, len(self))
        x0, y0, x1, y1 = self.box_xyxy[index].astype(int)
        return self.label_map[y0:y1, x0:x1] == index + 1

    def rle(self, index: int) -> dict[str, Any]:
        """Return the COCO RLE of one mask, ``{"size": [H, W], "counts": str}``, as in pycocotools."""
        index = row_number(index, len(self))
        x0, y0 = self.box_xyxy[index, :2].astype(int).tolist()
        return encode_rle(self.crop(index), (x0, y0), self.size_hw)

    def with_depth(self, depth_map: ArrayLike, intrinsics: ArrayLike | None = None) -> Instances:
        """Return the instances with their distances and 3-D points.

        ``distance_m`` is the median depth of a mask. ``centroid_xyz_m`` is the mean of its 3-D points without
        the nearest and farthest 10%, which may be background at the outline. ``nearest_xyz_m`` is the point
        nearest to the camera without the nearest 1%, which may be sensor noise. Points are in the camera's
        optical frame: x right, y down, z forward. All are NaN if a mask has no depth.

        Args:
            depth_map: floats (H, W) in meters along the optical axis, or uint16 (H, W) in millimeters,
                registered to the frame. 0, NaN and infinity mean no measurement.
            intrinsics: (fx, fy, cx, cy) in pixels, or the camera matrix (3, 3); None for distances only.

        Raises:
            InputError: the depth map has the wrong size or dtype, or the intrinsics are invalid.

        Example:
            >>> for i in instances.with_depth(depth_map, (600, 600, 320, 240)):
            ...     print(i.class_name, i.distance_m, i.nearest_xyz_m)
        """
        depth = depth_in_meters(depth_map, self.size_hw)
        corners = self.box_xyxy[:, :2].astype(int)
        crops = ((self.crop(i), (x, y)) for i, (x, y) in enumerate(corners.tolist()))
        camera = None if intrinsics is None else check_intrinsics(intrinsics)
        return replace(self, **measure_depths(depth, crops, camera))

    def polygon(self, index: int) -> list[NDArray[np.int32]]:
        """Return the outer outlines of one instance, largest first: int32 (k, 2) each, xy in pixels."""
        index = row_number(index, len(self))
        x0, y0 = self.box_xyxy[index, :2].astype(int).tolist()
        return outlines_of(self.crop(index), (x0, y0))

    @property
    def colors(self) -> NDArray[np.uint8]:
        """Color of each instance by its number in the label map, uint8 (n + 1, 3) BGR; row 0 is black."""
        return instance_colors(len(self), self.track_id)

    def draw(
        self,
        frame: Any,
        *,
        labels: bool | Iterable[object] = True,
        scores: bool = True,
        alpha: float = ALPHA,
        outline: bool = True,
    ) -> NDArray[np.uint8]:
        """Draw masks, outlines and labels over a frame.

        Args:
            frame: the ``Frame`` of these instances, or its image in any type that ``tfiseg.segment`` takes.
            labels: True for class names and track IDs, False for no text, or n texts or numbers.
            scores: add scores below 1 to the class names.
            alpha: opacity of the masks in [0, 1].
            outline: draw outlines.

        Returns:
            uint8 (H, W, 3) BGR, a new array.

        Raises:
            InputError: the frame has another size, or an argument is out of range.
        """
        texts: Iterable[object] = ()
        if not isinstance(labels, bool | np.bool_):
            texts = labels
        elif labels:
            texts = [f"{i.title} {i.score:.2f}" if scores and i.score < 1 else i.title for i in self]
        return draw_instances(
            to_bgr(getattr(frame, "image", frame)),
            self.label_map,
            self.box_xyxy,
            texts,
            colors=self.colors,
            alpha=alpha,
            outline=outline,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the semantic map as JSON types; masks are COCO RLE."""
        return {
            "size_hw": list(self.size_hw),
            "frame_index": self.frame_index,
            "capture_time_ns": self.capture_time_ns,
            "media_time_s": self.media_time_s,
            "stage_ms": dict(self.stage_ms),
            "instances": [instance.to_dict() for instance in self],
        }

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO annotations with ``score``, which are valid as annotations and as results.

        Args:
            image_id: ID of the image in the COCO file.
            first_id: ID of the first annotation; the others follow.
        """
        return [coco_annotation(i.to_dict(), first_id + i.index, image_id) for i in self]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a ``pandas.DataFrame``, one row per instance, without masks (needs ``pip install pandas``).

        Columns: class_id, class_name, score, x0, y0, x1, y1, area, cx, cy; track_id if tracked, and
        distance_m with depth.
        """
        return data_frame_of(self)

    def to_supervision(self) -> supervision.Detections:
        """Return ``supervision.Detections`` with dense masks; needs ``pip install supervision``."""
        return detections_of(self)

    def save(self, path: str | Path) -> None:
        """Write a ``.json`` or ``.png`` file.

        Args:
            path: ``.json`` for ``to_dict()``, with masks as COCO RLE; ``.png`` for the label map, 16 bits.

        Raises:
            InputError: the suffix is another one.
            OutputError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            content = to_json(self.to_dict()).encode()
        elif path.suffix.lower() == ".png":
            content = cv2.imencode(".png", self.label_map.astype(np.uint16))[1].tobytes()
        else:
            raise InputError(f"Instances.save writes .json (records) or .png (label map), got {path.name!r}")
        try:
            write_whole(path, content)
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror}") from error

    def _repr_html_(self) -> str:
        """Return an image of the masks and a table of the first instances, for notebooks."""
        rows = [(i.number, i.title, f"{i.score:.2f}", i.area) for i in islice(self, HTML_ROWS)]
        return html_of(repr(self), self.colors, self.label_map, ("number", "class", "score", "area px"), rows)


def instances_from_table(
    label_map: NDArray[np.int32], semantic_map: NDArray[np.uint8], table: NDArray[np.float32], **rest: Any
) -> Instances:
    """Return the instances of one image from the operator's table.

    Args:
        label_map: int32 (H, W).
        semantic_map: uint8 (H, W).
        table: float32 (n, 10): class, score, x0, y0, x1, y1, area, cx, cy, flags.
        rest: other fields of ``Instances``.
    """
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
