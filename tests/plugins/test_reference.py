"""The NumPy reference on tiny class maps with results worked out by hand."""

import numpy as np
import pytest
from tfiseg.plugins.neck import coarse_log2, compactness
from tfiseg.plugins.problem import Problem, problem_of
from tfiseg.plugins.reference import cluster_reference, grid_positions
from tfiseg.plugins.reference_basins import FAR_SQUARED, ascent_links, follow, is_noise, squared_distance
from tfiseg.plugins.settings import Split


def picture(text: str) -> np.ndarray:
    """Return a class map: '.' = 0, digits = classes."""
    rows = [line.strip() for line in text.strip().splitlines()]
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.uint8)


def problem(class_map: np.ndarray, split: Split = "auto", **rest) -> Problem:
    return problem_of(class_map, split=split, **rest)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ("1", [[FAR_SQUARED]]),
        (".1.", [[0, 1, 0]]),
        ("111.", [[9, 4, 1, 0]]),  # the image border is no object border
        ("112", [[4, 1, 1]]),  # a border with another class is one
        ("11111\n11111\n11.11", [[8, 5, 4, 5, 8], [5, 2, 1, 2, 5], [4, 1, 0, 1, 4]]),
    ],
)
def test_squared_distance(drawn, expected):
    assert squared_distance(picture(drawn)).tolist() == expected


def test_squared_distance_equals_opencv_inside_a_frame():
    import cv2

    rng = np.random.default_rng(0)
    class_map = np.pad((cv2.GaussianBlur(rng.random((60, 80)), (0, 0), 3) > 0.5).astype(np.uint8), 1)
    exact = cv2.distanceTransform(class_map, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert np.array_equal(squared_distance(class_map), np.round(exact.astype(float) ** 2).astype(int))


def test_links_go_to_the_highest_neighbor_and_ties_to_the_smallest_index():
    class_map = np.ones((1, 5), np.uint8)
    squared = np.array([[1, 4, 4, 4, 9]])
    assert ascent_links(class_map, squared).tolist() == [[1, 1, 1, 4, 4]]
    assert follow(ascent_links(class_map, squared)).tolist() == [[1, 1, 1, 4, 4]]


@pytest.mark.parametrize(
    ("saddle", "peak", "noise"),
    [(4, 8, True), (4, 9, False), (0, 0, True), (0, 1, False), (100, 120, True), (100, 121, False)],
)
def test_noise_is_less_than_one_pixel(saddle, peak, noise):
    assert is_noise(saddle, peak) is noise
    assert (np.sqrt(peak) - np.sqrt(saddle) < 1) == noise


def test_coarse_log2_is_exact_at_powers_of_two():
    assert coarse_log2(np.array([0.25, 1.0, 2.0, 3.0])).tolist() == [-2.0, 0.0, 1.0, 1.5]


def test_compactness_of_a_square_is_near_one():
    y, x = np.mgrid[:20, :20]
    row = [400, x.sum(), y.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum(), 0, 1]
    assert compactness(np.array([row])) == pytest.approx([0.9549], abs=1e-3)  # 3 / pi


def test_grid_positions_have_half_pixel_centers():
    low, high, weight, near = grid_positions(2, 4)
    assert low.tolist() == [0, 0, 0, 1]
    assert high.tolist() == [1, 1, 1, 1]
    assert weight.tolist() == [0.0, 0.25, 0.75, 0.0]
    assert near.tolist() == [0, 0, 1, 1]


DUMBBELL = """
    .............
    .111.....111.
    .111.....111.
    .11111111111.
    .111.....111.
    .111.....111.
    .............
"""


@pytest.mark.parametrize(("split", "count"), [(0.0, 1), (0.4, 1), (0.9, 2)])
def test_a_neck_is_cut_below_the_ratio(split, count):
    assert cluster_reference(problem(picture(DUMBBELL), split)).count.tolist() == [count]


def test_instances_are_numbered_in_raster_order_and_measured():
    result = cluster_reference(problem(picture("2.1\n2.."), split=0.0))
    assert result.label_map.tolist() == [[[1, 0, 2], [1, 0, 0]]]
    assert result.table[0].tolist() == [[2, 1, 0, 0, 1, 2, 2, 0, 0.5, 1], [1, 1, 2, 0, 3, 1, 1, 2, 0, 1]]


def test_given_field_groups_pixels_by_target():
    class_map = np.ones((1, 6), np.uint8)
    field = np.zeros((2, 1, 6), np.float32)
    field[1, 0] = [3, 0, -3, 3, 0, -3]  # 0->3, 1 stays, 2->0, 3->6 clipped to 5, 4 stays, 5->2
    result = cluster_reference(problem(class_map, displacement=field[None], centre_radius=1.0))
    assert result.label_map[0].tolist() == [[1, 2, 1, 1, 3, 1]]


def test_touching_centers_are_merged():
    class_map = np.ones((1, 4), np.uint8)
    still = np.zeros((1, 2, 1, 4), np.float32)
    assert cluster_reference(problem(class_map, displacement=still)).count.tolist() == [1]


def test_affinity_decides_merges():
    class_map = picture(DUMBBELL)
    offsets = np.array([[0, 1], [1, 0]], np.int32)
    for value, count in ((0.9, 1), (0.1, 2)):
        affinity = np.full((1, 2, *class_map.shape), value, np.float32)
        result = cluster_reference(problem(class_map, affinity=affinity, affinity_offsets=offsets))
        assert result.count.tolist() == [count], value


def test_strong_boundary_favors_a_cut():
    class_map = picture(DUMBBELL)
    boundary = np.zeros((1, *class_map.shape), np.float32)
    split = 0.6
    assert cluster_reference(problem(class_map, split, boundary=boundary)).count.tolist() == [1]
    boundary[:, :, 5:8] = 1
    assert cluster_reference(problem(class_map, split, boundary=boundary)).count.tolist() == [2]
