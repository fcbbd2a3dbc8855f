"""The GPU phases in random orders of threads and blocks equal the reference bit for bit."""

import cv2
import numpy as np
import pytest
from tfiseg.plugins.native import cluster_native
from tfiseg.plugins.problem import Problem, problem_of
from tfiseg.plugins.reference import cluster_reference
from tfiseg.plugins.settings import ClusterSettings


@pytest.mark.parametrize("first_seed", range(0, 200, 25))
def test_random_problems(first_seed, random_problem, shuffled, assert_same):
    for seed in range(first_seed, first_seed + 25):
        problem = random_problem(seed)
        expected = cluster_reference(problem)
        for order in range(3):
            assert_same(shuffled(problem, seed=3 * seed + order), expected)
        assert_same(shuffled(problem, seed=seed, threads=3, half=True), expected)


def test_random_problems_on_large_grids(random_problem, shuffled_as_large, assert_same):
    for seed in range(200, 300):
        problem = random_problem(seed)
        assert_same(shuffled_as_large(problem, seed=seed), cluster_native(problem))


def test_many_orders_of_one_problem(random_problem, shuffled):
    problem = random_problem(11)
    label_maps = {shuffled(problem, seed=order).label_map.tobytes() for order in range(300)}
    assert len(label_maps) == 1


@pytest.mark.parametrize(
    "class_map",
    [
        pytest.param(np.zeros((7, 9), np.uint8), id="empty"),
        pytest.param(np.ones((1, 1), np.uint8), id="one pixel"),
        pytest.param(np.full((70, 60), 3, np.uint8), id="all one class"),
        pytest.param((np.indices((33, 40)).sum(0) % 2).astype(np.uint8) + 1, id="checkerboard"),
        pytest.param(
            np.random.default_rng(0).integers(0, 255, (60, 70)).astype(np.uint8), id="noise of 255 classes"
        ),
        pytest.param(np.ones((1, 300), np.uint8), id="one row"),
        pytest.param(cv2.circle(np.ones((90, 301), np.uint8), (150, 45), 40, 2, -1), id="far walls"),
        pytest.param(np.ones((300, 1), np.uint8), id="one column"),
    ],
)
def test_hard_class_maps(class_map, shuffled, shuffled_as_large, assert_same):
    problem = problem_of(class_map)
    expected = cluster_reference(problem)
    assert_same(shuffled(problem, seed=1, threads=2), expected)
    assert_same(shuffled_as_large(problem, seed=2), expected)


def test_smooth_evidence_needs_one_round_per_pair(shuffled, assert_same):
    """A ramp of affinities merges one pair per round, the maximum number of rounds."""
    side = 24
    y, x = np.mgrid[:side, :side].astype(np.float32)
    ramp = np.stack([(x + 1.3 * y + 1) / (2.4 * side), (0.7 * x + y + 1) / (2.4 * side)])[None]
    problem = problem_of(
        np.ones((side, side), np.uint8),
        np.zeros((2, side, side), np.float32),
        centre_radius=0.0,
        affinity=ramp,
        affinity_offsets=np.array([[0, 1], [1, 0]], np.int32),
        merge_affinity=0.0,
    )
    assert_same(shuffled(problem, seed=2), cluster_native(problem))


def test_too_many_edges_are_reported(shuffled):
    """Above 2^18 pixels, memory suffices for one edge per four pixels; single-pixel regions have more."""
    side = 640
    problem = problem_of(
        np.ones((side, side), np.uint8),
        np.zeros((2, side, side), np.float32),
        centre_radius=0.0,
        affinity=np.zeros((1, 2, side, side), np.float32),
        affinity_offsets=np.array([[0, 1], [1, 0]], np.int32),
        max_instances=1000,
    )
    result = shuffled(problem, seed=0)
    assert result.count.tolist() == [-1]
    assert not result.label_map.any()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pennfudan", "coco", "voc2007", "dsb2018"])
def test_shared_photos_at_full_size(name, eval_sets, shuffled, assert_same):
    paths = sorted((eval_sets / name / "semantic").glob("*.png"))[::4]
    assert paths
    for k, path in enumerate(paths):
        problem = problem_of(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), min_area=25)
        assert_same(shuffled(problem, seed=k, threads=2), cluster_native(problem))


@pytest.mark.shared
def test_a_photo_as_logits(eval_sets, shuffled, assert_same):
    path = sorted((eval_sets / "coco" / "semantic").glob("*.png"))[3]
    small = cv2.resize(
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED), (160, 160), interpolation=cv2.INTER_NEAREST
    )
    logits = np.stack([cv2.GaussianBlur((small == c).astype(np.float32) * 4, (0, 0), 1) for c in range(21)])[
        None
    ]
    problem = Problem(
        None, np.ascontiguousarray(logits), (640, 640), ClusterSettings(min_area=25, max_instances=256)
    )
    assert_same(shuffled(problem, seed=0), cluster_native(problem))
