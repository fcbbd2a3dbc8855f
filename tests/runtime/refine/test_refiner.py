"""Refinement of components: views, splits, joins, and the resulting instances."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.errors import InputError, ModelError
from tfiseg.runtime.evaluate.evaluation_set import load_eval_set
from tfiseg.runtime.evaluate.metrics import PictureScore, panoptic_counts
from tfiseg.runtime.networks.instance_session import InstanceSession
from tfiseg.runtime.networks.open_session import open_instance_session
from tfiseg.runtime.refine.join_candidates import find_join_candidates, join_parts
from tfiseg.runtime.refine.join_rule import JOIN_FEATURES, PairFeatures, rule_log_odds
from tfiseg.runtime.refine.partition import Partition, instances_from_labels
from tfiseg.runtime.refine.refiner import Refiner
from tfiseg.runtime.refine.view import View, make_view, render_mask, render_view, sample_labels
from tfiseg.runtime.refine.view_planning import (
    PlannedView,
    RenderedViews,
    plan_closer_views,
    plan_informative_views,
    plan_views,
    render_components,
    render_views,
    select_informative_views,
)

OFFSETS = np.array([[0, 1]], np.int32)
SIDE = 160  # side of the views in these tests
NOTHING_SEEN = (
    np.zeros((160, 160, 3), np.uint8),
    np.zeros((2, 40, 40), np.float32),
    np.zeros((1, 40, 40), np.float32),
)


def two_squares():
    """A component of 60 x 40 and one of 20 x 20 to its right, class 3, in a frame of 120 x 160."""
    class_map = np.zeros((120, 160), np.uint8)
    class_map[20:80, 20:60] = 3
    class_map[40:60, 100:120] = 3
    return tfiseg.cluster(class_map, split=0)


def test_views_are_square_with_a_margin_and_inside_the_image_if_possible():
    assert make_view((20, 20, 60, 120), (400, 400), SIDE) == View(0, 0, 141)
    assert make_view((350, 10, 370, 30), (400, 400), SIDE) == View(339, 0, 41)
    assert make_view((380, 10, 400, 30), (400, 400), 192) == View(352, 0, 48)  # no zoom beyond 4
    assert make_view((0, 0, 400, 90), (90, 400), SIDE) == View(
        -58, -213, 516
    )  # larger than the frame: centered


def test_rendered_view_is_gray_outside_of_the_image():
    image = np.full((80, 80, 3), 200, np.uint8)
    view = render_view(image, View(-80, 0, 160), SIDE)
    assert (view[:80, :79] == 127).all()
    assert (view[:80, 81:] == 200).all()
    assert render_mask(np.ones((80, 80), np.uint8), View(-80, 0, 160), SIDE).sum() == 80 * 80


def test_each_component_and_each_class_of_several_components_has_a_view():
    planned = plan_views(two_squares(), SIDE)
    assert [(p.class_id, p.component) for p in planned] == [(3, 1), (3, 2), (3, 0)]
    near = two_squares().label_map > 0
    near[:, 95:] = 0
    near[40:60, 70:80] = 1  # the class's view would be similar to the first one
    assert [p.component for p in plan_views(tfiseg.cluster(near.astype(np.uint8), split=0), SIDE)] == [1, 2]
    apart = np.zeros((400, 400), np.uint8)
    apart[:40, :40] = apart[350:, 350:] = 3
    assert [p.component for p in plan_views(tfiseg.cluster(apart, split=0), SIDE)] == [2, 1, 0]


@pytest.mark.parametrize("side", [96, 160, 256])
def test_rendered_masks_of_class_and_component(side):
    components = two_squares()
    planned = plan_views(components, side)[:1]
    own = render_components(components.label_map, planned, side)
    rendered = RenderedViews(*render_views(np.zeros((120, 160, 3), np.uint8), components, planned, side), own)
    assert rendered.images.shape == (1, side, side, 3)
    zoom = (side / planned[0].view.side) ** 2
    assert rendered.own[0].sum() == pytest.approx(60 * 40 * zoom, rel=0.05)
    assert rendered.masks[0].sum() >= rendered.own[0].sum()


def test_convex_components_have_no_view():
    class_map = np.zeros((120, 160), np.uint8)
    class_map[20:80, 20:60] = class_map[20:80, 80:140] = 3
    class_map[20:40, 80:120] = 0
    components = tfiseg.cluster(class_map, split=0)
    planned = plan_views(components, SIDE)
    assert [
        planned[k].component
        for k in select_informative_views(planned, render_components(components.label_map, planned, SIDE))
    ] == [2, 0]
    square = tfiseg.cluster((class_map[:, :70] > 0).astype(np.uint8), split=0)
    assert Refiner()(np.zeros((120, 70, 3), np.uint8), square) is square


def test_small_components_are_refined_unless_convex():
    class_map = np.zeros((60, 60), np.uint8)
    cv2.circle(class_map, (20, 20), 4, 1, -1)
    cv2.circle(class_map, (28, 20), 4, 1, -1)
    image = np.where(class_map[..., None] > 0, np.uint8(220), np.uint8(30)).repeat(3, 2)
    assert len(Refiner()(image, tfiseg.cluster(class_map, split=0))) == 2
    y, x = np.mgrid[:200, :300] % 20 - 10.0
    disks = (x**2 + y**2 < 55).astype(np.uint8)
    planned, own = plan_informative_views(tfiseg.cluster(disks, split=0), 192)  # the disks are convex
    assert [p.component for p in planned] == [0]
    assert len(own) == 1
    whole = tfiseg.cluster((np.hypot(x[:20, :40], y[:20, :40]) < 7).astype(np.uint8), split=0)
    # found on a coarser grid: no longer connected at full size
    coarse = replace(whole, label_map=(whole.label_map > 0).astype(np.int32)).select([True, False])
    coarse.box_xyxy[0] = (3, 3, 38, 18)
    assert [p.component for p in plan_informative_views(coarse, 192)[0]] == [1]
    small = np.zeros((60, 60), np.uint8)
    small[20:29, 20:23] = small[20:23, 20:29] = 1  # not convex, but below the minimum size
    components = tfiseg.cluster(small, split=0)
    assert Refiner()(image, components) is components


def test_labels_of_a_view_split_the_component():
    components = two_squares()
    planned = [PlannedView(View(0, 0, 160), 3, 1)]
    labels = np.zeros((160, 160), np.int32)
    labels[20:50, 20:60], labels[50:80, 20:60] = 1, 2
    partition = Partition(components)
    partition.split(planned[0], labels)
    found = instances_from_labels(join_parts(partition.snapshot(), []), components)
    assert found.area.tolist() == [1200, 400, 1200]
    assert found.box_xyxy.tolist() == [[20, 20, 60, 50], [100, 40, 120, 60], [20, 50, 60, 80]]
    assert found.class_id.tolist() == [3, 3, 3]


@pytest.mark.parametrize(("bias", "count"), [(1.0, 1), (-1.0, 2)])
def test_join_rule_decides(bias, count):
    components = two_squares()
    planned = [PlannedView(View(0, 0, 160), 3, 1)]
    rule = np.zeros(len(JOIN_FEATURES) + 3, np.float32)
    rule[-1] = bias
    partition = Partition(components)
    log_odds = find_join_candidates(partition.snapshot(), planned, SIDE)[0].log_odds(
        *NOTHING_SEEN, OFFSETS, rule
    )
    assert log_odds == [((1, 2), bias)]
    assert len(instances_from_labels(join_parts(partition.snapshot(), log_odds), components)) == count


def test_parts_of_similar_size_are_no_candidates():
    class_map = np.zeros((120, 160), np.uint8)
    class_map[20:80, 10:60] = class_map[20:80, 80:130] = 3
    components = tfiseg.cluster(class_map, split=0)
    planned = [PlannedView(View(0, 0, 160), 3, 0)]
    assert not find_join_candidates(Partition(components).snapshot(), planned, SIDE)


def test_views_without_effect_are_not_rendered(monkeypatch):
    refiner, seen = Refiner(), []
    infer = refiner.session.infer
    monkeypatch.setattr(
        refiner.session, "infer", lambda images, masks, _: seen.append(len(images)) or infer(images, masks)
    )
    stars = np.zeros((120, 260), np.uint8)
    y, x = np.abs(np.mgrid[-40:41, -40:41])
    stars[20:101, 20:101] = stars[20:101, 140:221] = 3 * (
        np.sqrt(x) + np.sqrt(y) < 7
    )  # one region each, of one size
    components = tfiseg.cluster(stars, split=0)
    assert [p.component for p in plan_informative_views(components, refiner.session.view_px)[0]] == [1, 2, 0]
    refiner(np.zeros((120, 260, 3), np.uint8), components)
    assert sum(seen) == 0  # nothing to split, nothing to join
    stars[85:95, 20:30] = 3  # a candidate to join the star beside it
    refiner(np.zeros((120, 260, 3), np.uint8), tfiseg.cluster(stars, split=0))
    assert sum(seen) > 0


def halves(own, *_):
    """Split each view's component into its left and right half."""
    middle = [np.flatnonzero(its.any(0)).mean() for its in own]
    return [
        its * np.where(np.arange(own.shape[2]) < m, 1, 2).astype(np.int32)
        for its, m in zip(own, middle, strict=True)
    ]


@pytest.mark.parametrize(
    ("thorough", "max_views", "count"), [(False, 64, 2), (True, 64, 8), (True, 1, 3), (True, 2, 4)]
)
def test_exhaustive_refinement_renders_parts_until_nothing_is_split(monkeypatch, thorough, max_views, count):
    chain = np.zeros((120, 400), np.uint8)
    for x in range(60, 360, 40):
        cv2.circle(chain, (x, 60), 22, 3, -1)
    refiner = Refiner(max_views=max_views, thorough=thorough)
    monkeypatch.setattr("tfiseg.runtime.refine.refiner.split_components", halves)
    found = refiner(np.zeros((120, 400, 3), np.uint8), tfiseg.cluster(chain, split=0))
    assert len(found) == count
    assert found.area.sum() == (chain > 0).sum()


def test_exhaustive_refinement_renders_components_without_a_neck(monkeypatch):
    star = np.zeros((140, 140), np.uint8)
    y, x = np.abs(np.mgrid[-40:41, -40:41])
    star[30:111, 30:111] = np.sqrt(x) + np.sqrt(y) < 7
    monkeypatch.setattr("tfiseg.runtime.refine.refiner.split_components", halves)
    for thorough, count in ((None, 1), (False, 1), (True, 2)):  # the included network is for photos
        assert (
            len(Refiner(thorough=thorough)(np.zeros((140, 140, 3), np.uint8), tfiseg.cluster(star, split=0)))
            == count
        )


def test_closer_views_are_closer_and_of_parts_that_are_not_convex():
    parts = np.zeros((200, 400), np.int32)
    parts[100:120, 20:200], parts[100:120, 200:260] = 1, 2  # the first is nearly as long as all of it
    parts[60:120, 260:280], parts[100:120, 280:300] = 3, 3
    parts[110:115, 300:305] = 4  # too small to split
    whole = PlannedView(make_view((20, 60, 305, 120), (200, 400), SIDE), 7, 1)
    planned, own = plan_closer_views(parts, dict.fromkeys((1, 2, 3, 4, 5), whole), SIDE)  # the last is empty
    only = PlannedView(make_view((260, 60, 300, 120), (200, 400), SIDE), 7, 3)
    assert planned == [only]  # the second is convex
    zoom = (SIDE / planned[0].view.side) ** 2
    assert own[0].sum() == pytest.approx((parts == 3).sum() * zoom, rel=0.05)
    assert plan_closer_views(parts, {}, SIDE)[0] == []
    parts[150:190, 20:30] = parts[180:190, 20:50] = 8
    planned, _ = plan_closer_views(parts, dict.fromkeys((8, 3), whole), SIDE)
    assert [p.component for p in planned] == [3, 8]  # the larger first


def test_parts_that_a_view_does_not_show_have_no_view():
    whole = PlannedView(View(0, 0, 600), 7, 1)
    counts = []
    for gap in range(30, 140, 3):
        for x in range(100, 160, 7):
            label_map = np.zeros((400, 600), np.int32)
            label_map[150, x] = label_map[150 + gap // 2, x + gap] = 1  # two pixels, in a view of both
            counts.append(len(plan_closer_views(label_map, {1: whole}, 192)[0]))
    assert 0 in counts


def test_closer_views_do_not_replace_views_for_joins(monkeypatch):
    class_map = np.zeros((200, 400), np.uint8)
    for x in range(60, 360, 40):
        cv2.circle(class_map, (x, 60), 22, 3, -1)
    class_map[150:180, 40:70] = class_map[150:180, 330:360] = 5  # nothing to split, but a view of both
    components = tfiseg.cluster(class_map, split=0)
    nothing = SimpleNamespace(log_odds=lambda *_: [])
    monkeypatch.setattr(
        "tfiseg.runtime.refine.refiner.find_join_candidates",
        lambda parts, planned, _: {len(planned) - 1: nothing},
    )
    monkeypatch.setattr("tfiseg.runtime.refine.refiner.split_components", halves)
    seen, infer = [], InstanceSession.infer
    monkeypatch.setattr(
        InstanceSession,
        "infer",
        lambda self, images, masks, _: seen.append(len(images)) or infer(self, images, masks),
    )
    for thorough, views in ((False, [1, 1]), (True, [1, 2, 1])):
        seen.clear()
        Refiner(max_views=2, thorough=thorough)(np.zeros((200, 400, 3), np.uint8), components)
        assert seen == views


def test_features_of_a_pair():
    parts = np.zeros((80, 80), np.int32)
    parts[10:30, 10:30], parts[10:30, 40:50] = 1, 2
    votes = np.zeros((2, 40, 40), np.float32)
    votes[1, :, 20:] = -12  # the small one votes for the large one's center, 25 grid cells to its left
    other = np.zeros((80, 80), bool)
    other[:, 30:34] = True  # a post of another class in four of the ten columns between them
    affinity, offsets = np.full((1, 40, 40), 0.75, np.float32), np.array([[0, 8]], np.int32)
    pairs = PairFeatures(parts, other, np.zeros((160, 160, 3), np.uint8), votes, affinity, offsets)
    row = dict(zip(JOIN_FEATURES, pairs.features(np.array([0]), np.array([1]))[0], strict=True))
    assert row["log2 area ratio"] == -1
    assert row["mean affinity"] == pytest.approx(0.75)
    assert row["log2 gap"] == pytest.approx(np.log2(1 + 11), abs=0.1)
    assert row["vote distance / path"] == pytest.approx(1 / 25)
    assert row["overlap of rows"] == 1
    assert row["overlap of columns"] == -1
    assert row["other class between"] == pytest.approx(0.4)
    assert row["other classes in view"] == pytest.approx(4 / 80)


def test_adjacent_parts_have_no_class_between():
    parts = np.zeros((80, 80), np.int32)
    parts[10:30, 10:30], parts[10:30, 30:50] = 1, 2
    maps = np.zeros((2, 40, 40), np.float32), np.zeros((1, 40, 40), np.float32), np.array([[0, 1]], np.int32)
    pairs = PairFeatures(parts, parts == 0, np.zeros((160, 160, 3), np.uint8), *maps)
    assert pairs.features(np.array([0]), np.array([1]))[0, JOIN_FEATURES.index("other class between")] == 0.5


def test_rule_with_one_hidden_layer():
    # two units of two weights, biases, output weights, output bias
    rule = np.array([1, -1, 2, 0, 0.5, 0, 3, 1, -4], np.float32)
    assert rule_log_odds(rule, np.array([[2.0, 1.0]])).tolist() == [3 * 1.5 + 1 * 4 - 4]


def test_error_messages():
    with pytest.raises(ModelError, match="no instance network"):
        open_instance_session(PLAIN_MODEL)
    with pytest.raises(ModelError, match="there is no model"):
        Refiner("nowhere.onnx")
    with pytest.raises(InputError, match="of one size"):
        Refiner()(np.zeros((10, 10, 3), np.uint8), two_squares())
    with pytest.raises(InputError, match="max_views"):
        Refiner(max_views=0)
    with pytest.raises(InputError, match="refine must be one of"):
        tfiseg.Segmenter(refine="magic")
    with pytest.raises(InputError, match="has no effect without"):
        tfiseg.Segmenter(instance_model="x.onnx")
    with pytest.raises(InputError, match='has no effect without refine="components"'):
        tfiseg.Segmenter(thorough=True)


def test_empty_and_convex_components_are_not_changed():
    refiner = Refiner()
    empty = tfiseg.cluster(np.zeros((50, 50), np.uint8), split=0)
    assert len(refiner(np.zeros((50, 50, 3), np.uint8), empty)) == 0
    square = np.zeros((100, 100), np.uint8)
    square[20:70, 20:70] = 1
    components = tfiseg.cluster(square, split=0)
    assert refiner(np.zeros((100, 100, 3), np.uint8), components) is components


def test_segmenter_with_refinement():
    frame = next(iter(tfiseg.open_source("synthetic")))
    found = tfiseg.Segmenter(refine="components")(frame)
    assert {"network", "views", "instance network", "merge"} <= set(found.stage_ms)
    assert found.label_map.max() == len(found)
    sizes = np.bincount(found.label_map.ravel(), minlength=len(found) + 1)[1:]
    assert sizes.tolist() == found.area.tolist()


@pytest.mark.shared
def test_people_who_touch_are_split(shared):
    pictures, _ = load_eval_set(shared / "data" / "eval" / "pennfudan")
    refiner = Refiner()
    before, after = PictureScore(), PictureScore()
    for picture in list(pictures)[:32]:
        components = tfiseg.cluster(picture.semantic, split=0)
        for score, found in ((before, components), (after, refiner(picture.image, components))):
            score.add(panoptic_counts(found.label_map, found.class_id, picture.truth, picture.semantic))
    assert after.pooled.quality > before.pooled.quality + 6


def test_samples_are_taken_at_cell_centers():
    label_map = np.zeros((8, 8), np.int32)
    label_map[:, 4:] = 5
    assert sample_labels(label_map, View(0, 0, 8), 4)[0].tolist() == [0, 0, 5, 5]
    assert sample_labels(label_map, View(4, 0, 8), 4)[0].tolist() == [5, 5, 0, 0]
    assert cv2.countNonZero(sample_labels(label_map, View(-8, 0, 8), 4)) == 0
