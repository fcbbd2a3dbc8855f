"""Test that files which end early are found, in formats that announce no length."""

import av
import numpy as np
import pytest
import tfiseg
from tfiseg.file_end import file_end, missing_bytes
from tfiseg.runtime.output.run import run

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
LIVE = {"live": "1"}  # no length, as browsers and OBS record
KINDS = {
    "fragments.mp4": ("libx264", "mp4", FRAGMENTS),
    "fragments.mov": ("mpeg4", "mov", FRAGMENTS),
    "live.mkv": ("libx264", "matroska", LIVE),
    "live.webm": ("libvpx", "webm", LIVE),
    "a.ts": ("libx264", "mpegts", {}),
    "a.m2ts": ("libx264", "mpegts", {"mpegts_m2ts_mode": "1"}),
    "a.flv": ("libx264", "flv", {}),
    "a.mjpeg": ("mjpeg", "mjpeg", {}),
    "a.gif": ("gif", "gif", {}),
}
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def write(path, codec, form, options):
    """Write a clip of 40 frames with noise, which gives every frame a size of its own."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=form, container_options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, PIXELS.get(codec, "yuv420p")
        for _ in range(40):
            picture = rng.integers(0, 255, (48, 64, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def missing(path):
    with open(path, "rb") as file:
        return missing_bytes(file)


def read_all(path):
    frames = 0
    try:
        for _ in tfiseg.open_source(path):
            frames += 1
    except tfiseg.SourceError as error:
        return frames, str(error)
    return frames, None


@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_file_is_an_error(name, tmp_path):
    path = tmp_path / name
    content = write(path, *KINDS[name])
    assert (missing(path), read_all(path)) == (0, (40, None))
    for cut in (0.35, 0.6, 0.97):
        kept = int(len(content) * cut)
        path.write_bytes(content[: kept - kept % 188 - 1])  # in the middle of a packet of a .ts
        frames, error = read_all(path)
        assert 5 < frames <= 40
        assert error is not None
        if "it announces" not in error:
            assert f"is truncated after {frames} frames (" in error
            assert f"at least {missing(path)} bytes are missing" in error


def test_a_run_on_a_truncated_animation_reports_it_and_keeps_its_frames(tmp_path):
    path = tmp_path / "a.gif"
    content = write(path, *KINDS["a.gif"])
    path.write_bytes(content[: len(content) // 2])
    summary = run(str(path), tfiseg.Segmenter(), tmp_path / "out", quiet=True)
    assert 10 < summary["frames"] < 30
    assert f"a is truncated after {summary['frames']} frames" in summary["error"]


@pytest.mark.parametrize("extra", [b"", bytes(5), bytes(3000), b"SEFT is no box of MP4" * 9])
@pytest.mark.parametrize("name", ["fragments.mp4", "a.gif", "a.flv"])
def test_other_data_after_a_complete_file_are_no_damage(name, extra, tmp_path):
    path = tmp_path / name
    path.write_bytes(write(path, *KINDS[name]) + extra)
    assert missing(path) == 0


@pytest.mark.parametrize("name", KINDS)
def test_any_cut_and_any_damage_is_survived(name, tmp_path):
    path = tmp_path / name
    content = write(path, *KINDS[name])
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content))])
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        assert missing(path) >= 0


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no video", bytes(400)])
def test_other_files_have_no_known_end(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    assert missing(tmp_path / "a") == 0


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("a.mp4", ("libx264", "mp4", {})),
        ("index-first.mp4", ("libx264", "mp4", {"movflags": "faststart"})),
        ("fragments.mp4", KINDS["fragments.mp4"]),
        ("fragments.mov", KINDS["fragments.mov"]),
        ("a.flv", KINDS["a.flv"]),
        ("a.wmv", ("wmv2", "asf", {})),
    ],
)
def test_a_second_video_that_is_not_read_is_an_error(name, recipe, tmp_path):
    path = tmp_path / name
    content = write(path, *recipe)
    with open(path, "rb") as file:
        assert file_end(file).second_at is None
    assert read_all(path) == (40, None)
    path.write_bytes(content + content)
    frames, error = read_all(path)
    assert 40 <= frames < 80
    assert f"contains another video after its first {len(content)} bytes" in error


@pytest.mark.parametrize("name", ["live.mkv", "live.webm", "a.ts", "a.m2ts", "a.mjpeg", "a.gif"])
def test_joined_videos_of_other_formats_are_read_completely(name, tmp_path):
    path = tmp_path / name
    content = write(path, *KINDS[name])
    path.write_bytes(content + content)
    assert read_all(path) == (80, None)
