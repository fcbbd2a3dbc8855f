"""The clustering operator in NumPy: from classes to basins, the regions before any merge. See reference.py.

The steps are an exact Euclidean distance transform inside each class, steepest ascent on it (or a given
displacement field, TFISeg sec. 3), and merging of maxima with low persistence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FAR_SQUARED = 1 << 26  # the distance if no pixel has another class
FORWARD = ((0, 1), (1, -1), (1, 0), (1, 1))
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def squared_distance(cls: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the squared distance of each countable pixel to the nearest pixel of another class, (h, w).

    The image border does not count as another class.
    """
    out = np.zeros(cls.shape, np.int64)
    far = sum(cls.shape)
    for class_id in np.unique(cls[cls > 0]):
        around = _with_margin(cls == class_id)  # other pixels further out are never the nearest ones
        inside = cls[around] == class_id
        h, w = inside.shape
        column = np.full((h, w), far, np.int32)
        for y in range(h):  # nearest other pixel above
            column[y] = np.where(inside[y], column[y - 1] + 1 if y else far, 0)
        for y in range(h - 2, -1, -1):  # and below
            column[y] = np.minimum(column[y], column[y + 1] + 1)
        squares = np.where(column >= far, np.int32(FAR_SQUARED), column * column)
        best = squares.copy()
        for k in range(1, w):
            if k * k >= best.max():
                break
            best[:, k:] = np.minimum(best[:, k:], squares[:, :-k] + k * k)
            best[:, :-k] = np.minimum(best[:, :-k], squares[:, k:] + k * k)
        out[around][inside] = np.minimum(best, FAR_SQUARED)[inside]
    return out


def _with_margin(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the box of the set pixels of a mask (h, w), one pixel larger on each side that has one."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(max(0, y[0] - 1), y[-1] + 2), slice(max(0, x[0] - 1), x[-1] + 2)


def ascent_links(cls: NDArray[np.uint8], squared: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the flat index of the 3 x 3 neighbor of the same class with the largest distance, (h, w).

    Ties go to the smallest index.
    """
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    best, link = np.full((h, w), -1, np.int64), index.copy()
    for dy, dx in _AROUND:  # in raster order, so that ties go to the smallest index
        here, there = neighbor_slices(h, w, dy, dx)
        higher = (cls[there] == cls[here]) & (squared[there] > best[here]) & (cls[here] > 0)
        best[here] = np.where(higher, squared[there], best[here])
        link[here] = np.where(higher, index[there], link[here])
    return link


def neighbor_slices(h: int, w: int, dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return slices of the pixels that have a neighbor at (dy, dx), and of these neighbors."""
    here = (slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx)))
    there = (slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx)))
    return here, there


def follow(link: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the end of each pixel's links, by pointer jumping: log2(longest path) gathers."""
    flat = link.ravel()
    while not np.array_equal(flat, flat[flat]):
        flat = flat[flat]
    return flat.reshape(link.shape)


class _Forest:
    """Union-find over pixels."""

    def __init__(self, link: NDArray[np.int64]) -> None:
        self.link: list[int] = link.ravel().tolist()  # single elements of a list are faster than an array's
        self.shape = link.shape

    def find(self, i: int) -> int:
        link = self.link
        while link[i] != i:
            link[i] = link[link[i]]
            i = link[i]
        return i

    def roots(self) -> NDArray[np.int64]:
        return follow(np.array(self.link, np.int64).reshape(self.shape))


def is_noise(saddle: int, peak: int) -> bool:
    """Return whether sqrt(peak) - sqrt(saddle) < 1, in integers: then rasterization causes the maximum."""
    rise = peak - saddle - 1
    return rise < 0 or rise * rise < 4 * saddle


def contacts(cls: NDArray[np.uint8], label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs (i, j) of 8-neighbors of one class with different labels.

    The order is by raster position of i, then by direction E, SW, S, SE.
    """
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    pairs = []
    for d, (dy, dx) in enumerate(FORWARD):
        here, there = neighbor_slices(h, w, dy, dx)
        touch = (cls[here] > 0) & (cls[here] == cls[there]) & (label[here] != label[there])
        i = index[here][touch]
        pairs.append(np.stack([i * 4 + d, i, index[there][touch]]))
    every = np.concatenate(pairs, axis=1)
    every = every[:, np.argsort(every[0], kind="stable")]
    return every[1], every[2]


def geometric_basins(
    cls: NDArray[np.uint8], squared: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Merge noise; return each pixel's basin (flat index of its maximum) and the open contacts (i, j)."""
    maximum = follow(ascent_links(cls, squared))
    i, j = contacts(cls, maximum)
    height = squared.ravel()
    saddle = np.minimum(height[i], height[j])
    order = np.argsort(-saddle, kind="stable")
    forest = _Forest(maximum)
    open_pairs = []
    for k, pixel, other, low in zip(
        *(v.tolist() for v in (order, i[order], j[order], saddle[order])), strict=True
    ):
        a, b = forest.find(pixel), forest.find(other)
        if a == b:
            continue
        if (height[a], -a) < (height[b], -b):
            a, b = b, a
        if is_noise(low, int(height[b])):
            forest.link[b] = a
        else:
            open_pairs.append(k)
    return forest.roots(), i[open_pairs], j[open_pairs]


def given_basins(
    cls: NDArray[np.uint8], displacement: NDArray[np.float32], center_radius: float
) -> NDArray[np.int64]:
    """Return the basin of each pixel for a given displacement field (2, h, w).

    A pixel and its target share a basin, and neighboring centers share one.
    """
    h, w = cls.shape
    index = np.arange(h * w).reshape(h, w)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    target = index.copy()
    unlinked = cls > 0
    step = displacement.copy()
    for _ in range(4):
        ty, tx = _clamp_round(y + step[0], h), _clamp_round(x + step[1], w)
        reached = unlinked & (cls[ty, tx] == cls)
        target = np.where(reached, ty * w + tx, target)
        unlinked &= ~reached
        step = step * np.float32(0.5)
    square = displacement[0] * displacement[0] + displacement[1] * displacement[1]
    radius = np.float32(center_radius)
    center = (cls > 0) & (square < radius * radius)
    forest = _Forest(index)
    links = [(index.ravel(), target.ravel())]
    for dy, dx in FORWARD:
        here, there = neighbor_slices(h, w, dy, dx)
        touch = center[here] & center[there] & (cls[here] == cls[there])
        links.append((index[here][touch], index[there][touch]))
    for ends_a, ends_b in links:
        for i, j in zip(ends_a[ends_a != ends_b].tolist(), ends_b[ends_a != ends_b].tolist(), strict=True):
            a, b = forest.find(i), forest.find(j)
            forest.link[max(a, b)] = min(a, b)
    return forest.roots()


def _clamp_round(v: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    rounded = v + np.float32(0.5)
    return np.where(rounded > 0, np.minimum(rounded, np.float32(limit - 1)), 0).astype(np.int64)  # NaN: 0
