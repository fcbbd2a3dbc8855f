"""Components of many objects: parted by shape before they are looked at."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.refine.crowds import crowds_parted
from tfiseg.runtime.refine.join_candidates import candidates_in
from tfiseg.runtime.refine.partition import Parted
from tfiseg.runtime.refine.view import window
from tfiseg.runtime.refine.view_planning import plan_views

sys.path.insert(0, str(Path(__file__).parents[1]))
from scenes import pile

SIDE = 192


def right(found, truth):
    """How many objects are found with an IoU over 0.5."""
    count = 0
    for k in range(1, truth.max() + 1):
        mask = truth == k
        labels, pixels = np.unique(found.label_map[mask], return_counts=True)
        count += any(
            n and 2 * p > mask.sum() + found.area[n - 1] - p for n, p in zip(labels, pixels, strict=True)
        )
    return count


@pytest.mark.parametrize(
    ("side", "radius", "share"), [(512, 15, 0.9), (768, 20, 0.9), (768, 30, 0.9), (400, 12, 0.8)]
)
def test_piles_are_parted(side, radius, share):
    image, truth = pile(side, radius)
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    assert len(components) == 1
    found = tfiseg.Refiner()(image, components)
    assert right(found, truth) > share * truth.max()
    assert len(found) < 1.1 * truth.max()


def nothing_seen(components, windows):
    raise AssertionError("shape is enough")


def nothing_told(components, windows):
    return [np.zeros((SIDE, SIDE), np.int32)] * len(windows)


def test_what_shape_parts_is_not_looked_at():
    class_map = np.zeros((600, 600), np.uint8)
    for x in range(40, 580, 36):
        for y in range(40, 580, 36):
            cv2.circle(class_map, (x, y), 20, 1, -1)
    components = tfiseg.cluster(class_map, split=0)
    assert len(components) == 1
    pieces, families = crowds_parted(components, [1], SIDE, 64, nothing_seen)
    assert len(pieces) == 15 * 15
    assert np.array_equal(families, [0] + [1] * len(pieces))


def test_a_few_large_objects_are_for_the_network():
    image, truth = pile(512, 60)
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    assert crowds_parted(components, [1], SIDE, 64, nothing_seen) is None
    assert right(tfiseg.Refiner()(image, components), truth) > 0.9 * truth.max()


def test_a_table_with_plates_is_no_crowd():
    table = np.ones((500, 700), np.uint8)
    for x in range(40, 300, 50):
        for y in range(50, 500, 60):
            cv2.circle(table, (x, y), 15, 0, -1)
    components = tfiseg.cluster(table, split=0)
    assert crowds_parted(components, [1], SIDE, 64, nothing_seen) is None


def test_an_outlines_bumps_are_no_objects():
    """A person's outline at a high resolution: many small regions beside a few large ones."""
    person = np.zeros((900, 600), np.uint8)
    cv2.ellipse(person, (300, 500), (110, 340), 0, 0, 360, 1, -1)
    cv2.circle(person, (300, 130), 80, 1, -1)
    for y in range(260, 800, 22):
        for x in (190, 410):
            cv2.circle(person, (x, y), 12, 1, -1)
    components = tfiseg.cluster(person, split=0)
    assert len(tfiseg.cluster(person, split=1.0, min_area=0)) > 20
    assert crowds_parted(components, [1], SIDE, 64, nothing_seen) is None


def test_objects_at_a_straight_rim_are_whole():
    _, truth = pile(500, 14, gap=1.75)
    truth[:, 300:] = 0
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    pieces, _ = crowds_parted(components, [int(components.area.argmax()) + 1], SIDE, 64, shows(truth))
    rim = [k for k in np.unique(truth[:, 298:300]) if k and (truth == k).sum() > 300]
    assert len(rim) > 5
    only = np.where(np.isin(truth, rim), truth, 0)
    only = np.unique(only, return_inverse=True)[1].reshape(truth.shape)
    assert right(pieces, only) >= 0.9 * len(rim)


def test_crumbs_of_shape_are_their_neighbours():
    class_map = np.zeros((600, 600), np.uint8)
    for x in range(40, 560, 36):
        for y in range(40, 560, 36):
            cv2.circle(class_map, (x, y), 20, 1, -1)
            cv2.circle(class_map, (x + 18, y + 18), 6, 1, -1)
    components = tfiseg.cluster(class_map, split=0)
    pieces, _ = crowds_parted(components, [int(components.area.argmax()) + 1], SIDE, 64, nothing_seen)
    assert pieces.area.min() > 1000
    assert np.array_equal(pieces.label_map > 0, class_map > 0)


def shows(truth, asked=None):
    """A network that sees the truth."""

    def look(pieces, windows):
        if asked is not None:
            asked.extend(windows)
        seen = (window(truth, p.view).astype(np.float32) for p in windows)
        return [
            cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST).astype(np.int32) for one in seen
        ]

    return look


def test_objects_are_taken_from_the_window_that_shows_them_whole():
    """Where the network tells its objects apart by their colour, so to speak."""
    _, truth = pile(600, 14, gap=1.75)
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    asked = []
    look = shows(truth, asked)
    pieces, _ = crowds_parted(components, [1], SIDE, 64, look)
    assert right(pieces, truth) > 0.95 * truth.max()
    assert 4 < len(asked) <= 64
    assert {p.view.side for p in asked} == {asked[0].view.side}
    assert np.array_equal(pieces.label_map > 0, truth > 0)
    asked.clear()
    assert crowds_parted(components, [1], SIDE, 3, look) is not None
    assert not asked  # three windows would show the objects too small


def test_pieces_of_a_crowd_know_their_component_and_are_never_joined():
    _, truth = pile(512, 30)
    class_map = (truth > 0).astype(np.uint8)
    class_map[:2, :40] = 1
    components = tfiseg.cluster(class_map, split=0)
    assert len(components) == 2
    crowd = int(components.area.argmax()) + 1
    pieces, families = crowds_parted(components, [crowd], SIDE, 64, nothing_told)
    assert len(pieces) == len(families) - 1
    assert np.array_equal(families[pieces.label_map], components.label_map)
    assert (families == crowd).sum() == len(pieces) - 1
    placed = Parted(pieces, families).placed()
    for its in candidates_in(placed, plan_views(pieces, SIDE), SIDE).values():
        assert (families[its.pairs[:, 0]] != families[its.pairs[:, 1]]).all()


def test_scores_and_classes_are_the_components():
    _, truth = pile(512, 30)
    logits = np.stack(
        [np.full((512, 512), 1.0, np.float32), np.where(truth > 0, 3.0, -3.0).astype(np.float32)]
    )
    components = tfiseg.cluster(logits, split=0)
    pieces, _ = crowds_parted(components, [1], SIDE, 64, nothing_told)
    assert len(pieces) > 1
    assert set(pieces.class_id.tolist()) == {1}
    assert np.allclose(pieces.score, components.score[0])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["PennPed00035", "PennPed00066"])
def test_people_in_full_hd_are_no_crowd(eval_sets, name):
    mask = cv2.imread(str(eval_sets / "pennfudan" / "semantic" / f"{name}.png"), cv2.IMREAD_UNCHANGED) == 15
    large = (cv2.resize(mask.astype(np.float32), (1920, 1920 * mask.shape[0] // mask.shape[1])) > 0.5).astype(
        np.uint8
    )
    components = tfiseg.cluster(large, split=0)
    assert crowds_parted(components, range(1, len(components) + 1), SIDE, 64, nothing_seen) is None
