"""Test evidence that no trained network predicts: time and sums are bounded."""

import time
import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tfiseg import InputError
from tfiseg.plugins.native import cluster_native
from tfiseg.plugins.operator import MergeStoppedWarning, cluster
from tfiseg.plugins.problem import FLAG_MERGE_STOPPED, Problem, problem_of
from tfiseg.plugins.reference import cluster_reference
from tfiseg.runtime.gpu_segmenting import GpuRoute

NEXT = np.array([[0, 1], [1, 0]], np.int32)


def random_rule(seed: int, hidden: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, hidden * 19 + 1).astype(np.float32)


def dots(side: int) -> Problem:
    """Return single pixels in every second row and column, with affinity 1 to their neighbors."""
    class_map = np.zeros((side, side), np.uint8)
    class_map[::2, ::2] = 1
    return problem_of(class_map, affinity=np.ones((1, 2, side, side), np.float32), affinity_offsets=2 * NEXT)


def pixels(side: int, **evidence) -> Problem:
    """Return a problem whose regions are single pixels."""
    no_displacement = np.zeros((2, side, side), np.float32)
    return problem_of(np.ones((side, side), np.uint8), no_displacement, centre_radius=0.0, **evidence)


def noisy_pixels(side: int) -> Problem:
    """Return single-pixel regions and a rule that depends on shape, so that one union grows in each round."""
    affinity = np.random.default_rng(0).random((1, 2, side, side)).astype(np.float32)
    return pixels(side, affinity=affinity, affinity_offsets=NEXT, merge_rule=random_rule(0))


def noisy_class_map(side: int) -> Problem:
    rng = np.random.default_rng(0)
    offsets = np.array([[0, 1], [1, 0], [0, 3], [3, 0]], np.int32)
    affinity = rng.random((1, 4, side, side)).astype(np.float32)
    class_map = rng.integers(0, 2, (side, side)).astype(np.uint8)
    return problem_of(class_map, affinity=affinity, affinity_offsets=offsets, merge_rule=random_rule(0))


def random_boundary(side: int) -> Problem:
    return pixels(side, boundary=np.random.default_rng(3).random((1, side, side)).astype(np.float32))


def waves(side: int, x_rate: float, y_rate: float, highest: float) -> Problem:
    y, x = np.mgrid[:side, :side]
    boundary = highest * (0.5 - 0.5 * np.cos(x * x_rate) * np.cos(y * y_rate))
    return pixels(side, boundary=boundary.astype(np.float32)[None])


def smooth_boundary(side: int) -> Problem:
    """Waves, where thousands of unions grow by one pixel a round."""
    return waves(side, 0.37, 0.23, 1.0)


def slow_waves(side: int) -> Problem:
    return waves(side, 0.08, 0.05, 1.0)


def low_waves(side: int) -> Problem:
    """All pixels become one union."""
    return waves(side, 0.37, 0.23, 0.45)


def blurred_noise(side: int) -> Problem:
    noise = np.random.default_rng(0).random((side, side)).astype(np.float32)
    boundary = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 1, cv2.NORM_MINMAX)
    return pixels(side, boundary=boundary[None])


def thin_lines(side: int) -> Problem:
    """Lines one pixel wide that one row joins."""
    class_map = np.zeros((side, side), np.uint8)
    class_map[0], class_map[:, ::2] = 1, 1
    boundary = np.random.default_rng(0).random((1, side, side)).astype(np.float32) / 2
    no_displacement = np.zeros((2, side, side), np.float32)
    return problem_of(class_map, no_displacement, centre_radius=0.0, boundary=boundary)


def one_object(side: int) -> Problem:
    return pixels(side, boundary=np.zeros((1, side, side), np.float32))


def random_affinity(side: int) -> Problem:
    affinity = np.random.default_rng(5).random((1, 2, side, side)).astype(np.float32)
    return pixels(side, affinity=affinity, affinity_offsets=NEXT)


def equal_affinity(side: int) -> Problem:
    return pixels(side, affinity=np.ones((1, 2, side, side), np.float32), affinity_offsets=NEXT)


def separate_pixels(side: int) -> Problem:
    """No pixel has a neighbor of its class: as many regions as pixels, and no edge."""
    y, x = np.mgrid[:side, :side]
    return problem_of((x % 2 + 2 * (y % 2) + 1).astype(np.uint8))


HOSTILE = [
    dots,
    one_object,
    noisy_pixels,
    noisy_class_map,
    random_boundary,
    random_affinity,
    equal_affinity,
    separate_pixels,
    smooth_boundary,
    slow_waves,
    low_waves,
    blurred_noise,
    thin_lines,
]


def seconds(problem: Problem) -> float:
    began = time.process_time()
    cluster_native(problem, threads=1)
    return time.process_time() - began


@pytest.mark.parametrize("make", HOSTILE)
def test_time_grows_with_the_pixels(make):
    """Twice the side, four times the pixels, takes at most 6 times as long.

    Both sizes are measured in turn, because other work on the machine takes parts of the cache.
    """
    problems = make(256), make(512)
    small, large = np.median([[seconds(problem) for problem in problems] for _ in range(5)], axis=0)
    assert large < 6 * small + 0.05, f"{small:.3f} s at 256 x 256, {large:.3f} s at 512 x 512"


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_inputs_are_equal_everywhere(make, assert_same):
    problem = make(24)
    assert_same(cluster_native(problem, threads=2), cluster_reference(problem))


def tied(seed: int) -> Problem:
    """Return evidence of two to five values, so that many edges have the same score."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(2, 25, 2))
    values = np.sort(rng.random(rng.integers(2, 6))).astype(np.float32)
    shape = (1, 3, height, width) if seed % 2 else (1, height, width)
    evidence = {"affinity" if seed % 2 else "boundary": rng.choice(values, shape)}
    if seed % 2:
        evidence["affinity_offsets"] = rng.integers(-2, 4, (3, 2)).astype(np.int32)
    class_map = (rng.random((height, width)) < rng.choice([0.8, 1.0])).astype(np.uint8)
    if seed % 3 == 0:  # regions of several pixels
        return problem_of(class_map, rng.integers(-1, 2, (2, height, width)).astype(np.float32), **evidence)
    return problem_of(class_map, np.zeros((2, height, width), np.float32), centre_radius=0.0, **evidence)


def test_equal_scores_are_decided_alike_everywhere(shuffled, assert_same):
    for seed in range(300):
        problem = tied(seed)
        expected = cluster_reference(problem)
        assert_same(cluster_native(problem, threads=2), expected)
        assert_same(shuffled(problem, seed=seed), expected)


@pytest.mark.parametrize("split", ["auto", 0.2, 0.9])
def test_equal_shapes_are_decided_alike_everywhere(split, shuffled, assert_same):
    """Disks in a grid that touch: all necks are equal."""
    y, x = np.mgrid[:60, :84] % 12
    class_map = ((y - 6) ** 2 + (x - 6) ** 2 <= 38).astype(np.uint8)
    problem = problem_of(class_map, split=split)
    expected = cluster_reference(problem)
    assert_same(cluster_native(problem), expected)
    assert_same(shuffled(problem, seed=3), expected)


@pytest.mark.parametrize("side", [16, 48])
def test_stopped_merge_is_reported_and_equal_everywhere(side, shuffled, assert_same):
    problem = noisy_pixels(side)
    expected = cluster_reference(problem)
    for threads in (1, 2):
        assert_same(cluster_native(problem, threads), expected)
    assert_same(shuffled(problem, seed=side), expected)
    flags = expected.table[0, : expected.count[0], 9].astype(int)
    assert (flags & FLAG_MERGE_STOPPED).all() == (side == 48)


def test_stopped_second_pass_is_reported(shuffled, assert_same):
    side = 192
    rng = np.random.default_rng(1)
    boundary = np.zeros((1, side, side), np.float32)
    boundary[0, :, side // 2 : side // 2 + 2] = 1
    class_map = np.ones((side, side), np.uint8)
    class_map[rng.random((side, side)) < 0.3] = 0
    offsets = np.array([[dy, dx] for dy in (2, 5, 9) for dx in (-7, 3, 11)], np.int32)
    problem = problem_of(
        class_map,
        boundary=boundary,
        affinity=np.ones((1, len(offsets), side, side), np.float32),
        affinity_offsets=offsets,
        part_rule=np.append(np.zeros(19), 1).astype(np.float32),
    )
    expected = cluster_reference(problem)
    assert_same(cluster_native(problem), expected)
    assert_same(shuffled(problem, seed=5), expected)
    assert (expected.table[0, : expected.count[0], 9].astype(int) & FLAG_MERGE_STOPPED).any()


def test_fixed_ratio_needs_no_budget():
    """Thousands of basins of noise are merged into one connected component."""
    class_map = (np.random.default_rng(0).random((512, 512)) < 0.7).astype(np.uint8)
    problem = problem_of(class_map, split=0.0)
    found = cluster_native(problem)
    assert found.regions[0] > 2000
    assert found.table[0, : found.count[0], 6].max() > 0.95 * class_map.sum()
    assert not (found.table[0, :, 9].astype(int) & FLAG_MERGE_STOPPED).any()


def test_cluster_warns_of_a_stopped_merge():
    problem = noisy_pixels(64)
    evidence = {
        "displacement": problem.displacement[0],
        "affinity": problem.affinity[0],
        "affinity_offsets": problem.settings.affinity_offsets,
        "merge_rule": problem.settings.merge_rule,
        "centre_radius": 0.0,
    }
    with pytest.warns(MergeStoppedWarning, match="parts of objects"):
        cluster(problem.class_map[0], min_area=0, **evidence)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cluster(problem.class_map[0])


def test_a_stopped_merge_on_a_gpu_or_in_an_engine_is_reported():
    problem = noisy_pixels(64)
    session = SimpleNamespace(path="engine", cluster=lambda image, settings: cluster_native(problem))
    segmenter = SimpleNamespace(
        session=session,
        refiner=None,
        class_names=("background", "thing"),
        cluster_settings=lambda size_hw: None,
        filter_instances=lambda instances, size_hw: instances,
    )
    with pytest.warns(MergeStoppedWarning, match="parts of objects"):
        GpuRoute(segmenter, None).segment(session, np.zeros((64, 64, 3), np.uint8))


WRONG = (-3.0, 3.0, 1e30, -1e30, np.inf, -np.inf, np.nan)


@pytest.mark.parametrize("name", ["boundary", "affinity", "displacement", "scores"])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_values_out_of_range_terminate_and_are_equal_everywhere(
    name, share, random_problem, shuffled, assert_same
):
    rng = np.random.default_rng(7)
    count = 0
    for seed in range(400):
        problem = random_problem(seed)
        values = getattr(problem, name)
        if values is None:
            continue
        values[rng.random(values.shape) < share] = rng.choice(WRONG)
        expected = cluster_reference(problem)
        assert_same(cluster_native(problem, threads=2), expected)
        assert_same(shuffled(problem, seed=seed), expected)
        count += 1
        if count == 12:
            return
    raise AssertionError(f"only {count} problems have {name}")


@pytest.mark.parametrize("offset", [2**31 - 1, -(2**31), 4097])
def test_offsets_beyond_any_grid_raise_input_error(offset):
    class_map = np.ones((8, 8), np.uint8)
    with pytest.raises(InputError, match="affinity_offsets"):
        cluster(class_map, affinity=np.ones((1, 8, 8)), affinity_offsets=[(offset, 0)])


def test_sums_that_need_more_than_a_word_are_equal_everywhere(assert_same):
    """With 4096 channels on 72 x 64 pixels, a count of pairs may not fit into 24 bits."""
    rng = np.random.default_rng(9)
    offsets = rng.integers(-2, 3, (4096, 2)).astype(np.int32)
    affinity = rng.random((1, 4096, 9, 8)).astype(np.float32)
    displacement = rng.normal(0, 3, (2, 72, 64)).astype(np.float32)
    class_map = np.ones((72, 64), np.uint8)
    evidence = {"affinity": affinity, "affinity_offsets": offsets, "affinity_stride": 8}
    problem = problem_of(class_map, displacement, merge_affinity=0.5, **evidence)
    found = cluster_native(problem)
    assert found.regions[0] > 10
    assert_same(found, cluster_reference(problem))
