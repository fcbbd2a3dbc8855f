"""``tfiseg bench``: measure the clustering operator and its peers in the same run on the same class maps."""

from __future__ import annotations

import importlib.util
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...plugins.native import NativeCall
from ...plugins.operator import cluster
from ...plugins.problem import problem_of
from ...plugins.settings import MIN_AREA_PX
from ..sources.synthetic import SyntheticCamera
from .evaluation_set import load_eval_set

_REPEATS = 7
_FOLLOWING_STEPS = 300  # as in IRNet (CVPR 2019)


def bench_maps(folder: Path | None, side_px: int) -> NDArray[np.uint8]:
    """Return a class map, uint8 (side, side), tiled from an evaluation set or the synthetic source."""
    if folder is not None:
        tiles = [p.semantic for p in load_eval_set(folder)[0]]
    else:
        camera = SyntheticCamera(people=5)
        tiles = [
            f.truth_class_map
            for f in (camera._read(40 * k) for k in range(12))
            if f.truth_class_map is not None
        ]
    out = np.zeros((side_px, side_px), np.uint8)
    y, k = 0, 0
    while y < side_px:
        x, row = 0, 0
        while x < side_px:
            tile = tiles[k % len(tiles)][: side_px - y, : side_px - x]
            out[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            x, row, k = x + tile.shape[1], max(row, tile.shape[0]), k + 1
        y += row
    return out


def center_field(label_map: NDArray[np.int32], noise_px: float = 0.4, seed: int = 0) -> NDArray[np.float32]:
    """Return a displacement field, float32 (2, h, w), that points to each instance's center, with noise."""
    h, w = label_map.shape
    flat = label_map.ravel()
    count = np.maximum(np.bincount(flat), 1)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    cy, cx = (np.bincount(flat, v.ravel()) / count for v in (y, x))
    noise = np.random.default_rng(seed).normal(0, noise_px, (2, h, w)).astype(np.float32)
    return np.stack([cy[label_map] - y, cx[label_map] - x]).astype(np.float32) * (label_map > 0) + noise * (
        label_map > 0
    )


def median_ms(job: Callable[[], Any], repeats: int = _REPEATS) -> float:
    """Return the median time of ``repeats`` runs after a warm-up, in milliseconds."""
    job()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        job()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def _watershed(mask: NDArray[np.uint8]) -> Any:
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    distance = ndimage.distance_transform_edt(mask)
    seeds = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(distance, min_distance=20, labels=mask.astype(np.int32))
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-distance, seeds, mask=mask > 0)


def _follow_steps(field: NDArray[np.float32]) -> Any:
    h, w = field.shape[1:]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    for _ in range(_FOLLOWING_STEPS):
        iy, ix = np.clip(y + 0.5, 0, h - 1).astype(np.int32), np.clip(x + 0.5, 0, w - 1).astype(np.int32)
        y, x = y + field[0, iy, ix], x + field[1, iy, ix]
    return y, x


def bench(
    folder: Path | None = None, side_px: int = 1024, threads: int = 1, peers: bool = True
) -> dict[str, Any]:
    """Measure the operator on a square class map and on larger ones, and its peers on the first.

    Args:
        folder: evaluation set whose class maps are tiled; None for the synthetic source.
        side_px: side of the class map, 64..2048.

    Returns:
        A JSON object: medians in ms per megapixel, ratios to the operator, growth for four times the pixels,
        and bytes per pixel.

    Raises:
        InputError: the side is out of range, or the folder is no evaluation set.
    """
    if side_px < 64 or side_px > 2048:
        raise InputError(f"side must be in 64..2048, got {side_px}")
    small, large = bench_maps(folder, side_px), bench_maps(folder, 2 * side_px)
    megapixels = small.size / 1e6

    def native_ms(class_map: NDArray[np.uint8], field: NDArray[np.float32] | None = None) -> float:
        problem = problem_of(class_map, field, min_area=MIN_AREA_PX)
        call = NativeCall(problem, threads)  # reuses its memory, as embedding programs do
        call.run()
        return statistics.median(call.run().cluster_ms for _ in range(3 * _REPEATS))

    instances = cluster(small, threads=threads)
    field = center_field(instances.label_map)
    geometric_ms = median_ms(lambda: cluster(small, threads=threads))
    field_ms = median_ms(lambda: cluster(small, field, threads=threads))
    native = native_ms(small)
    # larger objects are slow for an algorithm that is not linear in the radius
    zoomed = small.repeat(2, 0).repeat(2, 1)
    report: dict[str, Any] = {
        "side_px": side_px,
        "threads": threads,
        "foreground": round(float((small > 0).mean()), 3),
        "instances": len(instances),
        "geometric_ms_per_mp": round(geometric_ms / megapixels, 2),
        "given_field_ms_per_mp": round(field_ms / megapixels, 2),
        "native_geometric_ms_per_mp": round(native / megapixels, 2),
        "native_given_field_ms_per_mp": round(native_ms(small, field) / megapixels, 2),
        "growth_4x_more_objects": round(native_ms(large) / native, 2),
        "growth_4x_larger_objects": round(native_ms(zoomed) / native, 2),
        "bytes_per_pixel": bytes_per_pixel(large, threads),
        "peers_ms_per_mp": {},
    }
    if peers:
        times, missing = _peer_times(small, field, threads)
        report |= {"peers_ms_per_mp": times} | ({"peers_left_out": missing} if missing else {})
        report["peer_over_ours"] = {
            name: round(ms / report[f"{'given_field' if 'given' in name else 'geometric'}_ms_per_mp"], 2)
            for name, ms in times.items()
        }
    return report


def _peer_times(
    class_map: NDArray[np.uint8], field: NDArray[np.float32], threads: int
) -> tuple[dict[str, float], str | None]:
    """Return the peers' ms per megapixel by name, and why a peer is missing."""
    mask, megapixels, missing = (class_map > 0).astype(np.uint8), class_map.size / 1e6, None
    jobs: dict[str, Callable[[], Any]] = {
        "opencv exact distance transform alone": lambda: cv2.distanceTransform(
            mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        ),
        "opencv connectedComponentsWithStats alone": lambda: cv2.connectedComponentsWithStats(mask),
    }
    if importlib.util.find_spec("skimage"):
        jobs["scikit-image distance transform + watershed"] = lambda: _watershed(mask)
    else:
        missing = 'scikit-image is not installed: pip install ".[test]" in the repository'
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    times = {name: round(median_ms(job, 3) / megapixels, 2) for name, job in jobs.items()}
    quarter = field[:, : len(class_map) // 2, : len(class_map) // 2]
    following_ms = median_ms(lambda: _follow_steps(quarter), 1)
    times["300-step following in numpy (given field)"] = round(following_ms / (megapixels / 4), 1)
    cv2.setNumThreads(cv2_threads)
    return times, missing


def bytes_per_pixel(class_map: NDArray[np.uint8], threads: int = 1) -> float | None:
    """Return the growth of the process's peak memory by clustering, per pixel; None except on Linux."""
    growth: list[float] = []

    def measure() -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = _memory_kib("VmRSS")
            cluster(class_map, threads=threads)
            growth.append((_memory_kib("VmHWM") - before) * 1024 / class_map.size)
        except OSError:
            pass

    thread = threading.Thread(target=measure)  # a new thread has no workspace from earlier calls
    thread.start()
    thread.join()
    return round(growth[0], 1) if growth else None


def _memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def bench_table(report: dict[str, Any]) -> str:
    """Return the report as readable text."""
    side = report["side_px"]
    lines = [
        f"{side} x {side} class map, {report['foreground']:.0%} foreground, {report['instances']} instances, "
        f"{report['threads']} thread(s)",
        f"  {'tfiseg.cluster, geometric':<52}{report['geometric_ms_per_mp']:>9.2f} ms/MP",
        f"  {'  native operator':<52}{report['native_geometric_ms_per_mp']:>9.2f} ms/MP",
        f"  {'tfiseg.cluster, given field':<52}{report['given_field_ms_per_mp']:>9.2f} ms/MP",
        f"  {'  native operator':<52}{report['native_given_field_ms_per_mp']:>9.2f} ms/MP",
    ]
    for name, ms in report["peers_ms_per_mp"].items():
        lines.append(f"  {name:<52}{ms:>9.2f} ms/MP   {report['peer_over_ours'][name]:>7.2f} x ours")
    more, larger = report["growth_4x_more_objects"], report["growth_4x_larger_objects"]
    lines.append(f"4x the pixels cost {more:.2f}x (more objects), {larger:.2f}x (larger objects)")
    if report["bytes_per_pixel"] is not None:
        lines.append(f"peak memory: {report['bytes_per_pixel']:.0f} bytes per pixel")
    if "peers_left_out" in report:
        lines.append(report["peers_left_out"])
    return "\n".join(lines)
