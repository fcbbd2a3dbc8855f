"""Cuts that lie where the network sees the boundary: TFISeg's last step, semantic-aware propagation, with few local iterations.

A cut between two pieces runs along a ridge of the mask's shape. Around it labels are let go and spread again from both sides, step by
step, slower where the boundary is likely; where the two fronts meet is the new cut.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_BAND = 6  # cells on both sides of a cut that are told anew
_STEPS = 2 * _BAND
_BOUNDARY_COST = 10  # crossing a sure boundary takes as long as so many further cells
_FAR = 1 << 30

Label = NDArray[np.int32]


def sharpened(labels: Label, boundary: NDArray[np.float32]) -> Label:
    """Labels int32 (h, w), 0 = none, with their cuts moved onto the boundary, float32 (h, w) in [0, 1]. What is no cut stays."""
    h, w = labels.shape
    given = np.pad(labels, 1).ravel()
    width = w + 2
    sides = (-width, -1, 1, width)
    inside = np.flatnonzero(given)
    cut = np.zeros(given.shape, np.uint8)
    for side in sides:
        other = given[inside + side]
        cut[inside[(other > 0) & (other != given[inside])]] = 1
    if not cut.any():
        return labels
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _BAND + 1, 2 * _BAND + 1))
    band = inside[cv2.dilate(cut.reshape(h + 2, width), kernel).ravel()[inside] > 0]
    left = np.bincount(given[inside]) - np.bincount(given[band], minlength=int(given.max()) + 1)
    band = band[left[given[band]] > 0]  # a piece that is nothing but band stays as it is
    label, distance = given.copy(), np.where(given > 0, 0, _FAR)
    label[band], distance[band] = 0, _FAR
    cost = 1 + np.rint(np.pad(boundary, 1).ravel()[band] * _BOUNDARY_COST).astype(np.int64)
    for _ in range(_STEPS):
        best, winner = distance[band], label[band]
        for side in sides:
            there, its = distance[band + side] + cost, label[band + side]
            nearer = (there < best) | ((there == best) & (its < winner))
            best, winner = np.where(nearer, there, best), np.where(nearer, its, winner)
        distance[band], label[band] = best, winner
    unreached = band[label[band] == 0]
    label[unreached] = given[unreached]
    return np.asarray(label.reshape(h + 2, width)[1:-1, 1:-1], np.int32)
