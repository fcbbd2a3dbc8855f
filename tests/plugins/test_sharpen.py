"""Results of propagation; test_native.py and test_shuffled.py compare implementations bit for bit."""

import numpy as np
import pytest
import tfiseg
from tfiseg.plugins.reference import propagate_labels


def two_halves():
    labels = np.zeros((40, 60), np.int64)
    labels[5:35, 5:30], labels[5:35, 30:55] = 1, 2
    return labels


def propagate(labels, boundary, width=6, cls=None):
    cls = (labels > 0).astype(np.uint8) if cls is None else cls
    return propagate_labels(labels, cls, boundary, width)


def wall(x):
    boundary = np.zeros((40, 60), np.float32)
    boundary[:, x] = 1
    return boundary


def test_cut_moves_onto_a_near_boundary():
    found = propagate(two_halves(), wall(33))
    assert (found[5:35, 5:33] == 1).all()
    assert (found[5:35, 34:55] == 2).all()
    assert ((found > 0) == (two_halves() > 0)).all()


def test_far_boundary_has_no_effect():
    assert np.array_equal(propagate(two_halves(), wall(45)), two_halves())


def test_straight_cut_without_a_boundary_is_kept():
    assert np.array_equal(propagate(two_halves(), np.zeros((40, 60), np.float32)), two_halves())


def test_single_instances_slivers_and_other_classes_are_kept():
    one = (two_halves() > 0).astype(np.int64)
    assert np.array_equal(propagate(one, np.ones((40, 60), np.float32)), one)
    sliver = two_halves()
    sliver[5:35, 53:55] = 3  # narrower than the band around a cut
    assert (propagate(sliver, np.zeros((40, 60), np.float32))[5:35, 53:55] == 3).all()
    classes = two_halves().astype(np.uint8)  # a border between classes is no cut
    assert np.array_equal(propagate(two_halves(), wall(33), cls=classes), two_halves())


def test_through_the_operator():
    y, x = np.mgrid[:60, :110]
    disks = (((x - 33) ** 2 + (y - 30) ** 2 < 23**2) | ((x - 77) ** 2 + (y - 30) ** 2 < 23**2)).astype(
        np.uint8
    )
    boundary = np.zeros((60, 110), np.float32)
    boundary[:, 58] = 1
    plain = tfiseg.cluster(disks, boundary=boundary, split=0.9)
    sharp = tfiseg.cluster(disks, boundary=boundary, split=0.9, sharpen=6)
    assert len(plain) == len(sharp) == 2
    right = np.zeros((60, 110), bool)
    right[:, 59:] = disks[:, 59:] > 0

    def mistakes(found):
        return int((found.mask(1)[:, 59:] != right[:, 59:]).sum() + found.mask(1)[:, :58].sum())

    assert mistakes(sharp) <= 4 < 20 < mistakes(plain)
    assert sharp.area.sum() == plain.area.sum() == disks.sum()
    assert sharp.area.tolist() == [sharp.mask(k).sum() for k in range(2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sharpen": 3}, "pass boundary"),
        ({"sharpen": 33}, "0..32"),
        ({"sharpen": -1}, "0..32"),
        ({"sharpen": 1.5}, "0..32"),
    ],
)
def test_arguments_are_checked(arguments, message):
    boundary = {"boundary": np.zeros((8, 8), np.float32)} if "32" in message else {}
    with pytest.raises(tfiseg.InputError, match=message.replace(".", r"\.")):
        tfiseg.cluster(np.ones((8, 8), np.uint8), **boundary, **arguments)
