"""Test the messages of recordings, and the files after a kill -9 or on a full disk."""

import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tfiseg
from mcap.reader import make_reader
from tfiseg.runtime.output.recorder import McapWriter, Recorder
from waiting import count_lines, wait_until


def record(path, frames=5, track=True):
    """Record the ground truth of the synthetic source."""
    tracker = tfiseg.Tracker()
    results = []
    writer = McapWriter(path)
    for frame, _ in zip(tfiseg.open_source("synthetic"), range(frames), strict=False):
        found = tfiseg.cluster(
            frame.truth_class_map, split=0.0, class_names=["", *"abcdefghijklmn", "person"]
        )
        results.append(tfiseg.Result(frame, tracker(found) if track else found))
        writer.write(results[-1])
    return writer, results


def messages(path):
    with open(path, "rb") as file:
        return [
            (schema.name, channel.topic, message)
            for schema, channel, message in make_reader(file).iter_messages()
        ]


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at


def fields(data):
    """Parse one level of protobuf's wire format: {field number: [values]}."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            size = {1: 8, 5: 4}[kind]
            value, at = data[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def test_images_annotations_and_labels_are_restored(tmp_path):
    writer, results = record(tmp_path / "a.mcap")
    writer.close()
    read = messages(tmp_path / "a.mcap")
    assert [(name, topic) for name, topic, _ in read[:3]] == [
        ("foxglove.CompressedImage", "/camera/image"),
        ("foxglove.ImageAnnotations", "/tfiseg/annotations"),
        ("foxglove.RawImage", "/tfiseg/labels"),
    ]
    assert len(read) == 15
    assert abs(read[0][2].log_time - time.time_ns()) < 60e9  # the time of day, not since start
    # field numbers: from Foxglove's protobuf schemas, which the file contains
    image = fields(read[0][2].data)
    assert image[3] == [b"jpeg"]
    assert cv2.imdecode(np.frombuffer(image[2][0], np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)
    raw = fields(read[-1][2].data)
    (labels,) = [
        np.frombuffer(v[0], np.uint16)
        for v in raw.values()
        if isinstance(v[0], bytes) and len(v[0]) == 480 * 640 * 2
    ]
    found = results[-1].instances
    expected = np.concatenate([[0], found.track_id]).astype(np.uint16)[found.label_map]
    assert np.array_equal(labels.reshape(480, 640), expected)
    texts = [t for values in fields(read[1][2].data).values() for t in values if b"person #1" in t]
    assert texts


def test_labels_without_track_ids_are_the_label_map(tmp_path):
    writer, results = record(tmp_path / "a.mcap", 1, track=False)
    writer.close()
    raw = messages(tmp_path / "a.mcap")[2][2].data
    assert results[0].instances.label_map.astype(np.uint16).tobytes() in raw


def test_the_file_can_be_read_before_it_is_closed_and_then_has_an_index(tmp_path):
    writer, _ = record(tmp_path / "a.mcap", 4)
    assert len(messages(tmp_path / "a.mcap")) >= 9  # not closed: all but what is in the last chunk
    writer.close()
    with open(tmp_path / "a.mcap", "rb") as file:
        assert make_reader(file).get_summary().statistics.message_count == 12


def test_all_three_files_are_readable_after_a_kill(tmp_path):
    view = [sys.executable, "-m", "tfiseg", "view", "synthetic", "--serve", "127.0.0.1:0"]
    command = [*view, "--record", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: any(count_lines(f) >= 20 for f in tmp_path.glob("*/instances.jsonl")), 60, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (lines,) = tmp_path.glob("*/instances.jsonl")
    count = lines.read_text().count("\n")
    assert (
        len([m for m in messages(lines.with_name("recording.mcap")) if m[1] == "/camera/image"]) >= count - 2
    )
    video, frames = cv2.VideoCapture(str(lines.with_name("synthetic-overlay.mp4"))), 0
    while video.read()[0]:
        frames += 1
    assert frames >= count - 2


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounts a small disk")
def test_a_full_disk_ends_the_recording_and_not_the_view(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("can't mount here")
    try:
        command = [
            sys.executable,
            "-m",
            "tfiseg",
            "view",
            "synthetic",
            "--serve",
            "127.0.0.1:0",
            "--record",
            str(disk),
            "--frames",
            "90",
            "--policy",
            "all",  # on a busy machine, dropped frames would leave room on the disk
            "--long-side",
            "64",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "90 frames captured" in done.stdout
        assert "recording stopped: can't write" in done.stderr
        (tape,) = disk.glob("*/recording.mcap")
        assert len(messages(tape)) >= 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_recorder_is_a_sink(tmp_path):
    source = tfiseg.open_source("synthetic")
    with (
        Recorder(tmp_path, source) as recorder,
        tfiseg.Pipeline(source, tfiseg.Segmenter(), draw=True, sinks=[recorder], max_frames=4) as pipeline,
    ):
        list(pipeline)
    assert len(messages(tmp_path / "recording.mcap")) == 12
    assert (tmp_path / "instances.jsonl").read_text().count("\n") == 4


def test_a_second_recorder_in_the_same_folder_is_refused(tmp_path):
    source = tfiseg.open_source("synthetic")
    found = tfiseg.cluster(np.zeros((480, 640), np.uint8))
    with Recorder(tmp_path, source) as recorder:
        second = Recorder(tmp_path, source)
        for frame, _ in zip(source, range(3), strict=False):
            recorder.write(tfiseg.Result(frame, found, overlay=frame.image))
        with pytest.raises(tfiseg.InputError, match="another run writes to"):
            second.__enter__()
        assert len(messages(tmp_path / "recording.mcap")) == 9
    assert len(messages(tmp_path / "recording.mcap")) == 9


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tfiseg.InputError, match="can't write to the output folder"):
        Recorder(tmp_path / "file", tfiseg.open_source("synthetic"))


def test_a_restart_keeps_the_first_recording(tmp_path, monkeypatch):
    """On a robot without a real-time clock, every boot starts at the same time."""
    from tfiseg.runtime.output import live_view

    monkeypatch.setattr(live_view.time, "strftime", lambda _: "1970-01-01T00-00-12")
    for _ in range(2):
        live_view.view(
            tfiseg.open_source("synthetic", realtime=True),
            tfiseg.Segmenter(quality="fast", long_side_px=64),
            serve="127.0.0.1:0",
            record=tmp_path,
            max_frames=3,
            policy="all",
            log=lambda _: None,
        )
    folders = sorted(p.name for p in tmp_path.iterdir())
    assert folders == ["1970-01-01T00-00-12", "1970-01-01T00-00-12-2"]
    assert all((tmp_path / name / "instances.jsonl").read_text().count("\n") == 3 for name in folders)
