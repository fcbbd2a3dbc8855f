"""The second look at what a boundary crosses: what it must do, beside being the same bits everywhere
(test_native.py, test_shuffled.py)."""

import numpy as np
import pytest
import tfiseg
from tfiseg.plugins.neck import EVIDENCE_FEATURES

OFFSETS = [[0, 6]]  # across the boundary
STRIDE = 2
MEAN_AFFINITY = EVIDENCE_FEATURES.index("mean affinity")
SQUARE = (slice(20, 100), slice(40, 120))


def affinity_rule(least):
    """Merge where the mean affinity is above ``least``."""
    unit = np.zeros((2, len(EVIDENCE_FEATURES)), np.float32)
    unit[0, MEAN_AFFINITY], unit[1, MEAN_AFFINITY] = 1, -1
    return np.concatenate([unit.ravel(), [-least, least], [1, -1], [0]]).astype(np.float32)


def square(value=1):
    cls = np.zeros((120, 160), np.uint8)
    cls[SQUARE] = value
    return cls


def wall(x, height=1.0):
    boundary = np.zeros((120, 160), np.float32)
    boundary[:, x - 2 : x + 2] = height
    return boundary


def looked_at(cls, boundary, affinity=0.0, **more):
    """Instances, with affinities that are ``affinity`` everywhere."""
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


def test_a_boundary_parts_what_has_no_neck():
    assert len(looked_at(square(), wall(80, 0.4))) == 1
    found = looked_at(square(), wall(80))
    assert len(found) == 2
    assert np.array_equal(found.label_map > 0, square() > 0)  # every pixel has a part
    assert (found.label_map[20:100, 40:78] == 1).all()
    assert (found.label_map[20:100, 82:120] == 2).all()
    assert (np.abs(found.area - 40 * 80) <= 80).all()  # they meet in the middle of it
    assert found.area.tolist() == [found.mask(k).sum() for k in range(2)]


def test_the_rule_has_the_last_word():
    assert len(looked_at(square(), wall(80), affinity=0.9)) == 1


def test_a_part_of_less_than_a_fifth_is_none():
    assert len(looked_at(square(), wall(112))) == 1
    assert len(looked_at(square(), wall(102))) == 2


def test_what_is_in_no_part_goes_to_the_nearest():
    boundary = np.maximum(wall(80), wall(106))  # a strip of 14 columns on the right is no part
    found = looked_at(square(), boundary)
    assert len(found) == 2
    assert (found.label_map[20:100, 106:120] == 2).all()


def test_a_part_that_nothing_reaches_is_the_largests():
    cls = square()
    cls[100, 120] = 1  # joined by a corner, which nothing steps across
    found = looked_at(cls, np.maximum(wall(76), np.where(np.arange(160) >= 120, 1, 0).astype(np.float32)))
    assert len(found) == 2
    assert found.label_map[100, 120] == found.label_map[60, 110]


def test_pieces_keep_apart_what_is_near():
    """Affinities reach across pieces, which the first look parted: the second may not join parts of both."""
    cls = np.zeros((120, 160), np.uint8)
    cls[20:100, 20:60], cls[20:100, 60:100] = 1, 2
    boundary = np.maximum(wall(40), wall(80))
    found = looked_at(cls, boundary)
    assert found.class_id.tolist() == [1, 1, 2, 2]
    assert np.array_equal(np.isin(found.label_map, (1, 2)), cls == 1)


def test_pieces_of_a_batch_and_of_logits():
    maps = np.stack([square(), square(2), np.zeros_like(square())])
    cells = np.zeros((3, 1, 60, 80), np.float32)
    rule = affinity_rule(0.5)
    settings = tfiseg.ClusterSettings(affinity_offsets=OFFSETS, merge_rule=rule, part_rule=rule, min_area=0)
    given = {
        "boundary": np.stack([wall(80), wall(70), wall(80)]),
        "affinity": cells,
        "settings": settings,
    }
    found = tfiseg.cluster_batch(maps, **given)
    assert [its.class_id.tolist() for its in found] == [[1, 1], [2, 2], []]
    logits = 8.0 * (maps[:, None] == np.arange(3)[:, None, None]).astype(np.float32)
    large = tfiseg.cluster_batch(logits, output_size_hw=(240, 320), **given)
    assert [its.class_id.tolist() for its in large] == [[1, 1], [2, 2], []]
    assert large[0].area.sum() == (large[0].label_map > 0).sum() == 4 * (square() > 0).sum()
    assert (large[0].score > 0.99).all()


@pytest.mark.parametrize("missing", ["boundary", "affinity"])
def test_it_needs_both_kinds_of_evidence(missing):
    given = {"boundary": wall(80), "affinity": np.zeros((1, 60, 80), np.float32), "affinity_offsets": OFFSETS}
    del given[missing]
    with pytest.raises(tfiseg.InputError, match="part_rule weighs affinities and boundaries"):
        tfiseg.cluster(square(), part_rule=affinity_rule(0.5), **given)


def test_a_rule_of_another_length_is_an_error():
    given = {"boundary": wall(80), "affinity": np.zeros((1, 60, 80), np.float32), "affinity_offsets": OFFSETS}
    with pytest.raises(tfiseg.InputError, match=r"part_rule must hold"):
        tfiseg.cluster(square(), part_rule=affinity_rule(0.5)[:-1], **given)
