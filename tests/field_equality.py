"""Comparison of dataclasses of arrays."""

from typing import Any

import numpy as np


def assert_fields_equal(got: Any, expected: Any) -> None:
    """Fail unless all fields of two dataclasses are equal arrays; the message names the field."""
    for name in expected.__dataclass_fields__:
        assert np.array_equal(getattr(got, name), getattr(expected, name)), name
