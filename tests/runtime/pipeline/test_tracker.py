"""Test the tracker on scenes with ground truth, by the metrics of motmetrics."""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import motmetrics
import numpy as np
import pytest
import tfiseg

sys.path.insert(0, str(Path(__file__).parents[1]))
from scenes import SCENES, Mover, line, render


def instances_of(label, classes, t, fps=30):
    """Return the ground truth as instances, with labels in random order."""
    found = tfiseg.cluster(classes, split=0.0, min_area=0) if not label.any() else None
    numbers = np.unique(label)[1:]
    order = np.random.default_rng(t).permutation(len(numbers))
    lookup = np.zeros(int(label.max()) + 1, np.int32)
    lookup[numbers[order]] = np.arange(1, len(numbers) + 1)
    if found is None:
        masks = [label == n for n in numbers[order]]
        where = [np.nonzero(m) for m in masks]
        found = tfiseg.Instances(
            label_map=lookup[label],
            semantic_map=classes,
            class_id=np.array([classes[m][0] for m in masks], np.int32),
            score=np.ones(len(masks), np.float32),
            box_xyxy=np.array(
                [(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in where], np.float32
            ),
            area=np.array([m.sum() for m in masks], np.int32),
            centroid_xy=np.array([(xs.mean(), ys.mean()) for ys, xs in where], np.float32),
        )
    return replace(found, frame_index=t, capture_time_ns=int((1 + t / fps) * 1e9))


def evaluate(scene, noise=0.7):
    movers, walls, frames = scene
    rng = np.random.default_rng(0)
    tracker, accumulator, ms = tfiseg.Tracker(), motmetrics.MOTAccumulator(auto_id=True), []
    for t in range(frames):
        label, classes = render(movers, t, walls, noise, rng)
        found = instances_of(label, classes, t)
        began = time.perf_counter()
        tracked = tracker(found)
        ms.append((time.perf_counter() - began) * 1e3)
        truth = np.unique(label)[1:]
        assert len(set(tracked.track_id.tolist())) == len(tracked)
        overlap = np.full((len(truth), len(tracked)), np.nan)
        for j in range(len(tracked)):  # each instance is one object of the ground truth
            overlap[np.searchsorted(truth, label[tracked.mask(j)][0]), j] = 0.0
        accumulator.update(truth, tracked.track_id, overlap)
    summary = motmetrics.metrics.create().compute(accumulator, metrics=["idf1", "num_switches"], name="scene")
    return float(summary["idf1"].iloc[0]), int(summary["num_switches"].iloc[0]), statistics.median(ms)


@pytest.mark.parametrize("scene", SCENES)
def test_ids_are_persistent(scene):
    idf1, switches, ms = evaluate(SCENES[scene]())
    print(f"{scene}: IDF1 {idf1:.3f}, {switches} switches, {ms:.2f} ms")
    assert idf1 >= 0.9
    if scene != "crowd":
        assert switches == 0


@pytest.mark.parametrize(("keep_s", "ids"), [(0.5, [1, 2, 3]), (5.0, [1, 1, 1])])
def test_an_object_gets_a_new_id_after_keep_s(keep_s, ids):
    tracker, seen = tfiseg.Tracker(keep_s=keep_s), []
    for t in range(0, 75):
        label, classes = render([Mover(line((100, 100), (0, 0)))] if t % 30 == 0 else [], t)
        seen += tracker(instances_of(label, classes, t)).track_id.tolist()
    assert seen == ids


def test_the_class_of_a_track_does_not_flicker():
    tracker = tfiseg.Tracker()
    reported = []
    for t, class_id in enumerate([7, 7, 15, 7, 15, 7, 15, 15, 15]):
        label, classes = render([Mover(line((100, 100), (1, 0)), class_id=class_id)], t)
        found = instances_of(label, classes, t)
        tracked = tracker(replace(found, score=np.full(len(found), 0.5, np.float32)))
        reported += tracked.class_id.tolist()
        assert tracked.class_id.dtype == np.int32
    assert reported == [7, 7, 7, 7, 7, 7, 7, 15, 15]  # at equal sums, that of the newest detection


def test_classes_of_other_detectors_are_tracked():
    tracker = tfiseg.Tracker()
    for t in range(3):
        label, classes = render([Mover(line((100, 100), (1, 0)))], t)
        found = instances_of(label, classes, t)
        tracked = tracker(
            replace(found, class_id=np.array([70_000], np.int32), score=np.zeros(1, np.float32))
        )
        assert tracked.class_id.tolist() == [70_000]


def test_id_is_kept_if_the_predicted_class_changes():
    tracker = tfiseg.Tracker()
    seen = set()
    for t in range(6):
        label, classes = render([Mover(line((100, 100), (1, 0)), class_id=1 + t % 2)], t)
        seen |= set(tracker(instances_of(label, classes, t)).track_id.tolist())
    assert seen == {1}


def test_empty_frame_and_new_frame_size():
    tracker = tfiseg.Tracker()
    empty = tfiseg.cluster(np.zeros((48, 64), np.uint8))
    assert tracker(empty).track_id.shape == (0,)
    label, classes = render([Mover(line((100, 100), (0, 0)))], 0)
    assert tracker(instances_of(label, classes, 0)).track_id.tolist() == [1]
    half = instances_of(label[::2, ::2], classes[::2, ::2], 1)
    assert tracker(half).track_id.tolist() == [2]


def test_frames_without_a_time_are_taken_as_30_fps():
    tracker = tfiseg.Tracker()
    for t in range(5):
        label, classes = render([Mover(line((60, 100), (4, 0)))], t)
        tracked = tracker(replace(instances_of(label, classes, t), capture_time_ns=0))
    assert tracked.track_id.tolist() == [1]
    assert tracker._tracks["velocity"][0, 0] == pytest.approx(120, rel=0.3)


def test_select_keeps_track_ids():
    label, classes = render([Mover(line((60, 100), (4, 0))), Mover(line((200, 100), (0, 0)))], 0)
    tracked = tfiseg.Tracker()(instances_of(label, classes, 0))
    kept = tracked.select([False, True])
    assert kept[0].track_id == tracked[1].track_id
    assert (tracked.draw(np.zeros((240, 320, 3), np.uint8)) > 0).any()


@pytest.mark.parametrize(
    ("option", "value"), [("keep_s", "2"), ("keep_s", float("nan")), ("min_hits", 1.5), ("min_hits", None)]
)
def test_options_of_a_wrong_type_are_input_errors(option, value):
    with pytest.raises(tfiseg.InputError, match=f"min_hits an integer, at least 1; got .*{value}"):
        tfiseg.Tracker(**{option: value})


@pytest.mark.parametrize("frames", [[], np.zeros((4, 6, 3), np.uint8), None])
def test_only_instances_are_tracked(frames):
    with pytest.raises(tfiseg.InputError, match="takes the Instances of one frame, got "):
        tfiseg.Tracker()(frames)


def test_keep_s_is_checked():
    with pytest.raises(tfiseg.InputError, match="keep_s"):
        tfiseg.Tracker(keep_s=-1)


def test_an_object_below_min_hits_is_not_reported_and_gets_no_id():
    tracker, seen = tfiseg.Tracker(min_hits=3), []
    for t in range(8):
        movers = [Mover(line((200, 100), (0, 0)))]
        movers += [Mover(line((60, 60), (0, 0)))] if t in (1, 2) else []  # a false detection
        label, classes = render(movers, t)
        seen.append(tracker(instances_of(label, classes, t)))
    assert [s.track_id.tolist() for s in seen] == [[], [], *[[1]] * 6]
    assert all(len(np.unique(s.label_map)) == len(s) + 1 for s in seen)


def test_min_hits_are_checked():
    with pytest.raises(tfiseg.InputError, match="min_hits"):
        tfiseg.Tracker(min_hits=0)
