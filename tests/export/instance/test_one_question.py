"""The scripts of docs/experiments/one_question run with today's package."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-export")

SCRIPTS = Path(__file__).parents[3] / "docs" / "experiments" / "one_question"


@pytest.fixture
def scripts(monkeypatch):
    if not SCRIPTS.is_dir():
        pytest.skip("docs/experiments/one_question is in the repository only")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # train.py uses one thread
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == SCRIPTS:
            del sys.modules[name]


def test_training_step_and_linkage_run(scripts, bank, tmp_path):
    from composites import QuestionComposer
    from linkage import Picture
    from train import Training

    from samples import SampleSet, collate

    training = Training(SCRIPTS / "weights.pt", tmp_path / "run.pt", minutes=1)
    samples = SampleSet(bank, seed=0)
    losses = training.learn(collate([samples[k] for k in range(2)]))
    assert np.isfinite(losses).all()
    training.save()
    assert Training(SCRIPTS / "weights.pt", tmp_path / "run.pt", minutes=1).step == 1

    composer, rng = QuestionComposer(bank, 0, 192), np.random.default_rng(0)
    for draw in (composer.one_behind_grid, composer.two_behind_bar):
        label = next(scene for scene in (draw(rng) for _ in range(50)) if scene is not None)[1]
        assert label.max() >= 1

    semantic = np.zeros((96, 160), np.uint8)
    semantic[20:76, 10:50] = semantic[40:60, 10:140] = semantic[20:76, 100:140] = 1
    picture = Picture(training.network.eval(), np.full((96, 160, 3), 90, np.uint8), semantic)
    assert picture.asked, "a mask with two lobes is split into regions"
    whole, parts = (len(picture.instances(picture.cut(threshold))) for threshold in (-1e9, 1e9))
    assert (whole, parts > 1) == (1, True)
    whole, parts = (len(picture.instances(picture.cut(0.0, weight))) for weight in (1e6, -1e6))
    assert (whole, parts > 1) == (1, True), "necks decide if they count this much"


def test_neck_evidence_is_that_of_the_split_rule(scripts):
    from linkage import neck_evidence

    from samples import regions_of

    mask = np.zeros((384, 384), np.uint8)
    mask[100:200, 20:120] = mask[140:160, 110:140] = mask[100:200, 130:230] = mask[300:310, 300:310] = 1
    label = regions_of(mask)
    left, right, apart = (label[at] - 1 for at in ((150, 70), (150, 180), (305, 305)))
    neck = neck_evidence(mask, label)
    assert np.array_equal(neck, neck.T)
    assert neck[left, right] < 0, "a narrow neck between two squares"
    assert not neck[apart].any(), "shape says nothing of regions that do not touch"
    without = np.where(label == label.max(), 0, label)
    assert np.array_equal(neck_evidence(mask, without), neck[:-1, :-1])


def test_gain_of_mean_is_the_mean_of_the_sets_gains(scripts):
    from evaluate import gain_of_mean
    from tfiseg.runtime.evaluate.metrics import PanopticCounts

    better, worse = PanopticCounts(9.0, 10, 0, 0), PanopticCounts(8.0, 10, 0, 0)
    gain = gain_of_mean({"a": [better] * 3, "b": [worse] * 2}, {"a": [worse] * 3, "b": [worse] * 2})
    assert np.allclose(gain, 5.0)
