"""Twelve toy images for the tests of the instance network, and their bank of objects."""

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Twelve images with one to three separate disks of class 1; the upper border cuts one of them."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for name in ("images", "semantic"):
        (folder / name).mkdir()
    for k in range(12):
        image = rng.integers(0, 255, (120, 160, 3), np.uint8)
        semantic = np.zeros((120, 160), np.uint8)
        for i in range(1 + k % 3):
            center = (30 + 50 * i, 60 if k else 15)
            cv2.circle(semantic, center, 18, 1, -1)
            cv2.circle(image, center, 18, (0, 0, 255), -1)
        cv2.imwrite(str(folder / "images" / f"{k:02}.png"), image)
        cv2.imwrite(str(folder / "semantic" / f"{k:02}.png"), semantic)
    return folder


@pytest.fixture(scope="session")
def bank(toy):
    from tfiseg.export.instance.bank import build_bank  # needs torch

    return build_bank(toy / "images", toy / "semantic")


@pytest.fixture(scope="session")
def gray_picture():
    """Return a function that makes a gray picture with a given class map."""
    from tfiseg.export.semantic.data import Picture  # needs torch

    def make(class_map):
        gray = np.full((*class_map.shape, 3), 90, np.uint8)
        return Picture("one", gray, class_map, np.full((1, 1), 255, np.uint8))

    return make
