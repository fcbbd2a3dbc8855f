"""Resizing a frame for a network: bilinear to twice the size, then averaged 2 x 2."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfiseg.errors import InputError, TfisegError
from tfiseg.plugins.native import fit_frame, library


def interpolate_doubled(values: np.ndarray, size: int) -> np.ndarray:
    """Interpolate along the first axis to 2 * size, with half-pixel centers and a clamped border."""
    at = np.clip((np.arange(2 * size) + 0.5) * len(values) / (2 * size) - 0.5, 0, len(values) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (at - low)[:, None, None]
    return values[low] * (1 - share) + values[high] * share


def fit_with_numpy(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    rows = interpolate_doubled(frame.astype(float), size_hw[0])
    both = interpolate_doubled(rows.swapaxes(0, 1), size_hw[1]).swapaxes(0, 1)
    return both.reshape(size_hw[0], 2, size_hw[1], 2, 3).mean((1, 3)).transpose(2, 0, 1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1)
)
def test_pixel_is_the_mean_of_four_interpolated_values(height, width, rows, columns, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    fitted = fit_frame(frame, (rows, columns))
    assert fitted.shape == (3, rows, columns)
    assert fitted.dtype == np.float32
    assert np.abs(fitted - fit_with_numpy(frame, (rows, columns))).max() < 0.01


def test_same_size_is_a_small_blur_and_keeps_one_color():
    frame = np.full((30, 40, 3), (7, 130, 255), np.uint8)
    assert np.allclose(fit_frame(frame, (30, 40)), np.array([7, 130, 255])[:, None, None], atol=1e-3)


def test_frame_may_be_a_slice_of_another():
    large = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    part = large[10:50:2, 70:5:-3]
    assert np.array_equal(fit_frame(part, (16, 16)), fit_frame(part.copy(), (16, 16)))


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (48, 64, 4), (1, 48, 64, 3)])
def test_other_arrays_raise_input_error(shape):
    with pytest.raises(InputError, match=r"a frame must be uint8 \(H, W, 3\)"):
        fit_frame(np.zeros(shape, np.uint8), (16, 16))
    with pytest.raises(InputError, match="float32"):
        fit_frame(np.zeros((48, 64, 3), np.float32), (16, 16))


def test_empty_frame_raises_input_error():
    with pytest.raises(TfisegError, match="a shape is out of range"):
        fit_frame(np.zeros((0, 5, 3), np.uint8), (16, 16))


def test_library_without_cuda_says_so():
    assert library().tfiseg_fit_frame_cuda(None, 1, 1, None, 1, 1, None) == 8  # TFISEG_NO_CUDA
