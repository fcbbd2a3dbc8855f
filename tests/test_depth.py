"""Test distances and 3-D points of instances on scenes of known depth."""

import json
import warnings

import numpy as np
import pytest
import tfiseg

FX, FY, CX, CY = CAMERA = (100.0, 120.0, 50.0, 30.0)


@pytest.fixture
def boxes() -> tfiseg.Instances:
    """Return two boxes of 400 and 200 pixels in a frame of 60 x 100 pixels."""
    class_map = np.zeros((60, 100), np.uint8)
    class_map[10:30, 10:30] = 1
    class_map[20:30, 60:80] = 2
    return tfiseg.cluster(class_map, split=0.0, class_names=["background", "person", "car"])


def wall(depth_m: float) -> np.ndarray:
    return np.full((60, 100), depth_m, np.float32)


def test_a_box_that_faces_the_camera(boxes):
    depth = wall(9)
    depth[10:30, 10:30] = 2
    depth[20:30, 60:80] = 4
    found = boxes.with_depth(depth, CAMERA)
    assert found.distance_m.tolist() == [2, 4]
    # the center of columns 10..29 and rows 10..29 is 19.5
    assert found.centroid_xyz_m[0] == pytest.approx([(19.5 - CX) * 2 / FX, (19.5 - CY) * 2 / FY, 2], abs=1e-5)
    assert found.centroid_xyz_m[1] == pytest.approx([(69.5 - CX) * 4 / FX, (24.5 - CY) * 4 / FY, 4], abs=1e-5)
    assert boxes.distance_m is None, "the original instances are unchanged"


def test_the_nearest_point_of_a_slope(boxes):
    columns = np.arange(100)[None] + np.zeros((60, 1))
    depth = (2 + 0.1 * columns).astype(np.float32)
    found = boxes[boxes.class_id == 1].with_depth(depth, CAMERA)
    x, y, z = found.nearest_xyz_m[0]
    assert z == pytest.approx(3.0), "column 10 is the nearest one, and 20 pixels of it are more than 1 %"
    assert x == pytest.approx((10 - CX) * z / FX, abs=1e-5)
    assert abs(y) <= (CY - 10) * z / FY
    assert found.distance_m[0] == pytest.approx(2 + 0.1 * 19.5)


@pytest.mark.parametrize(
    "make",
    [lambda m: (m * 1000).astype(np.uint16), lambda m: m.astype(np.float64), lambda m: m.astype(np.float16)],
    ids=["millimeters", "float64", "float16"],
)
def test_types_of_depth_maps(boxes, make):
    assert boxes.with_depth(make(wall(2.5))).distance_m == pytest.approx([2.5, 2.5], abs=1e-3)


def test_a_camera_matrix_equals_four_numbers(boxes):
    matrix = [[FX, 0, CX], [0, FY, CY], [0, 0, 1]]
    one, other = boxes.with_depth(wall(3), matrix), boxes.with_depth(wall(3), CAMERA)
    assert np.array_equal(one.centroid_xyz_m, other.centroid_xyz_m)


@pytest.mark.parametrize("value", [0, np.nan, np.inf, -1])
def test_pixels_without_a_measurement_are_ignored(boxes, value):
    depth = wall(2)
    depth[10:30, 10:22] = value  # most of the first box
    depth[20:30, 60:80] = value  # all of the second
    found = boxes.with_depth(depth, CAMERA)
    assert found.distance_m[0] == 2
    assert np.isnan(found.distance_m[1])
    assert np.isnan(found.centroid_xyz_m[1]).all()
    assert np.isnan(found.nearest_xyz_m[1]).all()


def test_noise_and_background_at_the_outline_change_nothing(boxes):
    depth = wall(2)
    depth[10, 10:13] = 0.1  # three wrong pixels of 400: below 1 %
    depth[10:30, 29] = 50  # background along one side: 5 %
    found = boxes.with_depth(depth, CAMERA)
    assert found.distance_m[0] == 2
    assert found.centroid_xyz_m[0, 2] == pytest.approx(2)
    assert found.nearest_xyz_m[0, 2] == pytest.approx(2)


@pytest.mark.parametrize("seed", range(5))
def test_points_of_random_scenes(seed):
    rng = np.random.default_rng(seed)
    found = tfiseg.cluster((rng.random((40, 50)) < 0.5).astype(np.uint8), split=0.0, min_area=1)
    depth = rng.uniform(0.5, 8, (40, 50)).astype(np.float32)
    depth[rng.random((40, 50)) < 0.2] = 0
    measured = found.with_depth(depth, CAMERA)
    for instance in measured:
        ys, xs = np.nonzero(instance.mask & (depth > 0))
        if not len(ys):
            assert np.isnan(instance.distance_m)
            continue
        z = depth[ys, xs]
        points = np.stack([(xs - CX) * z / FX, (ys - CY) * z / FY, z], axis=1)
        assert instance.distance_m == pytest.approx(np.median(z), rel=1e-6)
        assert z.min() <= instance.centroid_xyz_m[2] <= z.max()
        ranges = np.sort(np.linalg.norm(points, axis=1))
        assert np.linalg.norm(instance.nearest_xyz_m) == pytest.approx(ranges[int(0.01 * len(z))], rel=1e-5)


def test_indexing_keeps_depth(boxes):
    depth = wall(2)
    depth[20:30, 60:80] = np.nan
    found = boxes.with_depth(depth, CAMERA)
    assert found[::-1].distance_m[1] == 2
    one, other = found[0], found[1]
    assert one.distance_m == 2.0
    assert len(one.centroid_xyz_m) == len(one.nearest_xyz_m) == 3
    assert one.to_dict()["distance_m"] == 2.0
    assert other.to_dict()["nearest_xyz_m"] == [None, None, None]
    json.dumps(found.to_dict(), allow_nan=False)
    assert "distance_m" not in boxes[0].to_dict()


def test_distances_without_intrinsics(boxes):
    found = boxes.with_depth(wall(2))
    assert found.distance_m.tolist() == [2, 2]
    assert found.centroid_xyz_m is None
    assert found[0].nearest_xyz_m is None
    none = boxes[[]].with_depth(wall(2), CAMERA)
    assert none.distance_m.shape == (0,)
    assert none.centroid_xyz_m.shape == (0, 3)


@pytest.mark.parametrize(
    ("depth", "camera", "message"),
    [
        (np.zeros((30, 50), np.float32), CAMERA, r"floats \(60, 100\) in meters.*got float32 \(30, 50\)"),
        (np.zeros((60, 100), np.uint8), CAMERA, r"uint16 \(60, 100\) in millimeters, got uint8"),
        (wall(1), (100, 100, 50), r"intrinsics must be \(fx, fy, cx, cy\)"),
        (wall(1), (0, 100, 50, 30), r"intrinsics must be"),
        (wall(1), (100, 100, np.nan, 30), r"intrinsics must be"),
    ],
)
def test_invalid_arguments_are_refused(boxes, depth, camera, message):
    with pytest.raises(tfiseg.InputError, match=message):
        boxes.with_depth(depth, camera)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_in_millimeters_are_noticed(boxes, dtype):
    # a robot that stops below one meter would never stop
    depth = wall(0).astype(dtype)
    depth[5:40] = 850
    with pytest.warns(UserWarning, match="median of 850 m, which looks like millimeters"):
        boxes.with_depth(depth, CAMERA)


@pytest.mark.parametrize("depth", [wall(0), wall(120), wall(np.nan), wall(2500).astype(np.uint16)])
def test_plausible_depths_give_no_warning(boxes, depth):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes.with_depth(depth, CAMERA)


def test_a_computed_matrix_may_be_inexact(boxes):
    matrix = np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 1]])
    found = boxes.with_depth(wall(2), matrix + 1e-9)
    assert np.allclose(found.centroid_xyz_m, boxes.with_depth(wall(2), matrix).centroid_xyz_m, equal_nan=True)


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 1]]).T,
        np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 0]]),
        np.array([[FX, 0, CX], [3, FY, CY], [0, 0, 1]]),
    ],
)
def test_a_matrix_that_is_no_camera_matrix_is_refused(boxes, matrix):
    with pytest.raises(tfiseg.InputError, match=r"\[\[fx, s, cx\], \[0, fy, cy\], \[0, 0, 1\]\], got \[\["):
        boxes.with_depth(wall(2), matrix)
