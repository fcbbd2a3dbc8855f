"""Test the live view in a window and in the web viewer."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.cli.main import main
from tfiseg.runtime.output import live_view as view_module
from tfiseg.runtime.output.live_view import FaultTolerantSink, view
from waiting import wait_until


def test_a_served_view_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "tfiseg", "view", "synthetic", "--serve", "127.0.0.1:0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    while "live at" not in line:
        line = process.stderr.readline()
    url = re.search(r"http://\S+", line)[0]
    with urllib.request.urlopen(url, timeout=20) as page:
        assert b"tfiseg view" in page.read()
    wait_until(lambda: has_image(url), 60, process)
    process.terminate()
    out, errors = process.communicate(timeout=30)
    report = json.loads(out)
    assert process.returncode == 0, errors
    assert (
        report["captured"] == report["dropped"] + report["skipped"] + report["finished"] + report["discarded"]
    )
    assert report["times"]["frames"] > 0


def test_photos_stay_until_the_program_is_stopped(tmp_path):
    image = next(iter(tfiseg.open_source("synthetic"))).image
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "b.png").write_text("no picture")
    command = [sys.executable, "-m", "tfiseg", "view", str(tmp_path), "--serve", "127.0.0.1:0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        while "live at" not in line:
            line = process.stderr.readline()
        url = re.search(r"http://\S+", line)[0]
        wait_until(lambda: has_image(url), 60, process)
        time.sleep(3)  # longer than one photo is shown
        before = snapshot(url)
        change = urllib.request.Request(url + "control", json.dumps({"min_score": 1}).encode())
        urllib.request.urlopen(change, timeout=20).read()
        wait_until(lambda: snapshot(url) != before, 60, process)  # the photo is segmented again
        process.terminate()
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1, errors  # b.png
    assert "1 of 2 images can't be read" in errors
    assert json.loads(out)["captured"] > 10


def test_a_recording_has_each_photo_once(tmp_path):
    image = next(iter(tfiseg.open_source("synthetic"))).image
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), image)
    cv2.imwrite(str(tmp_path / "photos" / "b.png"), image[:, ::-1])
    arguments = ["--serve", "127.0.0.1:0", "--policy", "all", "--record", str(tmp_path / "tape")]
    assert main(["view", str(tmp_path / "photos"), *arguments]) == 0
    (lines,) = tmp_path.glob("tape/*/instances.jsonl")
    assert [json.loads(line)["name"] for line in lines.read_text().splitlines()] == ["a", "b"]


def snapshot(url):
    return urllib.request.urlopen(url + "snapshot", timeout=20).read()


def has_image(url):
    try:
        return bool(urllib.request.urlopen(url + "snapshot", timeout=20).read())
    except urllib.error.HTTPError:  # no image yet
        return False


def test_text_report_of_a_view(capsys):
    assert main(["view", "synthetic", "--serve", "127.0.0.1:0", "--frames", "6", "--no-track"]) == 0
    out = capsys.readouterr().out
    assert "live at http://127.0.0.1:" in out
    assert "6 frames captured" in out
    assert "age of masks" in out


def test_without_a_display_a_window_is_refused(monkeypatch):
    monkeypatch.setattr(view_module, "has_window", lambda: False)
    with pytest.raises(tfiseg.InputError, match="--serve"):
        view(tfiseg.open_source("synthetic", realtime=True), tfiseg.Segmenter())


def test_a_window_shows_frames_until_escape(monkeypatch):
    shapes = []
    monkeypatch.setattr(view_module, "has_window", lambda: True)
    monkeypatch.setattr(view_module.cv2, "imshow", lambda name, picture: shapes.append(picture.shape))
    monkeypatch.setattr(view_module.cv2, "waitKey", lambda ms: 27 if len(shapes) == 3 else -1)
    monkeypatch.setattr(view_module.cv2, "destroyAllWindows", lambda: None)
    report = view(tfiseg.open_source("synthetic", realtime=True), tfiseg.Segmenter())
    assert shapes == [(480, 640, 3)] * 3
    assert report["error"] is None


def test_the_error_of_a_source_is_reported(capsys, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert main(["view", str(tmp_path), "--serve", "127.0.0.1:0"]) == 1
    assert "capture: " in capsys.readouterr().err


def test_unreadable_images_of_a_folder_are_an_error(capsys, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((40, 60, 3), np.uint8))
    assert main(["view", str(tmp_path), "--serve", "127.0.0.1:0", "--no-track", "--frames", "2"]) == 1
    assert "1 of 2 images can't be read" in capsys.readouterr().err


def test_a_fault_tolerant_sink_reports_its_error_once():
    notes = []

    class Full:
        name = "record"

        def write(self, result):
            raise OSError("no space")

    sink = FaultTolerantSink(Full(), notes.append)
    sink.write(None)
    sink.write(None)
    assert notes == ["recording stopped: no space"]
