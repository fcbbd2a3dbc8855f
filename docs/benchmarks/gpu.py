"""Measure the CUDA operator on this machine's GPU beside CuPy and cuCIM; `.ci/gpu` calls this script.

    python docs/benchmarks/gpu.py RUNNER.so [--once]

RUNNER.so is built from tests/plugins/cuda_runner.cu. Prints Markdown.
"""

import ctypes
import sys
import time

import cv2
import numpy as np
from tfiseg.plugins.native import ResultStruct, cluster_native, fit_frame, problem_struct
from tfiseg.plugins.problem import Problem, problem_of
from tfiseg.plugins.settings import ClusterSettings
from tfiseg.plugins.views import PlacementCall, Scene, ViewClusterings, ViewsCall, render_views


def blobs(side: int, classes: int = 4) -> np.ndarray:
    """Return a class map (side, side): round objects, which often touch, cover about half of it."""
    rng = np.random.default_rng(0)
    out = np.zeros((side, side), np.uint8)
    for _ in range(60):
        y, x = rng.integers(0, side, 2)
        axes = rng.integers(side // 40 + 2, side // 10 + 3, 2)
        angle, class_id = float(rng.integers(0, 180)), int(rng.integers(1, classes))
        cv2.ellipse(out, (int(x), int(y)), (int(axes[0]), int(axes[1])), angle, 0, 360, class_id, -1)
    return out


def logits_problem(class_map: np.ndarray, classes: int, size_hw: tuple[int, int]) -> Problem:
    planes = [cv2.GaussianBlur((class_map == c).astype(np.float32) * 6, (0, 0), 1) for c in range(classes)]
    settings = ClusterSettings(min_area=25, max_instances=256)
    return Problem(None, np.ascontiguousarray(planes)[None], size_hw, settings)


def make_result(problem: Problem) -> tuple[ResultStruct, dict]:
    n, (h, w) = problem.batch, problem.out_hw
    out = {
        "label_map": np.zeros((n, h, w), np.int32),
        "semantic_map": np.zeros((n, h, w), np.uint8),
        "count": np.zeros(n, np.int32),
        "table": np.zeros((n, problem.settings.max_instances, 10), np.float32),
    }
    return ResultStruct(**{name: a.ctypes.data for name, a in out.items()}), out


def time_in_graph(library: ctypes.CDLL, problem: Problem, replays: int = 2000) -> tuple[float, int]:
    """Return the median time of a graph replay in us, and the number of instances."""
    result, out = make_result(problem)
    median_us, growth = ctypes.c_double(), ctypes.c_int64()
    struct = problem_struct(problem)
    byref = ctypes.byref
    status = library.replay_in_graph(byref(struct), byref(result), replays, byref(median_us), byref(growth))
    assert status == 0, status
    return median_us.value, int(out["count"][0])


def make_view_calls(
    class_map: np.ndarray, frame: np.ndarray, views: int, side: int
) -> tuple[ViewsCall, PlacementCall]:
    """Return the calls that render views of components, and that place the parts found in the views."""
    components = cluster_native(problem_of(class_map, min_area=25, split=0.0))
    scene = Scene(frame, components.label_map[0], components.table[0].copy(), np.ones(256, np.uint8))
    rendered = render_views(scene, views, side)
    parts = cluster_native(problem_of(rendered.own, split=1.0, max_instances=64))
    tables = np.zeros((views, 64, 10), np.float32)
    tables[:, : parts.table.shape[1]] = parts.table
    found = ViewClusterings(parts.label_map, parts.count, parts.regions, tables)
    return ViewsCall(scene, views, side, None, rendered, 64), PlacementCall(scene, found, 2)


def time_views_in_graph(
    library: ctypes.CDLL, size_hw: tuple[int, int], views: int = 16, side: int = 192
) -> tuple[float, float, int]:
    """Return the median times in us of rendering views and placing instances, and the number of instances."""
    class_map = cv2.resize(blobs(512), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    frame = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    call, placement = make_view_calls(class_map, frame, views, side)
    medians_us = (ctypes.c_double * 2)()
    status = library.replay_views_in_graph(
        ctypes.byref(call.struct), ctypes.byref(placement.struct), 1000, medians_us
    )
    assert status == 0, status
    return medians_us[0], medians_us[1], len(placement.placed.table)


def time_fit_in_graph(
    library: ctypes.CDLL, frame_hw: tuple[int, int], size_hw: tuple[int, int], replays: int = 2000
) -> float:
    """Return the median time of preprocessing a frame in microseconds; its result is checked."""
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3)).astype(np.uint8)
    fitted, median_us = np.empty((3, *size_hw), np.float32), ctypes.c_double()
    source, result = ctypes.c_void_p(frame.ctypes.data), ctypes.c_void_p(fitted.ctypes.data)
    status = library.replay_fit_in_graph(
        source, *frame_hw, result, *size_hw, replays, ctypes.byref(median_us)
    )
    assert status == 0, status
    assert np.array_equal(fitted, fit_frame(frame, size_hw)), "the GPU's result differs from the CPU's"
    return median_us.value


def time_peers(class_map: np.ndarray) -> dict[str, float]:
    """Return the median times of CuPy and cuCIM in us for parts of the work; {} if CuPy is not installed."""
    try:
        import cupy
        from cupyx.scipy import ndimage
    except ImportError:
        return {}
    on_gpu = cupy.asarray(class_map)
    tasks = {
        "CuPy label (connected components of one mask)": lambda: ndimage.label(on_gpu > 0, cupy.ones((3, 3))),
        "CuPy distance_transform_edt of one mask": lambda: ndimage.distance_transform_edt(on_gpu > 0),
    }
    try:
        from cucim.skimage import measure

        tasks["cuCIM label"] = lambda: measure.label(on_gpu, connectivity=2)
    except ImportError:
        pass
    times = {}
    for name, task in tasks.items():
        try:
            for _ in range(3):
                task()
            spent = []
            for _ in range(50):
                cupy.cuda.Device().synchronize()
                began = time.perf_counter()
                task()
                cupy.cuda.Device().synchronize()
                spent.append((time.perf_counter() - began) * 1e6)
            times[name] = float(np.median(spent))
        except Exception as wrong:  # a peer that fails must not stop the benchmark
            print(f"{name}: {wrong}", file=sys.stderr)
    return times


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    if "--once" in sys.argv:  # for a profiler
        time_in_graph(library, logits_problem(blobs(160), 21, (480, 640)), 1)
        time_in_graph(library, problem_of(blobs(2048), min_area=25), 1)
        return
    print("| work | us, median of graph replays | goal | instances |\n|---|---|---|---|")
    for grid, size_hw, classes, goal in (
        (160, (480, 640), 4, "60"),
        (160, (480, 640), 21, "60"),
        (128, (512, 512), 21, ""),
        (96, (384, 384), 21, ""),
    ):
        us, count = time_in_graph(library, logits_problem(blobs(grid), classes, size_hw))
        size = f"{size_hw[1]} x {size_hw[0]}"
        print(f"| {grid} x {grid} x {classes} logits -> {size} | {us:.1f} | {goal} | {count} |")
    for side in (512, 1024, 2048):
        us, count = time_in_graph(library, problem_of(blobs(side), min_area=25), 500)
        goal = "50 us/MP" if side == 2048 else ""
        print(
            f"| class map {side} x {side} | {us:.1f} ({us / (side * side / 1e6):.1f} us/MP) | {goal} | "
            f"{count} |"
        )
        given = problem_of(blobs(side), np.zeros((2, side, side), np.float32), min_area=25)
        us, count = time_in_graph(library, given, 500)
        print(f"| the same, given field | {us:.1f} ({us / (side * side / 1e6):.1f} us/MP) | | {count} |")
        for name, peer_us in time_peers(blobs(side)).items():
            print(f"| {name}, {side} x {side} | {peer_us:.1f} | | |")
    for frame_hw, size_hw in (((480, 640), (480, 640)), ((1080, 1920), (352, 640))):
        us = time_fit_in_graph(library, frame_hw, size_hw)
        sizes = f"{frame_hw[1]} x {frame_hw[0]} -> {size_hw[1]} x {size_hw[0]}"
        print(f"| preprocessing {sizes} | {us:.1f} | | |")
    for size_hw in ((480, 640), (1080, 1920)):
        render_us, place_us, count = time_views_in_graph(library, size_hw)
        print(f"| 16 views of 192 px rendered from {size_hw[1]} x {size_hw[0]} | {render_us:.1f} | | |")
        print(f"| instances placed | {place_us:.1f} | | {count} |")
    sys.stdout.flush()
    for title, problem in (
        ("160 x 160 x 21 -> 640 x 480", logits_problem(blobs(160), 21, (480, 640))),
        ("class map 2048 x 2048", problem_of(blobs(2048), min_area=25)),
    ):
        print(f"\n{title}, phase by phase:\n", flush=True)
        result, _ = make_result(problem)
        struct = problem_struct(problem)
        assert library.print_phases(ctypes.byref(struct), ctypes.byref(result), 20) == 0


if __name__ == "__main__":
    main()
