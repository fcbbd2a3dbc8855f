import subprocess
import sys
from pathlib import Path

import cv2
from skimage import data

SAMPLES = Path(__file__).parent.parent.parent / "samples"


def run_sample(name, *args):
    done = subprocess.run([sys.executable, SAMPLES / name, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_camera_on_the_synthetic_camera(tmp_path):
    out = tmp_path / "view.mp4"
    run_sample("camera.py", "synthetic", "--frames", 4, "--out", out)
    assert int(cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT)) == 4


def test_camera_without_a_display_says_what_to_do():
    done = subprocess.run([sys.executable, SAMPLES / "camera.py", "synthetic"], capture_output=True, text=True, timeout=120, env={})
    assert done.returncode == 1
    assert "--out view.mp4" in done.stderr


def test_own_network_on_a_photo(tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), data.astronaut()[:, :, ::-1])
    text = run_sample("own_network.py", tmp_path / "photo.png", tmp_path / "view.png")
    assert "object: score" in text
    assert cv2.imread(str(tmp_path / "view.png")).shape == (512, 512, 3)
