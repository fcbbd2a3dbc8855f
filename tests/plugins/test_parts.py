"""Results of the second pass; test_native.py and test_shuffled.py compare implementations bit for bit."""

import numpy as np
import pytest
import tfiseg
from tfiseg.plugins.neck import EVIDENCE_FEATURES

OFFSETS = [[0, 6]]  # across the boundary
STRIDE = 2
MEAN_AFFINITY = EVIDENCE_FEATURES.index("mean affinity")
SQUARE = (slice(20, 100), slice(40, 120))


def affinity_rule(threshold):
    """Return a rule that merges if the mean affinity is above ``threshold``."""
    unit = np.zeros((2, len(EVIDENCE_FEATURES)), np.float32)
    unit[0, MEAN_AFFINITY], unit[1, MEAN_AFFINITY] = 1, -1
    return np.concatenate([unit.ravel(), [-threshold, threshold], [1, -1], [0]]).astype(np.float32)


def square(value=1):
    cls = np.zeros((120, 160), np.uint8)
    cls[SQUARE] = value
    return cls


def wall(x, height=1.0):
    boundary = np.zeros((120, 160), np.float32)
    boundary[:, x - 2 : x + 2] = height
    return boundary


def cluster_in_two_passes(cls, boundary, affinity=0.0, **more):
    """Cluster with a second pass and a constant affinity."""
    cells = np.full((1, cls.shape[0] // STRIDE, cls.shape[1] // STRIDE), affinity, np.float32)
    rule = affinity_rule(0.5)
    return tfiseg.cluster(
        cls,
        boundary=boundary,
        affinity=cells,
        affinity_offsets=OFFSETS,
        merge_rule=rule,
        part_rule=rule,
        min_area=0,
        **more,
    )


def test_boundary_splits_a_shape_without_a_neck():
    assert len(cluster_in_two_passes(square(), wall(80, 0.4))) == 1
    instances = cluster_in_two_passes(square(), wall(80))
    assert len(instances) == 2
    assert np.array_equal(instances.label_map > 0, square() > 0)  # every pixel has a part
    assert (instances.label_map[20:100, 40:78] == 1).all()
    assert (instances.label_map[20:100, 82:120] == 2).all()
    assert (np.abs(instances.area - 40 * 80) <= 80).all()  # they meet in the middle of the boundary
    assert instances.area.tolist() == [instances.mask(k).sum() for k in range(2)]


def test_rule_decides():
    assert len(cluster_in_two_passes(square(), wall(80), affinity=0.9)) == 1


def test_parts_below_a_fifth_are_dropped():
    assert len(cluster_in_two_passes(square(), wall(112))) == 1
    assert len(cluster_in_two_passes(square(), wall(102))) == 2


def test_other_pixels_go_to_the_nearest_part():
    boundary = np.maximum(wall(80), wall(106))  # a strip of 14 columns on the right is too small
    instances = cluster_in_two_passes(square(), boundary)
    assert len(instances) == 2
    assert (instances.label_map[20:100, 106:120] == 2).all()


def test_unreachable_pixels_go_to_the_largest_part():
    cls = square()
    cls[100, 120] = 1  # connected by a corner only, across which labels do not spread
    instances = cluster_in_two_passes(
        cls, np.maximum(wall(76), np.where(np.arange(160) >= 120, 1, 0).astype(np.float32))
    )
    assert len(instances) == 2
    assert instances.label_map[100, 120] == instances.label_map[60, 110]


def test_second_pass_does_not_merge_parts_of_different_pieces():
    """Affinities reach across pieces of the first pass, but the second must not merge parts of both."""
    cls = np.zeros((120, 160), np.uint8)
    cls[20:100, 20:60], cls[20:100, 60:100] = 1, 2
    boundary = np.maximum(wall(40), wall(80))
    instances = cluster_in_two_passes(cls, boundary)
    assert instances.class_id.tolist() == [1, 1, 2, 2]
    assert np.array_equal(np.isin(instances.label_map, (1, 2)), cls == 1)


def test_second_pass_with_a_batch_and_with_logits():
    maps = np.stack([square(), square(2), np.zeros_like(square())])
    cells = np.zeros((3, 1, 60, 80), np.float32)
    rule = affinity_rule(0.5)
    settings = tfiseg.ClusterSettings(affinity_offsets=OFFSETS, merge_rule=rule, part_rule=rule, min_area=0)
    given = {"boundary": np.stack([wall(80), wall(70), wall(80)]), "affinity": cells, "settings": settings}
    instances = tfiseg.cluster_batch(maps, **given)
    assert [result.class_id.tolist() for result in instances] == [[1, 1], [2, 2], []]
    logits = 8.0 * (maps[:, None] == np.arange(3)[:, None, None]).astype(np.float32)
    large = tfiseg.cluster_batch(logits, output_size_hw=(240, 320), **given)
    assert [result.class_id.tolist() for result in large] == [[1, 1], [2, 2], []]
    assert large[0].area.sum() == (large[0].label_map > 0).sum() == 4 * (square() > 0).sum()
    assert (large[0].score > 0.99).all()


@pytest.mark.parametrize("missing", ["boundary", "affinity"])
def test_second_pass_needs_affinity_and_boundary(missing):
    given = {"boundary": wall(80), "affinity": np.zeros((1, 60, 80), np.float32), "affinity_offsets": OFFSETS}
    del given[missing]
    with pytest.raises(tfiseg.InputError, match="part_rule needs affinities and boundaries"):
        tfiseg.cluster(square(), part_rule=affinity_rule(0.5), **given)


def test_rule_of_another_length_raises_input_error():
    given = {"boundary": wall(80), "affinity": np.zeros((1, 60, 80), np.float32), "affinity_offsets": OFFSETS}
    with pytest.raises(tfiseg.InputError, match=r"part_rule must hold"):
        tfiseg.cluster(square(), part_rule=affinity_rule(0.5)[:-1], **given)
