"""Test the Python samples."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import start_process
from skimage import data
from waiting import count_lines, wait_until

SAMPLES = Path(__file__).parent.parent.parent / "samples"


def run_sample(name, *args):
    done = subprocess.run(
        [sys.executable, SAMPLES / name, *map(str, args)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_camera_on_the_synthetic_source(tmp_path):
    out = tmp_path / "view.mp4"
    run_sample("camera.py", "synthetic", "--frames", 4, "--out", out)
    assert int(cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT)) == 4


def test_the_error_of_a_camera_without_a_display_has_a_fix():
    done = subprocess.run(
        [sys.executable, SAMPLES / "camera.py", "synthetic"],
        capture_output=True,
        text=True,
        timeout=120,
        env={},
    )
    assert done.returncode == 1
    assert "--out view.mp4" in done.stderr


def test_own_network_on_a_photo(tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), data.astronaut()[:, :, ::-1])
    text = run_sample("own_network.py", tmp_path / "photo.png", tmp_path / "view.png")
    assert "object: score" in text
    assert cv2.imread(str(tmp_path / "view.png")).shape == (512, 512, 3)


def test_embed_in_robot():
    text = run_sample("embed_in_robot.py", "synthetic", "--seconds", 4)
    assert text.startswith("STOP: no image yet\n")
    assert text.splitlines()[-2] == "STOP: time is up"
    assert "frames," in text.splitlines()[-1]


def test_embed_in_robot_stops_when_the_source_ends(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), data.astronaut()[:, :, ::-1])
    done = subprocess.run(
        [sys.executable, SAMPLES / "embed_in_robot.py", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "has ended" in done.stdout.splitlines()[-1]


def test_label_maps_of_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "astronaut.png"), data.astronaut()[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "in" / "coffee.jpg"), data.coffee()[:, :, ::-1])
    assert (
        run_sample("batch_folder.py", tmp_path / "in", tmp_path / "out")
        == f"2 images in {tmp_path / 'out'}\n"
    )
    label_map = cv2.imread(str(tmp_path / "out" / "astronaut.png"), cv2.IMREAD_UNCHANGED)
    lines = [json.loads(line) for line in (tmp_path / "out" / "instances.jsonl").read_text().splitlines()]
    assert label_map.dtype == np.uint16
    assert [line["name"] for line in lines] == ["astronaut", "coffee"]
    assert label_map.max() == len(lines[0]["instances"]) >= 1


def run_batch(*folders):
    command = [sys.executable, SAMPLES / "batch_folder.py", *folders]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_label_maps_of_images_with_the_same_name(tmp_path):
    photo = data.astronaut()[::2, ::2, ::-1]
    for name in ("a.jpg", "a.png", "a-2.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / name), photo)
    (tmp_path / "in" / "b.jpg").write_text("no image")
    done = run_batch(tmp_path / "in", tmp_path / "out")
    assert done.stdout == f"3 images in {tmp_path / 'out'}\n"
    assert done.returncode == 1
    assert "1 images can't be read" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "instances.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line["name"]) for line in lines] == [
        ("a-2.png", "a-2"),
        ("a.jpg", "a"),
        ("a.png", "a-3"),
    ]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == ["a", "a-2", "a-3"]


def test_label_maps_never_replace_images(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), data.astronaut()[::2, ::2, ::-1])
    before = (tmp_path / "a.png").read_bytes()
    done = run_batch(tmp_path, f"{tmp_path}/")
    assert done.returncode == 1
    assert "name another folder" in done.stderr
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_video_of_images_of_several_sizes_has_all_of_them(tmp_path):
    (tmp_path / "in").mkdir()
    for k, side in enumerate((128, 96, 160)):
        cv2.imwrite(str(tmp_path / "in" / f"{k}.png"), np.full((side, side, 3), 90, np.uint8))
    run_sample("camera.py", tmp_path / "in", "--out", tmp_path / "view.mp4")
    assert int(cv2.VideoCapture(str(tmp_path / "view.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 3


WITH_A_BUG = """
import runpy, sys
import tfiseg
def fail(self):
    raise ZeroDivisionError("a bug")
tfiseg.Pipeline.newest = fail
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.parametrize("name", ["embed_in_robot.py", "emergency_stop.py"])
def test_a_robot_stops_at_a_bug_of_its_program(name):
    command = [sys.executable, "-c", WITH_A_BUG, SAMPLES / name, "synthetic"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "STOP: ZeroDivisionError('a bug')"
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("name", ["embed_in_robot.py", "emergency_stop.py"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_robot_stops_when_its_program_is_stopped(name, number, tmp_path):
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        process = start_process([sys.executable, SAMPLES / name, "synthetic"], stdout=file)
    wait_until(lambda: count_lines(output) >= 2, 90, process)  # the second needs a result
    process.send_signal(number)
    assert process.wait(60) == 0
    lines = output.read_text().splitlines()
    assert [line for line in lines if line.startswith("STOP: ")][-1] == "STOP: interrupted"
