"""Test the responses of the web viewer, its access control, and the page in headless Chromium."""

import json
import shutil
import socket
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.output.web_viewer import Viewer
from waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Running:
    """A pipeline of the synthetic source with its web viewer."""

    def __init__(self, address="127.0.0.1:0"):
        self.segmenter = tfiseg.Segmenter()
        self.viewer = Viewer(address, self.segmenter)
        source = tfiseg.open_source("synthetic", realtime=True)
        self.pipeline = tfiseg.Pipeline(
            source, self.segmenter, tracker=tfiseg.Tracker(), draw=True, sinks=[self.viewer]
        )

    def __enter__(self):
        self.viewer.attach(self.pipeline)
        self.viewer.start()
        self.pipeline.start()
        return self

    def __exit__(self, *_):
        self.pipeline.close()
        self.viewer.close()

    def request(self, path, data=None, **headers):
        url = self.viewer.url.split("?")[0] + path
        body = None if data is None else json.dumps(data).encode()
        return urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20)


@pytest.fixture(scope="module")
def running():
    with Running() as served:
        wait_until(lambda: served.pipeline.stats()["finished"])
        yield served


def error_of(running, *args, **kwargs):
    with pytest.raises(urllib.error.HTTPError) as answer:
        running.request(*args, **kwargs)
    return answer.value.code, answer.value.read().decode()


def first_image(answer):
    content = b""
    while content.count(b"--frame") < 2:
        content += answer.read(2000)
    header, _, rest = content.partition(b"\r\n\r\n")
    length = int(header.split(b"Content-Length: ")[1])
    return cv2.imdecode(np.frombuffer(rest[:length], np.uint8), cv2.IMREAD_COLOR)


def test_image_stream(running):
    with running.request("stream") as answer:
        assert answer.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        assert first_image(answer).shape == (480, 640, 3)


def test_events(running):
    with running.request("events") as answer:
        event = json.loads(answer.readline().removeprefix(b"data: "))
    assert event["captured"] >= 1
    assert event["age_ms"] > 0
    assert {"network", "cluster", "draw"} <= set(event["stage_ms"])
    assert all(i["name"].startswith("person #") and i["color"].startswith("rgb(") for i in event["instances"])


def test_a_snapshot(running):
    with running.request("snapshot") as answer:
        assert answer.headers["Content-Disposition"].endswith('.png"')
        assert cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_COLOR).shape == (480, 640, 3)


def nothing_in_progress(stats):
    return stats["captured"] == stats["dropped"] + stats["skipped"] + stats["finished"] + stats["discarded"]


def test_settings_take_effect_at_once(running):
    before = json.load(running.request("settings"))
    assert before["source"] == "synthetic"
    assert {"id": 15, "name": "person"} in before["classes"]
    after = json.load(running.request("control", {"min_score": 0.9, "min_area": 500, "things": [15]}))
    assert (after["min_score"], after["min_area"], after["things"]) == (0.9, 500, [15])
    assert (running.segmenter.min_score, running.segmenter.min_area, running.segmenter.things) == (
        0.9,
        500,
        (15,),
    )
    assert json.load(running.request("control", {"paused": True}))["paused"]
    wait_until(lambda: nothing_in_progress(running.pipeline.stats()))
    finished = running.pipeline.stats()["finished"]
    time.sleep(0.2)
    assert running.pipeline.stats()["finished"] == finished
    running.request("control", {k: before[k] for k in ("min_score", "min_area", "things", "paused")})
    wait_until(lambda: running.pipeline.stats()["finished"] > finished)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_area": 1e300},
        {"min_area": float("inf"), "min_score": 0.9},
        {"min_score": 2},
        {"min_score": "high"},
        {"things": [99]},
        {"things": 15},
        {"paused": 1},
        {"min_area": -1},
        {"reboot": True},
        7,
    ],
)
def test_settings_are_checked(running, settings):
    status, message = error_of(running, "control", settings)
    assert status == 400
    assert "can't be" in message or "JSON object" in message


def test_refused_requests(running):
    assert error_of(running, "nowhere")[0] == 404
    assert error_of(running, "", Host="evil.example:80")[0] == 403
    assert error_of(running, "control", {"paused": True}, Origin="http://evil.example")[0] == 403
    assert error_of(running, "stream", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    with running.request("") as page:
        assert page.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert error_of(running, "control", {"paused": "x" * 20_000})[0] == 413
    assert not running.pipeline.paused


def test_a_viewer_that_stops_reading_does_not_slow_the_pipeline(running):
    stuck = socket.create_connection(("127.0.0.1", int(running.viewer.url.split(":")[2].split("/")[0])))
    stuck.sendall(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(0.3)
    before = running.pipeline.stats()["finished"]
    with running.request("stream") as answer:
        assert first_image(answer) is not None
    wait_until(lambda: running.pipeline.stats()["finished"] >= before + 10)
    stuck.close()


def test_the_page_shows_when_no_new_frame_arrives():
    with Running() as running:
        wait_until(lambda: running.pipeline.stats()["finished"])
        running.pipeline.close()
        with running.request("events") as answer:
            seen = []
            while len(seen) < 30 and not (
                any("no new frame" in e["note"] for e in seen)
                and seen[-1]["age_ms"] > seen[0]["age_ms"] + 500
            ):
                line = answer.readline()
                if line.startswith(b"data: "):
                    seen.append(json.loads(line.removeprefix(b"data: ")))
    assert "the source is lost or slow" in seen[-1]["note"]
    assert seen[-1]["age_ms"] > seen[0]["age_ms"] + 500


def test_other_machines_need_the_token():
    with Running("0.0.0.0:0") as running:
        assert "?token=" in running.viewer.url
        assert "0.0.0.0" not in running.viewer.url
        assert error_of(running, "settings")[0] == 403
        assert error_of(running, "settings?token=wrong")[0] == 403
        with running.request(f"settings?token={running.viewer.token}") as answer:
            cookie = answer.headers["Set-Cookie"].split(";")[0]
        assert json.load(running.request("settings", Cookie=cookie))["source"] == "synthetic"
        assert error_of(running, "settings", Cookie=cookie.split("=")[0] + "=wrong; other=1")[0] == 403


@pytest.mark.parametrize("address", ["300.0.0.1:1", "127.0.0.1:99999", "host:port"])
def test_addresses_are_checked(address):
    with pytest.raises(tfiseg.InputError):
        Viewer(address, tfiseg.Segmenter())


def test_an_address_in_use_is_an_error(running):
    port = running.viewer.url.split(":")[2].split("/")[0]
    with pytest.raises(tfiseg.InputError, match="can't serve at 127"):
        Viewer(f":{port}", running.segmenter)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed")
def test_the_page_in_a_browser(running, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 820})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(running.viewer.url, wait_until="domcontentloaded")
        page.wait_for_function("document.querySelector('#picture').naturalWidth === 640")
        page.wait_for_function("+document.querySelector('#captured').textContent > 3")
        page.wait_for_function("document.querySelectorAll('#stages tr').length >= 4")
        assert page.locator("#classes input").count() == 20
        page.click("#pause")
        page.wait_for_function("document.querySelector('#pause').textContent === 'Resume'")
        assert running.pipeline.paused
        page.click("#pause")
        page.wait_for_function("document.querySelector('#pause').textContent === 'Pause'")
        page.locator("#min_score").fill("0.75")
        wait_until(lambda: running.segmenter.min_score == 0.75)
        page.locator("#classes input[value='15']").uncheck()
        wait_until(lambda: 15 not in running.segmenter.things)
        page.wait_for_function("document.querySelector('#count').textContent === '0'")
        page.locator("#classes input[value='15']").check()
        page.wait_for_function("+document.querySelector('#count').textContent > 0")
        with page.expect_download() as download:
            page.click("#snapshot")
        download.value.save_as(tmp_path / "snapshot.png")
        assert cv2.imread(str(tmp_path / "snapshot.png")).shape == (480, 640, 3)
        page.wait_for_timeout(1500)
        page.screenshot(path=str(tmp_path / "page.png"))
        assert not errors
        browser.close()
