"""Test the splitting of crowds by shape and in windows."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.refine.crowds import split_crowds
from tfiseg.runtime.refine.join_candidates import find_join_candidates
from tfiseg.runtime.refine.partition import Partition
from tfiseg.runtime.refine.view import crop_labels
from tfiseg.runtime.refine.view_planning import plan_views

sys.path.insert(0, str(Path(__file__).parents[1]))
from scenes import pile

SIDE = 192


def count_found(found, truth):
    """Return the number of objects that are found with an IoU above 0.5."""
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
def test_piles_are_split(side, radius, share):
    image, truth = pile(side, radius)
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    assert len(components) == 1
    found = tfiseg.Refiner()(image, components)
    assert count_found(found, truth) > share * truth.max()
    assert len(found) < 1.1 * truth.max()


def no_windows(components, windows):
    raise AssertionError("windows are rendered, but shape splits this crowd")


def empty_windows(components, windows):
    return [np.zeros((SIDE, SIDE), np.int32)] * len(windows)


def test_crowds_that_shape_splits_need_no_windows():
    class_map = np.zeros((600, 600), np.uint8)
    for x in range(40, 580, 36):
        for y in range(40, 580, 36):
            cv2.circle(class_map, (x, y), 20, 1, -1)
    components = tfiseg.cluster(class_map, split=0)
    assert len(components) == 1
    parts, origins = split_crowds(components, [1], SIDE, 64, no_windows)
    assert len(parts) == 15 * 15
    assert np.array_equal(origins, [0] + [1] * len(parts))


def test_a_few_large_objects_are_no_crowd():
    image, truth = pile(512, 60)
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    assert split_crowds(components, [1], SIDE, 64, no_windows) is None
    assert count_found(tfiseg.Refiner()(image, components), truth) > 0.9 * truth.max()


def test_a_table_with_plates_is_no_crowd():
    table = np.ones((500, 700), np.uint8)
    for x in range(40, 300, 50):
        for y in range(50, 500, 60):
            cv2.circle(table, (x, y), 15, 0, -1)
    components = tfiseg.cluster(table, split=0)
    assert split_crowds(components, [1], SIDE, 64, no_windows) is None


def test_bumps_of_an_outline_are_no_crowd():
    """A person's outline at a high resolution has many small regions and a few large ones."""
    person = np.zeros((900, 600), np.uint8)
    cv2.ellipse(person, (300, 500), (110, 340), 0, 0, 360, 1, -1)
    cv2.circle(person, (300, 130), 80, 1, -1)
    for y in range(260, 800, 22):
        for x in (190, 410):
            cv2.circle(person, (x, y), 12, 1, -1)
    components = tfiseg.cluster(person, split=0)
    assert len(tfiseg.cluster(person, split=1.0, min_area=0)) > 20
    assert split_crowds(components, [1], SIDE, 64, no_windows) is None


def test_objects_at_a_straight_border_are_complete():
    _, truth = pile(500, 14, gap=1.75)
    truth[:, 300:] = 0
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    parts, _ = split_crowds(components, [int(components.area.argmax()) + 1], SIDE, 64, true_windows(truth))
    border = [k for k in np.unique(truth[:, 298:300]) if k and (truth == k).sum() > 300]
    assert len(border) > 5
    border_truth = np.where(np.isin(truth, border), truth, 0)
    border_truth = np.unique(border_truth, return_inverse=True)[1].reshape(truth.shape)
    assert count_found(parts, border_truth) >= 0.9 * len(border)


def test_small_parts_are_merged_into_their_neighbors():
    class_map = np.zeros((600, 600), np.uint8)
    for x in range(40, 560, 36):
        for y in range(40, 560, 36):
            cv2.circle(class_map, (x, y), 20, 1, -1)
            cv2.circle(class_map, (x + 18, y + 18), 6, 1, -1)
    components = tfiseg.cluster(class_map, split=0)
    parts, _ = split_crowds(components, [int(components.area.argmax()) + 1], SIDE, 64, no_windows)
    assert parts.area.min() > 1000
    assert np.array_equal(parts.label_map > 0, class_map > 0)


def true_windows(truth, requested=None):
    """Return a function that labels windows with the true objects."""

    def cluster_windows(parts, windows):
        if requested is not None:
            requested.extend(windows)
        crops = (crop_labels(truth, p.view).astype(np.float32) for p in windows)
        return [
            cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST).astype(np.int32) for one in crops
        ]

    return cluster_windows


def test_objects_are_taken_from_windows_that_show_them_completely():
    """The objects touch, so that only the network can separate them."""
    _, truth = pile(600, 14, gap=1.75)
    components = tfiseg.cluster((truth > 0).astype(np.uint8), split=0)
    requested = []
    cluster_windows = true_windows(truth, requested)
    parts, _ = split_crowds(components, [1], SIDE, 64, cluster_windows)
    assert count_found(parts, truth) > 0.95 * truth.max()
    assert 4 < len(requested) <= 64
    assert {p.view.side for p in requested} == {requested[0].view.side}
    assert np.array_equal(parts.label_map > 0, truth > 0)
    requested.clear()
    assert split_crowds(components, [1], SIDE, 3, cluster_windows) is not None
    assert not requested  # three windows would show the objects too small


def test_parts_of_a_crowd_are_never_joined():
    _, truth = pile(512, 30)
    class_map = (truth > 0).astype(np.uint8)
    class_map[:2, :40] = 1
    components = tfiseg.cluster(class_map, split=0)
    assert len(components) == 2
    crowd = int(components.area.argmax()) + 1
    parts, origins = split_crowds(components, [crowd], SIDE, 64, empty_windows)
    assert len(parts) == len(origins) - 1
    assert np.array_equal(origins[parts.label_map], components.label_map)
    assert (origins == crowd).sum() == len(parts) - 1
    snapshot = Partition(parts, origins).snapshot()
    for candidates in find_join_candidates(snapshot, plan_views(parts, SIDE), SIDE).values():
        assert (origins[candidates.pairs[:, 0]] != origins[candidates.pairs[:, 1]]).all()


def test_parts_have_score_and_class_of_their_component():
    _, truth = pile(512, 30)
    logits = np.stack(
        [np.full((512, 512), 1.0, np.float32), np.where(truth > 0, 3.0, -3.0).astype(np.float32)]
    )
    components = tfiseg.cluster(logits, split=0)
    parts, _ = split_crowds(components, [1], SIDE, 64, empty_windows)
    assert len(parts) > 1
    assert set(parts.class_id.tolist()) == {1}
    assert np.allclose(parts.score, components.score[0])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["PennPed00035", "PennPed00066"])
def test_people_in_full_hd_are_no_crowd(eval_sets, name):
    mask = cv2.imread(str(eval_sets / "pennfudan" / "semantic" / f"{name}.png"), cv2.IMREAD_UNCHANGED) == 15
    large = (cv2.resize(mask.astype(np.float32), (1920, 1920 * mask.shape[0] // mask.shape[1])) > 0.5).astype(
        np.uint8
    )
    components = tfiseg.cluster(large, split=0)
    assert split_crowds(components, range(1, len(components) + 1), SIDE, 64, no_windows) is None
