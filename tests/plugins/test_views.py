"""Views of components: reference, native library and GPU phases are equal bit for bit; content of views."""

import ctypes
from dataclasses import replace

import cv2
import numpy as np
import pytest
from field_equality import assert_fields_equal
from mask_view_phases import render_by_phases
from tfiseg.errors import InputError, TfisegError
from tfiseg.plugins.mask_views import render_mask_views
from tfiseg.plugins.native import library
from tfiseg.plugins.operator import cluster
from tfiseg.plugins.reference_views import (
    place_instances_reference,
    render_mask_views_reference,
    render_views_reference,
)
from tfiseg.plugins.views import RenderedViews, Scene, ViewClusterings, place_instances, render_views
from tfiseg.runtime.refine.view_planning import plan_and_render_views

SIDE = 96


@pytest.fixture(scope="module")
def phases(shuffled_library, views_by_phases):
    return views_by_phases(shuffled_library)


@pytest.mark.parametrize("seed", range(24))
def test_reference_native_and_phases_agree(seed, random_views_case, phases):
    render, place = phases
    scene, count, side, found_in = random_views_case(seed)
    expected = render_views_reference(scene, count, side)
    assert_fields_equal(render_views(scene, count, side, threads=1 + seed % 3), expected)
    for order in range(2):
        assert_fields_equal(render(scene, count, side, seed=order, threads=1 + order), expected)
    found, min_regions = found_in(expected), 1 + seed % 2
    placed = place_instances_reference(scene, expected, found, min_regions)
    assert_fields_equal(place_instances(scene, expected, found, min_regions, threads=1 + seed % 3), placed)
    for order in range(2):
        assert_fields_equal(place(scene, expected, found, min_regions, seed=order, threads=1 + order), placed)


@pytest.mark.parametrize("seed", range(24))
def test_mask_views_of_reference_native_and_phases_agree(seed, random_views_case, shuffled_library):
    scene, count, side, _ = random_views_case(seed)
    known = render_views_reference(scene, count, 48).views
    arguments = (scene, known, 48, count + 3, side)
    expected = render_mask_views_reference(*arguments)
    assert_fields_equal(render_mask_views(*arguments, threads=1 + seed % 3), expected)
    for order in range(2):
        found = render_by_phases(shuffled_library, *arguments, seed=order, threads=1 + order)
        assert_fields_equal(found, expected)


def test_mask_views_of_convex_components_are_rendered_and_others_are_known(scene_of):
    pair, convex, small = ((60, 60, 30, 1), (105, 60, 30, 1)), (230, 150, 40, 2), (40, 200, 9, 1)
    scene = scene_of(disks((240, 320), *pair, convex, small))
    known = render_views(scene, 3, SIDE).views
    assert known[0].tolist() == [9, 0, 148, 1, 1]
    rendered = render_mask_views(scene, known, SIDE, 4, 64)
    assert rendered.views[:3, 4].tolist() == [1, 0, 0]
    assert rendered.views[3:].tolist() == [[172, 92, 117, 2, 2], *[[0, 0, 1, 0, 0]] * 3]
    assert rendered.images.shape == (4, 64, 64, 3)
    assert rendered.masks.any((1, 2)).tolist() == [True, False, False, False]
    # two components in one square: only the first one has the known view
    disk = scene_of(disks((240, 320), (160, 120, 60, 1)))
    disk.label_map[120:] *= 2
    halves = replace(disk, table=np.repeat(disk.table, 2, axis=0))
    known = render_mask_views(halves, np.zeros((0, 5), np.int32), SIDE, 1, SIDE).views
    assert render_mask_views(halves, known, SIDE, 2, SIDE).views[:, 4].tolist() == [1, 2, 0]


def test_mask_views_out_of_range_raise_an_error(scene_of):
    scene, known = scene_of(np.zeros((40, 50), np.uint8)), np.zeros((0, 5), np.int32)
    for arguments in ((known, 7, 1, 32), (known, 32, 0, 32), (known, 32, 1, 1025)):
        with pytest.raises(TfisegError, match=r"0\.\.256 known views"):
            render_mask_views(scene, *arguments)
    assert not render_mask_views(scene, known, 32, 2, 32).views[:, 3].any()


def test_labels_are_replaced_and_pixels_get_their_classes():
    label_map = np.array([[0, 1, 2], [3, 4, -1]], np.int32)
    numbers, classes = np.array([9, 0, 2, 1], np.int32), np.array([9, 7, 8, 6], np.uint8)
    found, class_map = np.full((2, 3), 5, np.int32), np.full((2, 3), 5, np.uint8)
    places = [ctypes.c_void_p(a.ctypes.data) for a in (label_map, numbers, classes, found, class_map)]
    assert library().tfiseg_relabel_cpu(places[0], 2, 3, *places[1:3], 4, *places[3:]) == 0
    assert found.tolist() == [[0, 0, 2], [1, 0, 0]]
    assert class_map.tolist() == [[0, 0, 8], [6, 0, 0]]
    assert library().tfiseg_relabel_cpu(places[0], 0, 3, *places[1:3], 4, *places[3:]) == 2
    assert library().tfiseg_relabel_cpu(None, 2, 3, *places[1:3], 4, *places[3:]) == 3
    assert library().tfiseg_relabel_cpu(places[0], 2, 3, *places[1:3], 0, *places[3:]) == 5


def disks(size_hw, *circles) -> np.ndarray:
    """Return a class map of disks (x, y, radius, class)."""
    class_map = np.zeros(size_hw, np.uint8)
    for x, y, radius, class_id in circles:
        cv2.circle(class_map, (x, y), radius, class_id, -1)
    return class_map


def test_touching_disks_get_a_view_and_a_single_one_does_not(scene_of):
    pair = ((60, 60, 30, 1), (105, 60, 30, 1))
    scene = scene_of(disks((240, 320), *pair, (230, 150, 40, 2), (40, 200, 16, 1)))
    rendered = render_views(scene, 4, SIDE)
    # the pair: box (30, 30)..(136, 91), so 106 * 5 / 4 + 16 = 148 px, centered and shifted into the frame;
    # class 1: box (24, 30)..(136, 217), so 187 * 5 / 4 + 16 = 249 px, larger than the frame's height
    assert rendered.views.tolist() == [
        [9, 0, 148, 1, 1],
        [0, -1, 249, 1, 0],
        [0, 0, SIDE, 0, 0],
        [0, 0, SIDE, 0, 0],
    ]
    assert (rendered.images[2:] == 127).all()
    assert not rendered.masks[2:].any()
    assert rendered.masks[:2].any((1, 2)).tolist() == [True, True]
    assert rendered.own.any((1, 2)).tolist() == [True, False, False, False]


def test_largest_components_come_first_up_to_the_limit(scene_of):
    rows = [(x, y, r, 1) for y, r in ((50, 20), (150, 30), (260, 25)) for x in (60, 60 + int(1.6 * r))]
    scene = scene_of(disks((320, 240), *rows))
    assert render_views(scene, 2, SIDE).views[:, 4].tolist() == [2, 3]
    assert render_views(scene, 8, SIDE).views[:4, 4].tolist() == [2, 3, 1, 0]


def test_other_classes_are_left_out(scene_of):
    scene = scene_of(disks((160, 160), (50, 50, 25, 1), (90, 50, 25, 1), (50, 120, 20, 2), (85, 120, 20, 2)))
    scene.thing_flags[1] = 0
    rendered = render_views(scene, 2, SIDE)
    assert rendered.views[:, 3].tolist() == [2, 0]
    nothing = ViewClusterings(
        np.zeros((2, SIDE, SIDE), np.int32), *np.zeros((2, 2), np.int32), np.zeros((2, 1, 10), np.float32)
    )
    placed = place_instances(scene, rendered, nothing)
    assert placed.component_of.tolist() == [2]
    assert np.array_equal(placed.label_map > 0, scene.label_map == 2)


def test_a_frame_without_components(scene_of):
    scene = scene_of(np.zeros((40, 50), np.uint8))
    rendered = render_views(scene, 3, 32)
    assert rendered.views.tolist() == [[0, 0, 32, 0, 0]] * 3
    nothing = ViewClusterings(
        np.zeros((3, 32, 32), np.int32), *np.zeros((2, 3), np.int32), np.zeros((3, 1, 10), np.float32)
    )
    placed = place_instances(scene, rendered, nothing)
    assert not placed.label_map.any()
    assert not len(placed.table)


def halves(rendered: RenderedViews, regions: int) -> ViewClusterings:
    """Split the first view's component in the middle; the right part is larger."""
    own = rendered.own > 0
    middle = int(np.nonzero(own[0])[1].mean()) - 5
    labels = np.where(own, 1 + (np.arange(own.shape[2]) >= middle), 0).astype(np.int32)
    tables = np.zeros((len(own), 2, 10), np.float32)
    tables[0, :, 6] = [(labels[0] == 1).sum(), (labels[0] == 2).sum()]
    counts = np.zeros(len(own), np.int32)
    counts[0] = 2
    return ViewClusterings(labels, counts, np.full(len(own), regions, np.int32), tables)


def test_parts_are_placed_at_their_position(scene_of):
    scene = scene_of(disks((200, 300), (70, 90, 40, 3), (130, 90, 40, 3), (240, 150, 20, 3)))
    scene.table[:, 1] = (0.25, 0.75)
    rendered = render_views(scene, 3, SIDE)
    found = halves(rendered, regions=2)
    placed = place_instances(scene, rendered, found)
    assert placed.component_of.tolist() == [1, 1, 2]
    assert placed.table[:, :2].tolist() == [[3, 0.25], [3, 0.25], [3, 0.75]]
    x, _, side = rendered.views[0, :3].tolist()
    border = x + (np.argmax((found.labels[0] == 2).any(0))) * side / SIDE
    columns = np.nonzero((placed.label_map == 2).any(0))[0]
    assert abs(columns.min() - border) <= 1
    assert np.array_equal((placed.label_map > 0), scene.label_map > 0)
    for k, row in enumerate(placed.table, 1):
        y, x = np.nonzero(placed.label_map == k)
        assert row[2:7].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1, len(x)]
        assert np.allclose(row[7:9], (x.mean(), y.mean()), atol=1e-3)


@pytest.mark.parametrize(("regions", "min_regions", "pieces"), [(1, 2, 2), (1, 1, 3), (2, 2, 3)])
def test_components_with_few_regions_stay_whole(regions, min_regions, pieces, scene_of):
    scene = scene_of(disks((200, 300), (70, 90, 40, 3), (130, 90, 40, 3), (240, 150, 20, 3)))
    rendered = render_views(scene, 3, SIDE)
    assert len(place_instances(scene, rendered, halves(rendered, regions), min_regions).table) == pieces


def test_invalid_sizes_raise_an_error(scene_of):
    scene = scene_of(np.zeros((40, 50), np.uint8))
    for count, side in ((0, 32), (257, 32), (1, 7), (1, 1025)):
        with pytest.raises(TfisegError, match=r"1\.\.256 views of 8\.\.1024 pixels"):
            render_views(scene, count, side)


def test_invalid_scenes_raise_input_error(scene_of):
    scene = scene_of(disks((40, 50), (20, 20, 9, 1)))
    for wrong in (
        {"frame": scene.frame[:, ::-1]},
        {"label_map": scene.label_map + 1},
        {"table": scene.table[:, :9].copy()},
    ):
        with pytest.raises(InputError):
            render_views(replace(scene, **wrong), 1, 32)


def test_crowds_of_disks_leave_views_to_other_components(scene_of):
    circles = [(20 + 32 * (k % 12), 20 + 32 * (k // 12), 13, 1) for k in range(100)]
    scene = scene_of(disks((400, 400), *circles, (350, 330, 12, 2), (368, 330, 12, 2)))
    pair = int(scene.label_map[330, 350])
    assert pair in render_views(scene, 8, SIDE).views[:, 4]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pennfudan", "coco", "voc2007", "dsb2018"])
def test_views_of_photos_equal_those_of_opencv(name, eval_sets):
    """view_planning.py plans the same views, except for a few components with holes."""
    same, frames, different = 0, 0, np.zeros((2, 2))  # cells of masks and components differ in ties
    for path in sorted((eval_sets / name / "semantic").glob("*.png"))[::6]:
        image = cv2.imread(str(next((eval_sets / name / "images").glob(f"{path.stem}.*"))))
        components = cluster(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), split=0.0)
        planned, rendered = plan_and_render_views(image, components, 192)
        table = np.zeros((len(components), 10), np.float32)
        table[:, 0], table[:, 2:6], table[:, 6] = components.class_id, components.box_xyxy, components.area
        native = render_views(Scene(image, components.label_map, table, np.ones(256, np.uint8)), 64, 192)
        expected = [[p.view.x, p.view.y, p.view.side, p.class_id, p.component] for p in planned]
        rows = native.views[native.views[:, 3] > 0].tolist()
        assert [row for row in rows if row in expected] == expected
        at = [rows.index(row) for row in expected]
        assert np.abs(native.images[at].astype(int) - rendered.images).max(initial=0) <= 1
        for k, (a, b) in enumerate(((native.masks[at], rendered.masks), (native.own[at], rendered.own))):
            different[k] += (a != b).sum(), a.size
        same += rows == expected
        frames += 1
    assert same >= 0.9 * frames
    assert (different[:, 0] <= 3e-4 * different[:, 1]).all()
