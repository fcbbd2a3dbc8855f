"""The paper's losses and IRNet's grouping, our baselines."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-export")

from tfiseg.export.frame.paper_mode import group, pair_loss, pair_offsets  # noqa: E402
from tfiseg.runtime.evaluate.bench import center_field  # noqa: E402


def two_boxes():
    label_map = np.zeros((40, 60), np.int32)
    label_map[5:35, 5:28], label_map[5:35, 32:55] = 1, 2
    return label_map


def test_field_to_centers_is_grouped_into_objects():
    label_map = two_boxes()
    found = group(center_field(label_map))
    for number in (1, 2):
        assert len(np.unique(found[label_map == number])) == 1
    assert found[20, 10] != found[20, 50]


def test_loss_is_zero_for_one_center_per_class_and_constant_background():
    label_map = two_boxes()
    label_map[:, 30:] = 0
    class_map = torch.from_numpy((label_map > 0).astype(np.int64))[None]
    field = torch.from_numpy(center_field(label_map, noise_px=0))[None]
    assert pair_loss(field, class_map, pair_offsets(4)) == pytest.approx(0, abs=1e-5)
    assert pair_loss(torch.zeros_like(field), class_map, pair_offsets(4)) > 1
    assert len(pair_offsets(2)) == 4
