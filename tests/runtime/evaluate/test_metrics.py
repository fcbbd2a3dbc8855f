"""Test panoptic quality, average precision and boundary IoU."""

import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.evaluate.metrics import (
    AveragePrecision,
    PanopticCounts,
    PictureScore,
    boundary_iou,
    paired_gain,
    panoptic_counts,
)


def scene():
    semantic = np.zeros((20, 40), np.uint8)
    truth = np.zeros((20, 40), np.int32)
    semantic[2:12, 2:12], truth[2:12, 2:12] = 1, 7
    semantic[2:12, 12:22], truth[2:12, 12:22] = 1, 3
    return truth, semantic


@pytest.mark.parametrize(
    ("predicted", "classes", "counts"),
    [
        ("truth", [1, 1], (2, 0, 0)),
        ("merged", [1], (0, 1, 2)),
        ("truth", [1, 2], (1, 1, 1)),
        ("empty", [], (0, 0, 2)),
    ],
)
def test_counts(predicted, classes, counts):
    truth, semantic = scene()
    maps = {
        "truth": np.where(truth == 7, 1, np.where(truth == 3, 2, 0)),
        "merged": (truth > 0) * 1,
        "empty": truth * 0,
    }
    score = panoptic_counts(
        maps[predicted].astype(np.int32), np.array(classes, np.int32), truth, semantic
    ).pooled
    assert (score.true_positives, score.false_positives, score.false_negatives) == counts


def test_ignored_pixels_belong_to_no_instance():
    truth, semantic = scene()
    predicted = np.where(truth == 7, 1, 0).astype(np.int32)
    predicted[15:, :] = 2
    semantic[15:, :] = 255
    score = panoptic_counts(predicted, np.array([1, 1], np.int32), truth, semantic)
    assert (score.pooled.true_positives, score.pooled.false_positives) == (1, 0)
    assert score.pooled.quality == pytest.approx(100 / 1.5)
    total = PictureScore()
    total.add(score)
    total.add(score)
    assert total.per_class[1].true_positives == 2


def test_average_precision_of_the_truth_is_100():
    truth, semantic = scene()
    precision = AveragePrecision()
    precision.add(tfiseg.cluster(semantic, split=0.0), truth, semantic)
    assert precision.scores()["AP75"] == 0  # one instance for both: IoU 0.5 with each
    precision = AveragePrecision()
    semantic[:, 11] = truth[:, 11] = 0
    precision.add(tfiseg.cluster(semantic, split=0.0), truth, semantic)
    assert precision.scores() == {"AP": 100.0, "AP50": 100.0, "AP75": 100.0}


def test_interval_of_the_gain_on_all_pictures_and_on_a_few():
    poor = [PanopticCounts(0.8, 1, 0, 1)] * 40
    better = [PanopticCounts(1.6, 2, 0, 0)] * 40
    gain, low, high = paired_gain(better, poor)
    assert gain == pytest.approx(low) == pytest.approx(high) == pytest.approx(80 - 80 / 1.5)
    gain, low, high = paired_gain([*poor[:38], *better[:2]], poor)
    assert 0 == low < gain < high
    assert paired_gain(poor, poor) == (0, 0, 0)


def test_boundary_iou_compares_outlines_only():
    truth = np.zeros((300, 400), bool)
    truth[50:250, 50:250] = True
    shifted = np.roll(truth, 5, axis=1)
    assert boundary_iou(truth, truth) == 1
    # bands of 10 px; the vertical ones overlap by half
    assert boundary_iou(shifted, truth) == pytest.approx(0.62, abs=0.03)
    assert (shifted & truth).sum() / (shifted | truth).sum() > 0.95


def test_matches_are_pairs_of_instance_numbers():
    truth, semantic = scene()
    predicted = np.zeros_like(truth)
    predicted[truth == 3], predicted[truth == 7] = 1, 2
    assert sorted(panoptic_counts(predicted, np.array([1, 1], np.int32), truth, semantic).matches) == [
        (1, 3),
        (2, 7),
    ]
