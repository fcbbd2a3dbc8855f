"""Training of mask refinement."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-export")

from tfiseg.errors import InputError  # noqa: E402
from tfiseg.export.instance.composites import Composer  # noqa: E402
from tfiseg.export.instance.mask_noise import blur_mask  # noqa: E402
from tfiseg.export.instance.mask_refinement import RefinementDataset, RoughMaskComposer, train_mask_refinement  # noqa: E402
from tfiseg.export.instance.network import InstanceNetwork, outline_px  # noqa: E402
from tfiseg.export.instance.train import Banks, InstanceRecipe, load_initial_weights  # noqa: E402

SHIPPED_WEIGHTS = Path(__file__).parents[3] / "export/instance/tfiseg-instance.pt"  # not installed


def test_rough_masks_show_the_same_composites(bank):
    rough, plain = RoughMaskComposer(bank, 3, 128), Composer(bank, 3, 128)
    worse = 0
    for k in range(12):
        a, again, b = rough(k), RoughMaskComposer(bank, 3, 128)(k), plain(k)
        assert np.array_equal(a.mask, again.mask)
        assert np.array_equal(a.truth, again.truth)
        assert set(np.unique(a.truth)) <= {0, 1}
        assert np.array_equal((b.owner > 0) & (b.truth > 0), (b.mask > 0) & (b.truth > 0))
        worse += int((a.mask != a.truth).sum()) - int((b.mask != b.truth).sum())
    assert worse > 0


def test_blurred_masks_are_not_shifted():
    label = np.zeros((160, 160), np.int32)
    label[40:120, 40:120] = 1
    found = np.mean(
        [blur_mask((label > 0).astype(np.uint8), 1.0, np.random.default_rng(k)) for k in range(40)], axis=0
    )
    assert found[60:100, 60:100].min() > 0.8
    assert found[:20].max() < 0.2
    rows = np.average(np.arange(160), weights=found.sum(1))
    assert rows == pytest.approx(79.5, abs=3)  # no shift in the mean


def test_mask_refinement_changes_no_other_weights(bank, tmp_path):
    network = InstanceNetwork()
    load_initial_weights(network, SHIPPED_WEIGHTS)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    recipe = InstanceRecipe(outline_steps=3, batch=2, view_px=96)
    banks = Banks(bank, bank)
    train_mask_refinement(network, banks, tmp_path / "o.ckpt", recipe, workers=0, quiet=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("outlines."), key
    taught = {k: v.clone() for k, v in network.outlines.state_dict().items()}
    network.load_state_dict(before)
    train_mask_refinement(
        network, banks, tmp_path / "o.ckpt", recipe, workers=0, quiet=True
    )  # training is at its end already
    assert all(torch.equal(v, taught[k]) for k, v in network.outlines.state_dict().items())
    network.head.bias.data += 1
    with pytest.raises(InputError, match="network"):
        train_mask_refinement(network, banks, tmp_path / "o.ckpt", recipe, workers=0, quiet=True)
    train_mask_refinement(
        network, banks, tmp_path / "none.ckpt", InstanceRecipe(outline_steps=0), workers=0, quiet=True
    )
    assert not (tmp_path / "none.ckpt").exists()


def test_mask_refinement_is_trained_on_views_of_two_sides(bank):
    composer = RoughMaskComposer(bank, 0, 96)
    dataset = RefinementDataset(composer, 0, 8, 2, (96, outline_px(96)))
    assert [len(dataset[k][0]) for k in range(8)] == [96, 96, 64, 64, 96, 96, 64, 64]
    resumed = RefinementDataset(composer, 7, 6, 3, (96, 64), step=5)
    assert [len(resumed[k][0]) for k in range(6)] == [64, 64, 64, 96, 96, 96]
    image, mask, target = dataset[2]
    assert image.shape == (64, 64, 3)
    assert mask.shape == (64, 64)
    assert target.shape == (1, 32, 32)
    composite = composer(2)
    assert target.mean() == pytest.approx(composite.truth.mean(), abs=0.01)
    assert mask.float().mean() == pytest.approx(composite.mask.mean(), abs=0.02)
    assert [outline_px(side) for side in (32, 128, 192, 256)] == [32, 96, 128, 160]
