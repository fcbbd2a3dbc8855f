"""The CUDA operator on a GPU equals the reference bit for bit, also in a replayed graph (`.ci/gpu`)."""

import ctypes
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from field_equality import assert_fields_equal
from mask_view_phases import render_by_phases
from tfiseg.plugins.mask_refinement import MaskRefinementCall
from tfiseg.plugins.native import ResultStruct, cluster_native, fit_frame, problem_struct
from tfiseg.plugins.plugin_build import find_nvcc
from tfiseg.plugins.problem import Clustering, problem_of
from tfiseg.plugins.reference import cluster_reference
from tfiseg.plugins.reference_mask_refinement import refine_masks_reference
from tfiseg.plugins.reference_views import (
    place_instances_reference,
    render_mask_views_reference,
    render_views_reference,
)

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "plugins" / "csrc"


def build_runner(target: Path) -> Path:
    sources = [
        HERE / "cuda_runner.cu",
        CSRC / "api.cpp",
        CSRC / "cluster_cpu.cpp",
        CSRC / "fit_cpu.cpp",
        CSRC / "views_cpu.cpp",
    ]
    options = [
        "-shared",
        "-std=c++17",
        "-O3",
        "-fmad=false",
        "-arch=native",
        "-DTFISEG_WITH_CUDA",
        "-Xcompiler=-fPIC,-ffp-contract=off",
    ]
    subprocess.run([find_nvcc(), *options, *sources, "-o", target], check=True)
    return target


@pytest.fixture(scope="session")
def runner(tmp_path_factory) -> Path:
    try:
        has_gpu = ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        has_gpu = False
    if not has_gpu:
        pytest.skip("needs an NVIDIA GPU: there is no driver here, or it finds none")
    built = os.environ.get("TFISEG_CUDA_RUNNER")  # .ci/gpu has built it
    return Path(built) if built else build_runner(tmp_path_factory.mktemp("cuda") / "runner.so")


@pytest.fixture(scope="session")
def on_gpu(runner, by_phases):
    return by_phases(runner)


@pytest.mark.parametrize("first_seed", range(0, 1000, 100))
def test_random_problems(first_seed, random_problem, on_gpu, assert_same):
    for seed in range(first_seed, first_seed + 100):
        problem = random_problem(seed)
        assert_same(on_gpu(problem, half=seed % 3 == 0), cluster_reference(problem))


@pytest.mark.parametrize("seed", range(24))
def test_views_and_placed_instances(seed, random_views_case, runner, views_by_phases):
    render, place = views_by_phases(runner)
    scene, count, side, found_in = random_views_case(seed)
    expected = render_views_reference(scene, count, side)
    arguments = (scene, expected, found_in(expected), 1 + seed % 2)
    results = (render(scene, count, side), place(*arguments))
    for got, reference in zip(results, (expected, place_instances_reference(*arguments)), strict=True):
        assert_fields_equal(got, reference)


@pytest.mark.parametrize("seed", range(24))
def test_mask_views(seed, random_views_case, runner):
    scene, count, side, _ = random_views_case(seed)
    arguments = (scene, render_views_reference(scene, count, 48).views, 48, count + 3, side)
    assert_fields_equal(render_by_phases(runner, *arguments), render_mask_views_reference(*arguments))


@pytest.mark.parametrize(
    ("frame_hw", "size_hw"),
    [
        ((1, 1), (1, 1)),
        ((480, 640), (480, 640)),
        ((1080, 1920), (352, 640)),
        ((1079, 1919), (352, 640)),
        ((60, 80), (480, 640)),
        ((2, 32767), (2, 33)),
    ],
)
def test_fitted_frames(frame_hw, size_hw, runner):
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3)).astype(np.uint8)
    library, expected = ctypes.CDLL(str(runner)), fit_frame(frame, size_hw)
    for seed in range(4):  # bytes between a multiple of 256 and the frame
        fitted = np.full((3, *size_hw), -1, np.float32)
        source, result = ctypes.c_void_p(frame.ctypes.data), ctypes.c_void_p(fitted.ctypes.data)
        assert library.fit_by_phases(source, *frame_hw, result, *size_hw, ctypes.c_uint(seed), 1) == 0
        assert np.array_equal(fitted, expected)


@pytest.mark.parametrize("seed", range(60))
def test_refined_masks(seed, random_predicted_masks, runner, refinement_by_phases):
    predicted = random_predicted_masks(seed, half=seed % 2 == 1)
    refined = refinement_by_phases(runner)(predicted, seed=seed)
    assert_fields_equal(refined, refine_masks_reference(predicted))


def test_replays_of_mask_refinement_are_identical_and_allocate_no_memory(runner, random_predicted_masks):
    predicted = random_predicted_masks(2)
    call, expected = MaskRefinementCall(predicted), refine_masks_reference(predicted)
    median_us, grown_bytes = ctypes.c_double(), ctypes.c_int64()
    arguments = (ctypes.byref(call.struct), 1000, ctypes.byref(median_us), ctypes.byref(grown_bytes))
    assert ctypes.CDLL(str(runner)).replay_refinement_in_graph(*arguments) == 0
    assert grown_bytes.value == 0
    assert np.array_equal(call.refined.label_map, expected.label_map)
    assert np.array_equal(call.refined.table, expected.table)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pennfudan", "coco", "voc2007", "dsb2018"])
def test_every_shared_photo(name, eval_sets, on_gpu, assert_same):
    paths = sorted((eval_sets / name / "semantic").glob("*.png"))
    assert paths
    for path in paths:
        problem = problem_of(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), min_area=25)
        assert_same(on_gpu(problem), cluster_native(problem))


def test_large_grid_uses_cooperative_kernels(on_gpu, assert_same):
    rng = np.random.default_rng(7)
    blobs = (cv2.GaussianBlur(rng.random((2048, 2048)).astype(np.float32), (0, 0), 12) > 0.5).astype(np.uint8)
    problem = problem_of(blobs, min_area=25)
    expected = cluster_native(problem)
    assert expected.count[0] > 1000
    assert_same(on_gpu(problem), expected)


def test_ten_thousand_replays_are_identical_and_allocate_no_memory(runner, random_problem, assert_same):
    library = ctypes.CDLL(str(runner))
    problem = random_problem(4)
    n, (h, w) = problem.batch, problem.out_hw
    out = {
        "label_map": np.zeros((n, h, w), np.int32),
        "semantic_map": np.zeros((n, h, w), np.uint8),
        "count": np.zeros(n, np.int32),
        "regions": np.zeros(n, np.int32),
        "table": np.zeros((n, problem.settings.max_instances, 10), np.float32),
    }
    result = ResultStruct(**{name: a.ctypes.data for name, a in out.items()})
    median_us, grown, seen = ctypes.c_double(), ctypes.c_int64(), set()
    for replays in (10, 10_000):
        struct = problem_struct(problem)
        status = library.replay_in_graph(
            *map(ctypes.byref, (struct, result)), replays, *map(ctypes.byref, (median_us, grown))
        )
        assert status == 0
        assert grown.value == 0
        seen.add(b"".join(a.tobytes() for a in out.values()))
    assert len(seen) == 1
    rows = Clustering(
        out["label_map"],
        out["semantic_map"],
        out["count"],
        out["table"][:, : int(out["count"].max())],
        out["regions"],
    )
    assert_same(rows, cluster_reference(problem))
