"""Test that a Segmenter and ``tfiseg.segment`` give the same result for pictures of every type."""

import cv2
import numpy as np
import pytest
import tfiseg
from PIL import Image
from tfiseg.runtime import quick_start
from tfiseg.runtime.picture_input import as_frame
from tfiseg.runtime.sources.synthetic import SyntheticCamera

BGR = next(iter(SyntheticCamera())).image


@pytest.fixture(scope="module")
def segmenter():
    return tfiseg.Segmenter(quality="fast")


@pytest.fixture(scope="module")
def expected(segmenter):
    found = segmenter(BGR)
    assert len(found) > 0
    return found


@pytest.fixture
def path(tmp_path):
    cv2.imwrite(str(tmp_path / "people.png"), BGR)
    return tmp_path / "people.png"


def same(found: tfiseg.Instances, expected: tfiseg.Instances) -> bool:
    return np.array_equal(found.label_map, expected.label_map) and found.names == expected.names


def test_files_and_pil_images(segmenter, expected, path):
    rgb = Image.fromarray(np.ascontiguousarray(BGR[..., ::-1]))
    for picture in (
        path,
        str(path),
        path.as_uri(),
        path.read_bytes(),
        rgb,
        rgb.convert("RGBA"),
        Image.open(path),
    ):
        assert same(segmenter(picture), expected)


def test_color_is_the_order_of_channels(segmenter, expected):
    rgb = np.ascontiguousarray(BGR[..., ::-1])
    assert same(segmenter(rgb, color="rgb"), expected)
    assert not same(segmenter(rgb), expected)
    with pytest.raises(tfiseg.InputError, match="color must be one of rgb, bgr"):
        segmenter(rgb, color="RGB")
    with pytest.raises(tfiseg.InputError, match="must be BGR"):
        segmenter(tfiseg.Frame(rgb), color="rgb")


def test_tensors(segmenter, expected):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.from_numpy(np.ascontiguousarray(BGR[..., ::-1]))
    assert same(segmenter(tensor), expected)
    assert same(segmenter(tensor.permute(2, 0, 1)), expected)
    assert same(segmenter(torch.from_numpy(BGR), color="bgr"), expected)


class CudaTensor:
    """A tensor that claims to be on the GPU."""

    is_cuda = True

    def __init__(self, tensor):
        self._tensor = tensor

    def __getattr__(self, name):
        return getattr(self._tensor, name)


def test_a_tensor_on_the_gpu_is_copied_for_segmentation_on_the_cpu(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    on_gpu = CudaTensor(torch.from_numpy(np.ascontiguousarray(BGR[..., ::-1])))
    monkeypatch.setattr("tfiseg.runtime.picture_input.is_tensor", lambda picture: True)
    monkeypatch.setattr("tfiseg.images.is_tensor", lambda picture: True)
    assert np.array_equal(as_frame(on_gpu, None, stays_on_gpu=False), BGR)
    with pytest.raises((AssertionError, RuntimeError)):  # torch without CUDA has no stream to wait for
        as_frame(on_gpu, None, stays_on_gpu=True)


def test_lists_give_lists(segmenter, expected, path):
    found = segmenter([path, BGR, tfiseg.Frame(BGR, index=7)])
    assert isinstance(found, list)
    assert all(same(instances, expected) for instances in found)
    assert found[2].frame_index == 7
    assert segmenter([]) == []
    assert segmenter((BGR,))[0].size_hw == (480, 640)


def test_grey_pictures(segmenter):
    assert segmenter(BGR[..., 1]).size_hw == (480, 640)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.jpg", "there is no file nowhere.jpg"),
        (None, "an image must be uint8"),
        (np.zeros((4, 4, 3)), "got float64"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \(4, 4, 4\)"),
    ],
)
def test_other_pictures_are_refused(segmenter, picture, message):
    with pytest.raises(tfiseg.InputError, match=message):
        segmenter(picture)
    with pytest.raises(tfiseg.InputError, match=message):
        segmenter([BGR[:32, :32], picture])


def test_the_quick_start_keeps_its_network(expected, path, monkeypatch):
    monkeypatch.setattr(quick_start, "_last", None)
    assert same(tfiseg.segment(path, quality="fast"), expected)
    network = quick_start._last[1]
    assert [same(one, expected) for one in tfiseg.segment([path, BGR], quality="fast")] == [True, True]
    assert quick_start._last[1] is network
    assert tfiseg.segment(BGR, quality="fast", things=["car"]).names == []
    assert quick_start._last[1] is not network
    with pytest.raises(tfiseg.InputError, match="unknown class 'unicorn'"):
        tfiseg.segment(BGR, things=["unicorn"])
