"""Test images at URLs, and URLs without an image."""

import http.server
import threading
from base64 import b64encode

import cv2
import numpy as np
import pytest
import tfiseg
from pictures import SMOOTH, TINY, as_pil, encoded
from tfiseg.images import read_image, to_bgr

PASSWORD = "Basic " + b64encode(b"me:s3 cret").decode()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "ok.png").write_bytes(encoded(as_pil(TINY), "PNG"))
    (tmp_path / "text.png").write_text("hello")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self):
            if self.path == "/cut.png":
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b"\x89PNG")
            elif self.path == "/nonsense.png":
                self.wfile.write(b"nonsense\r\n\r\n")
            elif self.path == "/private.png" and self.headers["Authorization"] != PASSWORD:
                self.send_error(401)
            elif self.path == "/private.png":
                self.path = "/ok.png"
                super().do_GET()
            elif self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", "/private.png")
                self.end_headers()
            elif self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", (tmp_path / "ok.png").as_uri())
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_password_is_sent_to_the_named_server_alone(server):
    host = server.removeprefix("http://")
    assert to_bgr(f"http://me:s3%20cret@{host}/private.png").tolist() == TINY.tolist()
    with pytest.raises(tfiseg.InputError, match="returned 401") as error:
        to_bgr(f"http://me:s3%20cret@{host}/moved.png")
    assert "cret" not in str(error.value)


def test_urls(server, tmp_path):
    assert to_bgr(f"{server}/ok.png?token=secret").tolist() == TINY.tolist()
    assert to_bgr((tmp_path / "ok.png").as_uri()).tolist() == TINY.tolist()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere.png?token=secret", "can't get http://.*/nowhere.png: the server returned 404"),
        ("/text.png", "/text.png is no image that can be read"),
        ("/cut.png", "can't get .*/cut.png"),
        ("/nonsense.png", "can't get .*/nonsense.png"),
        ("/elsewhere", "can't get .*/elsewhere: the server returned 302"),
    ],
)
def test_urls_without_an_image(server, path, message):
    with pytest.raises(tfiseg.InputError, match=message) as raised:
        to_bgr(server + path)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@127.0.0.1:9/a.png", "can't get http://127.0.0.1:9/a.png"),
        ("http://127.0.0.1:99999999/a.png", "can't get"),
        ("file://elsewhere/a.png", "names the machine elsewhere"),
        ("file:///nowhere/a.png", "there is no file /nowhere/a.png"),
        ("http://", "can't get"),
        ("http://127.0.0.1:port/a.png", "can't get"),
        ("http://127.0.0.1:9/a b\n.png", "can't get"),
        ("http://[::1/a.png", "can't get"),
    ],
)
def test_urls_that_cannot_be_read(url, message):
    with pytest.raises(tfiseg.InputError, match=message) as raised:
        to_bgr(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\x20ftypisom\0\0\2\0",
        b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81" + bytes(20),
        b"RIFF\x24\0\0\0AVI LIST" + bytes(20),
        b"\0\0\1\xba" + bytes(20),
    ],
)
def test_the_error_of_a_video_names_the_functions_for_videos(content):
    with pytest.raises(tfiseg.InputError, match=r"x is no image.* a video, which tfiseg\.open_source and"):
        read_image(content, name="x")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "a raw photo"),
        (b"\xff\x0a\x00", "JPEG XL"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (cv2.imencode(".hdr", SMOOTH.astype(np.float32))[1].tobytes(), "Radiance HDR"),
        (cv2.imencode(".pfm", SMOOTH.astype(np.float32))[1].tobytes(), "PFM"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_unsupported_formats_are_named(content, kind):
    with pytest.raises(
        tfiseg.InputError, match=f"x is no image that can be read: {kind}.* is not supported, convert it"
    ):
        read_image(content, name="x")


@pytest.mark.parametrize(("kind", "share"), [(np.float32, 1), (np.uint8, 0.5)])
def test_a_tiff_that_cannot_be_read_has_its_possible_causes(kind, share):
    content = cv2.imencode(".tif", SMOOTH.astype(kind))[1].tobytes()
    with pytest.raises(
        tfiseg.InputError, match="a truncated TIFF, one with colors in floats, or a raw photo"
    ):
        read_image(content[: int(share * len(content))], name="x")
