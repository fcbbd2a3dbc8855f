"""Runs into a folder: whatever happens, what was done is there and readable."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tfiseg
from pycocotools import mask as coco
from tfiseg.files import writable_folder
from tfiseg.runtime.output.run import run


@pytest.fixture(scope="module")
def segmenter():
    return tfiseg.Segmenter()


def lines_of(folder):
    return [json.loads(line) for line in (folder / "instances.jsonl").read_text().splitlines()]


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    count = 0
    while video.read()[0]:
        count += 1
    return count


def test_a_video_run(segmenter, tmp_path):
    summary = run("synthetic", segmenter, tmp_path, max_frames=6, quiet=True)
    assert summary["frames"] == 6
    assert summary["error"] is None
    assert set(summary["stages"]) == {"decode", "network", "cluster", "upsample", "draw", "write", "age"}
    records = lines_of(tmp_path)
    assert [r["frame"] for r in records] == list(range(6))
    assert records[0]["size_hw"] == [480, 640]
    for one in records[0]["instances"]:
        assert coco.decode(one["segmentation"]).sum() == one["area"]
    assert frames_of(summary["overlay"]) == 6
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == 6


def test_images_give_pngs(segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "in" / f"{name}.jpg"), np.full((40, 60, 3), 128, np.uint8))
    run(str(tmp_path / "in"), segmenter, tmp_path / "out", quiet=True)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a-overlay.png", "b-overlay.png"]


def test_frames_before_a_source_fails_are_kept(segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "in" / "b.png").write_text("no picture")
    summary = run(str(tmp_path / "in"), segmenter, tmp_path / "out", quiet=True)
    assert "b.png is no image" in summary["error"]
    assert [r["name"] for r in lines_of(tmp_path / "out")] == ["a"]
    assert (tmp_path / "out" / "a-overlay.png").exists()


def test_inputs_are_never_overwritten(segmenter, tmp_path):
    for name in ("a.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), np.full((40, 60, 3), 77, np.uint8))
    before = (tmp_path / "a.png").read_bytes()
    run(str(tmp_path), segmenter, tmp_path, quiet=True)
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("*overlay*")) == ["a-2-overlay.png", "a-overlay.png"]


def test_frames_must_be_some(segmenter, tmp_path):
    with pytest.raises(tfiseg.InputError, match="at least 1"):
        run("synthetic", segmenter, tmp_path, max_frames=0, quiet=True)


def test_an_output_folder_that_cannot_be_written_is_found_first(segmenter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tfiseg.InputError, match="can't write to the output folder"):
        run("synthetic", segmenter, tmp_path / "file" / "out", quiet=True)
    assert writable_folder(tmp_path / "deep" / "er").is_dir()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_valid_outputs(tmp_path, stop):
    command = [
        sys.executable,
        "-m",
        "tfiseg",
        "run",
        "synthetic",
        "--frames",
        "100000",
        "--out",
        str(tmp_path),
    ]

    def listen():  # a shell's background jobs are started deaf to Ctrl-C, and so are their children
        signal.signal(signal.SIGINT, signal.SIG_IGN if stop == signal.SIGTERM else signal.SIG_DFL)

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, preexec_fn=listen
    )
    lines = tmp_path / "instances.jsonl"
    until = time.monotonic() + 60
    while not (lines.exists() and lines.read_text().count("\n") >= 5):
        assert time.monotonic() < until, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"interrupted after" in errors
    records = lines_of(tmp_path)
    assert len(records) >= 5
    assert frames_of(tmp_path / "synthetic-overlay.mp4") == len(records)
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == "interrupted"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_and_the_summary_comes_back(segmenter, tmp_path):
    (tmp_path / "instances.jsonl").symlink_to("/dev/full")
    summary = run("synthetic", segmenter, tmp_path, max_frames=6, quiet=True)
    assert "instances.jsonl: No space left on device" in summary["error"]
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == summary["error"]
