"""Shapes of a network's maps are checked before their addresses are passed to the GPU."""

import pytest
from tfiseg.errors import EngineError
from tfiseg.plugins.problem import map_strides

LOGITS = (2, 21, 96, 130)


def test_strides_come_from_the_shapes():
    shapes = {
        "logits": LOGITS,
        "displacement": (2, 2, 96, 130),
        "boundary": (2, 1, 48, 65),
        "affinity": (2, 14, 24, 33),
    }
    assert map_strides(shapes, 14) == {"displacement": 1, "boundary": 2, "affinity": 4}
    assert map_strides({"logits": LOGITS}, 14) == {}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("displacement", (2, 1, 96, 130), "C = 2"),
        ("displacement", (2, 2, 48, 65), "same size"),
        ("displacement", (1, 2, 96, 130), "N = 2"),
        ("boundary", (2, 2, 96, 130), "C = 1"),
        ("boundary", (2, 1, 50, 65), "integer factor"),
        ("boundary", (2, 1, 0, 65), "got"),
        ("affinity", (2, 13, 24, 33), "C = 14"),
        ("affinity", (2, 14, 24), "shape"),
        ("affinity", (2, 14, 24, 40), "integer factor"),
    ],
)
def test_inconsistent_shapes_raise_errors(name, shape, message):
    with pytest.raises(EngineError, match=message):
        map_strides({"logits": LOGITS, name: shape}, 14)
