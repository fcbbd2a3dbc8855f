"""A frame fitted to a network's size: bilinear to twice the size, then means of 2 x 2."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfiseg.errors import InputError, TfisegError
from tfiseg.plugins.native import fit_frame


def doubled(values: np.ndarray, size: int) -> np.ndarray:
    """Bilinear along the first axis to 2 * size, half-pixel centres, clamped."""
    at = np.clip((np.arange(2 * size) + 0.5) * len(values) / (2 * size) - 0.5, 0, len(values) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (at - low)[:, None, None]
    return values[low] * (1 - share) + values[high] * share


def plainly(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    rows = doubled(frame.astype(float), size_hw[0])
    both = doubled(rows.swapaxes(0, 1), size_hw[1]).swapaxes(0, 1)
    return both.reshape(size_hw[0], 2, size_hw[1], 2, 3).mean((1, 3)).transpose(2, 0, 1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1)
)
def test_it_is_the_mean_of_four_interpolated_values(height, width, rows, columns, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    fitted = fit_frame(frame, (rows, columns))
    assert fitted.shape == (3, rows, columns)
    assert fitted.dtype == np.float32
    assert np.abs(fitted - plainly(frame, (rows, columns))).max() < 0.01


def test_the_same_size_is_a_small_blur_and_one_colour_stays():
    frame = np.full((30, 40, 3), (7, 130, 255), np.uint8)
    assert np.allclose(fit_frame(frame, (30, 40)), np.array([7, 130, 255])[:, None, None], atol=1e-3)


def test_a_frame_that_is_a_part_of_another_is_read_where_it_is():
    large = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    part = large[10:50:2, 70:5:-3]
    assert np.array_equal(fit_frame(part, (16, 16)), fit_frame(part.copy(), (16, 16)))


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (48, 64, 4), (1, 48, 64, 3)])
def test_what_is_no_frame_is_refused(shape):
    with pytest.raises(InputError, match=r"a frame must be uint8 \(H, W, 3\)"):
        fit_frame(np.zeros(shape, np.uint8), (16, 16))
    with pytest.raises(InputError, match="float32"):
        fit_frame(np.zeros((48, 64, 3), np.float32), (16, 16))


def test_an_empty_frame_is_refused():
    with pytest.raises(TfisegError, match="a shape is out of range"):
        fit_frame(np.zeros((0, 5, 3), np.uint8), (16, 16))
