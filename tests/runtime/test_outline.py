import numpy as np
from tfiseg.runtime.outline import sharpened


def two_halves():
    labels = np.zeros((40, 60), np.int32)
    labels[5:35, 5:30], labels[5:35, 30:55] = 1, 2
    return labels


def test_a_cut_moves_onto_the_boundary_near_it():
    boundary = np.zeros((40, 60), np.float32)
    boundary[:, 33] = 1
    found = sharpened(two_halves(), boundary)
    assert (found[5:35, 5:33] == 1).all()
    assert (found[5:35, 34:55] == 2).all()
    assert ((found > 0) == (two_halves() > 0)).all()


def test_without_a_boundary_a_straight_cut_stays():
    assert np.array_equal(sharpened(two_halves(), np.zeros((40, 60), np.float32)), two_halves())


def test_single_pieces_and_slivers_stay():
    one = (two_halves() > 0).astype(np.int32)
    assert sharpened(one, np.ones((40, 60), np.float32)) is one
    sliver = two_halves()
    sliver[5:35, 53:55] = 3  # narrower than what is told anew
    found = sharpened(sliver, np.zeros((40, 60), np.float32))
    assert (found[5:35, 53:55] == 3).all()
