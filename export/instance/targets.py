"""Targets and losses of instance networks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...plugins.settings import AFFINITY_OFFSETS
from .network import DISPLACEMENT_UNIT_PX, STRIDE

UNKNOWN = 255
_DIFFERENT_WEIGHT = 4.0  # pairs on different objects are rare
_BOUNDARY_WEIGHT = 4.0
_DISPLACEMENT_WEIGHT = 2.0
_MIN_SIZE_PX = 8.0


@dataclass(frozen=True)
class Targets:
    """Targets of a composite on a grid of q = S / 4 cells per side.

    Attributes:
        displacement: float32 (2, q, q), (dy, dx) to the object's center in units of 32 px.
        weight: float32 (q, q), 32 px over the object's size; 0 = no object.
        affinity: uint8 (A, q, q): 0, 1, 255 = unknown.
        boundary: uint8 (S / 2, S / 2): 0, 1, 255 = unknown.
    """

    displacement: NDArray[np.float32]
    weight: NDArray[np.float32]
    affinity: NDArray[np.uint8]
    boundary: NDArray[np.uint8]


def instance_targets(owner: NDArray[np.int32]) -> Targets:
    """Compute the targets of a composite.

    Args:
        owner: int32 (H, W), multiples of 4, the object of each pixel: 1.., 0 = outside of the mask, -1 =
            unknown.

    Returns:
        The targets.
    """
    cells = owner[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    rows, columns = cells.shape
    at_y, at_x = (np.arange(n, dtype=np.float32) * STRIDE + STRIDE / 2 for n in cells.shape)
    displacement, weight = np.zeros((2, rows, columns), np.float32), np.zeros(cells.shape, np.float32)
    for k in np.unique(cells[cells > 0]):
        inside = cells == k
        x, y, w, h = cv2.boundingRect((owner == k).astype(np.uint8))
        ys, xs = np.nonzero(owner[y : y + h, x : x + w] == k)
        to_center = y + ys.mean() - at_y[:, None], x + xs.mean() - at_x[None]
        for axis, distance in enumerate(to_center):
            displacement[axis][inside] = np.broadcast_to(distance, cells.shape)[inside] / DISPLACEMENT_UNIT_PX
        weight[inside] = DISPLACEMENT_UNIT_PX / max(float(np.sqrt(w * h)), _MIN_SIZE_PX)
    affinity = np.full((len(AFFINITY_OFFSETS), rows, columns), UNKNOWN, np.uint8)
    for k, (dy, dx) in enumerate(AFFINITY_OFFSETS):
        if dy >= rows or abs(dx) >= columns:
            continue
        here = (slice(0, rows - dy), slice(max(0, -dx), columns - max(0, dx)))
        there = (slice(dy, rows), slice(max(0, dx), columns - max(0, -dx)))
        a, b = cells[here], cells[there]
        affinity[k][here] = np.where((a > 0) & (b > 0), a == b, UNKNOWN)
    return Targets(displacement, weight, affinity, _boundary_targets(owner))


def _boundary_targets(owner: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return 1 where two objects are within two pixels, 255 outside of the mask; stride 2."""
    inside = owner > 0
    numbers = owner.astype(np.float32)
    kernel = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(np.where(inside, numbers, 0), kernel)
    lowest = cv2.erode(np.where(inside, numbers, 1e6), kernel)
    between = inside & (highest != lowest)
    h, w = (s // 2 for s in owner.shape)
    blocks = (h, 2, w, 2)
    return np.where(inside.reshape(blocks).any((1, 3)), between.reshape(blocks).any((1, 3)), UNKNOWN).astype(
        np.uint8
    )


def count_correct_pairs(logits: Tensor, same: Tensor) -> NDArray[np.float64]:
    """Count correctly predicted pairs.

    Args:
        logits: affinities (N, A, q, q).
        same: ``Targets.affinity`` of the same shape.

    Returns:
        Correct and all pairs, as rows, of different objects and of one object, as columns: float64 (2, 2).
    """
    counts = [(((logits > 0) == bool(k))[same == k].sum().item(), (same == k).sum().item()) for k in (0, 1)]
    return np.array(counts, np.float64).T


LOSSES = ("displacement", "affinity", "boundary")


def instance_losses(
    outputs: tuple[Tensor, Tensor, Tensor], targets: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses: smooth L1 of displacement relative to the object's size, and balanced cross-entropy.

    Args:
        outputs: displacement, affinity and boundary of the network.
        targets: the fields of ``Targets``.

    Returns:
        Losses of displacement, affinity and boundary.
    """
    displacement, affinity, boundary = outputs
    true_displacement, weight, same, edge = targets
    error = F.smooth_l1_loss(displacement, true_displacement, reduction="none", beta=0.1) * weight[:, None]
    vector = error.sum() / (weight > 0).sum().clamp(min=1)
    return (
        _DISPLACEMENT_WEIGHT * vector,
        _cross_entropy(affinity, same, 1.0, _DIFFERENT_WEIGHT),
        _cross_entropy(boundary[:, 0], edge, _BOUNDARY_WEIGHT, 1.0),
    )


def _cross_entropy(logits: Tensor, values: Tensor, weight_of_1: float, weight_of_0: float) -> Tensor:
    target = (values == 1).float()
    weight = torch.where(target > 0, weight_of_1, weight_of_0) * (values != UNKNOWN)
    return (
        F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    ).sum() / weight.sum().clamp(min=1)
