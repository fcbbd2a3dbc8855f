from itertools import pairwise

import cv2
import numpy as np
import pytest
import tfiseg
from hypothesis import given
from hypothesis import strategies as st
from tfiseg.errors import InputError
from tfiseg.runtime.networks.model_info import ModelInfo
from tfiseg.runtime.networks.multi_scale import MultiScaleSession, windows
from tfiseg.runtime.networks.session import DEFAULT_MODEL


class Colors:
    """A network with a fixed grid, whose logits are the input's colors plus a horizontal gradient."""

    path = None
    info = ModelInfo(("background", "blue", "green", "red"), (1, 2, 3), 1, {})

    def __init__(self, grid_hw=(18, 24), gradient=0.0):
        self.grid_hw, self.gradient, self.seen = grid_hw, gradient, []

    def has(self, output):
        return output in ("logits", "affinity")

    def infer(self, image):
        self.seen.append(image.shape[:2])
        colours = (
            cv2.resize(image, self.grid_hw[::-1], interpolation=cv2.INTER_AREA)
            .astype(np.float32)
            .transpose(2, 0, 1)
        )
        lean = np.broadcast_to(
            np.arange(self.grid_hw[1], dtype=np.float32) * self.gradient, (1, *self.grid_hw)
        )
        return {
            "logits": np.concatenate([lean, colours])[None],
            "affinity": np.zeros((1, 1, 1, 1), np.float32),
        }

    def close(self):
        self.seen = None


def ramp(h, w):
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 / w, y * 255 / h, (x + y) * 255 / (h + w)], -1).astype(np.uint8)


@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.floats(1, 8))
def test_windows_cover_the_frame_and_overlap(size_hw, scale):
    found = windows(size_hw, scale)
    for axis in (0, 1):
        starts, length = sorted({w[axis] for w in found}), found[0][2 + axis]
        assert starts[0] == 0
        assert starts[-1] + length == size_hw[axis]
        assert all(b - a <= max(1, length * 0.67 + 1) for a, b in pairwise(starts))


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 3.7])
@pytest.mark.parametrize("hw", [(240, 320), (333, 200)])
def test_images_without_detail_are_equal_at_every_scale(hw, scale):
    network = Colors()
    whole = network.infer(ramp(*hw))["logits"]
    found = MultiScaleSession(network, (scale,), flip=False).infer(ramp(*hw))["logits"]
    assert found.shape == whole.shape
    assert found.dtype == np.float32
    inner = np.s_[:, 1:, 1:-1, 1:-1]  # outside of the outermost cell centers, logits are extrapolated
    np.testing.assert_allclose(found[inner], whole[inner], atol=1.5)


def test_windows_show_more_detail_than_the_whole_frame():
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[:, ::32] = 255
    network = Colors((16, 16))
    fine = MultiScaleSession(network, (4.0,), flip=False)
    sharpest = [np.ptp(session.infer(frame)["logits"][0, 1]) for session in (network, fine)]
    assert sharpest[1] > 1.5 * sharpest[0]


def test_tiles_have_a_finer_grid():
    """Lines of one pixel, which are too thin for the network's grid."""
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[:, 10::20] = 255
    network = Colors((12, 16))
    tiles = MultiScaleSession(network, (1.0, 4.0), flip=False, finer=4)
    coarse, fine = (session.infer(frame)["logits"][0, 1] for session in (network, tiles))
    assert fine.shape == (48, 64)
    assert np.ptp(coarse) < 2
    columns = fine[20].reshape(-1, 4).mean(0)  # four cells from one line to the next
    assert columns.max() > 2 * columns.min()


def test_tiles_and_scales_exclude_each_other():
    with pytest.raises(InputError, match="tiles=2 means scales"):
        tfiseg.Segmenter(tiles=2, scales=(1, 1.5))
    with pytest.raises(InputError, match=r"tiles must lie in 1\.\.8, got 0"):
        tfiseg.Segmenter(tiles=0)
    with pytest.raises(InputError, match=r"tiles must lie in 1\.\.8, got 2\.5"):
        tfiseg.Segmenter(tiles=2.5)


def test_mirror_images_cancel_a_horizontal_bias():
    frame = ramp(120, 160)
    gradient = Colors(gradient=1.0)
    assert np.ptp(gradient.infer(frame)["logits"][0, 0]) > 20
    for scales in ((1.0,), (1.0, 1.5)):
        session = MultiScaleSession(gradient, scales, flip=True)
        found = session.infer(frame)["logits"]
        np.testing.assert_allclose(session.infer(frame[:, ::-1])["logits"], found[..., ::-1], atol=1e-3)


def test_number_of_passes():
    network = Colors()
    MultiScaleSession(network, (1.0, 1.5), flip=True).infer(ramp(300, 300))
    assert len(network.seen) == 2 * (1 + 4)
    assert set(network.seen) == {(300, 300), (200, 200)}


def test_scales_have_equal_weights():
    frame = np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)
    network = Colors()
    alone = [MultiScaleSession(network, (s,), flip=False).infer(frame)["logits"] for s in (1.0, 1.5, 2.0)]
    together = MultiScaleSession(network, (1.0, 1.5, 2.0), flip=False).infer(frame)["logits"]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-5)


def test_window_weights_grow_with_the_distance_from_borders():
    class Numbered(Colors):
        def infer(self, image):
            maps = super().infer(image)
            maps["logits"][:] = len(self.seen)
            return maps

    frame = np.zeros((100, 150, 3), np.uint8)
    found = MultiScaleSession(Numbered((50, 75)), (1.5,), flip=False).infer(frame)["logits"][0, 0]
    assert [found[0, 0], found[0, -1]] == [
        2,
        3,
    ]  # the first pass is the whole frame's, then two windows of 100 x 100
    across = found[0, 26:49]  # the overlap, from one border to the other
    assert (np.diff(across) > 0).all()
    assert abs(across[len(across) // 2] - 2.5) < 0.05


def test_a_coarse_grid_and_windows_between_its_cells():
    found = MultiScaleSession(Colors((2, 3)), (8.0,), flip=False).infer(ramp(64, 96))["logits"]
    assert np.isfinite(found).all()
    assert found.shape == (1, 4, 2, 3)


def test_size_errors_name_the_window():
    class Fixed(Colors):
        def infer(self, image):
            if image.shape[:2] != (60, 90):
                raise InputError("takes frames of 60x90")
            return super().infer(image)

    with pytest.raises(InputError, match=r"a window of this frame at scale 1.5: takes frames of 60x90"):
        MultiScaleSession(Fixed(), (1.0, 1.5), flip=False).infer(ramp(60, 90))


@pytest.mark.parametrize("scales", [(), (0.5,), (1.0, 9.0), (float("nan"),), 1.5, None, ("big",)])
def test_invalid_scales(scales):
    with pytest.raises(InputError, match="scales must be numbers from 1 to 8"):
        MultiScaleSession(Colors(), scales, flip=False)


def test_segmenter_with_several_passes():
    from skimage import data

    astronaut = np.ascontiguousarray(data.astronaut()[:, :, ::-1])
    once, often = tfiseg.Segmenter(), tfiseg.Segmenter(scales=(1, 1.5), flip=True)
    person = [s(astronaut).semantic_map == s.class_names.index("person") for s in (once, often)]
    assert 0.8 < (person[0] & person[1]).sum() / (person[0] | person[1]).sum() < 1


def test_instance_heads_are_not_averaged():
    with pytest.raises(InputError, match="have no average"):
        tfiseg.Segmenter(refine="frame", scales=(1, 1.5))
    tfiseg.Segmenter(DEFAULT_MODEL, refine="components", scales=np.array([1, 2]), flip=True).close()
