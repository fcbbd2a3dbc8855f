"""Test messages about values that are no picture and no index."""

import io

import numpy as np
import pytest
import tfiseg
from tfiseg.images import to_bgr

FEW = tfiseg.cluster(np.pad(np.ones((8, 8), np.uint8), 4), class_names=["background", "person"])


@pytest.mark.parametrize(
    ("picture", "fix"),
    [
        (None, "cv2.imread returns None.*pass the path"),
        (io.BytesIO(b"abc"), r"content of the BytesIO, picture\.read\(\)"),
        (bytearray(b"abc"), r"bytes\(picture\)"),
        ((x for x in ()), "instead of generator"),
        (3, "instead of int"),
        (np.zeros((0, 4, 3), np.uint8), "it is empty"),
        (np.zeros((2, 4, 4, 3), np.float32), "batch as a list"),
        (np.zeros((3, 9, 8), np.float32), r"transpose\(1, 2, 0\)"),
        (np.zeros((9, 8, 4), np.uint8), r"drop the alpha channel, picture\[\.\.\., :3\]"),
        (np.zeros((9, 8, 3), np.float64), r"scale it to 0\.\.255"),
        (np.zeros((9, 8), np.uint16), "8 bits"),
        (np.zeros((9, 8), bool), r"astype\(np\.uint8\)"),
        (np.zeros((9, 8, 2), np.uint8), "one or three channels"),
    ],
)
def test_what_is_no_picture_gets_its_own_advice(picture, fix):
    with pytest.raises(tfiseg.InputError, match=rf"an image must be uint8.*: .*{fix}"):
        to_bgr(picture)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (FEW.names == "person", r"got False: a comparison with a list.*for name in instances\.names"),
        (np.True_, "got True: a comparison"),
        ("person", r"got text: to select by class name, use \[name == "),
        (["person"], "got text"),
        (1.0, "got float$"),
        (None, "got NoneType$"),
        ([0.5], r"got float64 \(1,\)"),
    ],
)
def test_what_is_no_index_gets_its_own_advice(index, message):
    assert len(FEW) == 1
    with pytest.raises(tfiseg.InputError, match=f"an index must be a number.*{message}"):
        FEW[index]
