"""Persistent track IDs: masks of successive frames are matched, after moving them by their last motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, MissingDependencyError
from ...instances import Instances
from ..sources.base import USUAL_FPS

_GRID_PX = 4  # masks are compared on every fourth pixel of every fourth row
_LEAST_IOU = 0.15  # of two masks that may be one object's
_NEAR = 0.6  # or: distance of centroids over the objects' size
_NEAR_PER_S = 1.5  # by how much that grows for each second that an object wasn't seen
_AREA_RATIO = 3.0  # between two detections that only their place connects
_TINY = (
    6 * _GRID_PX**2
)  # pixels, below which an area says nothing: the first strip of something that comes in
_CLASS_IOU = 0.5  # networks change their mind about classes: then the masks must agree well
_PART_MARGIN, _PART_MARGIN_PX = (
    0.15,
    4,
)  # around the box where a partly hidden object is expected: what shows there is a part of it
_GROWN = 0.5  # of what was seen of an object, covered by what is seen now: it comes in at the picture's edge
_PART_COST = 0.75  # of either, against 1 - IoU
# of its usual area: what is less is partly hidden, and neither its outline nor its motion is to be trusted
_WHOLE = 0.85
_VELOCITY_RATE = 0.35  # of new against old, a frame
_GROWTH_RATE, _SHRINK_RATE = (
    0.3,
    0.05,
)  # of the usual area: objects that come in grow quickly, and those that get hidden don't shrink
_NEVER = 1e6  # cost of a pair that can't be

_TRACK = np.dtype(
    [
        ("id", np.int32),
        ("class_id", np.int32),
        ("hits", np.int32),
        ("usual_area", np.float64),  # pixels
        ("seen", np.float64),  # seconds, as are frames' times
        ("placed", np.float64),  # seconds: the last complete detection, of which are
        ("place", np.float64, 2),  # xy, pixels
        ("half", np.float64, 2),  # half the sides of the box
        ("velocity", np.float64, 2),  # xy, pixels a second
    ]
)

Floats = NDArray[np.float64]


class Tracker:
    """Assign persistent track IDs: ``tracker(instances)`` returns the instances with ``track_id``.

    An object that is hidden, or missed by the network, keeps its ID if it is found again within ``keep_s``
    near its predicted position. IDs count up from 1 and are never reused.

    Args:
        keep_s: seconds for which a lost track is kept.
        min_hits: number of frames in which an object must be detected before it is reported. 1 reports every
            detection; 3 drops most false detections, which last a frame or two.

    Raises:
        InputError: keep_s is below 0, or min_hits below 1.
        MissingDependencyError: scipy is missing.

    Example:
        >>> tracker = Tracker()
        >>> for frame in open_source("synthetic"):
        ...     for i in tracker(segmenter(frame)):
        ...         print(i.track_id, i.class_name, i.centroid_xy)
    """

    def __init__(self, keep_s: float = 2.0, min_hits: int = 1) -> None:
        if keep_s < 0 or min_hits < 1:
            raise InputError(
                f"keep_s must be at least 0, and min_hits at least 1; got {keep_s:g} and {min_hits}"
            )
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as missing:
            raise MissingDependencyError(
                'tracking needs scipy: pip install ".[live]" in the repository'
            ) from missing
        self._assign = linear_sum_assignment
        self.keep_s, self.min_hits = keep_s, min_hits
        self._next_id = 1
        self._size_hw = (0, 0)
        self._now = 0.0
        self._clock: tuple[bool, float] | None = (
            None  # whether it is media time, and its last value in seconds
        )
        self._forget()

    def _forget(self) -> None:
        self._tracks = np.zeros(0, _TRACK)
        self._cells = np.zeros(
            (3, 0), np.int32
        )  # of all masks at the time ``placed``: row of the track, y, x

    def __call__(self, instances: Instances) -> Instances:
        """The instances that were seen often enough, with ``track_id`` int32 (n,). Frames must come in order;
        another frame size forgets all tracks (IDs go on)."""
        size_hw = (instances.label_map.shape[0], instances.label_map.shape[1])
        if size_hw != self._size_hw:
            self._size_hw = size_hw
            self._forget()
        self._now += self._seconds_since_last(instances)
        grid = np.ascontiguousarray(instances.label_map[_GRID_PX // 2 :: _GRID_PX, _GRID_PX // 2 :: _GRID_PX])
        row_of = self._match(instances, grid)
        new = row_of < 0
        row_of[new] = np.arange(len(self._tracks), len(self._tracks) + new.sum())
        self._remember(instances, row_of, grid)
        track_id = self._numbered(row_of)
        self._drop_the_lost()
        return replace(instances, track_id=track_id).select(track_id > 0)

    def _seconds_since_last(self, instances: Instances) -> float:
        """By media time where there is one, else by the time of capture; where neither goes on, by a usual
        rate: a clock that stands still would keep what is lost for ever."""
        media_time_s = instances.media_time_s
        last = self._clock
        self._clock = (
            (False, instances.capture_time_ns / 1e9) if media_time_s is None else (True, media_time_s)
        )
        if last is None:
            return 0.0
        passed = self._clock[1] - last[1]
        return passed if self._clock[0] == last[0] and passed > 0 else 1 / USUAL_FPS

    def _numbered(self, row_of: NDArray[np.intp]) -> NDArray[np.int32]:
        """Ids of the tracks in these rows, 0 where one isn't seen often enough; who has none yet gets one
        when it is."""
        tracks = self._tracks
        tracks["hits"][row_of] += 1
        due = row_of[(tracks["hits"][row_of] >= self.min_hits) & (tracks["id"][row_of] == 0)]
        tracks["id"][due] = np.arange(self._next_id, self._next_id + len(due))
        self._next_id += len(due)
        ids: NDArray[np.int32] = tracks["id"][row_of]
        return ids

    def _match(self, instances: Instances, grid: NDArray[np.int32]) -> NDArray[np.intp]:
        """Row of the track that each instance is, -1 for new ones: what was seen in the last frame first,
        then what is lost."""
        n, m = len(instances), len(self._tracks)
        row_of = np.full(n, -1, np.intp)
        if not n or not m:
            return row_of
        tracks = self._tracks
        since = self._now - tracks["placed"]
        moved = tracks["velocity"] * since[:, None]
        lost = tracks["seen"] < tracks["seen"].max()
        iou, covered = self._overlap(grid, n, moved)
        size = np.sqrt(tracks["usual_area"])[:, None] + np.sqrt(instances.area)[None]
        off = np.abs((tracks["place"] + moved)[:, None] - instances.centroid_xy[None])
        far = np.linalg.norm(off, axis=2) / (0.5 * size)
        unseen = (self._now - tracks["seen"])[:, None]
        ratio = np.maximum(instances.area[None], 1) / tracks["usual_area"][:, None]
        alike = (ratio < _AREA_RATIO) & (ratio > 1 / _AREA_RATIO) | (tracks["usual_area"] < _TINY)[:, None]
        near = (far < _NEAR + _NEAR_PER_S * unseen) & alike
        same = tracks["class_id"][:, None] == instances.class_id[None]
        part = (ratio < _WHOLE) & (off < (1 + _PART_MARGIN) * tracks["half"][:, None] + _PART_MARGIN_PX).all(
            2
        )
        grown = (covered > _GROWN) & ~lost[:, None]
        may = np.where(same, (iou > _LEAST_IOU) | near | part | grown, iou > _CLASS_IOU)
        cost = np.where(
            may, np.minimum(1 - iou, np.where(part | grown, _PART_COST, 1)) + 0.5 * np.minimum(far, 2), _NEVER
        )
        for rows in (np.flatnonzero(~lost), np.flatnonzero(lost)):
            free = np.flatnonzero(row_of < 0)
            chosen = cost[np.ix_(rows, free)]
            for i, j in zip(*self._assign(chosen), strict=True):
                if chosen[i, j] < _NEVER:
                    row_of[free[j]] = rows[i]
        return row_of

    def _overlap(self, grid: NDArray[np.int32], n: int, moved: Floats) -> tuple[Floats, Floats]:
        """Of each track's mask, moved by pixels (m, 2) xy, with each instance: IoU, and the share of the mask
        that it covers; (m, n)."""
        m = len(self._tracks)
        track, ys, xs = self._cells
        shift = np.rint(moved / _GRID_PX).astype(np.int32)
        ys, xs = ys + shift[track, 1], xs + shift[track, 0]
        inside = (ys >= 0) & (ys < grid.shape[0]) & (xs >= 0) & (xs < grid.shape[1])
        track, there = track[inside], grid[ys[inside], xs[inside]]
        both = np.bincount(track.astype(np.int64) * (n + 1) + there, minlength=m * (n + 1)).reshape(m, n + 1)
        own = both.sum(1)[:, None]
        either = own + np.bincount(grid.ravel(), minlength=n + 1)[None, 1:] - both[:, 1:]
        return both[:, 1:] / np.maximum(either, 1), both[:, 1:] / np.maximum(own, 1)

    def _remember(self, instances: Instances, row_of: NDArray[np.intp], grid: NDArray[np.int32]) -> None:
        known = row_of < len(self._tracks)
        self._add(instances, np.flatnonzero(~known))
        tracks = self._tracks
        rows, area, centroid = (
            row_of[known],
            instances.area[known],
            instances.centroid_xy[known].astype(np.float64),
        )
        since = np.maximum(self._now - tracks["placed"][rows], 1e-3)
        whole = area > _WHOLE * tracks["usual_area"][rows]
        # what was hidden may have stopped or turned meanwhile: its motion is what the last complete
        # detections
        # say
        measured = (centroid - tracks["place"][rows]) / since[:, None]
        rate = np.where(whole, 1 - (1 - _VELOCITY_RATE) ** np.maximum(since * USUAL_FPS, 1), 0)[:, None]
        tracks["velocity"][rows] += rate * (measured - tracks["velocity"][rows])
        change = area - tracks["usual_area"][rows]
        tracks["usual_area"][rows] += np.where(change > 0, _GROWTH_RATE, _SHRINK_RATE) * change
        tracks["class_id"][rows] = instances.class_id[known]
        tracks["seen"][row_of] = self._now
        trusted = np.ones(len(row_of), bool)
        trusted[known] = whole
        tracks["place"][row_of[trusted]] = instances.centroid_xy[trusted]
        tracks["half"][row_of[trusted]] = (
            instances.box_xyxy[trusted, 2:] - instances.box_xyxy[trusted, :2]
        ) / 2
        tracks["placed"][row_of[trusted]] = self._now
        anew = np.zeros(len(tracks), bool)
        anew[row_of[trusted]] = True
        kept = self._cells[:, ~anew[self._cells[0]]]
        row_of_label = np.concatenate([[-1], np.where(trusted, row_of, -1)])
        track = row_of_label[grid]
        ys, xs = np.nonzero(track >= 0)
        self._cells = np.concatenate([kept, np.stack([track[ys, xs], ys, xs]).astype(np.int32)], axis=1)

    def _add(self, instances: Instances, new: NDArray[np.intp]) -> None:
        fresh = np.zeros(len(new), _TRACK)
        fresh["class_id"], fresh["usual_area"] = instances.class_id[new], instances.area[new]
        self._tracks = np.concatenate([self._tracks, fresh])

    def _drop_the_lost(self) -> None:
        keep = self._now - self._tracks["seen"] <= self.keep_s
        if keep.all():
            return
        self._tracks = self._tracks[keep]
        row = np.where(keep, np.cumsum(keep) - 1, -1)
        track = row[self._cells[0]]
        self._cells = np.concatenate([track[None], self._cells[1:]])[:, track >= 0].astype(np.int32)
