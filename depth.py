"""Distances and 3-D points of masks in a depth map."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arrays import as_numpy, describe_array
from .errors import InputError

NOISE_SHARE = 0.01  # share of a mask's nearest pixels that are ignored: sensors have outliers at edges
# quantiles of the depth that limit the centroid, without outliers and background at the outline
_TRIM_QUANTILES: tuple[tuple[float, Literal["lower", "higher"]], ...] = ((0.1, "lower"), (0.9, "higher"))
_MM_PER_M = 1000.0
# depth sensors reach less than this, and in millimeters it is 0.2 m. Every eighth pixel and row is checked.
_MAX_PLAUSIBLE_M, _CHECK_STEP = 200.0, 8
_MATRIX_TOLERANCE = 1e-3  # pixels; a principal point or focal length in a wrong place is much larger


def depth_in_meters(depth_map: Any, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return a depth map as float32 (H, W) in meters; 0 = no measurement.

    Args:
        depth_map: floats (H, W) in meters, or uint16 (H, W) in millimeters. 0, negative values, NaN and
            infinity mean no measurement.
        size_hw: (H, W) of the frame in pixels.

    Raises:
        InputError: the dtype or the size is wrong.
    """
    depth = as_numpy(depth_map, "depth_map")
    if depth.shape != size_hw or not (depth.dtype == np.uint16 or np.issubdtype(depth.dtype, np.floating)):
        raise InputError(
            f"depth_map must be floats {size_hw} in meters or uint16 {size_hw} in millimeters, got "
            f"{describe_array(depth)}: register the depth to the color camera first"
        )
    if depth.dtype == np.uint16:
        return np.asarray(depth / np.float32(_MM_PER_M), np.float32)
    meters = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    _warn_of_millimeters(meters)
    return meters


def _warn_of_millimeters(meters: NDArray[np.float32]) -> None:
    some = meters[::_CHECK_STEP, ::_CHECK_STEP]
    some = some[some > 0]
    median = np.median(some) if some.size else 0
    if median > _MAX_PLAUSIBLE_M:
        warnings.warn(
            f"depth_map has a median of {median:.0f} m, which looks like millimeters: divide floats by 1000, "
            "or pass uint16",
            stacklevel=4,
        )


def check_intrinsics(intrinsics: Any) -> tuple[float, float, float, float]:
    """Return (fx, fy, cx, cy) in pixels of four numbers or a camera matrix (3, 3); raises InputError."""
    values = as_numpy(intrinsics, "intrinsics")
    if values.shape == (3, 3) and np.issubdtype(values.dtype, np.number):
        # matrices that were computed, for example by inversion, are not exact
        if not np.allclose(values[[1, 2, 2, 2], [0, 0, 1, 2]], (0, 0, 0, 1), atol=_MATRIX_TOLERANCE):
            raise InputError(
                "intrinsics as a camera matrix must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]], got "
                f"{values.tolist()}: it may be transposed"
            )
        values = values[[0, 1, 0, 1], [0, 1, 2, 2]]
    is_valid = values.shape == (4,) and np.issubdtype(values.dtype, np.number) and np.isfinite(values).all()
    if not is_valid or min(values[:2]) <= 0:
        raise InputError(
            f"intrinsics must be (fx, fy, cx, cy) in pixels or a camera matrix (3, 3), got {intrinsics!r}"
        )
    fx, fy, cx, cy = (float(v) for v in values)
    return fx, fy, cx, cy


def measure_depths(
    depth: NDArray[np.float32],
    crops: Iterable[tuple[NDArray[np.bool_], tuple[int, int]]],
    intrinsics: tuple[float, float, float, float] | None,
) -> dict[str, Any]:
    """Measure masks in a depth map.

    Args:
        depth: float32 (H, W) in meters, 0 = no measurement.
        crops: mask of each instance inside its box, bool (h, w), and the box's upper left corner xy.
        intrinsics: (fx, fy, cx, cy) in pixels; None for distances only.

    Returns:
        Columns of ``Instances``: ``distance_m`` float32 (n,); with intrinsics ``centroid_xyz_m`` and
        ``nearest_xyz_m`` float32 (n, 3). NaN if a mask has no measurement.
    """
    rows = [_measure_mask(depth, crop, corner_xy, intrinsics) for crop, corner_xy in crops]
    values = np.array(rows, np.float32).reshape(len(rows), 7)
    columns = {"distance_m": values[:, 0].copy()}
    if intrinsics is not None:
        columns |= {"centroid_xyz_m": values[:, 1:4].copy(), "nearest_xyz_m": values[:, 4:].copy()}
    return columns


def _measure_mask(
    depth: NDArray[np.float32],
    crop: NDArray[np.bool_],
    corner_xy: tuple[int, int],
    intrinsics: tuple[float, float, float, float] | None,
) -> list[float]:
    """Return distance, centroid xyz and nearest point xyz of one mask."""
    x0, y0 = corner_xy
    inside = depth[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
    ys, xs = np.nonzero(crop & (inside > 0))
    if not len(ys):
        return [np.nan] * 7
    z = inside[ys, xs]
    distance = float(np.median(z))
    if intrinsics is None:
        return [distance, *[np.nan] * 6]
    fx, fy, cx, cy = intrinsics
    points = np.stack([(xs + x0 - cx) * z / fx, (ys + y0 - cy) * z / fy, z], axis=1)
    low, high = (
        np.quantile(z, share, method=side)  # depths of pixels, so that the range is never empty
        for share, side in _TRIM_QUANTILES
    )
    centroid = points[(z >= low) & (z <= high)].mean(axis=0)
    ranges = np.linalg.norm(points, axis=1)
    nearest = points[np.argpartition(ranges, k := int(NOISE_SHARE * len(ranges)))[k]]
    return [distance, *centroid.tolist(), *nearest.tolist()]
