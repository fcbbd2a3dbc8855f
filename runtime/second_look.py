"""A second look at pieces that the network sees crossed by a boundary where shape has no neck, as people arm in arm. What the boundary
leaves of a piece is clustered anew, by a rule of its own (the *part rule*). Components without any neck are never looked at for it: of 365
in two evaluation sets (pennfudan, coco) it would have cut one, wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..plugins.operator import SHARPEN, cluster
from .instance_session import InstanceMaps
from .pieces import Label, nearest_label
from .views import VIEW_PX

_BOUNDARY = 0.5  # probability above which a cell parts
_LEAST_SHARE = 0.2  # of its piece: smaller parts are no objects
_LEAST_CELLS = 64  # that boundaries leave of a piece
_CROSSED_CELLS = 8  # of it that lie on them


@dataclass(frozen=True)
class _Crossed:
    """A piece that boundaries cross: ``piece``, a number in the labels of view ``view``; ``inside`` uint8 (S, S) 0/1, what they leave."""

    view: int
    piece: int
    inside: NDArray[np.uint8]


def uncrossed(boundary: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Where there is no boundary, uint8 (S, S) 0/1, by its probability float32 (S / 2, S / 2)."""
    return (cv2.resize(boundary, (VIEW_PX, VIEW_PX), interpolation=cv2.INTER_LINEAR) <= _BOUNDARY).astype(np.uint8)


def _crossed(labels: Sequence[Label], boundary: NDArray[np.float32]) -> list[_Crossed]:
    found = []
    for k, its in enumerate(labels):
        calm = uncrossed(boundary[k])
        area = np.bincount(its.ravel())
        left = np.bincount(its.ravel(), calm.ravel())
        area[0] = 0
        for piece in np.flatnonzero((area - left >= _CROSSED_CELLS) & (left >= _LEAST_CELLS)):
            found.append(_Crossed(k, int(piece), (its == piece) & calm))
    return found


def cut_once(
    masks: NDArray[np.uint8], maps: InstanceMaps, offsets: NDArray[np.int32], rule: NDArray[np.float32] | None, threads: int | None = None
) -> list[Label]:
    """What the operator makes of masks uint8 (K, S, S) 0/1 by what the network says of their views: label maps int32 (S, S)."""
    found = cluster(
        masks,
        affinity=maps.affinity,
        boundary=maps.boundary[:, 0],
        affinity_offsets=offsets,
        merge_rule=rule,
        sharpen=SHARPEN,
        min_area=0,
        threads=threads,
    )
    return [its.label_map for its in found]


def parted_again(
    labels: Sequence[Label], maps: InstanceMaps, offsets: NDArray[np.int32], rule: NDArray[np.float32], threads: int | None = None
) -> list[Label]:
    """Labels int32 (S, S) of each view, with the pieces parted that the part rule parts.

    Args:
        labels: of each view, as the operator cut its component.
        maps: what the network says of these views.
        offsets: of the affinities.
        rule: as the merge rule.
        threads: CPU threads.
    """
    crossed = _crossed(labels, maps.boundary[:, 0])
    views = [c.view for c in crossed]
    inside = np.stack([c.inside for c in crossed]) if crossed else np.zeros((0, VIEW_PX, VIEW_PX), np.uint8)
    shown = InstanceMaps(maps.displacement[views], maps.affinity[views], maps.boundary[views])
    parted = [its.copy() for its in labels]
    for c, parts in zip(crossed, cut_once(inside, shown, offsets, rule, threads), strict=True):
        _part(parted[c.view], c.piece, parts)
    return parted


def _part(labels: Label, piece: int, parts: Label) -> None:
    """Give the parts of a piece numbers of their own, but for the largest; what is smaller than a fifth goes to the nearest part."""
    its = labels == piece
    area = np.bincount(parts.ravel())
    area[0] = 0
    kept = np.flatnonzero(area >= _LEAST_SHARE * its.sum())
    if len(kept) < 2:
        return
    part_of, _ = nearest_label(np.where(np.isin(parts, kept), parts, 0))
    for part in kept[kept != kept[area[kept].argmax()]]:
        labels[its & (part_of == part)] = labels.max() + 1
