"""Test the conversion of every encoding of sensor_msgs to BGR."""

import array

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed: run `make test-ros`")

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tfiseg import InputError
from tfiseg_ros.image_conversion import _ENCODINGS, bgr_of, bgr_of_compressed, depth_of, image_message

RNG = np.random.default_rng(3)
BGR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
SMOOTH = cv2.resize(RNG.integers(60, 200, (2, 2, 3), np.uint8), (32, 24), interpolation=cv2.INTER_LINEAR)


def message(
    pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False, size_hw=None
) -> Image:
    """Return a message with padded rows."""
    if big_endian:
        pixels = pixels.byteswap()
    rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    height, width = size_hw or pixels.shape[:2]
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("bgr8", BGR),
        ("8UC3", BGR),
        ("rgb8", BGR[..., ::-1]),
        ("bgra8", np.dstack([BGR, BGR[..., 0]])),
        ("8UC4", np.dstack([BGR, BGR[..., 0]])),
        ("rgba8", np.dstack([BGR[..., ::-1], BGR[..., 0]])),
    ],
)
def test_color(encoding, pixels, padding):
    assert np.array_equal(bgr_of(message(np.ascontiguousarray(pixels), encoding, padding)), BGR)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("bgr16", BGR),
        ("16UC3", BGR),
        ("rgb16", BGR[..., ::-1]),
        ("bgra16", np.dstack([BGR, BGR[..., 0]])),
        ("16UC4", np.dstack([BGR, BGR[..., 0]])),
        ("rgba16", np.dstack([BGR[..., ::-1], BGR[..., 0]])),
    ],
)
def test_16_bit_values_keep_their_upper_bits(encoding, pixels, big_endian):
    deep = pixels.astype(np.uint16) * 256 + 99
    assert np.array_equal(bgr_of(message(deep, encoding, 6, big_endian)), BGR)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1", "mono16", "16UC1"])
def test_gray(encoding):
    gray = BGR[..., 0]
    pixels = gray.astype(np.uint16) * 256 if "16" in encoding else np.ascontiguousarray(gray)
    assert np.array_equal(bgr_of(message(pixels, encoding, 2)), np.dstack([gray] * 3))


def mosaic(pattern: str) -> np.ndarray:
    """Return ``SMOOTH`` as a Bayer mosaic of this pattern."""
    planes = {"b": SMOOTH[..., 0], "g": SMOOTH[..., 1], "r": SMOOTH[..., 2]}
    pixels = np.empty(SMOOTH.shape[:2], np.uint8)
    for k, color in enumerate(pattern):
        pixels[k // 2 :: 2, k % 2 :: 2] = planes[color][k // 2 :: 2, k % 2 :: 2]
    return pixels


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern, bits):
    pixels = mosaic(pattern) if bits == 8 else mosaic(pattern).astype(np.uint16) * 256
    found = bgr_of(message(pixels, f"bayer_{pattern}{bits}", 3 * bits // 8))
    inner = np.abs(found.astype(int) - SMOOTH)[2:-2, 2:-2]
    assert inner.max() <= 12, "interpolated from the neighbors in a smooth image"


def yuv_of(bgr: np.ndarray) -> np.ndarray:
    """Return Y, U, V in studio range (BT.601), (H, W, 3)."""
    b, g, r = np.moveaxis(bgr.astype(float), -1, 0)
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    return np.clip(np.rint(np.dstack([y, u, v])), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv21", "nv24"])
def test_yuv(encoding):
    yuv = yuv_of(SMOOTH)
    luma, chroma = yuv[..., 0], yuv[..., 1:]
    height, width = luma.shape
    if encoding == "nv21":
        pixels = np.vstack([luma, chroma[::2, ::2, ::-1].reshape(height // 2, width)])
    elif encoding == "nv24":
        pixels = np.vstack([luma, chroma.reshape(height * 2, width)])
    else:
        pairs = np.empty((height, width, 2), np.uint8)
        first = encoding in ("uyvy", "yuv422")  # chroma before luma
        pairs[..., int(first)] = luma
        pairs[:, ::2, 1 - first], pairs[:, 1::2, 1 - first] = chroma[:, ::2, 0], chroma[:, ::2, 1]
        pixels = pairs
    found = bgr_of(message(pixels, encoding, 4, size_hw=(height, width)))
    assert np.abs(found.astype(int) - SMOOTH).max() <= 14, "neighbors in a smooth image share their chroma"
    assert np.abs(found.astype(int) - SMOOTH).mean() <= 3


def test_every_encoding_is_tested():
    tested = {"bgr", "rgb", "bgra", "rgba", "mono", "UC", "bayer", "yuv", "yuy", "uyvy"}
    assert all(any(part in encoding for part in tested) for encoding in _ENCODINGS)


@pytest.mark.parametrize("encoding", ["32FC1", "32FC3", "8UC2", "64FC1", "", "nonsense"])
def test_unsupported_encodings_are_errors(encoding):
    with pytest.raises(InputError, match=f"encoding '{encoding}' has no conversion"):
        bgr_of(message(BGR, encoding))


@pytest.mark.parametrize("change", [{"step": 5}, {"height": 60}, {"width": 9}, {"height": 0}, {"data": b""}])
def test_inconsistent_sizes_are_errors(change):
    invalid = message(BGR, "bgr8")
    for name, value in change.items():
        setattr(invalid, name, value)
    with pytest.raises(InputError, match=r"needs \d+ rows of \d+ bytes"):
        bgr_of(invalid)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_compressed(suffix):
    content = cv2.imencode(suffix, SMOOTH)[1].tobytes()
    found = bgr_of_compressed(CompressedImage(format=suffix[1:], data=content))
    assert np.abs(found.astype(int) - SMOOTH).max() <= (0 if suffix == ".png" else 10)
    for damaged in (b"", content[:60], b"text"):
        with pytest.raises(InputError, match="is damaged"):
            bgr_of_compressed(CompressedImage(format=suffix[1:], data=damaged))


def test_depth():
    deep = RNG.integers(0, 9000, (6, 8), np.uint16)
    assert np.array_equal(depth_of(message(deep, "16UC1", 2)), deep)
    assert np.array_equal(depth_of(message(deep / np.float32(1000), "32FC1")), deep / np.float32(1000))
    with pytest.raises(InputError, match="got 'bgr8'"):
        depth_of(message(BGR, "bgr8"))


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [("bgr8", BGR), ("mono8", BGR[..., 1]), ("mono16", BGR[..., 0].astype(np.uint16) * 257)],
)
def test_image_messages(encoding, pixels):
    header = Header(frame_id="optical")
    made = image_message(pixels, encoding, header)
    assert made.header is header
    assert (made.height, made.width) == pixels.shape[:2]
    expected = (
        pixels if pixels.ndim == 3 else np.dstack([(pixels >> 8 if encoding == "mono16" else pixels)] * 3)
    )
    assert np.array_equal(bgr_of(made), expected)
