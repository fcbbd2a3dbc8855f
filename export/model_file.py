"""Write trained networks as files, atomically, and check them against torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from ..errors import ModelError
from ..files import whole_file

_TOLERANCE = 0.02  # of probabilities, between torch and ONNX Runtime: weights are stored as float16


@contextmanager
def write_whole_model(model: onnx.ModelProto, output: Path) -> Iterator[Path]:
    """Write a checked model to a temporary file, which becomes ``output`` if the block succeeds."""
    onnx.checker.check_model(model, full_check=True)
    with whole_file(output) as part:
        onnx.save(model, part)
        yield part


def check_difference(difference: float) -> None:
    """Raise ModelError if a probability from ONNX Runtime differs from torch's by more than 0.02."""
    if difference > _TOLERANCE:
        raise ModelError(
            f"ONNX Runtime's probabilities differ from torch's by up to {difference:.3f}, expected at most "
            f"{_TOLERANCE}"
        )


def round_to_float32(values: Iterable[float]) -> list[float]:
    """Round to the 9 digits that a float32 needs to be read back exactly."""
    return [float(f"{v:.9g}") for v in values]
