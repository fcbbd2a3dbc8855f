"""Score calibration."""

from dataclasses import replace

import numpy as np
import pytest
import tfiseg
from skimage import data
from tfiseg.runtime.map_clusterer import MIN_CALIBRATED_SCORE, MIN_SCORE
from tfiseg.runtime.object_score import FEATURES, object_probability, score_features

RULE = [0.3, 0.2, 1.5, -1.2]


def squares(*sides, probability=0.9):
    class_map = np.zeros((200, 1000), np.uint8)
    for k, side in enumerate(sides):
        class_map[10 : 10 + side, 10 + 200 * k : 10 + 200 * k + side] = 1
    return tfiseg.cluster(class_map, scores=np.full(class_map.shape, probability, np.float32), min_area=0)


def test_features():
    found = squares(100, 10)
    assert score_features(found).shape == (2, len(FEATURES))
    expected = [[np.log(1e4 / 2e5), 0, np.log(9)], [np.log(1e2 / 2e5), np.log(0.01), np.log(9)]]
    assert np.allclose(score_features(found), expected, atol=1e-4)


def test_probability_grows_with_area_and_score():
    large, small = object_probability(squares(100, 10), RULE)
    (alone,) = object_probability(squares(10), RULE)
    (uncertain,) = object_probability(squares(10, probability=0.6), RULE)
    assert 1 > large > alone > small > 0
    assert alone > uncertain


def test_no_instances_and_extreme_scores():
    assert object_probability(squares(), RULE).shape == (0,)
    assert np.isfinite(object_probability(squares(100, 3, probability=1.0), RULE)).all()


def test_segmenter_calibrates_scores():
    picture = np.ascontiguousarray(data.astronaut()[:, :, ::-1])
    segmenter = tfiseg.Segmenter(min_score=0)
    calibrated = segmenter(picture)
    segmenter.score_rule = None
    plain = segmenter(picture)
    assert tfiseg.Segmenter().score_rule is not None
    assert np.array_equal(calibrated.label_map, plain.label_map)
    assert np.array_equal(calibrated.score, object_probability(plain, tfiseg.Segmenter().score_rule))


@pytest.mark.parametrize("refine", [None, "components", "frame"])
def test_scores_do_not_depend_on_things(refine):
    picture = np.ascontiguousarray(data.astronaut()[:, :, ::-1])
    every = tfiseg.Segmenter(min_score=0, refine=refine)
    found = every(picture)
    assert len(np.unique(found.class_id)) > 1
    small = found.class_id[np.argmin(found.area)]
    every.things = (int(small),)
    alone = every(picture)
    if refine != "components":  # other classes are not refined: the area of their components counts
        assert np.array_equal(alone.score, found.score[found.class_id == small])
    assert set(alone.class_id.tolist()) == {int(small)}


def test_default_minimum_score():
    segmenter = tfiseg.Segmenter()
    assert segmenter.min_score == MIN_CALIBRATED_SCORE
    assert tfiseg.Segmenter(min_score=0.7).min_score == 0.7
    found = squares(100, 100, 100)
    found = replace(found, score=np.array([0.4, 0.55, 0.9], np.float32))
    size_hw = found.label_map.shape
    # without calibration, the score is the mean class probability
    assert len(segmenter.filter_instances(found, size_hw, calibrated=False)) == 2
    assert MIN_SCORE == 0.5


def test_a_calibration_of_another_length_is_rejected(monkeypatch):
    monkeypatch.setattr("tfiseg.runtime.map_clusterer.FEATURES", ("one",))
    with pytest.raises(tfiseg.ModelError, match="its score calibration has 4 numbers, expected 2"):
        tfiseg.Segmenter()
