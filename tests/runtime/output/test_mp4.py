"""Test the MP4 writer, also after a kill and on a full disk."""

import os
import signal
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.output.mp4 import Mp4Writer


def frames_of(path):
    with av.open(str(path)) as container:
        return [(float(f.pts * f.time_base), f.to_ndarray(format="bgr24")) for f in container.decode(video=0)]


@pytest.mark.parametrize("size_wh", [(64, 48), (63, 47)])
def test_images_and_times_are_restored(tmp_path, size_wh):
    path = tmp_path / "a.mp4"
    with Mp4Writer(path, size_wh, 10) as writer:
        for k, seconds in enumerate((0, 0.1, 0.5)):
            writer.write(np.full((size_wh[1], size_wh[0], 3), 60 * k + 40, np.uint8), seconds)
    read = frames_of(path)
    assert [round(t, 3) for t, _ in read] == [0, 0.1, 0.5]
    assert [abs(int(p.mean()) - (60 * k + 40)) <= 8 for k, (_, p) in enumerate(read)] == [True] * 3


def test_frames_of_other_sizes_are_resized(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", (64, 48), 10) as writer:
        writer.write(np.zeros((480, 640, 3), np.uint8), 0)
    assert frames_of(tmp_path / "a.mp4")[0][1].shape == (48, 64, 3)


def test_times_that_do_not_increase_are_corrected(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", (64, 48), 10) as writer:
        for seconds in (0.2, 0.2, 0.1):
            writer.write(np.zeros((48, 64, 3), np.uint8), seconds)
    assert len(frames_of(tmp_path / "a.mp4")) == 3


def test_after_a_kill_all_but_the_last_frame_can_be_read(tmp_path):
    path = tmp_path / "a.mp4"
    code = (
        "import os, signal, sys, pathlib, numpy as np; from tfiseg.runtime.output.mp4 import Mp4Writer\n"
        "writer = Mp4Writer(pathlib.Path(sys.argv[1]), (64, 48), 30)\n"
        "for k in range(50): writer.write(np.full((48, 64, 3), 4 * k, np.uint8), k / 30)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ}).returncode
        == -signal.SIGKILL
    )
    assert len(frames_of(path)) >= 49
    video, count = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        count += 1
    assert count >= 49


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(tfiseg.OutputError, match="can't write"):
        Mp4Writer(tmp_path / "nowhere" / "a.mp4", (64, 48), 30)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_an_error():
    def fill():
        with Mp4Writer("/dev/full", (64, 48), 30) as writer:
            for k in range(50):
                writer.write(np.full((48, 64, 3), k, np.uint8), k / 30)

    with pytest.raises(tfiseg.OutputError, match=r"can't write /dev/full: .*[Nn]o space"):
        fill()


@pytest.mark.skipif(sys.platform == "win32", reason="limits files by POSIX means")
@pytest.mark.parametrize("limit", [4_000, 9_001, 20_000])
def test_file_on_a_full_disk_has_complete_frames(tmp_path, limit):
    import resource

    rng, path = np.random.default_rng(0), tmp_path / "a.mp4"
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        with Mp4Writer(path, (64, 48), 30) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, previous[1]))
            for k in range(200):
                writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8), k / 30)

    try:
        with pytest.raises(tfiseg.OutputError, match="can't write"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
    size = path.stat().st_size
    assert size < limit
    content, count = path.read_bytes(), 0
    assert content.count(b"moof") == content.count(b"mdat") > 0
    with av.open(str(path)) as container:
        count = sum(1 for _ in container.decode(video=0))  # raises for an incomplete frame
    assert count == content.count(b"moof")
