"""The clustering operator in NumPy: from classes to basins, the regions before any merge. See reference.py.

Steps and sources: exact Euclidean distance transform inside each class region; steepest ascent on it (or a
given displacement field, TFISeg sec. 3); persistence of the summits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FAR_SQUARED = 1 << 26  # no pixel of another class in the picture
FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def squared_distance(cls: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Squared distance of each countable pixel to the nearest pixel of another class, (h, w); the picture's
    border is none."""
    out = np.zeros(cls.shape, np.int64)
    h, w = cls.shape
    far = h + w
    for class_id in np.unique(cls[cls > 0]):
        inside = cls == class_id
        column = np.full((h, w), far, np.int64)
        for y in range(h):  # nearest other pixel above
            column[y] = np.where(inside[y], column[y - 1] + 1 if y else far, 0)
        for y in range(h - 2, -1, -1):  # and below
            column[y] = np.minimum(column[y], column[y + 1] + 1)
        squares = np.where(column >= far, FAR_SQUARED, column * column)
        best = squares.copy()
        for k in range(1, w):
            if k * k >= best.max():
                break
            best[:, k:] = np.minimum(best[:, k:], squares[:, :-k] + k * k)
            best[:, :-k] = np.minimum(best[:, :-k], squares[:, k:] + k * k)
        out[inside] = np.minimum(best, FAR_SQUARED)[inside]
    return out


def ascent_links(cls: NDArray[np.uint8], squared: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flat index of the 3 x 3 neighbour of one's class with the largest distance (ties: smallest index), (h,
    w)."""
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    best, link = np.full((h, w), -1, np.int64), index.copy()
    for dy, dx in _AROUND:  # in raster order, so the first of equals has the smallest index
        here, there = shifted(h, w, dy, dx)
        higher = (cls[there] == cls[here]) & (squared[there] > best[here]) & (cls[here] > 0)
        best[here] = np.where(higher, squared[there], best[here])
        link[here] = np.where(higher, index[there], link[here])
    return link


def shifted(h: int, w: int, dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the pixels that have a neighbour at (dy, dx), and of those neighbours."""
    here = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
    there = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
    return here, there


def follow(link: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each pixel's links end: pointer jumping, log2(longest way) gathers. Same shape as ``link``."""
    flat = link.ravel()
    while not np.array_equal(flat, flat[flat]):
        flat = flat[flat]
    return flat.reshape(link.shape)


class _Forest:
    """Union-find over pixels."""

    def __init__(self, link: NDArray[np.int64]) -> None:
        self.link = link.ravel().copy()

    def find(self, i: int) -> int:
        while self.link[i] != i:
            self.link[i] = self.link[self.link[i]]
            i = int(self.link[i])
        return i


def is_noise(saddle: int, peak: int) -> bool:
    """sqrt(peak) - sqrt(saddle) < 1 in integers: the summit is the raster's, not the shape's."""
    rise = peak - saddle - 1
    return rise < 0 or rise * rise < 4 * saddle


def contacts(cls: NDArray[np.uint8], label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixel pairs (i, j) of one class and different labels among 8-neighbours, in raster order, then by
    direction E, SW, S, SE."""
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    pairs = []
    for d, (dy, dx) in enumerate(FORWARD):
        here, there = shifted(h, w, dy, dx)
        touch = (cls[here] > 0) & (cls[here] == cls[there]) & (label[here] != label[there])
        i = index[here][touch]
        pairs.append(np.stack([i * 4 + d, i, index[there][touch]]))
    every = np.concatenate(pairs, axis=1)
    every = every[:, np.argsort(every[0], kind="stable")]
    return every[1], every[2]


def geometric_basins(
    cls: NDArray[np.uint8], squared: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Basin of each pixel (flat index of its summit) with the raster's noise merged, and the contacts (i, j)
    left open."""
    summit = follow(ascent_links(cls, squared))
    i, j = contacts(cls, summit)
    height = squared.ravel()
    saddle = np.minimum(height[i], height[j])
    order = np.argsort(-saddle, kind="stable")
    forest = _Forest(summit)
    open_pairs = []
    for k in order:
        a, b = forest.find(int(i[k])), forest.find(int(j[k]))
        if a == b:
            continue
        if (height[a], -a) < (height[b], -b):
            a, b = b, a
        if is_noise(int(saddle[k]), int(height[b])):
            forest.link[b] = a
        else:
            open_pairs.append(k)
    return follow(forest.link.reshape(cls.shape)), i[open_pairs], j[open_pairs]


def given_basins(
    cls: NDArray[np.uint8], displacement: NDArray[np.float32], centre_radius: float
) -> NDArray[np.int64]:
    """Basin of each pixel: everything that a given field (2, h, w) leads to one place, and centres that touch
    are one place."""
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    target = index.copy()
    open_way = cls > 0
    step = displacement.copy()
    for _ in range(4):
        ty, tx = _clamp_round(y + step[0], h), _clamp_round(x + step[1], w)
        reached = open_way & (cls[ty, tx] == cls)
        target = np.where(reached, ty * w + tx, target)
        open_way &= ~reached
        step = step * np.float32(0.5)
    square = displacement[0] * displacement[0] + displacement[1] * displacement[1]
    radius = np.float32(centre_radius)
    centre = (cls > 0) & (square < radius * radius)
    forest = _Forest(index)
    links = [(index.ravel(), target.ravel())]
    for dy, dx in FORWARD:
        here, there = shifted(h, w, dy, dx)
        touch = centre[here] & centre[there] & (cls[here] == cls[there])
        links.append((index[here][touch], index[there][touch]))
    for ends_a, ends_b in links:
        for i, j in zip(ends_a[ends_a != ends_b].tolist(), ends_b[ends_a != ends_b].tolist(), strict=True):
            a, b = forest.find(i), forest.find(j)
            forest.link[max(a, b)] = min(a, b)
    return follow(forest.link.reshape(h, w))


def _clamp_round(v: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    rounded = v + np.float32(0.5)
    return np.where(rounded > 0, np.minimum(rounded, np.float32(limit - 1)), 0).astype(np.int64)  # NaN: 0
