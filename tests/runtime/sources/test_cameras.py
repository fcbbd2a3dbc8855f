"""Test live sources, with MPEG-TS over TCP from a server that is killed and sends damaged data."""

import io
import logging
import socket
import threading
import time

import av
import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.sources.cameras import csi_pipeline, opencv_has_gstreamer
from tfiseg.runtime.sources.live_stream import CameraRequest, LiveStream, describe_capture
from tfiseg.runtime.sources.realtime import Realtime
from waiting import wait_until


def transport_stream(size_wh, frames=60):
    """Return the MPEG-TS bytes of a moving image."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        stream = container.add_stream(
            "libx264", rate=30, options={"tune": "zerolatency", "preset": "ultrafast", "g": "10"}
        )
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        image = np.random.default_rng(0).integers(0, 255, (size_wh[1], size_wh[0], 3), np.uint8)
        image = cv2.GaussianBlur(image, (0, 0), 8)
        for k in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(image, 4 * k, 1), format="bgr24")))
        container.mux(stream.encode())
    return out.getvalue()


class Server:
    """A server that sends bytes repeatedly to each client, in ``seconds`` or as fast as possible.

    Bytes that are due in the interval ``stall`` are sent at its end.
    """

    def __init__(self, content, port=0, seconds=0, stall=(0, 0)):
        self.content, self._seconds, self._stall = content, seconds, stall
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = self._listening.getsockname()[1]
        self._connections, self._alive = [], True
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self._alive:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._send, args=(connection,), daemon=True).start()

    def _send(self, connection):
        try:
            step = 188 if self._seconds else 188 * 20
            while self._alive:
                began = time.monotonic()
                for at in range(0, len(self.content), step):
                    connection.sendall(self.content[at : at + step])
                    due = self._seconds * at / len(self.content)
                    if self._stall[0] < due < self._stall[1]:
                        due = self._stall[1]
                    time.sleep(max(began + due - time.monotonic(), 0 if self._seconds else 0.002))
        except OSError:
            pass

    def kill(self):
        self._alive = False
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept(), which would block the port
        self._listening.close()
        for connection in self._connections:
            connection.close()


def test_a_stream_is_reopened_after_a_restart_of_the_server(caplog):
    caplog.set_level(logging.INFO, "tfiseg")
    server = Server(transport_stream((128, 96)))
    address = f"tcp://127.0.0.1:{server.port}"
    empty = tfiseg.cluster(np.zeros((4, 6), np.uint8))
    with tfiseg.Pipeline(address, lambda frame: empty) as pipeline:
        wait_until(lambda: pipeline.newest() is not None)
        assert pipeline.newest().frame.image.shape == (96, 128, 3)
        server.kill()
        wait_until(lambda: "stopped delivering" in caplog.text)
        time.sleep(0.2)
        assert pipeline.newest().age_ms > 200  # the last result gets older
        server = Server(transport_stream((64, 48)), server.port)  # with another resolution
        wait_until(lambda: pipeline.newest().frame.image.shape == (48, 64, 3))
        assert pipeline.stats()["reconnects"] >= 1
        assert "is back after" in caplog.text
    server.kill()
    assert "128x96" in caplog.text


def test_corrupted_packets_cost_only_frames():
    content = bytearray(transport_stream((128, 96), 120))
    rng = np.random.default_rng(1)
    for at in rng.integers(188 * 40, len(content), 300):
        content[at] = rng.integers(256)
    server = Server(bytes(content))
    seen = 0
    with tfiseg.open_source(f"tcp://127.0.0.1:{server.port}") as source:
        for frame in source:
            assert frame.image.shape == (96, 128, 3)
            seen += 1
            if seen == 150:
                break
    server.kill()
    assert seen == 150


def test_capture_times_include_the_time_in_buffers_after_slow_reads(caplog):
    server = Server(transport_stream((64, 48), 240), seconds=8)
    ages = []
    with tfiseg.open_source(f"tcp://127.0.0.1:{server.port}") as source:
        for frame in source:
            ages.append((time.monotonic_ns() - frame.capture_time_ns) / 1e9)
            if 40 <= frame.index < 60:
                time.sleep(0.1)  # three times a frame's interval
            if frame.index == 130:
                break
    server.kill()
    assert max(ages[20:40]) < 0.5
    assert 1 < ages[60] < 2.5
    assert ages[130] < 0.5  # buffers are empty again
    assert caplog.text.count("s old when it is read") == 1


def test_capture_times_include_a_stall_of_the_network():
    server = Server(transport_stream((64, 48), 240), seconds=8, stall=(2.5, 4))
    ages = []
    with tfiseg.open_source(f"tcp://127.0.0.1:{server.port}") as source:
        for frame in source:
            ages.append((time.monotonic_ns() - frame.capture_time_ns) / 1e9)
            if frame.index == 160:
                break
    server.kill()
    assert max(ages[20:60]) < 0.5
    assert 1 < max(ages[60:110]) < 2
    assert max(ages[140:]) < 0.5


def test_the_resolution_may_change_during_a_stream():
    server = Server(transport_stream((128, 96), 30) + transport_stream((64, 48), 30))
    shapes = set()
    with tfiseg.open_source(f"tcp://127.0.0.1:{server.port}") as source:
        for frame in source:
            shapes.add(frame.image.shape)
            if len(shapes) == 2 or frame.index > 200:
                break
    server.kill()
    assert (96, 128, 3) in shapes


def test_an_interrupt_ends_the_reconnection():
    server = Server(transport_stream((64, 48)))
    source = tfiseg.open_source(f"tcp://127.0.0.1:{server.port}")
    frames = iter(source)
    next(frames)
    server.kill()
    threading.Timer(0.8, source.interrupt).start()
    began = time.monotonic()
    list(frames)
    assert time.monotonic() - began < 10
    source.close()


class FakeCapture:
    """A capture with the properties of a camera."""

    def __init__(self, width, height, fps, code):
        self.values = {
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*code) if code else 0,
        }

    def get(self, which):
        return self.values[which]

    def getBackendName(self):
        return "V4L2"


@pytest.mark.parametrize(
    ("capture", "camera_request", "sentence"),
    [
        (
            FakeCapture(640, 480, 30, "YUYV"),
            CameraRequest(),
            "cam delivers 640x480 at 30 frames/s, YUYV by V4L2",
        ),
        (
            FakeCapture(1280, 720, 30, "MJPG"),
            CameraRequest((1280, 720), 30, "MJPG"),
            "cam delivers 1280x720 at 30 frames/s, MJPG by V4L2",
        ),
        (
            FakeCapture(640, 480, 15, "YUYV"),
            CameraRequest((1280, 720), 30, "MJPG"),
            "cam delivers 640x480 at 15 frames/s, YUYV by V4L2; it does not deliver the requested 1280x720, "
            "30 frames/s, MJPG",
        ),
        (FakeCapture(640, 480, 0, ""), CameraRequest(), "cam delivers 640x480 by V4L2"),
    ],
)
def test_descriptions_of_captures(capture, camera_request, sentence):
    text, differs = describe_capture("cam", capture, camera_request)
    assert text == sentence
    assert differs == ("requested" in sentence)


def test_pipeline_of_a_csi_camera():
    pipeline = csi_pipeline(1, CameraRequest((1920, 1080), 60))
    assert pipeline.startswith(
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=60/1 ! "
        "nvvidconv ! "
    )
    assert pipeline.endswith("format=BGR ! appsink drop=true max-buffers=1 sync=false")


@pytest.mark.parametrize("source", ["csi://0", "gst: videotestsrc ! videoconvert ! appsink"])
def test_missing_gstreamer_is_an_error_with_a_fix(source, monkeypatch, tmp_path):
    if opencv_has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tfiseg.SourceError, match=r"apt install gstreamer1\.0-tools"):
        tfiseg.open_source(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_wh": (0, 4)}, "at least 1 x 1"),
        ({"fps": -1}, "above 0"),
        ({"pixel_format": "MJPEG"}, "FourCC"),
        ({"size_wh": (640, 480)}, "options of cameras, and synthetic is no camera"),
        ({"size_wh": (640, 480), "realtime": True}, "options of cameras"),
    ],
)
def test_camera_options_are_checked(options, message):
    with pytest.raises(tfiseg.InputError, match=message):
        tfiseg.open_source("synthetic", **options)


def test_a_file_played_in_real_time_is_live():
    source = tfiseg.open_source("synthetic", realtime=True, fps=50)
    assert isinstance(source, Realtime)
    assert source.is_live
    began = time.monotonic()
    frames = [frame for frame, _ in zip(source, range(11), strict=False)]
    assert 0.2 <= time.monotonic() - began < 1
    assert frames[-1].index == 10
    assert time.monotonic_ns() - frames[-1].capture_time_ns < 1e9


def test_capture_times_of_frames_that_are_read_late():
    frames = iter(tfiseg.open_source("synthetic", realtime=True, fps=50))
    next(frames)
    time.sleep(0.3)
    assert time.monotonic_ns() - next(frames).capture_time_ns > 0.25e9
    late = [frame for frame, _ in zip(frames, range(60), strict=False)][-1]  # by now it has caught up
    assert time.monotonic_ns() - late.capture_time_ns < 0.25e9


class Buffered(FakeCapture):
    """A camera of 50 frames per second whose driver buffers the last four."""

    def __init__(self):
        super().__init__(64, 48, 50, "MJPG")
        self.began = time.monotonic()
        self.taken = -1

    def grab(self):
        newest = int((time.monotonic() - self.began) * 50)
        self.taken = max(self.taken + 1, newest - 3)
        time.sleep(max(0.0, self.began + self.taken / 50 - time.monotonic()))
        return True

    def read(self):
        self.grab()
        return True, np.full((48, 64, 3), self.taken, np.uint8)

    def get(self, which):
        return self.values.get(which, 0)


def test_frames_buffered_before_the_iteration_are_skipped():
    camera = Buffered()
    source = LiveStream("camera-0", lambda: camera, capture=camera)
    time.sleep(0.5)  # as if a network was loaded
    frame = next(iter(source))
    behind_ms = (frame.capture_time_ns / 1e9 - camera.began - frame.image[0, 0, 0] / 50) * 1e3
    assert behind_ms < 20, f"a frame of {behind_ms:.0f} ms ago is taken as new"


def test_an_immediate_iteration_starts_with_the_first_frame():
    camera = Buffered()
    assert next(iter(LiveStream("camera-0", lambda: camera, capture=camera))).image[0, 0, 0] == 0


def test_closing_does_not_release_a_camera_that_hangs(caplog):
    class Hanging(FakeCapture):
        released = 0

        def __init__(self):
            super().__init__(64, 48, 30, "MJPG")
            self.resume = threading.Event()

        def read(self):
            self.resume.wait(20)
            return False, None

        def release(self):
            self.released += 1

    capture = Hanging()
    source = LiveStream("camera-0", lambda: capture, capture=capture)
    reader = threading.Thread(target=lambda: list(source), daemon=True)
    reader.start()
    time.sleep(0.05)
    source.interrupt()
    source.close()
    assert capture.released == 0
    assert "reading camera-0 does not return" in caplog.text
    capture.resume.set()
    reader.join(5)


class LostCapture:
    """A capture that delivers nothing."""

    is_released = False

    def read(self):
        return False, None

    def grab(self):
        return False

    def get(self, property_id):
        return 0.0

    def getBackendName(self):
        return "TEST"

    def release(self):
        self.is_released = True


def test_a_capture_that_is_reopened_during_close_is_released():
    captures, is_reopening = [], threading.Event()

    def opener():
        captures.append(LostCapture())
        if len(captures) == 2:
            is_reopening.set()
            time.sleep(0.2)  # close() waits meanwhile
        return captures[-1]

    source = LiveStream("camera", opener)
    reader = threading.Thread(target=lambda: list(source))
    reader.start()
    assert is_reopening.wait(10)
    source.interrupt()
    source.close()
    reader.join(10)
    assert [capture.is_released for capture in captures] == [True, True]
