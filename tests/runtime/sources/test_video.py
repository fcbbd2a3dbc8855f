"""Test videos: variable frame rates, time-lapse, rotation, codecs, damage and timeouts."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import tfiseg
from clips import write_clip
from tfiseg.runtime.output.run import run
from tfiseg.runtime.sources.decoding import VideoReader, call_with_timeout


def noise(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(count)]


PHONE = [k / 30 for k in range(12)] + [0.4 + k / 10 for k in range(12)]
TIMELAPSE = [2.0 * k for k in range(6)]


@pytest.mark.parametrize(
    ("times", "rate", "fps"),
    [
        (PHONE, 30, None),
        (TIMELAPSE, Fraction(1, 2), 0.5),
        ([3600.0 * k for k in range(4)], Fraction(1, 3600), 1 / 3600),
        ([k * 1001 / 30_000 for k in range(9)], Fraction(30_000, 1001), 29.97),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_media_times(tmp_path, times, rate, fps, suffix):
    with tfiseg.open_source(write_clip(tmp_path / f"a.{suffix}", times, rate=rate)) as source:
        found = [frame.media_time_s for frame in source]
    assert found == pytest.approx(times, abs=0.002)
    if fps is not None and suffix == "mp4":
        assert source.fps == pytest.approx(fps, rel=0.01)


HOURLY = [3600.0 * k for k in range(4)]


@pytest.mark.parametrize(
    ("times", "rate"), [(PHONE, 30), (TIMELAPSE, Fraction(1, 2)), (HOURLY, Fraction(1, 3600))]
)
def test_the_overlay_and_the_records_keep_the_media_times(tmp_path, times, rate):
    path = write_clip(tmp_path / "a.mp4", times, rate=rate)
    segmenter = tfiseg.Segmenter()
    summary = run(str(path), segmenter, tmp_path / "out", quiet=True)
    with av.open(summary["overlay"]) as overlay:
        assert [f.time for f in overlay.decode(video=0)] == pytest.approx(times, abs=0.001)
    lines = [json.loads(line) for line in (tmp_path / "out" / "instances.jsonl").read_text().splitlines()]
    assert [line["media_time_s"] for line in lines] == pytest.approx(times, abs=0.001)


def test_the_tracker_uses_media_time(tmp_path):
    """An occlusion of two frames is longer than keep_s in a time-lapse, but not in a video."""
    found = {}
    for name, times, rate in (("slow", TIMELAPSE, Fraction(1, 2)), ("fast", [k / 30 for k in range(6)], 30)):
        path = write_clip(tmp_path / f"{name}.mp4", times, rate=rate)

        def segment(frame):
            classes = np.zeros((48, 64), np.uint8)
            if frame.index not in (2, 3):
                classes[10:40, 10:40] = 1
            return tfiseg.cluster(classes, min_area=0)

        with tfiseg.Pipeline(str(path), segment, tracker=tfiseg.Tracker()) as pipeline:
            found[name] = [tuple(r.instances.track_id.tolist()) for r in pipeline]
    assert found["fast"] == [(1,), (1,), (), (), (1,), (1,)]
    assert found["slow"] == [(1,), (1,), (), (), (2,), (2,)]


def test_tracks_expire_if_the_clock_does_not_advance():
    tracker = tfiseg.Tracker(keep_s=0.5)
    rng = np.random.default_rng(0)
    for _ in range(60):
        classes = np.zeros((96, 96), np.uint8)
        y, x = rng.integers(0, 80, 2)
        classes[y : y + 8, x : x + 8] = 1
        tracker(tfiseg.cluster(classes, min_area=0))
    assert len(tracker._tracks) <= 17


ROTATIONS = {  # display matrix -> its effect
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", ROTATIONS)
def test_rotated_videos_are_upright(tmp_path, matrix):
    content = bytearray(write_clip(tmp_path / "flat.mp4", [0, 0.1, 0.2]).read_bytes())
    flat = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    at = content.find(flat, content.find(b"tkhd"))
    a, b, c, d = (65536 * v for v in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "rotated.mp4").write_bytes(content)
    plain, *_ = tfiseg.open_source(tmp_path / "flat.mp4")
    rotated, *_ = tfiseg.open_source(tmp_path / "rotated.mp4")
    assert np.array_equal(rotated.image, ROTATIONS[matrix](plain.image))


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libsvtav1", "mp4"),
        ("libx265", "mp4"),
        ("libvpx-vp9", "webm"),
        ("mpeg4", "avi"),
        ("mpeg2video", "mpg"),
        ("libx264", "ts"),
    ],
)
def test_codecs_and_containers(tmp_path, codec, suffix):
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV here has no {codec} to write the clip")
    times = [k / 25 for k in range(20)]
    path = write_clip(tmp_path / f"a.{suffix}", times, codec, rate=25)
    frames = list(tfiseg.open_source(path))
    assert [f.media_time_s for f in frames] == pytest.approx(times, abs=0.05)
    assert [abs(int(f.image[40, 50, 0]) - (40 + 3 * f.index)) <= 12 for f in frames] == [True] * 20


def read_all(path):
    """Return the frames, and the error at the end or None."""
    frames = []
    try:
        for frame in tfiseg.open_source(path):
            frames.append(frame)
    except tfiseg.SourceError as error:
        return frames, str(error)
    return frames, None


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("mpeg4", "mp4")])
def test_the_error_of_a_damaged_video_counts_lost_frames(tmp_path, codec, suffix):
    path = write_clip(
        tmp_path / f"a.{suffix}", [k / 30 for k in range(60)], codec, pictures=noise(60), g="10"
    )
    assert read_all(path)[1] is None
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8000] = bytes(8000)
    path.write_bytes(content)
    frames, error = read_all(path)
    assert error is not None
    assert "a is damaged" in error
    lost = int(error.split(" of ")[0].rsplit(" ", 1)[1])
    assert f"{lost} of 60 frames can't be decoded" in error
    assert len(frames) + lost == 60
    if len(frames) == 60:
        assert "corrupted" in error
    times = [frame.media_time_s for frame in frames]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(59 / 30, abs=0.01)  # lost frames do not shift later ones


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
def test_a_truncated_video_is_an_error(tmp_path, suffix):
    times = [k / 30 for k in range(60)]
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = write_clip(tmp_path / f"a.{suffix}", times, codec, pictures=noise(60))
    if suffix == "mp4":  # the index comes first, as in videos for the web
        with av.open(str(path)) as given:
            copy = av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"})
            stream = copy.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    copy.mux(packet)
            copy.close()
        path = (tmp_path / "b.mp4").rename(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames, error = read_all(path)
    assert 10 < len(frames) < 50
    assert error is not None
    lost = "2.0 s" if suffix == "mkv" else "60 frames"
    assert re.match(
        rf"a ends after {len(frames)} of the {lost}|a ends after [01]\.\d s .* of the {lost}", error
    )


def test_a_video_that_begins_late_is_complete(tmp_path):
    times = [1e6 + k / 25 for k in range(20)]
    frames, error = read_all(write_clip(tmp_path / "a.mkv", times, rate=25))
    assert [frame.media_time_s for frame in frames] == pytest.approx(times, abs=0.002)
    assert error is None


def test_joined_transport_streams_are_complete(tmp_path):
    """The packet counters jump where the second stream begins."""
    path = write_clip(tmp_path / "a.ts", [k / 25 for k in range(20)], rate=25)
    path.write_bytes(path.read_bytes() * 2)
    frames, error = read_all(path)
    assert (len(frames), error) == (40, None)


def test_a_video_trimmed_by_an_edit_list_is_complete(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", [k / 30 for k in range(60)])
    path = tmp_path / "trimmed.mp4"
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(str(whole)) as given, av.open(str(path), "w", options=options) as copy:
        stream = copy.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                shift = round(1.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                copy.mux(packet)
    frames, error = read_all(path)
    assert error is None
    assert len(frames) == 15
    assert frames[0].media_time_s == 0


def test_a_video_without_a_frame_is_an_error(tmp_path):
    path = write_clip(tmp_path / "a.mp4", [k / 30 for k in range(20)], pictures=noise(20))
    content = bytearray(path.read_bytes())
    start = content.find(b"mdat") + 4
    content[start : content.find(b"moov") - 4] = bytes(content.find(b"moov") - 4 - start)
    path.write_bytes(content)
    frames, error = read_all(path)
    assert not frames
    assert error is not None
    assert "a has no frame that can be decoded" in error
    summary = run(str(path), tfiseg.Segmenter(), tmp_path / "out", quiet=True)
    assert "no frame that can be decoded" in summary["error"]


def test_an_audio_file_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(tfiseg.SourceError, match=r"no image or video: it contains audio only"):
        tfiseg.open_source(tmp_path / "a.mp4")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000), b"\0\0\0\x20ftypisom" + bytes(400)])
def test_a_file_that_is_no_video_is_an_error(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(tfiseg.SourceError, match=r"a\.mp4 is no image or video that can be read"):
        tfiseg.open_source(tmp_path / "a.mp4")


def test_names_that_look_like_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "pipe:0.mp4", "x%03d.mp4", "a b#c?.mp4", os.fsdecode(b"caf\xe9.mp4")):
        write_clip(tmp_path / "plain.mp4", [0, 0.1])
        os.rename("plain.mp4", name)
        assert len(list(tfiseg.open_source(name))) == 2


def test_a_closed_video_is_an_error(tmp_path):
    source = tfiseg.open_source(write_clip(tmp_path / "a.mp4", [0, 0.1, 0.2]))
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []
    with pytest.raises(tfiseg.SourceError, match="is closed"):
        list(source)


def test_media_times_of_joined_transport_streams_increase(tmp_path):
    one = write_clip(tmp_path / "one.ts", [k / 25 for k in range(50)], rate=25, g="10").read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    times = [f.media_time_s for f in tfiseg.open_source(tmp_path / "two.ts")]
    assert times == sorted(times)
    assert len(times) >= 98
    assert times[-1] == pytest.approx(len(times) / 25, abs=0.3)


def test_realtime_keeps_the_media_times(tmp_path):
    times = [0, 0.1, 0.2, 0.6, 0.7]
    source = tfiseg.open_source(write_clip(tmp_path / "a.mp4", times), realtime=True)
    began, seen = time.monotonic(), []
    for frame in source:
        seen.append((time.monotonic() - began, frame.media_time_s))
    assert [media for _, media in seen] == pytest.approx(times, abs=0.001)
    assert all(media - 0.01 <= now for now, media in seen)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_the_opening_of_a_pipe(tmp_path, stop):
    os.mkfifo(tmp_path / "pipe.mp4")
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import tfiseg; tfiseg.open_source\n"
        "print('opening', flush=True); tfiseg.open_source(sys.argv[1])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pipe.mp4")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "opening\n"
    time.sleep(1.0)
    began = time.monotonic()
    process.send_signal(stop)
    errors = process.communicate(timeout=20)[1]
    assert time.monotonic() - began < 5
    assert "KeyboardInterrupt" in errors


def test_a_pipe_with_a_writer_is_read(tmp_path):
    content = write_clip(tmp_path / "a.ts", [k / 25 for k in range(20)], rate=25).read_bytes()
    os.mkfifo(tmp_path / "pipe.ts")
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"open({str(tmp_path / 'pipe.ts')!r}, 'wb').write(open({str(tmp_path / 'a.ts')!r}, 'rb').read())",
        ]
    )
    assert content
    assert len(list(tfiseg.open_source(tmp_path / "pipe.ts"))) == 20
    writer.wait(10)


def test_call_with_timeout():
    dropped = []

    def slow():
        time.sleep(0.4)
        return "late"

    with pytest.raises(tfiseg.SourceError, match="too late"):
        call_with_timeout(0.1, slow, dropped.append, "too late")
    time.sleep(0.6)
    assert dropped == ["late"]


def test_result_at_the_timeout_is_returned_or_dropped():
    opened, dropped = [], []

    def just_in_time():
        time.sleep(0.003)
        opened.append(None)
        return len(opened)

    returned = 0
    for _ in range(300):
        with contextlib.suppress(tfiseg.SourceError):
            call_with_timeout(0.003, just_in_time, dropped.append, "too late")
            returned += 1
    time.sleep(0.2)
    assert returned + len(dropped) == len(opened)


class LateStreamContainer:
    """A container with a packet of a stream that PyAV does not know."""

    def __init__(self, container):
        self._container, self.failed = container, False

    def __getattr__(self, name):
        return getattr(self._container, name)

    def demux(self):
        for count, packet in enumerate(self._container.demux()):
            if count == 5 and not self.failed:
                self.failed = True
                raise IndexError("list index out of range")
            yield packet


def test_packets_of_a_stream_that_begins_later_are_skipped(tmp_path):
    path = write_clip(tmp_path / "a.mp4", [k / 30 for k in range(20)])
    container = LateStreamContainer(av.open(str(path)))
    reader = VideoReader(container, "a")
    assert sum(1 for _ in reader.frames()) >= 19
    assert container.failed
    reader.close()
