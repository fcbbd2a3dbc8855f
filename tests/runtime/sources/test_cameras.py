"""Live sources. The network stream is real: MPEG-TS over TCP from a server made here, that is killed,
restarted, and sends rubbish."""

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
from tfiseg.runtime.sources.live_stream import CameraRequest, LiveStream, described
from tfiseg.runtime.sources.realtime import Realtime


def transport_stream(size_wh, frames=60):
    """MPEG-TS bytes of a moving picture."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        stream = container.add_stream(
            "libx264", rate=30, options={"tune": "zerolatency", "preset": "ultrafast", "g": "10"}
        )
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        picture = np.random.default_rng(0).integers(0, 255, (size_wh[1], size_wh[0], 3), np.uint8)
        picture = cv2.GaussianBlur(picture, (0, 0), 8)
        for k in range(frames):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 4 * k, 1), format="bgr24"))
            )
        container.mux(stream.encode())
    return out.getvalue()


class Server:
    """Sends these bytes to whoever connects, again and again, until it is killed: in ``seconds``, or
    quickly. What is due in the seconds ``standstill`` comes at their end."""

    def __init__(self, content, port=0, seconds=0, standstill=(0, 0)):
        self.content, self._seconds, self._standstill = content, seconds, standstill
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
                    if self._standstill[0] < due < self._standstill[1]:
                        due = self._standstill[1]
                    time.sleep(max(began + due - time.monotonic(), 0 if self._seconds else 0.002))
        except OSError:
            pass

    def kill(self):
        self._alive = False
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept(), which would hold the port
        self._listening.close()
        for connection in self._connections:
            connection.close()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_a_stream_that_is_killed_and_restarted_is_found_again(caplog):
    caplog.set_level(logging.INFO, "tfiseg")
    server = Server(transport_stream((128, 96)))
    address = f"tcp://127.0.0.1:{server.port}"
    empty = tfiseg.cluster(np.zeros((4, 6), np.uint8))
    with tfiseg.Pipeline(address, lambda frame: empty) as pipeline:
        until(lambda: pipeline.newest() is not None)
        assert pipeline.newest().frame.image.shape == (96, 128, 3)
        server.kill()
        until(lambda: "stopped delivering" in caplog.text)
        time.sleep(0.2)
        assert pipeline.newest().age_ms > 200  # an old result gets older, it does not vanish
        server = Server(transport_stream((64, 48)), server.port)  # back, with another resolution
        until(lambda: pipeline.newest().frame.image.shape == (48, 64, 3))
        assert pipeline.stats()["reconnects"] >= 1
        assert "is back after" in caplog.text
    server.kill()
    assert "128x96" in caplog.text


def test_corrupted_packets_cost_frames_and_nothing_else():
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


def test_frames_that_lay_in_buffers_are_as_old_as_they_are(caplog):
    """Whoever reads more slowly than a stream sends would take frames of long ago for new ones."""
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
    assert ages[130] < 0.5  # caught up
    assert caplog.text.count("s old when it is read") == 1


def test_frames_that_the_network_held_back_are_as_old_as_they_are():
    server = Server(transport_stream((64, 48), 240), seconds=8, standstill=(2.5, 4))
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


def test_the_resolution_may_change_in_the_middle():
    server = Server(transport_stream((128, 96), 30) + transport_stream((64, 48), 30))
    shapes = set()
    with tfiseg.open_source(f"tcp://127.0.0.1:{server.port}") as source:
        for frame in source:
            shapes.add(frame.image.shape)
            if len(shapes) == 2 or frame.index > 200:
                break
    server.kill()
    assert (96, 128, 3) in shapes


def test_an_interrupt_ends_the_search():
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
    """What OpenCV says of a camera: no camera is at hand here."""

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
    ("capture", "wanted", "says"),
    [
        (
            FakeCapture(640, 480, 30, "YUYV"),
            CameraRequest(),
            "cam gives 640x480 at 30 frames/s, YUYV through V4L2",
        ),
        (
            FakeCapture(1280, 720, 30, "MJPG"),
            CameraRequest((1280, 720), 30, "MJPG"),
            "cam gives 1280x720 at 30 frames/s, MJPG through V4L2",
        ),
        (
            FakeCapture(640, 480, 15, "YUYV"),
            CameraRequest((1280, 720), 30, "MJPG"),
            "cam gives 640x480 at 15 frames/s, YUYV through V4L2; asked for 1280x720, 30 frames/s, MJPG, "
            "which it doesn't give",
        ),
        (FakeCapture(640, 480, 0, ""), CameraRequest(), "cam gives 640x480 through V4L2"),
    ],
)
def test_a_camera_says_what_it_really_gives(capture, wanted, says):
    text, differs = described("cam", capture, wanted)
    assert text == says
    assert differs == ("asked" in says)


def test_csi_cameras_get_their_pipeline():
    pipeline = csi_pipeline(1, CameraRequest((1920, 1080), 60))
    assert pipeline.startswith(
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=60/1 ! "
        "nvvidconv ! "
    )
    assert pipeline.endswith("format=BGR ! appsink drop=true max-buffers=1 sync=false")


@pytest.mark.parametrize("source", ["csi://0", "gst: videotestsrc ! videoconvert ! appsink"])
def test_without_gstreamer_it_says_what_mends_it(source, monkeypatch, tmp_path):
    if opencv_has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tfiseg.SourceError, match=r"apt install gstreamer1\.0-tools"):
        tfiseg.open_source(source)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size_wh": (0, 4)}, "at least 1 x 1"),
        ({"fps": -1}, "above 0"),
        ({"pixel_format": "MJPEG"}, "FourCC"),
        ({"size_wh": (640, 480)}, "asked of cameras, and synthetic is none"),
        ({"size_wh": (640, 480), "realtime": True}, "asked of cameras"),
    ],
)
def test_what_is_asked_is_checked(options, says):
    with pytest.raises(tfiseg.InputError, match=says):
        tfiseg.open_source("synthetic", **options)


def test_a_file_played_at_its_own_pace_is_live():
    source = tfiseg.open_source("synthetic", realtime=True, fps=50)
    assert isinstance(source, Realtime)
    assert source.is_live
    began = time.monotonic()
    frames = [frame for frame, _ in zip(source, range(11), strict=False)]
    assert 0.2 <= time.monotonic() - began < 1
    assert frames[-1].index == 10
    assert time.monotonic_ns() - frames[-1].capture_time_ns < 1e9


def test_what_is_read_late_is_as_old_as_it_is():
    frames = iter(tfiseg.open_source("synthetic", realtime=True, fps=50))
    next(frames)
    time.sleep(0.3)
    assert time.monotonic_ns() - next(frames).capture_time_ns > 0.25e9
    late = [frame for frame, _ in zip(frames, range(60), strict=False)][-1]  # by now it has caught up
    assert time.monotonic_ns() - late.capture_time_ns < 0.25e9


class Buffered(FakeCapture):
    """A camera of 50 frames a second whose driver keeps the last four."""

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


def test_what_came_in_while_the_network_was_loaded_is_not_taken_for_new():
    camera = Buffered()
    source = LiveStream("camera-0", lambda: camera, capture=camera)
    time.sleep(0.5)  # the network is loaded meanwhile
    frame = next(iter(source))
    behind_ms = (frame.capture_time_ns / 1e9 - camera.began - frame.image[0, 0, 0] / 50) * 1e3
    assert behind_ms < 20, f"a frame of {behind_ms:.0f} ms ago is called new"


def test_what_is_read_at_once_is_read_from_the_first():
    camera = Buffered()
    assert next(iter(LiveStream("camera-0", lambda: camera, capture=camera))).image[0, 0, 0] == 0


def test_closing_while_the_camera_hangs_ends_nothing_but_the_source(caplog):
    class Hanging(FakeCapture):
        released = 0

        def __init__(self):
            super().__init__(64, 48, 30, "MJPG")
            self.go_on = threading.Event()

        def read(self):
            self.go_on.wait(20)
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
    assert "hangs in reading" in caplog.text
    capture.go_on.set()
    reader.join(5)
