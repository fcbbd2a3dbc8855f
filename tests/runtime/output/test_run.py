"""Test runs into a folder, whose outputs are readable after errors, interrupts and kills."""

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
from processes import start_process
from pycocotools import mask as coco
from pycocotools.coco import COCO
from tfiseg.files import writable_folder
from tfiseg.runtime.archive.ray_archive import segment_archive
from tfiseg.runtime.output.coco import write_coco
from tfiseg.runtime.output.run import run
from tfiseg.runtime.segmenter_settings import SegmenterSettings
from waiting import count_lines, wait_until


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
    assert [r["frame_index"] for r in records] == list(range(6))
    assert records[0]["size_hw"] == [480, 640]
    for one in records[0]["instances"]:
        assert coco.decode(one["segmentation"]).sum() == one["area"]
    assert frames_of(summary["overlay"]) == 6
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == 6


def test_images_are_written_as_png(segmenter, tmp_path):
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


def test_max_frames_must_be_positive(segmenter, tmp_path):
    with pytest.raises(tfiseg.InputError, match="at least 1"):
        run("synthetic", segmenter, tmp_path, max_frames=0, quiet=True)


def test_a_folder_that_is_not_writable_is_an_error_before_the_run(segmenter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tfiseg.InputError, match="can't write to the output folder"):
        run("synthetic", segmenter, tmp_path / "file" / "out", quiet=True)
    assert writable_folder(tmp_path / "deep" / "er").is_dir()


def endless_run(out):
    """Return a command that writes into a folder for longer than any test lasts."""
    return [sys.executable, "-m", "tfiseg", "run", "synthetic", "--frames", "100000", "--out", str(out)]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_valid_outputs(tmp_path, stop):
    process = start_process(
        endless_run(tmp_path),
        [signal.SIGINT] if stop == signal.SIGTERM else [],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    wait_until(lambda: count_lines(tmp_path / "instances.jsonl") >= 5, 60, process)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    records = lines_of(tmp_path)
    assert len(records) >= 5
    assert f"interrupted after {len(records)} frames" in errors.decode()
    assert frames_of(tmp_path / "synthetic-overlay.mp4") == len(records)
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == "interrupted"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_in_the_summary(segmenter, tmp_path):
    (tmp_path / "instances.jsonl").symlink_to("/dev/full")
    summary = run("synthetic", segmenter, tmp_path, max_frames=6, quiet=True)
    assert "instances.jsonl: No space left on device" in summary["error"]
    assert summary["frames"] == 0
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == summary["error"]


def write_jpeg(path, size_hw=(40, 60)):
    with open(path, "wb") as file:  # cv2.imwrite refuses names that are not valid UTF-8
        file.write(cv2.imencode(".jpg", np.full((*size_hw, 3), 90, np.uint8))[1].tobytes())


def folder_with(tmp_path, *names):
    (tmp_path / "in").mkdir()
    for name in names:
        write_jpeg(os.path.join(os.fsencode(tmp_path / "in"), os.fsencode(name)))
    return tmp_path / "in"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.symlink_to("/nowhere/x.jpg"),
        lambda path: path.write_text("no picture"),
        lambda path: (write_jpeg(path), os.truncate(path, path.stat().st_size // 2)),
    ],
)
@pytest.mark.parametrize("name", ["a0.jpg", "b0.jpg", "z.jpg"])
def test_an_unreadable_image_is_reported_and_the_others_are_segmented(segmenter, tmp_path, damage, name):
    folder = folder_with(tmp_path, "a.jpg", "b.jpg", "d.jpg")
    damage(folder / name)
    summary = run(str(folder), segmenter, tmp_path / "out", quiet=True)
    assert [r["file_name"] for r in lines_of(tmp_path / "out")] == ["a.jpg", "b.jpg", "d.jpg"]
    assert summary["error"].startswith("1 of 4 images can't be read: ")
    assert name in summary["error"]
    assert len(summary["unreadable"]) == 1
    assert name in summary["unreadable"][0]


def test_hidden_files_and_folders_are_ignored(segmenter, tmp_path):
    folder = folder_with(tmp_path, "a.jpg")
    (folder / "._a.jpg").write_bytes(b"\0\5\26\7")
    (folder / ".DS_Store").write_bytes(bytes(100))
    (folder / "more.jpg").mkdir()
    summary = run(str(folder), segmenter, tmp_path / "out", quiet=True)
    assert (summary["error"], summary["unreadable"], summary["frames"]) == (None, [], 1)


def test_a_folder_of_unreadable_images_is_an_error(segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_text("no picture")
    with pytest.raises(
        tfiseg.SourceError, match=r"2 of 2 images can't be read: .*a\.png is no image.*, and 1 more"
    ):
        list(tfiseg.open_source(tmp_path / "in"))
    assert "2 of 2 images" in run(str(tmp_path / "in"), segmenter, tmp_path / "out", quiet=True)["error"]


def test_names_of_any_bytes_and_length(segmenter, tmp_path):
    names = [b"a.jpg", b"caf\xe9.jpg", "ü".encode() * 122 + b".jpg", b"x" * 251 + b".jpg"]
    folder = folder_with(tmp_path, *names)
    out = os.path.join(os.fsencode(tmp_path), b"o\xe9")
    summary = run(str(folder), segmenter, os.fsdecode(out), quiet=True, output_format="coco")
    assert summary["error"] is None
    json.dumps(summary, ensure_ascii=False).encode()
    overlays = sorted(name for name in os.listdir(out) if name.endswith(b".png"))
    short = [b"a", b"caf\xe9", b"x" * 200, "ü".encode() * 100]
    assert overlays == [name + b"-overlay.png" for name in short]
    with open(os.path.join(out, b"instances.jsonl")) as lines:
        assert json.loads(lines.readlines()[1])["file_name"] == r"caf\xe9.jpg"


def test_long_names_with_the_same_prefix_are_numbered(segmenter, tmp_path):
    folder = folder_with(tmp_path, "x" * 240 + "1.jpg", "x" * 240 + "2.jpg")
    run(str(folder), segmenter, tmp_path / "out", quiet=True)
    found = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert found == ["x" * 200 + "-2-overlay.png", "x" * 200 + "-overlay.png"]


def test_file_names_are_relative_to_the_folder(segmenter, tmp_path):
    folder = folder_with(tmp_path, "a.jpg")
    (folder / "deep").mkdir()
    write_jpeg(folder / "deep" / "a.jpg")
    (frame,) = tfiseg.open_source(folder)
    assert frame.file_name == "a.jpg"
    (frame,) = tfiseg.open_source(folder / "a.jpg")
    assert frame.file_name == "a.jpg"
    names = [f.file_name for f in tfiseg.open_source(str(folder / "**" / "*.jpg"))]
    assert names == [str(folder / "a.jpg"), str(folder / "deep" / "a.jpg")]


def test_a_coco_file_is_loaded_by_pycocotools(segmenter, tmp_path):
    summary = run("synthetic", segmenter, tmp_path, max_frames=3, quiet=True, output_format="coco")
    found = COCO(summary["coco_json"])
    assert found.getImgIds() == [1, 2, 3]
    assert [(i["file_name"], i["height"], i["width"]) for i in found.loadImgs([1, 3])] == [
        ("frame-000000", 480, 640),
        ("frame-000002", 480, 640),
    ]
    assert found.loadCats([15])[0]["name"] == segmenter.class_names[15]
    records = lines_of(tmp_path)
    assert len(found.anns) == sum(len(r["instances"]) for r in records) > 0
    for row in found.anns.values():
        mask = found.annToMask(row)
        ys, xs = np.nonzero(mask)
        assert row["area"] == mask.sum()
        assert row["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert 0 <= row["score"] <= 1
    assert len(found.loadRes(list(found.anns.values())).anns) == len(found.anns)


def test_a_coco_file_without_frames_and_of_an_incomplete_record(tmp_path):
    (tmp_path / "lines").write_text("")
    write_coco(tmp_path / "lines", tmp_path / "none.json", ["background", "person"])
    assert COCO(str(tmp_path / "none.json")).dataset["images"] == []
    line = {"frame_index": 0, "name": "a", "size_hw": [1, 1], "instances": []}
    (tmp_path / "lines").write_text(json.dumps(line) + '\n{"frame_index": 1, "na')
    write_coco(tmp_path / "lines", tmp_path / "one.json", ["background", "person"])
    assert len(COCO(str(tmp_path / "one.json")).dataset["images"]) == 1
    with pytest.raises(tfiseg.OutputError, match="can't write"):
        write_coco(tmp_path / "lines", tmp_path / "nowhere" / "one.json", [])


def test_the_program_prints_names_that_are_not_utf_8(tmp_path):
    folder = folder_with(tmp_path, b"caf\xe9.jpg")
    command = [sys.executable, "-m", "tfiseg", "run", folder, "--out", os.fsencode(tmp_path) + b"/o\xe9"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for options, code, text in (
        ([], 0, rb"o\xe9/caf\xe9-overlay.png"),
        (["--json"], 0, rb"o\\xe9/caf\\xe9-overlay.png"),
        (["--model", b"m\xe9.onnx"], 1, b"m"),
    ):
        done = subprocess.run([*command, *options], capture_output=True, env=environment)
        assert done.returncode == code, done.stderr
        assert text in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr


def test_other_formats_are_refused(segmenter, tmp_path):
    with pytest.raises(tfiseg.InputError, match="output_format must be one of 'jsonl', 'coco', got 'voc'"):
        run("synthetic", segmenter, tmp_path, max_frames=1, quiet=True, output_format="voc")
    with pytest.raises(tfiseg.InputError, match="output_format must be one of 'jsonl', 'coco', got 'voc'"):
        segment_archive("photos", tmp_path, SegmenterSettings(), output_format="voc")
    assert not list(tmp_path.iterdir())


def test_a_second_run_into_the_same_folder_is_refused(segmenter, tmp_path):
    class Nested(tfiseg.Source):
        """A source that starts another run while it is read."""

        def __init__(self):
            super().__init__("nested")
            self.refusals = []

        def _read(self, index):
            if index == 3:
                return None
            try:
                run("synthetic", segmenter, tmp_path, max_frames=1, quiet=True)
            except tfiseg.InputError as error:
                self.refusals.append(str(error))
            return tfiseg.Frame(np.zeros((32, 32, 3), np.uint8), index, time.monotonic_ns())

    source = Nested()
    assert run(source, segmenter, tmp_path, quiet=True)["error"] is None
    assert len(source.refusals) == 3
    assert all("another run writes to" in text and "--out" in text for text in source.refusals)
    assert [r["frame_index"] for r in lines_of(tmp_path)] == [0, 1, 2]
    assert run("synthetic", segmenter, tmp_path, max_frames=1, quiet=True)["error"] is None


def test_the_summary_of_a_killed_run_states_that_it_has_not_ended(tmp_path):
    command = endless_run(tmp_path)
    process = subprocess.Popen([*command, "--json"], stderr=subprocess.DEVNULL)
    wait_until(lambda: count_lines(tmp_path / "instances.jsonl") >= 2, 90, process)
    process.kill()
    process.wait()
    assert "has not ended" in json.loads((tmp_path / "summary.json").read_text())["error"]


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounts a small disk")
def test_a_full_disk_has_a_complete_summary(segmenter, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("can't mount here")
    try:
        summary = run("synthetic", segmenter, disk / "out", max_frames=60, quiet=True)
        assert "can't write" in summary["error"]
        assert json.loads((disk / "out" / "summary.json").read_text())["error"] == summary["error"]
        for line in (disk / "out" / "instances.jsonl").read_text().split("\n")[:-1]:
            json.loads(line)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_records_contain_no_nan(tmp_path):
    from dataclasses import replace

    from tfiseg.runtime.output.run_writer import frame_record
    from tfiseg.schema import to_json

    found = tfiseg.cluster(np.ones((32, 32), np.uint8))
    found = replace(found, score=np.array([np.nan], np.float32), stage_ms={"network": float("inf")})
    text = to_json(frame_record(tfiseg.Frame(np.zeros((32, 32, 3), np.uint8)), found))
    record = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert record["instances"][0]["score"] is None
    assert record["stage_ms"] == {"network": None}


@pytest.mark.parametrize("source", ["in", "in/../in", "in/*.png", "in/**/*.png", "link"])
def test_overlays_of_an_earlier_run_are_not_segmented(segmenter, tmp_path, monkeypatch, caplog, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    cv2.imwrite("in/a.png", np.full((48, 64, 3), 90, np.uint8))
    for _ in range(2):
        summary = run(source, segmenter, tmp_path / "in", quiet=True)
        assert (summary["frames"], summary["captured"], summary["error"]) == (1, 1, None)
    assert "1 overlays of an earlier run in" in caplog.text
    assert sorted(path.name for path in (tmp_path / "in").glob("*.png")) == ["a-overlay.png", "a.png"]


@pytest.mark.parametrize("others", [[], ["a.png"]])
def test_images_that_overlays_may_overwrite_are_an_error(segmenter, tmp_path, others):
    for name in ("a-overlay.png", *others):
        cv2.imwrite(str(tmp_path / name), np.full((48, 64, 3), 90, np.uint8))
    before = (tmp_path / "a-overlay.png").read_bytes()
    with pytest.raises(
        tfiseg.InputError, match=r"may overwrite .*a-overlay\.png.*name another one with --out"
    ):
        run(str(tmp_path), segmenter, tmp_path, quiet=True)
    assert (tmp_path / "a-overlay.png").read_bytes() == before
    (tmp_path / "instances.jsonl").write_text("")  # of an earlier run
    if not others:
        with pytest.raises(tfiseg.InputError, match=r"all images of .* are overlays of an earlier run"):
            run(str(tmp_path), segmenter, tmp_path, quiet=True)


def test_a_single_image_may_lie_in_the_output_folder(segmenter, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((48, 64, 3), 90, np.uint8))
    for _ in range(2):
        assert run(str(tmp_path / "a.png"), segmenter, tmp_path, quiet=True)["frames"] == 1
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
    for _ in range(2):  # subfolders are not searched
        assert run(str(tmp_path / "in"), segmenter, tmp_path / "in" / "out", quiet=True)["frames"] == 1


def test_long_names_are_shortened(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a" * 245, "b"):
        cv2.imwrite(str(tmp_path / "in" / f"{name}.jpg"), np.full((48, 64, 3), 90, np.uint8))
    small = tfiseg.Segmenter(quality="fast", long_side_px=64)
    assert run(str(tmp_path / "in"), small, tmp_path / "out", quiet=True)["error"] is None
    names = sorted(p.name for p in (tmp_path / "out").glob("*-overlay.png"))
    assert names == ["a" * 200 + "-overlay.png", "b-overlay.png"]
