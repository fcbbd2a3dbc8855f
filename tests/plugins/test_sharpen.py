"""Cuts that move onto the boundary: what they must do, beside being the same bits everywhere (test_native.py,
test_shuffled.py)."""

import numpy as np
import pytest
import tfiseg
from tfiseg.plugins.reference import sharpened


def two_halves():
    labels = np.zeros((40, 60), np.int64)
    labels[5:35, 5:30], labels[5:35, 30:55] = 1, 2
    return labels


def moved(labels, boundary, width=6, cls=None):
    cls = (labels > 0).astype(np.uint8) if cls is None else cls
    return sharpened(labels, cls, boundary, width)


def wall(x):
    boundary = np.zeros((40, 60), np.float32)
    boundary[:, x] = 1
    return boundary


def test_a_cut_moves_onto_the_boundary_near_it():
    found = moved(two_halves(), wall(33))
    assert (found[5:35, 5:33] == 1).all()
    assert (found[5:35, 34:55] == 2).all()
    assert ((found > 0) == (two_halves() > 0)).all()


def test_a_boundary_far_from_the_cut_is_none_of_its_business():
    assert np.array_equal(moved(two_halves(), wall(45)), two_halves())


def test_without_a_boundary_a_straight_cut_stays():
    assert np.array_equal(moved(two_halves(), np.zeros((40, 60), np.float32)), two_halves())


def test_single_pieces_slivers_and_other_classes_stay():
    one = (two_halves() > 0).astype(np.int64)
    assert np.array_equal(moved(one, np.ones((40, 60), np.float32)), one)
    sliver = two_halves()
    sliver[5:35, 53:55] = 3  # narrower than what is told anew
    assert (moved(sliver, np.zeros((40, 60), np.float32))[5:35, 53:55] == 3).all()
    classes = two_halves().astype(np.uint8)  # a border between classes is no cut
    assert np.array_equal(moved(two_halves(), wall(33), cls=classes), two_halves())


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
    ("more", "says"),
    [
        ({"sharpen": 3}, "give boundary"),
        ({"sharpen": 33}, "0..32"),
        ({"sharpen": -1}, "0..32"),
        ({"sharpen": 1.5}, "0..32"),
    ],
)
def test_what_is_asked_is_checked(more, says):
    boundary = {"boundary": np.zeros((8, 8), np.float32)} if "32" in says else {}
    with pytest.raises(tfiseg.InputError, match=says.replace(".", r"\.")):
        tfiseg.cluster(np.ones((8, 8), np.uint8), **boundary, **more)
