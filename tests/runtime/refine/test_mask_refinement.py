"""Mask refinement: which pixels are added and removed."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import tfiseg
from hypothesis import given, settings
from hypothesis import strategies as st
from tfiseg.cli.main import main
from tfiseg.errors import InputError, ModelError
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.refine import mask_refinement
from tfiseg.runtime.refine.mask_refinement import update_masks as refine_instances
from tfiseg.runtime.refine.partition import instances_from_labels
from tfiseg.runtime.refine.refiner import Refiner
from tfiseg.runtime.refine.view import View
from tfiseg.runtime.refine.view_planning import PlannedView
from tfiseg.runtime.sources.synthetic import SyntheticCamera

FRAME = View(0, 0, 128)  # the whole of it, 128 x 128


def foreground(*boxes):
    """(128, 128), 0.9 in the boxes (y0, y1, x0, x1) and 0.1 elsewhere: one cell per pixel."""
    out = np.full((128, 128), 0.1, np.float32)
    for y0, y1, x0, x1 in boxes:
        out[y0:y1, x0:x1] = 0.9
    return out


def components_of(*boxes, classes=None):
    class_map = np.zeros((128, 128), np.uint8)
    for k, (y0, y1, x0, x1) in enumerate(boxes):
        class_map[y0:y1, x0:x1] = 3 if classes is None else classes[k]
    return tfiseg.cluster(class_map, split=0)


def update_masks(labels, components, seen):
    """Return the refined label map with the labels of the given one, which may have gaps."""
    before = instances_from_labels(labels, components)
    label_of = np.zeros(len(before) + 1, np.int32)
    label_of[before.label_map] = labels
    found = refine_instances(replace(before, track_id=label_of[1:]), components, seen)
    return np.concatenate([[0], found.track_id])[found.label_map]


def test_pixels_are_added_and_removed():
    components = components_of((40, 80, 40, 80))
    found = update_masks(
        components.label_map, components, [(PlannedView(FRAME, 3, 1), foreground((44, 85, 40, 80)))]
    )
    expected = np.zeros((128, 128), bool)
    expected[44:85, 40:80] = True
    assert ((found == 1) == expected).all()
    assert components.label_map[40, 40] == 1, "the input is not changed"


def test_views_smaller_than_the_frame():
    components = components_of((60, 100, 60, 100))
    seen = np.full((48, 48), 0.1, np.float32)
    seen[12:36, 8:33] = 0.9  # of a view of 96 px at (40, 30): y 54..102, x 56..106
    found = update_masks(components.label_map, components, [(PlannedView(View(40, 30, 96), 3, 1), seen)])
    ys, xs = np.nonzero(found)
    assert (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) == (54, 102, 56, 106)


def test_each_instance_of_a_component_grows_on_its_side():
    components = components_of((40, 80, 40, 80))
    labels = components.label_map.copy()
    labels[:, 60:] *= 5
    found = update_masks(labels, components, [(PlannedView(FRAME, 3, 1), foreground((36, 84, 36, 84)))])
    assert sorted(np.unique(found)) == [0, 1, 5]
    assert (found[36:84, 36:60] == 1).all()
    assert (found[36:84, 60:84] == 5).all()


def test_islands_and_far_pixels_are_not_added():
    components = components_of((40, 80, 40, 60))
    found = update_masks(
        components.label_map,
        components,
        [(PlannedView(FRAME, 3, 1), foreground((40, 80, 40, 60), (50, 55, 63, 66), (75, 128, 40, 60)))],
    )
    assert not found[:, 60:].any()
    assert found[80:88, 40:60].all()  # the minimum reach
    assert not found[89:].any()


def test_interior_is_not_removed():
    components = components_of((30, 90, 30, 90))
    ring = foreground((30, 90, 30, 90))
    ring[34:86, 34:86] = 0.1
    ring[30:90, 60:62] = 0.1  # through the ring: islands of the component itself are kept
    found = update_masks(components.label_map, components, [(PlannedView(FRAME, 3, 1), ring)])
    assert (found[39:81, 39:81] == 1).all()  # further than 15 % of 60 px from the outline
    assert not found[34:39, 40:56].any()


def test_a_component_without_foreground_is_not_changed():
    components = components_of((40, 80, 40, 60))
    found = update_masks(components.label_map, components, [(PlannedView(FRAME, 3, 1), foreground())])
    assert (found == components.label_map).all()


def test_pixels_between_two_of_a_class_go_to_the_nearer_one():
    components = components_of((40, 80, 40, 56), (40, 80, 62, 80))
    both = foreground((40, 80, 40, 80))
    found = update_masks(components.label_map, components, [(PlannedView(FRAME, 3, k), both) for k in (1, 2)])
    assert (found[40:80, 40:58] == 1).all()
    assert (found[40:80, 60:80] == 2).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_pixels_between_two_classes_go_to_the_more_certain_one(order):
    components = components_of((40, 80, 40, 60), (40, 80, 60, 80), classes=(3, 4))
    left, right = foreground((40, 80, 40, 64)), foreground((40, 80, 60, 80))
    right[:, 60:64] = 0.7
    seen = [(PlannedView(FRAME, 3, 1), left), (PlannedView(FRAME, 4, 2), right)]
    found = update_masks(components.label_map, components, [seen[k] for k in order])
    assert (found[40:80, 40:64] == 1).all()
    assert (found[40:80, 64:80] == 2).all()


def test_components_without_a_view_lose_nothing():
    components = components_of((40, 80, 40, 60), (40, 80, 60, 80), classes=(3, 4))
    found = update_masks(
        components.label_map, components, [(PlannedView(FRAME, 3, 1), foreground((40, 80, 40, 80)))]
    )
    assert (found == components.label_map).all()


def test_uncertain_pixels_are_not_changed():
    components = components_of((40, 80, 40, 80))
    uncertain = foreground((40, 80, 40, 80))
    uncertain[38:42], uncertain[78:82] = 0.45, 0.55
    found = update_masks(components.label_map, components, [(PlannedView(FRAME, 3, 1), uncertain)])
    assert (found == components.label_map).all()


def test_the_image_border_is_no_outline():
    components = components_of((0, 60, 40, 128))
    nothing = foreground((20, 30, 70, 80))  # the only foreground
    found = update_masks(components.label_map, components, [(PlannedView(FRAME, 3, 1), nothing)])
    assert (found[0:40, 80:128] == 1).all()  # too far inside to be removed
    assert not found[50:60, 40:128].any()


def test_an_instance_is_never_lost():
    components = components_of((40, 80, 40, 80))
    labels = components.label_map.copy()
    labels[40:44, 40:44] = 2
    seen = foreground((40, 80, 40, 80))
    seen[38:46, 38:46] = 0.1
    found = update_masks(labels, components, [(PlannedView(FRAME, 3, 1), seen)])
    assert (found[40:44, 40:44] == 2).all()
    assert not found[44, 40:44].any()


def test_of_two_claims_the_more_certain_one_wins():
    components = components_of((40, 80, 40, 50), (40, 80, 60, 70), classes=(3, 4))
    first, second = foreground((40, 80, 40, 58)), foreground((40, 80, 52, 70))
    first[:, 50:58] = 0.7
    second[:, 52:60] = 0.8
    found = update_masks(
        components.label_map,
        components,
        [(PlannedView(FRAME, 3, 1), first), (PlannedView(FRAME, 4, 2), second)],
    )
    assert (found[40:80, 40:52] == 1).all()
    assert (found[40:80, 52:70] == 2).all()
    again = update_masks(
        components.label_map,
        components,
        [(PlannedView(FRAME, 4, 2), second), (PlannedView(FRAME, 3, 1), first)],
    )
    assert (again == found).all()


def test_diagonal_neighbors_touch():
    components = components_of((40, 80, 40, 80))
    seen = foreground((40, 80, 40, 80))
    seen[80:84, 80:84] = 0.9  # corner to corner
    found = update_masks(components.label_map, components, [(PlannedView(FRAME, 3, 1), seen)])
    assert (found[80:84, 80:84] == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_instances_stay_within_reach(seed):
    rng = np.random.default_rng(seed)
    class_map = (rng.random((16, 16)) < 0.4).astype(np.uint8) * rng.integers(1, 3, (16, 16)).astype(np.uint8)
    components = tfiseg.cluster(class_map.repeat(8, 0).repeat(8, 1), split=0)
    seen = [
        (PlannedView(FRAME, int(c), k + 1), rng.random((32, 32), np.float32))
        for k, c in enumerate(components.class_id)
        if rng.random() < 0.8
    ]
    found = update_masks(components.label_map, components, seen)
    assert set(np.unique(found)) <= {0, *range(1, len(components) + 1)}
    with_view = {p.component for p, _ in seen}
    for k, (x0, y0, x1, y1) in enumerate(components.box_xyxy.astype(int)):
        ys, xs = np.nonzero(found == k + 1)
        assert len(ys), "none is lost"
        reach = max(8, int(0.15 * max(x1 - x0, y1 - y0))) if k + 1 in with_view else 0
        assert y0 - reach <= ys.min() <= ys.max() < y1 + reach
        assert x0 - reach <= xs.min() <= xs.max() < x1 + reach


def shifted_disk():
    """Return a disk, a class map that is shifted up, and the true mask."""
    y, x = np.mgrid[:128, :128]
    disk = (y - 64) ** 2 + (x - 64) ** 2 < 30**2
    image = np.where(disk[..., None], np.uint8(60), np.uint8(200)).repeat(3, 2).copy()
    class_map = ((y - 56) ** 2 + (x - 64) ** 2 < 30**2).astype(np.uint8)
    return image, class_map, disk


def test_the_included_network_refines_a_disk():
    image, class_map, disk = shifted_disk()
    before = tfiseg.cluster(class_map, split=0)
    found = Refiner().outlined(image, before)

    def iou(mask):
        return (mask & disk).sum() / (mask | disk).sum()

    assert iou(found.label_map > 0) > iou(class_map > 0) + 0.1
    assert found.score == before.score
    assert found.class_id == before.class_id
    assert found.area[0] == (found.label_map > 0).sum()
    assert {"outlines", "instance network"} <= set(found.stage_ms)
    assert np.array_equal(found.semantic_map > 0, found.label_map > 0)


def test_track_ids_are_kept():
    image, class_map, _ = shifted_disk()
    two = np.concatenate([class_map, class_map], axis=1)
    two[:40, :64] = 0  # the second one's first row is above the first one's
    before = replace(tfiseg.cluster(two, split=0), track_id=np.array([11, 22], np.int32))
    found = Refiner().outlined(np.concatenate([image, image], axis=1), before)
    for k in range(2):
        place = found.label_map == k + 1
        assert set(np.unique(before.label_map[place])) - {0} == {
            list(before.track_id).index(found.track_id[k]) + 1
        }


def test_no_view_is_predicted_twice(monkeypatch):
    frame = next(iter(SyntheticCamera(people=3, seed=4)))
    segmenter = tfiseg.Segmenter(refine="components", min_score=0)
    session, seen = segmenter.refiner.session, []
    for name in ("infer", "foreground"):
        plain = getattr(session, name)
        monkeypatch.setattr(
            session,
            name,
            lambda v, m, *more, plain=plain: seen.extend(x.tobytes() for x in v) or plain(v, m, *more),
        )
    assert len(segmenter(frame))
    assert len(seen) == len(set(seen)) > 0


def test_minimum_area_applies_to_refined_masks(monkeypatch):
    image, class_map, _ = shifted_disk()
    segmenter = tfiseg.Segmenter(outlines=True, min_area=int(class_map.sum()), min_score=0)
    found = tfiseg.cluster(class_map, split=0)
    monkeypatch.setattr(segmenter, "cluster_maps", lambda *_: found)
    for probability, count in ((0.5, 1), (0.0, 0)):
        ring = np.full((1, 96, 96), 0.5, np.float32)  # uncertain: not changed
        ring[0, :22] = probability
        monkeypatch.setattr(segmenter._mask_refiner.session, "foreground", lambda v, m, ring=ring: ring)
        assert len(segmenter(image)) == count


def test_frames_on_the_gpu_are_rejected_before_the_network_runs():
    class OnGpu:
        __cuda_array_interface__ = None

    with pytest.raises(InputError, match="pass a frame in host memory"):
        tfiseg.Segmenter(outlines=True)(OnGpu())


@pytest.mark.parametrize(
    ("options", "refined"),
    [
        ([], False),
        (["--outlines"], True),
        (["--refine", "components"], True),
        (["--refine", "components", "--no-outlines"], False),
    ],
)
def test_command_line_options(tmp_path, capsys, options, refined):
    cv2.imwrite(str(tmp_path / "p.png"), next(iter(SyntheticCamera())).image)
    assert main(["run", str(tmp_path / "p.png"), "--out", str(tmp_path / "out"), "--json", *options]) == 0
    assert ("outlines" in capsys.readouterr().out) == refined


def test_number_of_views_is_limited(monkeypatch):
    class_map = np.zeros((200, 300), np.uint8)
    class_map[20:80, 20:80] = class_map[20:80, 120:180] = class_map[120:180, 20:80] = 1
    class_map[150:160, 150:160] = 1  # too small to be refined
    instances = tfiseg.cluster(class_map, split=0)
    image = np.zeros((200, 300, 3), np.uint8)
    for max_views, expected in ((64, 3), (2, 2)):
        refiner, seen = Refiner(max_views=max_views), []
        foreground = refiner.session.foreground

        def spy(views, masks, foreground=foreground, seen=seen):
            seen.append(len(views))
            return foreground(views, masks)

        monkeypatch.setattr(refiner.session, "foreground", spy)
        found = refiner.outlined(image, instances)
        assert seen == [expected]
        assert (found.label_map[150:160, 150:160] == found.label_map[155, 155]).all()
    few = instances.select([i.area == 100 for i in instances])
    assert refiner.outlined(image, few) is few
    with pytest.raises(InputError, match="they must be of one size"):
        refiner.outlined(image[:100], instances)


def test_a_model_without_foreground(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DEFAULT_INSTANCE_MODEL)
    kept = [o for o in model.graph.output if o.name != "foreground"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, tmp_path / "before.onnx")
    image, class_map, _ = shifted_disk()
    with pytest.raises(ModelError, match="cannot refine masks"):
        tfiseg.Segmenter(refine="components", instance_model=tmp_path / "before.onnx", outlines=True)
    refiner = tfiseg.Segmenter(refine="components", instance_model=tmp_path / "before.onnx").refiner
    assert len(refiner(image, tfiseg.cluster(class_map, split=0))) == 1
    with pytest.raises(ModelError, match="cannot refine masks"):
        refiner.outlined(image, tfiseg.cluster(class_map, split=0))


@pytest.mark.parametrize(
    ("refine", "outlines", "refined"),
    [
        ("components", None, True),
        ("components", False, False),
        ("frame", None, False),
        ("frame", True, True),
        (None, None, False),
        (None, True, True),
    ],
)
def test_defaults_of_outlines(refine, outlines, refined):
    segmenter = tfiseg.Segmenter(refine=refine, outlines=outlines, min_score=0)
    found = segmenter(next(iter(SyntheticCamera())))
    assert ("outlines" in found.stage_ms) == refined
    assert len(found)


@pytest.mark.parametrize("seed", range(6))
def test_components_of_large_images_equal_those_of_the_operator(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    class_map = (rng.integers(0, 4, (40, 50)) * (rng.random((40, 50)) < 0.5)).astype(np.uint8)
    found = tfiseg.cluster(class_map, min_area=0)
    expected = mask_refinement._components(class_map, found, None)
    monkeypatch.setattr(mask_refinement, "MAX_SIDE", 16)
    components = mask_refinement._components(class_map, found, None)
    for name in ("label_map", "class_id", "box_xyxy", "area"):
        assert np.array_equal(getattr(components, name), getattr(expected, name))
