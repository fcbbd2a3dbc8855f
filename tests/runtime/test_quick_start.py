"""Test that ``tfiseg.segment`` keeps its network for equal options only."""

import numpy as np
import pytest
import tfiseg
from tfiseg.runtime import quick_start

GRAY = np.full((48, 64, 3), 127, np.uint8)


def segmenter_for(**options):
    tfiseg.segment(GRAY, quality="fast", threads=1, **options)
    return quick_start._last[1]


@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        (np.array([7, 15]), np.array([7, 15]), np.array([7])),
        ([7, 15], (7, 15), [7]),
        ((c for c in (7, 15)), (c for c in (7, 15)), (c for c in (7,))),
        ("person", "person", "car"),
        (np.int64(15), 15, 7),
    ],
)
def test_classes_of_any_type(first, same, other):
    # two arrays have no single truth value: the second call raised
    kept = segmenter_for(things=first)
    assert segmenter_for(things=same) is kept
    assert segmenter_for(things=other).things != kept.things


def test_options_that_the_caller_changes_afterwards():
    # the list was kept too, so that the old network seemed to have the new options
    things, split = ["car"], {15: 0.0}
    before = segmenter_for(things=things, split=split)
    things.append("person")
    after = segmenter_for(things=things, split=split)
    assert (before.things, after.things) == ((7,), (7, 15))
    split[15] = 0.5
    assert segmenter_for(things=things, split=split) is not after
    assert after.split == {15: 0.0}
