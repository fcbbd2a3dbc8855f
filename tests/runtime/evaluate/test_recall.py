"""Test recall by object size."""

import numpy as np
from tfiseg.runtime.evaluate.recall import RecallBySize


def test_counts_by_class_and_size():
    truth = np.zeros((200, 200), np.int32)
    semantic = np.zeros((200, 200), np.uint8)
    for number, (y, x, side, class_id) in enumerate(
        [(0, 0, 10, 1), (0, 20, 40, 1), (60, 0, 100, 2)], start=1
    ):
        truth[y : y + side, x : x + side] = number
        semantic[y : y + side, x : x + side] = class_id
    recall = RecallBySize()
    recall.add(truth, semantic, [(1, 2), (2, 3)])
    assert recall.report({1: "person"}) == {
        "person": {"32x32 to 96x96": "1 of 1", "under 32x32": "0 of 1"},
        "class 2": {"over 96x96": "1 of 1"},
    }


def test_ignored_pixels_reduce_the_size_of_an_object():
    truth = np.ones((40, 40), np.int32)
    semantic = np.full((40, 40), 255, np.uint8)
    semantic[:10, :10] = 3
    recall = RecallBySize()
    recall.add(truth, semantic, [])
    assert recall.report({}) == {"class 3": {"under 32x32": "0 of 1"}}
