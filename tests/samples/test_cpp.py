"""The C++ sample: built from the source tree and against the plugin library, and equal to Python."""

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """cluster_logits, with the operator compiled in; or linked to the library that TFISEG_PLUGIN names."""
    folder = tmp_path_factory.mktemp("cpp")
    library = os.environ.get("TFISEG_PLUGIN")
    options = [f"-DTFISEG_LIBRARY={library}"] if library else []
    if not shutil.which("cmake"):
        pytest.skip("the C++ sample is built with CMake, which is not here")
    done = subprocess.run(["cmake", "-S", SAMPLE, "-B", folder, *options], capture_output=True, text=True)
    if "Could NOT find PNG" in done.stderr:
        pytest.skip("the C++ sample writes PNG by libpng, whose development files are not here")
    assert done.returncode == 0, done.stderr
    made = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning" not in made.stderr
    return folder / "cluster_logits"


def test_it_equals_python(program, tmp_path):
    rng = np.random.default_rng(4)
    logits = (
        np.stack([cv2.GaussianBlur(rng.normal(size=(60, 80)), (0, 0), 3) for _ in range(4)]).astype(
            np.float32
        )
        * 40
    )
    np.save(tmp_path / "logits.npy", logits)
    done = subprocess.run(
        [program, tmp_path / "logits.npy", tmp_path / "labels.png", "120", "160"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = tfiseg.cluster(logits, output_size_hw=(120, 160), max_instances=256)
    assert len(expected) > 3
    assert done.stdout.count("\n") == len(expected)
    assert np.array_equal(cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED), expected.label_map)


def test_bad_files_are_sentences(program, tmp_path):
    np.save(tmp_path / "double.npy", np.zeros((2, 4, 4)))
    (tmp_path / "text.npy").write_text("no array")
    for name, says in (
        ("double.npy", "must hold float32"),
        ("text.npy", "is no .npy file"),
        ("nowhere.npy", "is no .npy file"),
    ):
        done = subprocess.run(
            [program, tmp_path / name, tmp_path / "labels.png"], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert says in done.stderr
