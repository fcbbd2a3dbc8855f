"""Options of trainers that do not depend on data."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `export` is not installed (make test-export)")

from tfiseg.errors import InputError  # noqa: E402
from tfiseg.export.semantic.network import SegmentationNetwork  # noqa: E402
from tfiseg.export.training import training_device  # noqa: E402


def test_training_device():
    assert training_device("cpu") == "cpu"
    assert training_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="device must be one of 'cpu', 'cuda', got 'gpu'"):
        training_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_training_on_a_missing_gpu():
    with pytest.raises(InputError, match="finds no GPU"):
        training_device("cuda")


def test_unknown_backbone():
    with pytest.raises(InputError, match=r"'lite0'.* got 'lite1'\. Did you mean"):
        SegmentationNetwork({"logits": 2}, backbone="lite1")
