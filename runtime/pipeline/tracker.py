"""Persistent track IDs: masks of successive frames are matched, after moving them by their last motion."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, MissingDependencyError
from ...instances import Instances
from ..sources.base import DEFAULT_FPS

_GRID_PX = 4  # masks are compared on every fourth pixel of every fourth row
_MIN_IOU = 0.15  # of the masks of one object in two frames
_MAX_DISTANCE = 0.6  # alternative to the IoU: distance of the centroids, divided by the objects' size
_MAX_DISTANCE_PER_S = 1.5  # growth of this limit for each second that the object was lost
_MAX_AREA_RATIO = 3.0  # between two masks that are matched by distance alone
_TINY_PX = 6 * _GRID_PX**2  # an area below this, such as the first strip of an entering object, means nothing
_MIN_IOU_OTHER_CLASS = 0.5  # the predicted class may change if the masks agree well
# a mask inside the expected box of a partly occluded object, grown by these margins, is a part of it
_PART_MARGIN, _PART_MARGIN_PX = 0.15, 4
_MIN_COVERED = 0.5  # share of the last mask that a grown mask covers, as when an object enters the frame
_PART_COST = 0.75  # maximum cost of a part or a grown mask, where others cost 1 - IoU
_MIN_COMPLETE = 0.85  # share of the usual area; below it, a mask is partly occluded, so its motion is unknown
_VELOCITY_RATE = 0.35  # weight of a new velocity per frame
# weight of a new area: entering objects grow quickly, and occluded objects do not become smaller
_GROWTH_RATE, _SHRINK_RATE = 0.3, 0.05
_TIE = 1e-6  # added to the sum of the newest class
_FORBIDDEN = 1e6  # cost of a pair that must not be matched

_TRACK = np.dtype(
    [
        ("id", np.int32),  # 0 before min_hits
        ("class_id", np.int32),  # of the last detection
        ("hits", np.int32),
        ("usual_area", np.float64),  # pixels
        ("last_hit_s", np.float64),
        ("complete_s", np.float64),  # time of the last complete detection, from which come:
        ("center_xy", np.float64, 2),  # pixels
        ("half_wh", np.float64, 2),  # half the width and height of the box
        ("velocity", np.float64, 2),  # xy, pixels per second
    ]
)

Floats = NDArray[np.float64]


class Tracker:
    """Assign persistent track IDs: ``tracker(instances)`` returns the instances with ``track_id``.

    An object that is occluded, or missed by the network, keeps its ID if it is found again within ``keep_s``
    near its predicted position. IDs count up from 1 and are never reused. The class of an object is the one
    with the largest sum of scores since the object was first detected, so that it does not flicker.

    Args:
        keep_s: seconds for which a lost track is kept, at least 0.
        min_hits: number of frames in which an object must be detected before it is reported, at least 1.
            1 reports every detection; 3 drops most false detections, which last a frame or two.

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
        are_numbers = isinstance(keep_s, Real) and isinstance(min_hits, Integral)
        if not are_numbers or not keep_s >= 0 or min_hits < 1:
            raise InputError(
                f"keep_s must be at least 0, and min_hits an integer, at least 1; got {keep_s!r} and "
                f"{min_hits!r}"
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
        self._clock: tuple[bool, float] | None = None  # whether it is media time; its last value in seconds
        self._reset()

    def _reset(self) -> None:
        self._tracks = np.zeros(0, _TRACK)
        self._classes = np.zeros(0, np.int32)  # columns of:
        self._class_scores = np.zeros((0, 0), np.float32)  # sum of the scores of each track and class
        self._cells = np.zeros((3, 0), np.int32)  # track row, y, x of the grid cells of complete detections

    def __call__(self, instances: Instances) -> Instances:
        """Match the instances of the next frame with the tracks.

        Args:
            instances: the instances of a frame. Frames must come in order. A new frame size removes all
                tracks; IDs continue.

        Returns:
            The instances that were detected at least ``min_hits`` times, with ``track_id``, int32 (n,), and
            the classes of their tracks. ``semantic_map`` stays as it is.
        """
        if not isinstance(instances, Instances):
            raise InputError(f"a tracker takes the Instances of one frame, got {type(instances).__name__}")
        size_hw = (instances.label_map.shape[0], instances.label_map.shape[1])
        if size_hw != self._size_hw:
            self._size_hw = size_hw
            self._reset()
        self._now += self._seconds_since_last(instances)
        grid = np.ascontiguousarray(instances.label_map[_GRID_PX // 2 :: _GRID_PX, _GRID_PX // 2 :: _GRID_PX])
        row_of = self._match(instances, grid)
        new = row_of < 0
        row_of[new] = np.arange(len(self._tracks), len(self._tracks) + new.sum())
        self._update(instances, row_of, grid)
        track_id, class_id = self._count_hits(row_of), self._vote(instances, row_of)
        self._remove_expired()
        return replace(instances, track_id=track_id, class_id=class_id).select(track_id > 0)

    def _seconds_since_last(self, instances: Instances) -> float:
        """Return the media time, or else the capture time, since the last frame.

        If the clock does not advance, the default frame rate is assumed. Otherwise lost tracks would never
        expire.
        """
        media_time_s = instances.media_time_s
        last = self._clock
        capture_s = instances.capture_time_ns / 1e9
        self._clock = (False, capture_s) if media_time_s is None else (True, media_time_s)
        if last is None:
            return 0.0
        passed = self._clock[1] - last[1]
        return passed if self._clock[0] == last[0] and passed > 0 else 1 / DEFAULT_FPS

    def _count_hits(self, row_of: NDArray[np.intp]) -> NDArray[np.int32]:
        """Add a hit to the tracks in these rows and return their IDs, 0 below ``min_hits``."""
        tracks = self._tracks
        tracks["hits"][row_of] += 1
        due = row_of[(tracks["hits"][row_of] >= self.min_hits) & (tracks["id"][row_of] == 0)]
        tracks["id"][due] = np.arange(self._next_id, self._next_id + len(due))
        self._next_id += len(due)
        ids: NDArray[np.int32] = tracks["id"][row_of]
        return ids

    def _vote(self, instances: Instances, row_of: NDArray[np.intp]) -> NDArray[np.int32]:
        """Add the scores to the tracks in these rows and return the class with the largest sum."""
        if not len(row_of):
            return instances.class_id
        new = np.setdiff1d(instances.class_id, self._classes)
        self._classes = np.concatenate([self._classes, new])
        self._class_scores = np.pad(self._class_scores, ((0, 0), (0, len(new))))
        column = np.argmax(self._classes[None] == instances.class_id[:, None], axis=1)
        self._class_scores[row_of, column] += np.nan_to_num(instances.score)
        sums = self._class_scores[row_of]
        sums[np.arange(len(row_of)), column] += _TIE  # the newest class wins if all sums are equal
        best: NDArray[np.int32] = self._classes[sums.argmax(1)]
        return best

    def _match(self, instances: Instances, grid: NDArray[np.int32]) -> NDArray[np.intp]:
        """Return the track row of each instance, -1 if new: first from the last frame's tracks, then lost."""
        n, m = len(instances), len(self._tracks)
        row_of = np.full(n, -1, np.intp)
        if not n or not m:
            return row_of
        tracks = self._tracks
        moved = tracks["velocity"] * (self._now - tracks["complete_s"])[:, None]
        lost = tracks["last_hit_s"] < tracks["last_hit_s"].max()
        iou, covered = self._overlap(grid, n, moved)
        size = np.sqrt(tracks["usual_area"])[:, None] + np.sqrt(instances.area)[None]
        offset = np.abs((tracks["center_xy"] + moved)[:, None] - instances.centroid_xy[None])
        distance = np.linalg.norm(offset, axis=2) / (0.5 * size)
        lost_s = (self._now - tracks["last_hit_s"])[:, None]
        area_ratio = np.maximum(instances.area[None], 1) / tracks["usual_area"][:, None]
        is_similar = (area_ratio < _MAX_AREA_RATIO) & (area_ratio > 1 / _MAX_AREA_RATIO)
        is_similar |= (tracks["usual_area"] < _TINY_PX)[:, None]
        is_near = (distance < _MAX_DISTANCE + _MAX_DISTANCE_PER_S * lost_s) & is_similar
        margin = (1 + _PART_MARGIN) * tracks["half_wh"][:, None] + _PART_MARGIN_PX
        is_part = (area_ratio < _MIN_COMPLETE) & (offset < margin).all(2)
        is_grown = (covered > _MIN_COVERED) & ~lost[:, None]
        same_class = tracks["class_id"][:, None] == instances.class_id[None]
        allowed = np.where(
            same_class, (iou > _MIN_IOU) | is_near | is_part | is_grown, iou > _MIN_IOU_OTHER_CLASS
        )
        mask_cost = np.minimum(1 - iou, np.where(is_part | is_grown, _PART_COST, 1))
        cost = np.where(allowed, mask_cost + 0.5 * np.minimum(distance, 2), _FORBIDDEN)
        for rows in (np.flatnonzero(~lost), np.flatnonzero(lost)):
            free = np.flatnonzero(row_of < 0)
            costs = cost[np.ix_(rows, free)]
            for i, j in zip(*self._assign(costs), strict=True):
                if costs[i, j] < _FORBIDDEN:
                    row_of[free[j]] = rows[i]
        return row_of

    def _overlap(self, grid: NDArray[np.int32], n: int, moved: Floats) -> tuple[Floats, Floats]:
        """Return the IoU of each moved track mask with each instance, and the covered share of the mask.

        Args:
            grid: label map at every fourth pixel.
            n: number of instances.
            moved: (m, 2), motion of each track in pixels, xy.

        Returns:
            Two arrays (m, n), 0..1.
        """
        m = len(self._tracks)
        track, ys, xs = self._cells
        shift = np.rint(moved / _GRID_PX).astype(np.int32)
        ys, xs = ys + shift[track, 1], xs + shift[track, 0]
        inside = (ys >= 0) & (ys < grid.shape[0]) & (xs >= 0) & (xs < grid.shape[1])
        track, label = track[inside], grid[ys[inside], xs[inside]]
        both = np.bincount(track.astype(np.int64) * (n + 1) + label, minlength=m * (n + 1)).reshape(m, n + 1)
        area = both.sum(1)[:, None]
        union = area + np.bincount(grid.ravel(), minlength=n + 1)[None, 1:] - both[:, 1:]
        return both[:, 1:] / np.maximum(union, 1), both[:, 1:] / np.maximum(area, 1)

    def _update(self, instances: Instances, row_of: NDArray[np.intp], grid: NDArray[np.int32]) -> None:
        """Update the tracks in these rows with their instances, and add new tracks."""
        known = row_of < len(self._tracks)
        self._add(instances, np.flatnonzero(~known))
        tracks = self._tracks
        rows, area = row_of[known], instances.area[known]
        passed_s = np.maximum(self._now - tracks["complete_s"][rows], 1e-3)
        is_complete = area > _MIN_COMPLETE * tracks["usual_area"][rows]
        # only complete detections give a velocity: an occluded object may stop or turn
        centroid = instances.centroid_xy[known].astype(np.float64)
        velocity = (centroid - tracks["center_xy"][rows]) / passed_s[:, None]
        rate = np.where(is_complete, 1 - (1 - _VELOCITY_RATE) ** np.maximum(passed_s * DEFAULT_FPS, 1), 0)
        tracks["velocity"][rows] += rate[:, None] * (velocity - tracks["velocity"][rows])
        change = area - tracks["usual_area"][rows]
        tracks["usual_area"][rows] += np.where(change > 0, _GROWTH_RATE, _SHRINK_RATE) * change
        tracks["class_id"][rows] = instances.class_id[known]
        tracks["last_hit_s"][row_of] = self._now
        complete = np.ones(len(row_of), bool)
        complete[known] = is_complete
        tracks["center_xy"][row_of[complete]] = instances.centroid_xy[complete]
        box = instances.box_xyxy[complete]
        tracks["half_wh"][row_of[complete]] = (box[:, 2:] - box[:, :2]) / 2
        tracks["complete_s"][row_of[complete]] = self._now
        replaced = np.zeros(len(tracks), bool)
        replaced[row_of[complete]] = True
        kept = self._cells[:, ~replaced[self._cells[0]]]
        row_of_label = np.concatenate([[-1], np.where(complete, row_of, -1)])
        track = row_of_label[grid]
        ys, xs = np.nonzero(track >= 0)
        self._cells = np.concatenate([kept, np.stack([track[ys, xs], ys, xs]).astype(np.int32)], axis=1)

    def _add(self, instances: Instances, new: NDArray[np.intp]) -> None:
        tracks = np.zeros(len(new), _TRACK)
        tracks["class_id"], tracks["usual_area"] = instances.class_id[new], instances.area[new]
        self._tracks = np.concatenate([self._tracks, tracks])
        self._class_scores = np.pad(self._class_scores, ((0, len(new)), (0, 0)))

    def _remove_expired(self) -> None:
        keep = self._now - self._tracks["last_hit_s"] <= self.keep_s
        if keep.all():
            return
        self._tracks, self._class_scores = self._tracks[keep], self._class_scores[keep]
        row = np.where(keep, np.cumsum(keep) - 1, -1)
        track = row[self._cells[0]]
        self._cells = np.concatenate([track[None], self._cells[1:]])[:, track >= 0].astype(np.int32)
