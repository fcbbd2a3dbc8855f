"""Test videos at URLs, and that no secret of a URL is printed."""

import functools
import http.server
import subprocess
import sys
import threading
from urllib.parse import quote

import numpy as np
import pytest
import tfiseg
from clips import write_clip
from PIL import Image
from tfiseg.images import strip_secrets, strip_secrets_from_text

TIMES = [k / 30 for k in range(12)] + [0.4 + k / 10 for k in range(12)]
SECRET_URLS = {
    "rtsp://admin:s3cret@10.0.0.5:554/live?token=s3cret": "rtsp://10.0.0.5:554/live",
    "RTSP://admin:s3cret@10.0.0.5/live": "RTSP://10.0.0.5/live",
    "rtmps://admin:s3cret@host/app": "rtmps://host/app",
    "ftp://admin:s3cret@host/a.mp4": "ftp://host/a.mp4",
    "http://admin:s3/cret@host/a": "http://host/a",
    "http://admin:s3#cret@host/a": "http://host/a",
    "http://admin:s3?cret@host/a": "http://host/a",
    "http://admin:s3@cret@host/a": "http://host/a",
    "http://admin:s3[cret@host/a": "http://host/a",
    "http://s3cret@host/a#s3cret": "http://host/a",
    "http://host/@name/a": "http://host/@name/a",
    "http://[::1]:80/a": "http://[::1]:80/a",
}


@pytest.mark.parametrize("url", SECRET_URLS)
def test_without_secrets(url):
    assert strip_secrets(url) == SECRET_URLS[url]


@pytest.mark.parametrize(
    "source",
    [
        "RTSP://admin:s3cret@127.0.0.1:9/live",
        "ftp://admin:s3cret@127.0.0.1:9/a.mp4",
        "mms://admin:s3cret@127.0.0.1:9/a",
        "http://admin:s3/cret@127.0.0.1:9/a?key=s3cret",
        "admin:s3cret@127.0.0.1/live",
        "admin:s3cret@127.0.0.1/*.jpg",
        "csi://admin:s3cret@127.0.0.1",
    ],
)
def test_no_password_is_printed(source):
    code = (
        f"import tfiseg\ntry: tfiseg.open_source({source!r})\n"
        "except tfiseg.TfisegError: import traceback; traceback.print_exc()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    output = done.stdout + done.stderr
    assert "SourceError" in output
    assert "s3cret" not in output
    assert "s3/cret" not in output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rtspsrc location=rtsp://a:s3cret@h/x user-id=me user-pw=s3cret latency=0 ! appsink",
            "rtspsrc location=rtsp://h/x user-id=... user-pw=... latency=0 ! appsink",
        ),
        (
            'souphttpsrc location="http://a:s3cret@h/x" ! appsink',
            'souphttpsrc location="http://h/x" ! appsink',
        ),
        ("videos/a.mp4", "videos/a.mp4"),
    ],
)
def test_text_without_secrets(text, expected):
    assert strip_secrets_from_text(text) == expected


class Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if "private" in self.path:
            self.send_error(401)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Files, directory=str(tmp_path))
    ) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"me:s3cret@127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_video_at_a_url_is_a_file(tmp_path, web):
    write_clip(tmp_path / "a.mkv", TIMES)
    with tfiseg.open_source(f"HTTP://{web}/a.mkv?key=s3cret") as source:
        assert not source.is_live
        assert "s3cret" not in source.name
        for _ in range(2):
            assert [f.media_time_s for f in source] == pytest.approx(TIMES, abs=0.002)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing.mp4", "refuses to answer"), ("private.mp4", "refuses to answer"), ("fake.mp4", "no video")],
)
def test_a_url_without_a_video_is_an_error(tmp_path, web, path, message):
    (tmp_path / "fake.mp4").write_text("hello " * 1000)
    with pytest.raises(tfiseg.SourceError, match=message) as raised:
        tfiseg.open_source(f"http://{web}/{path}")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("name", ["a.png", "two words.jpg", "a.gif"])
def test_an_image_at_a_url_is_one_frame(tmp_path, web, name):
    """PNG and GIF were opened again and again, as a live stream."""
    Image.new("RGB", (64, 48)).save(tmp_path / name)
    with tfiseg.open_source(f"http://{web}/{name.replace(' ', '%20')}") as source:
        assert not source.is_live
        frames = list(source)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)]
    assert "s3cret" not in source.name


@pytest.mark.parametrize("name", ["turned photo.jpg", "deep.tif", "a.webp"])
def test_an_image_at_a_url_equals_its_file(tmp_path, web, name):
    """Rotation was ignored, and PyAV raised a ValueError at some pixel formats."""
    image = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.convert("CMYK" if name == "deep.tif" else "RGB").save(tmp_path / name, exif=exif)
    (frame,) = tfiseg.open_source(f"http://{web}/{quote(name)}")
    (expected,) = tfiseg.open_source(tmp_path / name)
    assert frame.image.shape[:2] == (64, 48)
    assert np.array_equal(frame.image, expected.image)
    assert (frame.name, frame.file_name) == (expected.name, expected.file_name)
