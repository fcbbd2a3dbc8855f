"""Test GStreamer pipelines with gst-launch-1.0."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.sources.cameras import opencv_has_gstreamer
from tfiseg.runtime.sources.gstreamer import PROGRAM, PipelineCapture
from waiting import wait_until

pytestmark = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"{PROGRAM} isn't installed (apt install gstreamer1.0-tools)"
)
LIVE = "videotestsrc is-live=true pattern=red ! video/x-raw,width=64,height=48,framerate=30/1"
END = "appsink drop=true max-buffers=1 sync=false"


def source_of(pipeline):
    return tfiseg.open_source(f"gst: {pipeline}")


def gstreamer_processes():
    """Return the IDs of the GStreamer processes that this process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")
        except OSError:
            continue
        if PROGRAM[:15] in fields[0] and int(fields[2].split()[1]) == os.getpid():
            found.append(int(path.parent.name))
    return found


def test_opencv_has_gstreamer_agrees_with_the_build_information():
    assert cv2.videoio_registry.getBackendName(cv2.CAP_GSTREAMER) == "GSTREAMER"
    assert opencv_has_gstreamer() == ("GStreamer:                   YES" in cv2.getBuildInformation())


@pytest.mark.parametrize(("width", "height"), [(64, 48), (101, 77), (2, 2), (1280, 720), (33, 1)])
def test_frames_of_any_size(width, height):
    size = f"video/x-raw,width={width},height={height}"
    with source_of(f"videotestsrc pattern=red ! {size} ! videoconvert ! {END}") as source:
        assert source.is_live
        for frame, _ in zip(source, range(5), strict=False):
            assert frame.image.shape == (height, width, 3)
            assert np.abs(frame.image.astype(int) - (0, 0, 255)).max() <= 3


@pytest.mark.parametrize(
    "end", ["appsink", "appsink name=out emit-signals=true", END, "appsink caps=video/x-raw,format=I420"]
)
def test_appsinks_with_properties(end):
    with source_of(f"{LIVE} ! {end}") as source:
        assert source.fps == 30
        assert next(iter(source)).image.shape == (48, 64, 3)


def test_quotes_and_spaces_reach_gstreamer(tmp_path):
    path = tmp_path / "a picture.png"
    cv2.imwrite(str(path), np.full((20, 30, 3), (10, 200, 90), np.uint8))
    with source_of(f'filesrc location="{path}" ! pngdec ! videoconvert ! appsink') as source:
        frames = list(source)
    assert len(frames) == 1
    assert np.abs(frames[0].image.astype(int) - (10, 200, 90)).max() <= 3


def test_the_end_of_a_pipeline_ends_the_source():
    with source_of(
        "videotestsrc num-buffers=7 ! video/x-raw,width=64,height=48 ! appsink sync=false"
    ) as source:
        assert len(list(source)) == 7
    assert not gstreamer_processes()


def test_a_slow_reader_gets_new_frames():
    with source_of(f"{LIVE.replace('pattern=red', 'pattern=ball motion=wavy')} ! {END}") as source:
        frames = iter(source)
        next(frames)
        began, count = time.monotonic(), 0
        time.sleep(1.0)
        while time.monotonic() - began < 1.2:
            next(frames)
            count += 1
    assert count <= 20, "old frames were waiting in the pipe"


def test_the_process_ends_with_the_source():
    source = source_of(f"{LIVE} ! {END}")
    assert next(iter(source)).image.shape == (48, 64, 3)
    assert len(gstreamer_processes()) == 1
    source.close()
    source.close()
    assert not gstreamer_processes()
    capture = PipelineCapture("gstreamer", f"{LIVE} ! {END}")
    assert len(gstreamer_processes()) == 1
    del capture
    wait_until(lambda: not gstreamer_processes(), 10)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_no_process_remains(end):
    code = (
        f"import tfiseg, time, sys\nsource = tfiseg.open_source('gst: {LIVE} ! {END}')\nnext(iter(source))\n"
        "print(source._capture._process.pid, flush=True)\n"
        f"{'time.sleep(60)' if end else ''}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    if end is not None:
        process.send_signal(end)
    process.wait(20)
    wait_until(
        lambda: not Path(f"/proc/{pid}").exists() or ") Z" in Path(f"/proc/{pid}/stat").read_text(), 10
    )


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("nosuchelement ! appsink", 'no element "nosuchelement"'),
        ("videotestsrc ! ! appsink", "can't start gstreamer"),
        ("filesrc location=/nowhere ! decodebin ! videoconvert ! appsink", "Resource not found"),
        ("videotestsrc ! video/x-raw,width=0 ! appsink", "can't start gstreamer"),
        (
            "rtspsrc location=rtsp://me:s3cret@127.0.0.1:9/x user-pw=s3cret ! fakesink appsink",
            "can't start gstreamer",
        ),
    ],
)
def test_a_pipeline_that_cannot_start_is_an_error_with_the_reason(pipeline, message):
    with pytest.raises(tfiseg.SourceError, match=message) as raised:
        source_of(pipeline)
    assert "s3cret" not in str(raised.value)
    assert not gstreamer_processes()


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("videotestsrc ! fakesink", "one appsink, got 0"),
        ("videotestsrc ! tee name=t ! appsink t. ! appsink", "one appsink, got 2"),
        ('filesrc location="/a ! appsink', "can't be parsed"),
    ],
)
def test_an_invalid_pipeline_is_an_input_error(pipeline, message):
    with pytest.raises(tfiseg.InputError, match=message):
        source_of(pipeline)


def test_a_csi_camera_without_its_driver_is_an_error():
    with pytest.raises(tfiseg.SourceError, match=r"can't start csi-0.*nvarguscamerasrc"):
        tfiseg.open_source("csi://0")


def test_a_pipeline_that_breaks_is_reopened(caplog):
    with source_of(f"{LIVE} ! {END}") as source:
        frames = iter(source)
        next(frames)
        os.kill(gstreamer_processes()[0], signal.SIGKILL)
        for _ in range(200):
            next(frames)
            if source.reconnects:
                break
        assert source.reconnects == 1
        assert "is back after" in caplog.text
    assert not gstreamer_processes()
