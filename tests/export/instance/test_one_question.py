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
    from linkage import Answers, Picture
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
    answers = Answers(training.network.eval(), Picture(np.full((96, 160, 3), 90, np.uint8), semantic))
    assert answers.asked, "a mask with two lobes is split into regions"
    whole, parts = (len(answers.instances(answers.cut(threshold))) for threshold in (-1e9, 1e9))
    assert (whole, parts > 1) == (1, True)
    whole, parts = (len(answers.instances(answers.cut(0.0, weight))) for weight in (1e6, -1e6))
    assert (whole, parts > 1) == (1, True), "necks decide if they count this much"

    semantic[:, 62:88] = 0
    answers = Answers(training.network, Picture(np.full((96, 160, 3), 90, np.uint8), semantic))
    joins = ((-1e9, 40), (1e9, 40), (-1e9, 1))
    counts = [len(found) for found in answers.joined(answers.cut(-1e9), joins)]
    assert counts == [1, 2, 2], "two pieces near one another join, unless the view shows too many"


def test_neck_evidence_is_that_of_the_split_rule(scripts):
    from contact import neck_evidence

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


def test_new_object_touches_those_before_it(scripts):
    from contact import touching_place

    rng = np.random.default_rng(0)
    label = np.zeros((200, 200), np.int32)
    rows, columns = np.mgrid[:200, :200]
    label[np.hypot(rows - 100, columns - 90) < 30] = 1
    disc = (np.hypot(*np.mgrid[-20:21, -20:21]) < 20).astype(np.float32)
    for sideways in (0.0, 1.0) * 20:
        x, y = touching_place(label, disc, rng, sideways)
        placed = np.zeros((260, 260), bool)
        placed[y + 30 : y + 71, x + 30 : x + 71] = disc > 0.5
        distance = np.hypot(rows - 100, columns - 90)[placed[30:230, 30:230]].min()
        assert 26 < distance < 33, "a gap of a pixel, or an overlap of a few"


def test_near_shapes_are_a_group(scripts):
    from contact import near_groups

    boxes = np.array([[0, 0, 10, 10], [14, 0, 10, 10], [28, 3, 10, 10], [90, 0, 10, 10]])
    group = near_groups(boxes, np.full(4, 100.0))
    assert group[0] == group[1] == group[2] != group[3], "a chain of gaps of 4 px, at most 6 allowed"
    apart = np.ones((4, 4), bool)
    apart[1, 2] = apart[2, 1] = False
    group = near_groups(boxes, np.full(4, 100.0), apart)
    assert group[0] == group[1] != group[2]


def test_boxes_of_labels(scripts):
    from linkage import boxes_of

    label_map = np.zeros((8, 9), np.int32)
    label_map[2:5, 3:4], label_map[6, 0:9] = 1, 3
    assert boxes_of(label_map).tolist() == [[0] * 4, [3, 2, 1, 3], [0] * 4, [0, 6, 9, 1]]


def test_default_network_draws_the_mask_of_a_class(scripts, eval_sets):
    from class_maps import ClassMaskNetwork
    from tfiseg.runtime.evaluate.evaluation_set import load_eval_set

    network, rng = ClassMaskNetwork(), np.random.default_rng(0)
    picture = load_eval_set(eval_sets / "pennfudan")[0][0]
    side = min(picture.truth.shape)
    image, people = picture.image[:side, :side], picture.truth[:side, :side] > 0
    masks = [network(image, people, rng) > 0 for _ in range(5)]
    overlap = [(mask & people).sum() / (mask | people).sum() for mask in masks]
    assert np.median(overlap) > 0.6
    assert len({mask.tobytes() for mask in masks}) > 1, "near and far"


def test_sample_to_join_asks_about_pairs_of_different_components(scripts, bank):
    from samples import SampleSet

    samples = SampleSet(bank, seed=0)
    kinds = set()
    for number in range(12):
        sample = samples[number]
        kinds.add(samples.composer.joins)
        count = len(sample.region_owner)
        assert sample.pairs.shape == sample.necks.shape == (count, count)
        assert sample.pairs.any()
        if samples.composer.joins:
            assert not np.diagonal(sample.pairs).any()
            assert not sample.necks.any()
        else:
            assert sample.pairs.all()
            assert sample.necks.any(), "regions of one component touch"
    assert kinds == {True, False}


def test_pair_loss_counts_what_shape_says(scripts):
    from train import SHAPE_WEIGHT, losses_of

    owners = torch.tensor([1, 2, 3])
    shares = torch.zeros(3, 4, 4)
    for k in range(3):
        shares[k, k] = 1
    batch = {
        "prompts": torch.tensor([0]),
        "region_views": torch.zeros(3, dtype=torch.int64),
        "region_owners": owners,
        "regions": shares,
        "owners": torch.zeros(1, 4, 4, dtype=torch.int16),
        "weights": torch.ones(1),
        "pairs": torch.ones(3, 3, dtype=torch.bool),
        "necks": torch.zeros(3, 3),
    }

    def pair_loss(logit: float, **changed: torch.Tensor) -> float:
        return losses_of(torch.full((1, 4, 4), logit), batch | changed)[1].item()

    necks = torch.zeros(3, 3)
    necks[0, 1:] = 2.0
    assert np.isclose(pair_loss(1.0, necks=necks), pair_loss(1.0 + 2.0 * SHAPE_WEIGHT))
    pairs = torch.ones(3, 3, dtype=torch.bool)
    pairs[0, 1] = False
    necks[0, 2] = 0.0
    assert np.isclose(pair_loss(1.0, necks=necks, pairs=pairs), pair_loss(1.0)), "not asked, not counted"


def test_gain_of_mean_is_the_mean_of_the_sets_gains(scripts):
    from evaluate import gain_of_mean
    from tfiseg.runtime.evaluate.metrics import PanopticCounts

    better, worse = PanopticCounts(9.0, 10, 0, 0), PanopticCounts(8.0, 10, 0, 0)
    gain = gain_of_mean({"a": [better] * 3, "b": [worse] * 2}, {"a": [worse] * 3, "b": [worse] * 2})
    assert np.allclose(gain, 5.0)
