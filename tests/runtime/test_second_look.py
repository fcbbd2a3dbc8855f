"""The second look: what boundaries leave of a piece, and how its parts are told."""

import numpy as np
import pytest
from tfiseg.plugins.neck import EVIDENCE_FEATURES
from tfiseg.runtime.instance_session import InstanceMaps
from tfiseg.runtime.second_look import parted_again, uncrossed

OFFSETS = np.array([[0, 3]], np.int32)  # across the boundary
MEAN_AFFINITY = EVIDENCE_FEATURES.index("mean affinity")


def affinity_rule(least):
    """Merge where the mean affinity is above ``least``."""
    unit = np.zeros((2, len(EVIDENCE_FEATURES)), np.float32)
    unit[0, MEAN_AFFINITY], unit[1, MEAN_AFFINITY] = 1, -1
    return np.concatenate([unit.ravel(), [-least, least], [1, -1], [0]]).astype(np.float32)


@pytest.fixture
def crossed():
    """A square of 80 x 80 cells, a boundary down its middle, and affinities that say it is two."""
    labels = np.zeros((160, 160), np.int32)
    labels[40:120, 40:120] = 1
    boundary = np.zeros((1, 1, 80, 80), np.float32)
    boundary[..., 39:41] = 1
    return labels, InstanceMaps(np.zeros((1, 2, 40, 40), np.float32), np.zeros((1, 1, 40, 40), np.float32), boundary)


def test_a_boundary_parts_what_has_no_neck(crossed):
    labels, maps = crossed
    (parted,) = parted_again([labels], maps, OFFSETS, affinity_rule(0.5))
    assert np.array_equal(parted > 0, labels > 0)  # every cell of the piece has a part
    left, right = parted[80, 45], parted[80, 115]
    assert left != right
    assert (parted[40:120, 40:76] == left).all()
    assert (parted[40:120, 84:120] == right).all()
    assert labels.max() == 1  # what was given is untouched


def test_the_rule_has_the_last_word(crossed):
    labels, maps = crossed
    (whole,) = parted_again([labels], InstanceMaps(maps.displacement, maps.affinity + 0.9, maps.boundary), OFFSETS, affinity_rule(0.5))
    assert np.array_equal(whole, labels)


def test_a_part_of_less_than_a_fifth_is_none(crossed):
    labels, maps = crossed
    boundary = np.roll(maps.boundary, 18, axis=-1)  # 6 of the 40 columns lie behind it
    assert (
        len(np.unique(parted_again([labels], InstanceMaps(maps.displacement, maps.affinity, boundary), OFFSETS, affinity_rule(0.5))[0]))
        == 2
    )


def test_pieces_without_a_boundary_are_let_be(crossed):
    labels, maps = crossed
    calm = InstanceMaps(maps.displacement, maps.affinity, maps.boundary * 0.4)
    assert uncrossed(calm.boundary[0, 0]).all()
    assert np.array_equal(parted_again([labels], calm, OFFSETS, affinity_rule(0.5))[0], labels)
    nothing = InstanceMaps(*(m[:0] for m in (maps.displacement, maps.affinity, maps.boundary)))
    assert parted_again([], nothing, OFFSETS, affinity_rule(0.5)) == []
