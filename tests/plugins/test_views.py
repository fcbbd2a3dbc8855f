"""Views of components: the numpy reference, the CPU's threads and the GPU's phases in random orders give the
same bits; what they must show; and what OpenCV makes of the same views."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from tfiseg.errors import InputError, TfisegError
from tfiseg.plugins.operator import cluster
from tfiseg.plugins.reference_views import cut_views_reference, place_pieces_reference
from tfiseg.plugins.views import CutViews, Found, Scene, cut_views, place_pieces
from tfiseg.runtime.refine.view_planning import plan_and_render_views

SIDE = 96


@pytest.fixture(scope="module")
def phases(shuffled_library, views_by_phases):
    return views_by_phases(shuffled_library)


def assert_equal(got, expected):
    for name in expected.__dataclass_fields__:
        assert np.array_equal(getattr(got, name), getattr(expected, name)), name


@pytest.mark.parametrize("seed", range(24))
def test_reference_native_and_phases_agree(seed, random_look, phases):
    cut, place = phases
    scene, count, side, found_in = random_look(seed)
    expected = cut_views_reference(scene, count, side)
    assert_equal(cut_views(scene, count, side, threads=1 + seed % 3), expected)
    for order in range(2):
        assert_equal(cut(scene, count, side, seed=order, threads=1 + order), expected)
    found, least = found_in(expected), 1 + seed % 2
    placed = place_pieces_reference(scene, expected, found, least)
    assert_equal(place_pieces(scene, expected, found, least, threads=1 + seed % 3), placed)
    for order in range(2):
        assert_equal(place(scene, expected, found, least, seed=order, threads=1 + order), placed)


def discs(size_hw, *circles) -> np.ndarray:
    """A class map of discs (x, y, radius, class)."""
    class_map = np.zeros(size_hw, np.uint8)
    for x, y, radius, class_id in circles:
        cv2.circle(class_map, (x, y), radius, class_id, -1)
    return class_map


def test_touching_discs_get_a_view_and_a_lone_one_does_not(scene_of):
    pair = ((60, 60, 30, 1), (105, 60, 30, 1))
    scene = scene_of(discs((240, 320), *pair, (230, 150, 40, 2), (40, 200, 16, 1)))
    cut = cut_views(scene, 4, SIDE)
    # box (30, 30)..(136, 91): 106 wide, so 106 * 5 / 4 + 16 = 148 px, centred and shifted into the frame
    # of class 1, the pair and the small one: (24, 30)..(136, 217), 187 * 5 / 4 + 16 = 249 px, more than the
    # frame is high
    assert cut.views.tolist() == [
        [9, 0, 148, 1, 1],
        [0, -1, 249, 1, 0],
        [0, 0, SIDE, 0, 0],
        [0, 0, SIDE, 0, 0],
    ]
    assert (cut.images[2:] == 127).all()
    assert not cut.masks[2:].any()
    assert cut.masks[:2].any((1, 2)).tolist() == [True, True]
    assert cut.own.any((1, 2)).tolist() == [True, False, False, False]


def test_the_largest_come_first_and_no_more_than_asked_for(scene_of):
    rows = [(x, y, r, 1) for y, r in ((50, 20), (150, 30), (260, 25)) for x in (60, 60 + int(1.6 * r))]
    scene = scene_of(discs((320, 240), *rows))
    assert cut_views(scene, 2, SIDE).views[:, 4].tolist() == [2, 3]
    assert cut_views(scene, 8, SIDE).views[:4, 4].tolist() == [2, 3, 1, 0]


def test_what_is_not_wanted_is_left_out(scene_of):
    scene = scene_of(discs((160, 160), (50, 50, 25, 1), (90, 50, 25, 1), (50, 120, 20, 2), (85, 120, 20, 2)))
    scene.wanted[1] = 0
    cut = cut_views(scene, 2, SIDE)
    assert cut.views[:, 3].tolist() == [2, 0]
    nothing = Found(
        np.zeros((2, SIDE, SIDE), np.int32), *np.zeros((2, 2), np.int32), np.zeros((2, 1, 10), np.float32)
    )
    pieces = place_pieces(scene, cut, nothing)
    assert pieces.component_of.tolist() == [2]
    assert np.array_equal(pieces.label_map > 0, scene.label_map == 2)


def test_a_frame_without_components(scene_of):
    scene = scene_of(np.zeros((40, 50), np.uint8))
    cut = cut_views(scene, 3, 32)
    assert cut.views.tolist() == [[0, 0, 32, 0, 0]] * 3
    nothing = Found(
        np.zeros((3, 32, 32), np.int32), *np.zeros((2, 3), np.int32), np.zeros((3, 1, 10), np.float32)
    )
    pieces = place_pieces(scene, cut, nothing)
    assert not pieces.label_map.any()
    assert not len(pieces.table)


def halves(cut: CutViews, regions: int) -> Found:
    """The first view's component parted down its middle, the right part the larger."""
    own = cut.own > 0
    middle = int(np.nonzero(own[0])[1].mean()) - 5
    labels = np.where(own, 1 + (np.arange(own.shape[2]) >= middle), 0).astype(np.int32)
    tables = np.zeros((len(own), 2, 10), np.float32)
    tables[0, :, 6] = [(labels[0] == 1).sum(), (labels[0] == 2).sum()]
    counts = np.zeros(len(own), np.int32)
    counts[0] = 2
    return Found(labels, counts, np.full(len(own), regions, np.int32), tables)


def test_parts_come_back_to_where_they_were_seen(scene_of):
    scene = scene_of(discs((200, 300), (70, 90, 40, 3), (130, 90, 40, 3), (240, 150, 20, 3)))
    scene.table[:, 1] = (0.25, 0.75)
    cut = cut_views(scene, 3, SIDE)
    found = halves(cut, regions=2)
    pieces = place_pieces(scene, cut, found)
    assert pieces.component_of.tolist() == [1, 1, 2]
    assert pieces.table[:, :2].tolist() == [[3, 0.25], [3, 0.25], [3, 0.75]]
    x, _, side = cut.views[0, :3].tolist()
    border = x + (np.argmax((found.labels[0] == 2).any(0))) * side / SIDE
    columns = np.nonzero((pieces.label_map == 2).any(0))[0]
    assert abs(columns.min() - border) <= 1
    assert np.array_equal((pieces.label_map > 0), scene.label_map > 0)
    for k, row in enumerate(pieces.table, 1):
        y, x = np.nonzero(pieces.label_map == k)
        assert row[2:7].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1, len(x)]
        assert np.allclose(row[7:9], (x.mean(), y.mean()), atol=1e-3)


@pytest.mark.parametrize(("regions", "least", "pieces"), [(1, 2, 2), (1, 1, 3), (2, 2, 3)])
def test_what_has_no_neck_stays_whole_where_that_is_asked_for(regions, least, pieces, scene_of):
    scene = scene_of(discs((200, 300), (70, 90, 40, 3), (130, 90, 40, 3), (240, 150, 20, 3)))
    cut = cut_views(scene, 3, SIDE)
    assert len(place_pieces(scene, cut, halves(cut, regions), least).table) == pieces


def test_bad_sizes_are_named(scene_of):
    scene = scene_of(np.zeros((40, 50), np.uint8))
    for count, side in ((0, 32), (257, 32), (1, 7), (1, 1025)):
        with pytest.raises(TfisegError, match=r"1\.\.256 views of 8\.\.1024 pixels"):
            cut_views(scene, count, side)


def test_scenes_that_the_library_would_misread_are_refused(scene_of):
    scene = scene_of(discs((40, 50), (20, 20, 9, 1)))
    for wrong in (
        {"frame": scene.frame[:, ::-1]},
        {"label_map": scene.label_map + 1},
        {"table": scene.table[:, :9].copy()},
    ):
        with pytest.raises(InputError):
            cut_views(replace(scene, **wrong), 1, 32)


def test_crowds_of_round_things_leave_the_views_to_others(scene_of):
    circles = [(20 + 32 * (k % 12), 20 + 32 * (k // 12), 13, 1) for k in range(100)]
    scene = scene_of(discs((400, 400), *circles, (350, 330, 12, 2), (368, 330, 12, 2)))
    pair = int(scene.label_map[330, 350])
    assert pair in cut_views(scene, 8, SIDE).views[:, 4]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pennfudan", "coco", "voc2007", "dsb2018"])
def test_views_of_photos_are_those_that_opencv_cuts(name, eval_sets):
    """The CPU's way (runtime/refine/view_planning.py): the same views but for rare ones of components with
    holes, and images to a grey level."""
    same, frames, unlike = 0, 0, np.zeros((2, 2))  # cells of masks and components: ties at a half
    for path in sorted((eval_sets / name / "semantic").glob("*.png"))[::6]:
        image = cv2.imread(str(next((eval_sets / name / "images").glob(f"{path.stem}.*"))))
        components = cluster(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), split=0.0)
        planned, rendered = plan_and_render_views(image, components, 192)
        table = np.zeros((len(components), 10), np.float32)
        table[:, 0], table[:, 2:6], table[:, 6] = components.class_id, components.box_xyxy, components.area
        cut = cut_views(Scene(image, components.label_map, table, np.ones(256, np.uint8)), 64, 192)
        theirs = [[p.view.x, p.view.y, p.view.side, p.class_id, p.component] for p in planned]
        mine = cut.views[cut.views[:, 3] > 0].tolist()
        assert [row for row in mine if row in theirs] == theirs
        at = [mine.index(row) for row in theirs]
        assert np.abs(cut.images[at].astype(int) - rendered.images).max(initial=0) <= 1
        for k, (ours, theirs_too) in enumerate(
            ((cut.masks[at], rendered.masks), (cut.own[at], rendered.own))
        ):
            unlike[k] += (ours != theirs_too).sum(), ours.size
        same += mine == theirs
        frames += 1
    assert same >= 0.9 * frames
    assert (unlike[:, 0] <= 3e-4 * unlike[:, 1]).all()
