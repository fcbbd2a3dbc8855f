"""Test what is reported about images that are read: several frames or pages, and few bits."""

import cv2
import numpy as np
import pytest
import tfiseg
from pictures import SMOOTH, as_pil, encoded
from PIL import Image
from tfiseg.images import read_image, to_bgr


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_of_several_frames_or_pages_the_first_is_used_with_a_warning(form, caplog):
    frames = [as_pil(np.roll(SMOOTH, 9 * k, 1)) for k in range(4)]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with caplog.at_level("WARNING", "tfiseg"):
        image = read_image(content, name="scan")
    assert "scan has 4 frames or pages; only the first is used" in caplog.text
    assert np.abs(image.astype(int) - SMOOTH).mean() < 10  # GIF has a palette
    for share in (0.4, 0.7, 0.97):
        with pytest.raises(tfiseg.InputError, match=r"scan is (truncated|no image)"):
            read_image(content[: int(share * len(content))], name="scan")


def test_smaller_copies_in_a_tiff_are_no_pages(caplog):
    copies = [as_pil(SMOOTH), as_pil(SMOOTH[::2, ::2])]
    copies[1].encoderinfo = {"tiffinfo": {254: 1}}
    content = encoded(copies[0], "TIFF", save_all=True, append_images=copies[1:])
    assert read_image(content).shape == SMOOTH.shape
    assert not caplog.text


@pytest.mark.parametrize("suffix", ["png", "tif", "pnm"])
@pytest.mark.parametrize("is_color", [True, False])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_images_with_fewer_bits_than_their_file_are_reported(suffix, is_color, bits, tmp_path, caplog):
    path = str(tmp_path / f"scan.{suffix}")
    picture = SMOOTH if is_color else SMOOTH[..., 0]
    cv2.imwrite(path, picture.astype(np.uint16) * (257 if bits == 16 else 1 << bits - 8))
    if bits == 8 and not is_color:
        with pytest.raises(tfiseg.InputError, match="would all be black"):
            read_image(path)
        return
    read_image(path)
    assert ("scan" in caplog.text and "is dark: its 16-bit values end below" in caplog.text) == (bits < 16)


def test_a_black_16_bit_image_is_no_error(caplog):
    assert not read_image(encoded(Image.new("I;16", (8, 8)), "PNG")).any()
    assert not to_bgr(Image.new("I", (8, 8))).any()
