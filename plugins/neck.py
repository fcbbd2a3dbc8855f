"""Features of region pairs for split and merge rules, in NumPy.

They equal those of csrc/merge.h: the same operations on float64, in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEATURES = (
    "neck / lower peak",
    "log2 area ratio",
    "neck / side of small",
    "neck / side of large",
    "compactness of small",
    "compactness of large",
    "compactness of both",
    "peak of small / large",
    "peak of small / its side",
    "peak of large / its side",
    "centre distance / sides",
    "contact / side of small",
    "log2 area of small",
)
EVIDENCE_FEATURES = (*FEATURES, "mean affinity", "log2 affinity pairs", "mean boundary", "touch")
FIXED_POINT = 65535.0
# columns of a region row: area, sum x, sum y, sum xx, sum xy, sum yy, peak (squared distance), class
PEAK, CLASS = 6, 7

Regions = NDArray[np.int64]
Edges = NDArray[np.int64]


def coarse_log2(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log2, linear between powers of two, because libraries' logarithms differ in the last bit."""
    mantissa, exponent = np.frexp(x)
    return (exponent - 1).astype(np.float64) + (mantissa * 2.0 - 1.0)


def compactness(regions: Regions) -> NDArray[np.float64]:
    """Return area over the area of the ellipse with the same second moments, (n,).

    It is 1 for an ellipse and lower for hollow or bent regions.
    """
    n, sx, sy, sxx, sxy, syy = (regions[:, k].astype(np.float64) for k in range(6))
    mx, my = sx / n, sy / n
    cxx = (sxx / n - mx * mx) + 1.0 / 12.0
    cyy = (syy / n - my * my) + 1.0 / 12.0
    cxy = sxy / n - mx * my
    det = cxx * cyy - cxy * cxy
    return np.where(det > 0, n / (12.566370614359172 * np.sqrt(np.where(det > 0, det, 1.0))), 1.0)


def union(a: Regions, b: Regions) -> Regions:
    """Return the rows of the unions of pairs of regions."""
    both = a + b
    both[:, PEAK] = np.maximum(a[:, PEAK], b[:, PEAK])
    both[:, CLASS] = a[:, CLASS]
    return both


def neck_features(regions: Regions, edges: Edges) -> NDArray[np.float64]:
    """Return the split rule's features of each edge (a, b, saddle, contact): (m, 13), see ``FEATURES``."""
    a, b = regions[edges[:, 0]], regions[edges[:, 1]]
    a_small = (a[:, 0] <= b[:, 0])[:, None]
    small, large = np.where(a_small, a, b), np.where(a_small, b, a)
    neck = np.sqrt(edges[:, 2].astype(np.float64))
    # a peak is below 1 only if a given displacement replaces distances
    peak_small, peak_large = (np.sqrt(np.maximum(r[:, PEAK], 1).astype(np.float64)) for r in (small, large))
    side_small, side_large = np.sqrt(small[:, 0].astype(np.float64)), np.sqrt(large[:, 0].astype(np.float64))
    dx = small[:, 1] / small[:, 0] - large[:, 1] / large[:, 0]
    dy = small[:, 2] / small[:, 0] - large[:, 2] / large[:, 0]
    return np.stack(
        [
            neck / np.minimum(peak_small, peak_large),
            coarse_log2(small[:, 0] / large[:, 0]),
            neck / side_small,
            neck / side_large,
            compactness(small),
            compactness(large),
            compactness(union(small, large)),
            peak_small / peak_large,
            peak_small / side_small,
            peak_large / side_large,
            np.sqrt(dx * dx + dy * dy) / (side_small + side_large),
            edges[:, 3] / side_small,
            coarse_log2(small[:, 0].astype(np.float64)),
        ],
        axis=1,
    )


def evidence_features(regions: Regions, edges: Edges) -> NDArray[np.float64]:
    """Return a merge rule's features of each edge: (m, 17), see ``EVIDENCE_FEATURES``.

    Edges are (a, b, saddle, contact, boundary sum, affinity sum, affinity count); their regions need not
    touch.
    """
    contact, boundary, affinity, pairs = (edges[:, k].astype(np.float64) for k in (3, 4, 5, 6))
    return np.concatenate(
        [
            neck_features(regions, edges),
            np.stack(
                [
                    np.where(pairs > 0, affinity / (np.maximum(pairs, 1) * FIXED_POINT), 0.5),
                    coarse_log2(1.0 + pairs),
                    np.where(contact > 0, boundary / (np.maximum(contact, 1) * FIXED_POINT), 0.5),
                    (contact > 0).astype(np.float64),
                ],
                axis=1,
            ),
        ],
        axis=1,
    )
