"""Test the web viewer with malformed and slow requests, many connections, 200 viewers and hostile names."""

import contextlib
import json
import selectors
import shutil
import socket
import time

import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.output import connections
from tfiseg.runtime.output.web_server import WebServer
from tfiseg.runtime.output.web_viewer import Viewer
from tfiseg.runtime.sources.base import Frame, Source
from waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
NAMES = ["background", HOSTILE, "a very long class name " * 6]


class Settings:
    """The attributes of a segmenter that the page reads and changes."""

    class_names = NAMES
    things = (1, 2)
    min_score = 0.3
    min_area = 0


class Blocks(Source):
    """A live source with a hostile name."""

    is_live = True
    fps = 30.0

    def __init__(self):
        super().__init__(HOSTILE)
        self._stopped = False

    def interrupt(self):
        self._stopped = True

    def _read(self, index):
        time.sleep(1 / 30)
        if self._stopped:
            return None
        image = np.full((120, 160, 3), 90, np.uint8)
        image[10:50, 10 + index % 50 : 60 + index % 50] = (20, 200, 30)
        return Frame(image, index, time.monotonic_ns(), f"frame-{index}")


def segment_blocks(frame):
    classes = np.zeros((120, 160), np.uint8)
    classes[10:50, 20:70] = 1
    classes[60:110, 80:140] = 2
    return tfiseg.cluster(classes, class_names=NAMES)


class Running:
    def __init__(self, address="127.0.0.1:0"):
        self.viewer = Viewer(address, Settings())
        self.pipeline = tfiseg.Pipeline(Blocks(), segment_blocks, draw=True, sinks=[self.viewer])
        self.port = self.viewer._server.port
        self.token = f"?token={self.viewer.token}" if self.viewer.token else ""

    def __enter__(self):
        self.viewer.attach(self.pipeline)
        self.viewer.start()
        self.pipeline.start()
        wait_until(lambda: self.pipeline.stats()["finished"])
        return self

    def __exit__(self, *_):
        self.pipeline.close()
        self.viewer.close()

    def connect(self, content=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        connection.sendall(content)
        return connection

    def status(self, content, seconds=5):
        """Return the status of the response to these bytes; 0 if the connection closes without one."""
        with self.connect(content) as connection:
            connection.settimeout(seconds)
            line = connection.makefile("rb").readline()
        return int(line.split()[1]) if line else 0

    def get(self, path, host=None, **headers):
        lines = [f"GET {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.status("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def post(self, body, **headers):
        head = f"POST /control HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(body)}\r\n"
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return self.status((head + more + "\r\n").encode("latin-1") + body)


@pytest.fixture(scope="module")
def running():
    with Running() as served:
        yield served


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[", 400),
        ("[::1", 400),
        ("a]b", 400),
        ("127.0.0.1:port", 400),
        ("127.0.0.1:99999", 400),
        ("evil.example@127.0.0.1", 400),
        ("127.0.0.1/x", 400),
        ("127.0.0.1 evil", 400),
        ("\xe9", 400),
    ],
)
def test_hosts(running, host, status):
    assert running.get("/settings", host=host) == status


@pytest.mark.parametrize("line", [b"", b"Host:\r\n", b"Host: 127.0.0.1\r\nHost: evil.example\r\n"])
def test_a_request_needs_exactly_one_host(running, line):
    assert running.status(b"GET /settings HTTP/1.1\r\n" + line + b"\r\n") == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("http://evil.example", 403),
        ("http://127.0.0.1:9", 403),
        ("http://x@127.0.0.1:{port}", 403),
        ("null", 403),
        ("http://[", 400),
        ("http://a:b", 400),
        ("", 400),
        ("127.0.0.1", 400),
    ],
)
def test_origins(running, origin, status):
    assert running.post(b"{}", Origin=origin.format(port=running.port)) == status


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "cross-site, same-origin"])
def test_embedding_in_other_sites_is_refused(running, site):
    assert running.get("/stream", Sec_Fetch_Site=site) == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"7",
        b"null",
        b'{"min_score": NaN}',
        b'{"min_score": 1e400}',
        b'{"min_area": ' + b"9" * 5000 + b"}",
        b'{"min_area": ' + b"9" * 4000 + b"}",
        b"[" * 9999,
        b'{"\\ud800": 1}',
        b'{"things": [true]}',
        b'{"things": [1.0]}',
        b'{"things": [[1]]}',
        b'{"min_score": 0.5, "min_score": 9}',
    ],
)
def test_invalid_settings(running, body):
    assert running.post(body) == 400
    assert Settings.min_score == running.viewer.segmenter.min_score


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 200, 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1000 + b"\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"POST /control HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /control HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (
            b"POST /control HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: "
            b"chunked\r\n\r\n{}",
            400,
        ),
        (b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_invalid_requests(running, content, status):
    assert running.status(content) == status
    assert running.get("/settings") == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        b"POST /control HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
    ],
)
def test_slow_requests_are_closed(content, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    with Running() as served, served.connect(content) as connection:
        began = time.monotonic()
        connection.settimeout(0.2)
        while time.monotonic() - began < 8:
            try:
                connection.sendall(b"a")  # a byte now and then must not keep the connection open
                if not connection.recv(4000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 4
        assert served.get("/settings") == 200


def test_streams_have_no_time_limit(monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with (
        Running() as served,
        served.connect(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection,
    ):
        began, count = time.monotonic(), 0
        while time.monotonic() - began < 2:
            content = connection.recv(100_000)
            assert content
            count += content.count(b"data: ")
        assert count >= 8


def test_incomplete_requests_do_not_block_others():
    with Running("0.0.0.0:0") as served:
        served.viewer._server._connections._limit = 20
        stream = served.connect(f"GET /stream{served.token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert b"200 OK" in stream.recv(100)
        incomplete = [served.connect(b"GET / HTTP/1.1\r\nX: ") for _ in range(60)]
        time.sleep(0.2)
        assert len(served.viewer._server._connections._open) <= 20
        assert served.get(f"/settings{served.token}") == 200
        stream.settimeout(5)
        assert all(stream.recv(20_000) for _ in range(20))  # a viewer is not disconnected for them
        for connection in (stream, *incomplete):
            connection.close()


def test_viewers_are_never_disconnected_for_new_connections():
    with Running() as served:
        served.viewer._server._connections._limit = 3
        request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        viewers = [served.connect(request) for _ in range(3)]
        assert all(b"200 OK" in viewer.recv(100) for viewer in viewers)
        with contextlib.suppress(ConnectionError):
            assert served.get("/settings") == 0
        for viewer in viewers:
            viewer.close()
        wait_until(lambda: not served.viewer._server._connections._open)
        assert served.get("/settings") == 200


def test_two_hundred_viewers(running):
    selector, frames = selectors.DefaultSelector(), {}
    request = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(200):
        viewer = running.connect(request)
        viewer.setblocking(False)
        selector.register(viewer, selectors.EVENT_READ)
        frames[viewer] = 0
    before, end = running.pipeline.stats()["finished"], time.monotonic() + 4
    while time.monotonic() < end:
        for key, _ in selector.select(0.2):
            frames[key.fileobj] += key.fileobj.recv(1 << 18).count(b"--frame")
    began = time.monotonic()
    assert running.get("/settings") == 200
    assert time.monotonic() - began < 2
    assert min(frames.values()) >= 3
    assert running.pipeline.stats()["finished"] - before >= 40  # 120 on an idle machine
    for viewer in frames:
        viewer.close()


def test_many_viewers_can_connect_at_once():
    server = WebServer("127.0.0.1", 0, None)  # not started: connections wait in the backlog
    waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=0.5) for _ in range(120)]
    for connection in waiting:
        connection.close()
    server.close()


def test_closing_is_quick_and_frees_the_address():
    with Running() as served:
        viewers = [served.connect(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(5)]
        port = served.port
        time.sleep(0.2)
        began = time.monotonic()
        served.viewer.close()
        assert time.monotonic() - began < 3
    for viewer in viewers:
        viewer.close()
    Viewer(f"127.0.0.1:{port}", Settings()).close()


def test_requests_without_the_token_are_refused():
    with Running("0.0.0.0:0") as served:
        for path in ("/", "/stream", "/events", "/settings", "/snapshot", "/nothing"):
            assert served.get(path) == 403
            assert served.get(f"{path}?token=wrong") == 403
        assert served.get(f"/settings{served.token}", host="robot.local") == 200
        assert served.post(b"{}", Origin="http://evil.example") == 403


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed")
@pytest.mark.parametrize("width", [360, 1200])
def test_hostile_names_and_phones_in_a_browser(running, width):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 740}, has_touch=width < 500)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(running.viewer.url, wait_until="domcontentloaded")
        page.wait_for_function("document.querySelector('#picture').naturalWidth === 160")
        page.wait_for_function("document.querySelectorAll('#instances tr').length === 2")
        page.wait_for_function("document.querySelectorAll('#classes input').length === 2")
        # names of classes, instances and the source are shown as text
        assert HOSTILE in page.locator("#classes").inner_text()
        assert HOSTILE in page.locator("#instances").inner_text()
        assert HOSTILE in page.locator("#source").inner_text()
        assert page.locator("img").count() == 1
        # no horizontal scrolling
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#pause")
        page.wait_for_function("document.querySelector('#pause').textContent === 'Resume'")
        assert running.pipeline.paused
        page.click("#pause")
        page.wait_for_function("document.querySelector('#pause').textContent === 'Pause'")
        page.locator("#min_score").fill("0.6")
        wait_until(lambda: running.viewer.segmenter.min_score == 0.6)
        page.locator("#min_score").fill("0.3")
        wait_until(lambda: running.viewer.segmenter.min_score == 0.3)
        assert "hacked" not in page.title()
        assert not errors
        browser.close()


def test_events_are_json(running):
    with running.connect(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        lines = connection.makefile("rb")
        data = next(line for line in lines if line.startswith(b"data: "))
    event = json.loads(data.removeprefix(b"data: "))
    assert [row["name"] for row in event["instances"]] == NAMES[1:]
