"""``Instance``: one row of ``Instances``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    from .instances import Instances


@dataclass(frozen=True)
class Instance:
    """One instance: ``for i in instances: print(i.class_name, i.score)``.

    Attributes:
        number: its value in the label map, 1..n.
        class_id: class ID.
        class_name: name of the class.
        score: 0..1, see ``Instances``.
        box_xyxy: x0, y0, x1, y1 in pixels, upper ends exclusive.
        area: pixels.
        centroid_xy: pixels.
        track_id: persistent track ID from a ``Tracker``; None if not tracked.
        distance_m: meters, see ``Instances.with_depth``; None without depth.
        centroid_xyz_m: meters, see ``Instances.with_depth``; None without depth.
        nearest_xyz_m: meters, see ``Instances.with_depth``; None without depth.
        instances: the ``Instances`` that contain it.
    """

    number: int
    class_id: int
    class_name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    area: int
    centroid_xy: tuple[float, float]
    track_id: int | None = None
    distance_m: float | None = None
    centroid_xyz_m: tuple[float, float, float] | None = None
    nearest_xyz_m: tuple[float, float, float] | None = None
    instances: Instances | None = field(default=None, repr=False, compare=False)

    @property
    def index(self) -> int:
        """Row of the instance, 0..n-1: the index for ``Instances.mask`` and similar methods."""
        return self.number - 1

    @property
    def title(self) -> str:
        """Class name with the track ID, if any, such as "person #7"."""
        return self.class_name if self.track_id is None else f"{self.class_name} #{self.track_id}"

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Mask, bool (H, W), a new array."""
        return self._owner.mask(self.index)

    def to_dict(self) -> dict[str, Any]:
        """Return the instance as JSON types; ``segmentation`` is its COCO RLE, and a depth of NaN is None."""
        record: dict[str, Any] = {} if self.track_id is None else {"track_id": self.track_id}
        record |= {
            "class_id": self.class_id,
            "class_name": self.class_name,
            "score": self.score,
            "box_xyxy": list(self.box_xyxy),
            "area": self.area,
            "centroid_xy": list(self.centroid_xy),
            "segmentation": self._owner.rle(self.index),
        }
        for name in ("distance_m", "centroid_xyz_m", "nearest_xyz_m"):
            if (value := getattr(self, name)) is not None:
                record[name] = _finite(value)
        return record

    @property
    def _owner(self) -> Instances:
        if self.instances is None:
            raise InputError("an Instance without Instances has no mask: index an Instances object instead")
        return self.instances


def _finite(value: float | tuple[float, ...]) -> Any:
    """Replace NaN by None, and tuples by lists."""
    if isinstance(value, tuple):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None
