"""Test arguments of ``Instances.select`` and ``draw`` that look right and are not."""

import numpy as np
import pytest
import tfiseg


@pytest.fixture
def two():
    class_map = np.zeros((200, 400), np.uint8)
    class_map[50:150, 50:150] = 15
    class_map[50:150, 250:350] = 7
    return tfiseg.cluster(class_map)


def test_select_takes_no_numbers_of_instances(two):
    # [1, 0] as numbers would be another selection than as flags: larger numbers were taken for "true"
    assert two.select([0, 1]).class_id.tolist() == [7]
    for keep in ([1, 2], [0, -1], [0.5, 1]):
        with pytest.raises(tfiseg.InputError, match=r"select takes bools, or 0 and 1.*instances\[\[0, 2\]\]"):
            two.select(keep)


@pytest.mark.parametrize(
    "labels", [["a", "b"], np.array(["a", "b"]), (name for name in "ab"), np.array([3, 4]), [1, None]]
)
def test_labels_of_any_sequence_are_drawn(two, labels):
    frame = np.zeros((*two.size_hw, 3), np.uint8)
    expected = [str(label) for label in labels] if not hasattr(labels, "send") else ["a", "b"]
    assert np.array_equal(two.draw(frame, labels=labels), two.draw(frame, labels=expected))


@pytest.mark.parametrize("labels", ["ab", None, 5, ["a"]])
def test_other_labels_are_refused(two, labels):
    # the letters of a text of two letters were drawn
    with pytest.raises(tfiseg.InputError, match="labels must be one text for each of 2 instances, got"):
        two.draw(np.zeros((*two.size_hw, 3), np.uint8), labels=labels)
