"""A small web page that shows a pipeline at work: for robots, which have no screen. Several may look; none
slows the pipeline."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import secrets
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2

from ...errors import InputError
from ..pipeline.pipeline import Pipeline, Result
from ..segmenter import Segmenter

DEFAULT_ADDRESS = "127.0.0.1:8765"
_PAGE = Path(__file__).with_name("web_viewer.html")
_JPEG_QUALITY = 80
_EVENTS_PER_S = 8
_SILENT_S = 0.5  # without a new result, after which the page is told how old the last one has got
_LOST_S = 2.0
_SEND_BUFFER_BYTES = (
    1 << 16
)  # what lies in a socket's buffer gets old: on a slow network, frames are better skipped
_MOST_AREA = (1 << 30) - 1
_STUCK_S = 10.0  # a viewer that takes nothing for so long is let go
_MOST_BODY_BYTES = 10_000

_log = logging.getLogger("tfiseg")


class Viewer:
    """Serves what a pipeline gives, as its sink; ``attach`` the pipeline, then ``start``.

    Args:
        address: "HOST:PORT", "HOST" or ":PORT"; port 0: any free one. Only this machine can reach a loopback
            address (the default); on any other, whoever looks needs the token that is part of ``url``.
        segmenter: whose thresholds and classes the page may change.

    Raises:
        InputError: no such address, or it is taken.
    """

    name = "serve"

    def __init__(self, address: str, segmenter: Segmenter) -> None:
        host, port = _host_port(address)
        self.segmenter = segmenter
        self._all_things = segmenter.things
        self._pipeline: Pipeline | None = None
        self._changed = threading.Condition()
        self._newest: Result | None = None
        self._number = 0
        self._jpeg, self._jpeg_number = b"", 0
        self._encoding = threading.Lock()
        self._closed = False
        self.note = ""
        self.token = None if _is_loopback(host) else secrets.token_urlsafe(16)
        try:
            self._server = _Server((host, port), self)
        except (OSError, OverflowError) as wrong:
            raise InputError(f"can't serve at {host}:{port}: {wrong}") from wrong
        shown = _reachable_name(host)
        self.url = f"http://{shown}:{self._server.server_port}/" + (
            f"?token={self.token}" if self.token else ""
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="tfiseg-serve", daemon=True)

    def attach(self, pipeline: Pipeline) -> None:
        """The pipeline that is shown and paused."""
        self._pipeline = pipeline

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send all viewers away and free the address."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def write(self, result: Result) -> None:
        """Show this result from now on. It costs nothing: pictures are encoded in the viewers' threads."""
        with self._changed:
            self._newest = result
            self._number += 1
            self._changed.notify_all()

    # -- for the handler's threads

    def next_jpeg(self, after: int) -> tuple[int, bytes] | None:
        """The newest picture that comes after this number, with its own; None at the end. Encoded once,
        however many look."""
        newest = self._wait(after)
        if newest is None:
            return None
        with self._encoding:
            number, result = newest
            if self._jpeg_number < number:
                assert result.overlay is not None, "the pipeline must draw"
                self._jpeg = cv2.imencode(".jpg", result.overlay, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[
                    1
                ].tobytes()
                self._jpeg_number = number
            return self._jpeg_number, self._jpeg

    def _wait(self, after: int, seconds: float | None = None) -> tuple[int, Result] | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._number > after or self._closed, seconds)
                if self._closed:
                    return None
                if self._newest is not None:
                    return self._number, self._newest

    def next_event(self, after: int) -> tuple[int, dict[str, Any]] | None:
        """What the page shows beside the picture; None at the end."""
        newest = self._wait(after, _SILENT_S)
        if newest is None or self._pipeline is None:
            return None
        number, result = newest
        age_ms = result.age_ms
        found, stats = result.instances, self._pipeline.stats()
        colours = found.colours
        rows = [
            {
                "name": one.title,
                "score": one.score,
                "area": one.area,
                "colour": "rgb({2}, {1}, {0})".format(*colours[one.number]),
            }
            for one in found
        ]
        return number, {
            "fps": self._pipeline.recent_fps(),
            "age_ms": age_ms,
            "captured": stats["captured"],
            "dropped": stats["dropped"],
            "note": self._noted(age_ms, stats["reconnects"]),
            "instances": rows,
            "stage_ms": found.stage_ms,
        }

    def _noted(self, age_ms: float, reconnects: int) -> str:
        notes = [self.note] if self.note else []
        if age_ms > _LOST_S * 1e3 and not (self._pipeline and self._pipeline.paused):
            notes.append(f"no new picture for {age_ms / 1e3:.0f} s: the source is lost or slow")
        if reconnects:
            notes.append(f"the source was lost and found again {reconnects} times")
        return "; ".join(notes)

    def snapshot(self) -> bytes | None:
        """The newest picture as PNG; None before the first."""
        newest = self._newest
        return (
            None
            if newest is None or newest.overlay is None
            else cv2.imencode(".png", newest.overlay)[1].tobytes()
        )

    def settings(self) -> dict[str, Any]:
        names = self.segmenter.class_names
        return {
            "source": self._pipeline.source.name if self._pipeline else "",
            "paused": self._pipeline.paused if self._pipeline else False,
            "min_score": self.segmenter.min_score,
            "min_area": self.segmenter.min_area or 0,
            "things": list(self.segmenter.things),
            "classes": [{"id": k, "name": names[k]} for k in self._all_things],
        }

    def change(self, wanted: Any) -> dict[str, Any]:
        """Change settings, by name; returns them all. Raises InputError for what is none, before anything is
        changed."""
        checks = {
            "paused": lambda v: isinstance(v, bool),
            "min_score": lambda v: _is_number(v) and 0 <= v <= 1,
            "min_area": lambda v: _is_number(v) and 0 <= v <= _MOST_AREA,
            "things": lambda v: (
                isinstance(v, list) and all(isinstance(c, int) and c in self._all_things for c in v)
            ),
        }
        if not isinstance(wanted, dict):
            raise InputError("settings come as a JSON object")
        for name, value in wanted.items():
            if name not in checks or not checks[name](value):
                raise InputError(f"{name} can't be {value!r}")
        if self._pipeline is not None and "paused" in wanted:
            (self._pipeline.pause if wanted["paused"] else self._pipeline.resume)()
        if "min_score" in wanted:
            self.segmenter.min_score = float(wanted["min_score"])
        if "min_area" in wanted:
            self.segmenter.min_area = int(wanted["min_area"])
        if "things" in wanted:
            self.segmenter.things = tuple(wanted["things"])
        return self.settings()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], viewer: Viewer) -> None:
        self.viewer = viewer
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], ConnectionError | TimeoutError
        ):  # a viewer that went away is no error
            _log.exception("the page could not answer %s", client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _STUCK_S
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests aren't news."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not self._may():
            return
        viewer = self.server.viewer
        if path == "/":
            self._send(_PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/stream":
            self._stream()
        elif path == "/events":
            self._events()
        elif path == "/settings":
            self._send(json.dumps(viewer.settings()).encode(), "application/json")
        elif path == "/snapshot":
            picture = viewer.snapshot()
            if picture is None:
                self._refuse(503, "there is no picture yet")
            else:
                name = f"tfiseg-{time.strftime('%Y%m%d-%H%M%S')}.png"
                self._send(picture, "image/png", {"Content-Disposition": f'attachment; filename="{name}"'})
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BODY_BYTES:
            self.close_connection = True
            self._refuse(413, "settings are short")
            return
        body = self.rfile.read(int(length))
        if not self._may():
            return
        if urlsplit(self.path).path != "/control":
            self._refuse(404, "there is no such page")
            return
        try:
            settings = self.server.viewer.change(json.loads(body))
        except (InputError, json.JSONDecodeError, UnicodeDecodeError) as wrong:
            self._refuse(400, str(wrong))
            return
        self._send(json.dumps(settings).encode(), "application/json")

    def _may(self) -> bool:
        """Whether this request may be answered; if not, it has been refused.

        On loopback, other sites' pages must not get in through the user's browser, under a name of theirs
        (Host), by a form (Origin) or as a part of theirs (Sec-Fetch-Site; and no page may frame this one).
        """
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        elsewhere = self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        if elsewhere or (origin is not None and urlsplit(origin).netloc != host):
            self._refuse(403, "requests of other pages aren't answered")
            return False
        token = self.server.viewer.token
        if token is None:
            if not _is_loopback(urlsplit(f"//{host}").hostname or ""):
                self._refuse(403, "this address is for this machine only")
                return False
            return True
        asked = parse_qs(urlsplit(self.path).query).get("token", [""])[0] or self._cookie()
        if not hmac.compare_digest(asked.encode(), token.encode()):
            self._refuse(403, "this page needs the token that `tfiseg view` printed")
            return False
        return True

    def _cookie(self) -> str:
        parts = (p.strip().partition("=") for p in self.headers.get("Cookie", "").split(";"))
        return next((value for name, _, value in parts if name == self._cookie_name), "")

    @property
    def _cookie_name(self) -> str:
        return f"tfiseg-{self.server.server_port}"  # cookies know no ports, and a robot may have two cameras

    def _send(self, content: bytes, kind: str, more: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        if status == 200 and self.server.viewer.token:
            self.send_header(
                "Set-Cookie", f"{self._cookie_name}={self.server.viewer.token}; HttpOnly; SameSite=Strict"
            )
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, why: str) -> None:
        self._send(why.encode(), "text/plain; charset=utf-8", status=status)

    def _begin_stream(self, kind: str) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()

    def _stream(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._begin_stream("multipart/x-mixed-replace; boundary=frame")
        number = 0
        while (newest := self.server.viewer.next_jpeg(number)) is not None:
            number, jpeg = newest
            self.wfile.write(
                b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                + jpeg
                + b"\r\n"
            )

    def _events(self) -> None:
        self._begin_stream("text/event-stream")
        number = 0
        while (newest := self.server.viewer.next_event(number)) is not None:
            number, event = newest
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            time.sleep(1 / _EVENTS_PER_S)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_port(address: str) -> tuple[str, int]:
    """From "HOST:PORT", "HOST", ":PORT" or "[IPv6]:PORT"."""
    try:
        parts = urlsplit(f"//{address}" if not address.startswith(":") else f"//127.0.0.1{address}")
        usual = urlsplit(f"//{DEFAULT_ADDRESS}")
        port = parts.port if parts.port is not None else usual.port
    except ValueError as wrong:
        raise InputError(f'an address to serve at is "HOST:PORT", got {address!r}') from wrong
    assert port is not None
    return parts.hostname or "127.0.0.1", port


def _reachable_name(host: str) -> str:
    """How others reach an address to serve at: "any" is no name that a browser knows."""
    if host in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(
                    ("192.0.2.1", 9)
                )  # sends nothing: it asks which of this machine's addresses leads outside
                return str(probe.getsockname()[0])
            except OSError:
                return socket.gethostname()
    return f"[{host}]" if ":" in host else host
