"""Outlines drawn anew: who gets and who loses which pixels."""

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
from tfiseg.runtime.refine.mask_refinement import redrawn
from tfiseg.runtime.refine.refiner import Refiner
from tfiseg.runtime.refine.view import View
from tfiseg.runtime.refine.view_planning import PlannedView
from tfiseg.runtime.sources.synthetic import SyntheticCamera

FRAME = View(0, 0, 128)  # the whole of it, 128 x 128


def foreground(*boxes):
    """(128, 128), 0.9 in the boxes (y0, y1, x0, x1) and 0.1 elsewhere: a cell a pixel."""
    out = np.full((128, 128), 0.1, np.float32)
    for y0, y1, x0, x1 in boxes:
        out[y0:y1, x0:x1] = 0.9
    return out


def components_of(*boxes, classes=None):
    class_map = np.zeros((128, 128), np.uint8)
    for k, (y0, y1, x0, x1) in enumerate(boxes):
        class_map[y0:y1, x0:x1] = 3 if classes is None else classes[k]
    return tfiseg.cluster(class_map, split=0)


def test_pixels_come_and_go():
    components = components_of((40, 80, 40, 80))
    found = redrawn(
        components.label_map, components, [(PlannedView(FRAME, 3, 1), foreground((44, 85, 40, 80)))]
    )
    wanted = np.zeros((128, 128), bool)
    wanted[44:85, 40:80] = True
    assert ((found == 1) == wanted).all()
    assert components.label_map[40, 40] == 1, "what was given stays as it was"


def test_a_view_that_is_smaller_than_the_frame_speaks_of_its_own_place():
    components = components_of((60, 100, 60, 100))
    seen = np.full((48, 48), 0.1, np.float32)
    seen[12:36, 8:33] = 0.9  # of a view of 96 px at (40, 30): y 54..102, x 56..106
    found = redrawn(components.label_map, components, [(PlannedView(View(40, 30, 96), 3, 1), seen)])
    ys, xs = np.nonzero(found)
    assert (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) == (54, 102, 56, 106)


def test_each_piece_grows_on_its_own_side():
    components = components_of((40, 80, 40, 80))
    pieces = components.label_map.copy()
    pieces[:, 60:] *= 5
    found = redrawn(pieces, components, [(PlannedView(FRAME, 3, 1), foreground((36, 84, 36, 84)))])
    assert sorted(np.unique(found)) == [0, 1, 5]
    assert (found[36:84, 36:60] == 1).all()
    assert (found[36:84, 60:84] == 5).all()


def test_islands_and_what_is_far_stay_away():
    components = components_of((40, 80, 40, 60))
    found = redrawn(
        components.label_map,
        components,
        [(PlannedView(FRAME, 3, 1), foreground((40, 80, 40, 60), (50, 55, 63, 66), (75, 128, 40, 60)))],
    )
    assert not found[:, 60:].any()
    assert found[80:88, 40:60].all()  # the least reach
    assert not found[89:].any()


def test_what_lies_deep_inside_stays():
    components = components_of((30, 90, 30, 90))
    ring = foreground((30, 90, 30, 90))
    ring[34:86, 34:86] = 0.1
    ring[30:90, 60:62] = 0.1  # through the ring: an island of the component is one of its pixels all the same
    found = redrawn(components.label_map, components, [(PlannedView(FRAME, 3, 1), ring)])
    assert (found[39:81, 39:81] == 1).all()  # further than 15 % of 60 px from the outline
    assert not found[34:39, 40:56].any()


def test_a_component_of_which_nothing_would_be_left_stays():
    components = components_of((40, 80, 40, 60))
    found = redrawn(components.label_map, components, [(PlannedView(FRAME, 3, 1), foreground())])
    assert (found == components.label_map).all()


def test_between_two_of_a_class_the_nearer_one_has_it():
    components = components_of((40, 80, 40, 56), (40, 80, 62, 80))
    both = foreground((40, 80, 40, 80))
    found = redrawn(components.label_map, components, [(PlannedView(FRAME, 3, k), both) for k in (1, 2)])
    assert (found[40:80, 40:58] == 1).all()
    assert (found[40:80, 60:80] == 2).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_between_two_classes_the_surer_one_has_it(order):
    components = components_of((40, 80, 40, 60), (40, 80, 60, 80), classes=(3, 4))
    left, right = foreground((40, 80, 40, 64)), foreground((40, 80, 60, 80))
    right[:, 60:64] = 0.7
    seen = [(PlannedView(FRAME, 3, 1), left), (PlannedView(FRAME, 4, 2), right)]
    found = redrawn(components.label_map, components, [seen[k] for k in order])
    assert (found[40:80, 40:64] == 1).all()
    assert (found[40:80, 64:80] == 2).all()


def test_nothing_is_taken_from_a_component_that_was_not_looked_at():
    components = components_of((40, 80, 40, 60), (40, 80, 60, 80), classes=(3, 4))
    found = redrawn(
        components.label_map, components, [(PlannedView(FRAME, 3, 1), foreground((40, 80, 40, 80)))]
    )
    assert (found == components.label_map).all()


def test_what_the_view_is_unsure_of_stays():
    components = components_of((40, 80, 40, 80))
    doubt = foreground((40, 80, 40, 80))
    doubt[38:42], doubt[78:82] = 0.45, 0.55
    found = redrawn(components.label_map, components, [(PlannedView(FRAME, 3, 1), doubt)])
    assert (found == components.label_map).all()


def test_the_edge_of_the_frame_is_no_outline():
    components = components_of((0, 60, 40, 128))
    nothing = foreground((20, 30, 70, 80))  # of the component only this belongs for sure
    found = redrawn(components.label_map, components, [(PlannedView(FRAME, 3, 1), nothing)])
    assert (found[0:40, 80:128] == 1).all()  # too deep inside to go
    assert not found[50:60, 40:128].any()


def test_a_piece_is_never_lost():
    components = components_of((40, 80, 40, 80))
    pieces = components.label_map.copy()
    pieces[40:44, 40:44] = 2
    seen = foreground((40, 80, 40, 80))
    seen[38:46, 38:46] = 0.1
    found = redrawn(pieces, components, [(PlannedView(FRAME, 3, 1), seen)])
    assert (found[40:44, 40:44] == 2).all()
    assert not found[44, 40:44].any()


def test_a_third_claim_has_to_be_surer_than_the_second():
    components = components_of((40, 80, 40, 50), (40, 80, 60, 70), classes=(3, 4))
    first, second = foreground((40, 80, 40, 58)), foreground((40, 80, 52, 70))
    first[:, 50:58] = 0.7
    second[:, 52:60] = 0.8
    found = redrawn(
        components.label_map,
        components,
        [(PlannedView(FRAME, 3, 1), first), (PlannedView(FRAME, 4, 2), second)],
    )
    assert (found[40:80, 40:52] == 1).all()
    assert (found[40:80, 52:70] == 2).all()
    again = redrawn(
        components.label_map,
        components,
        [(PlannedView(FRAME, 4, 2), second), (PlannedView(FRAME, 3, 1), first)],
    )
    assert (again == found).all()


def test_a_diagonal_touches():
    components = components_of((40, 80, 40, 80))
    seen = foreground((40, 80, 40, 80))
    seen[80:84, 80:84] = 0.9  # corner to corner
    found = redrawn(components.label_map, components, [(PlannedView(FRAME, 3, 1), seen)])
    assert (found[80:84, 80:84] == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pieces_stay_near_where_they_were(seed):
    rng = np.random.default_rng(seed)
    class_map = (rng.random((16, 16)) < 0.4).astype(np.uint8) * rng.integers(1, 3, (16, 16)).astype(np.uint8)
    components = tfiseg.cluster(class_map.repeat(8, 0).repeat(8, 1), split=0)
    seen = [
        (PlannedView(FRAME, int(c), k + 1), rng.random((32, 32), np.float32))
        for k, c in enumerate(components.class_id)
        if rng.random() < 0.8
    ]
    found = redrawn(components.label_map, components, seen)
    assert set(np.unique(found)) <= {0, *range(1, len(components) + 1)}
    looked_at = {p.component for p, _ in seen}
    for k, (x0, y0, x1, y1) in enumerate(components.box_xyxy.astype(int)):
        ys, xs = np.nonzero(found == k + 1)
        assert len(ys), "none is lost"
        reach = max(8, int(0.15 * max(x1 - x0, y1 - y0))) if k + 1 in looked_at else 0
        assert y0 - reach <= ys.min() <= ys.max() < y1 + reach
        assert x0 - reach <= xs.min() <= xs.max() < x1 + reach


def blot():
    """A grey disk on a light ground, and a class map that misses its lower part and has too much above."""
    y, x = np.mgrid[:128, :128]
    disk = (y - 64) ** 2 + (x - 64) ** 2 < 30**2
    image = np.where(disk[..., None], np.uint8(60), np.uint8(200)).repeat(3, 2).copy()
    class_map = ((y - 56) ** 2 + (x - 64) ** 2 < 30**2).astype(np.uint8)
    return image, class_map, disk


def test_the_network_that_comes_with_tfiseg_draws_a_disk():
    image, class_map, disk = blot()
    before = tfiseg.cluster(class_map, split=0)
    found = Refiner().outlined(image, before)

    def iou(mask):
        return (mask & disk).sum() / (mask | disk).sum()

    assert iou(found.label_map > 0) > iou(class_map > 0) + 0.1
    assert found.score == before.score
    assert found.class_id == before.class_id
    assert found.area[0] == (found.label_map > 0).sum()
    assert {"outlines", "instance network"} <= set(found.stage_ms)
    assert (found.semantic_map == class_map).all()


def test_ids_go_along():
    image, class_map, _ = blot()
    two = np.concatenate([class_map, class_map], axis=1)
    two[:40, :64] = 0  # the second one's first row is above the first one's
    before = replace(tfiseg.cluster(two, split=0), track_id=np.array([11, 22], np.int32))
    found = Refiner().outlined(np.concatenate([image, image], axis=1), before)
    for k in range(2):
        place = found.label_map == k + 1
        assert set(np.unique(before.label_map[place])) - {0} == {
            list(before.track_id).index(found.track_id[k]) + 1
        }


def test_no_view_is_looked_at_twice(monkeypatch):
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


def test_what_is_reported_is_as_large_with_options(monkeypatch):
    image, class_map, _ = blot()
    segmenter = tfiseg.Segmenter(outlines=True, min_area=int(class_map.sum()), min_score=0)
    found = tfiseg.cluster(class_map, split=0)
    monkeypatch.setattr(segmenter, "cluster_maps", lambda *_: found)
    for belongs, wanted in ((0.5, 1), (0.0, 0)):
        ring = np.full((1, 96, 96), 0.5, np.float32)  # unsure: as it was
        ring[0, :22] = belongs
        monkeypatch.setattr(segmenter._outliner.session, "foreground", lambda v, m, ring=ring: ring)
        assert len(segmenter(image)) == wanted


def test_frames_on_the_gpu_are_refused_before_anything_runs():
    class OnGpu:
        __cuda_array_interface__ = None

    with pytest.raises(InputError, match="give a frame in host memory"):
        tfiseg.Segmenter(outlines=True)(OnGpu())


@pytest.mark.parametrize(
    ("more", "drawn"),
    [
        ([], False),
        (["--outlines"], True),
        (["--refine", "components"], True),
        (["--refine", "components", "--no-outlines"], False),
    ],
)
def test_the_command_line_says_who_draws(tmp_path, capsys, more, drawn):
    cv2.imwrite(str(tmp_path / "p.png"), next(iter(SyntheticCamera())).image)
    assert main(["run", str(tmp_path / "p.png"), "--out", str(tmp_path / "out"), "--json", *more]) == 0
    assert ("outlines" in capsys.readouterr().out) == drawn


def test_what_is_found_is_looked_at_and_no_more_than_allowed(monkeypatch):
    class_map = np.zeros((200, 300), np.uint8)
    class_map[20:80, 20:80] = class_map[20:80, 120:180] = class_map[120:180, 20:80] = 1
    class_map[150:160, 150:160] = 1  # too small to be looked at
    instances = tfiseg.cluster(class_map, split=0)
    image = np.zeros((200, 300, 3), np.uint8)
    for most, wanted in ((64, 3), (2, 2)):
        refiner, seen = Refiner(max_views=most), []
        foreground = refiner.session.foreground

        def spy(views, masks, foreground=foreground, seen=seen):
            seen.append(len(views))
            return foreground(views, masks)

        monkeypatch.setattr(refiner.session, "foreground", spy)
        found = refiner.outlined(image, instances)
        assert seen == [wanted]
        assert (found.label_map[150:160, 150:160] == found.label_map[155, 155]).all()
    few = instances.select([i.area == 100 for i in instances])
    assert refiner.outlined(image, few) is few
    with pytest.raises(InputError, match="they must be of one size"):
        refiner.outlined(image[:100], instances)


def test_a_model_without_them(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DEFAULT_INSTANCE_MODEL)
    kept = [o for o in model.graph.output if o.name != "foreground"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, tmp_path / "before.onnx")
    image, class_map, _ = blot()
    with pytest.raises(ModelError, match="draws no outlines"):
        tfiseg.Segmenter(refine="components", instance_model=tmp_path / "before.onnx", outlines=True)
    refiner = tfiseg.Segmenter(refine="components", instance_model=tmp_path / "before.onnx").refiner
    assert len(refiner(image, tfiseg.cluster(class_map, split=0))) == 1
    with pytest.raises(ModelError, match="draws no outlines"):
        refiner.outlined(image, tfiseg.cluster(class_map, split=0))


@pytest.mark.parametrize(
    ("refine", "outlines", "drawn"),
    [
        ("components", None, True),
        ("components", False, False),
        ("frame", None, False),
        ("frame", True, True),
        (None, None, False),
        (None, True, True),
    ],
)
def test_who_draws_them(refine, outlines, drawn):
    segmenter = tfiseg.Segmenter(refine=refine, outlines=outlines, min_score=0)
    found = segmenter(next(iter(SyntheticCamera())))
    assert ("outlines" in found.stage_ms) == drawn
    assert len(found)


@pytest.mark.parametrize("seed", range(6))
def test_components_of_large_photos_are_the_operators(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    class_map = (rng.integers(0, 4, (40, 50)) * (rng.random((40, 50)) < 0.5)).astype(np.uint8)
    found = tfiseg.cluster(class_map, min_area=0)
    expected = mask_refinement._components(class_map, found, None)
    monkeypatch.setattr(mask_refinement, "MAX_SIDE", 16)
    components = mask_refinement._components(class_map, found, None)
    for name in ("label_map", "class_id", "box_xyxy", "area"):
        assert np.array_equal(getattr(components, name), getattr(expected, name))
