"""Send malformed requests to the web viewer, which must reply or close and then serve other requests."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mutations import HOSTILE_VALUES, mutated

REQUESTS_PER_SERVER = 40
_WAIT_S = 0.3
_SETTINGS = {"min_score": 0.5, "min_area": 30, "things": [1], "paused": False}
_METHODS = ("GET", "POST", "HEAD", "PUT", "OPTIONS", "<script>")
_PATHS = (
    "/",
    "/settings",
    "/control",
    "/snapshot",
    "/events",
    "/../../etc/passwd",
    "//[",
    "/%2e%2e/",
    "*",
    "/?" + "a" * 9000,
)
_HEADERS = (
    "Host: evil.example",
    "Host: [",
    "Origin: http://evil.example",
    "Origin: http://[",
    "Sec-Fetch-Site: cross-site",
    "Content-Length: -1",
    "Content-Length: 99999999999",
    "Transfer-Encoding: chunked",
    "X: " + "a" * 20_000,
    "no colon",
)


class _Segmenter:
    """The attributes of a segmenter that the page reads and changes."""

    class_names = ("background", "<img src=x onerror=alert(1)>")
    things = (1,)
    min_score = 0.3
    min_area = 0


def request(rng: np.random.Generator, port: int) -> bytes:
    """Return a request with a possibly malformed request line, headers or body."""
    body = b""
    method = str(rng.choice(_METHODS, p=[0.3, 0.5, 0.05, 0.05, 0.05, 0.05]))
    path = "/control" if method == "POST" and rng.random() < 0.8 else str(rng.choice(_PATHS))
    if method == "POST":
        settings: dict[str, Any] = dict(_SETTINGS)
        for name in settings:
            if rng.random() < 0.4:
                settings[name] = HOSTILE_VALUES[int(rng.integers(0, len(HOSTILE_VALUES)))]
        body = json.dumps(settings)[:9000].encode()
        if rng.random() < 0.3:
            body = mutated(rng, body)
    headers = [f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}", "Connection: close"]
    for header in _HEADERS:
        if rng.random() < 0.08:
            headers.append(header)
    text = "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode() + body
    return mutated(rng, text) if rng.random() < 0.4 else text


def requests_to_a_viewer(first_seed: int) -> Callable[[], object]:
    """Return an action that sends ``REQUESTS_PER_SERVER`` requests to a page, and checks it after each."""

    def run() -> str:
        from tfiseg.runtime.output.web_viewer import Viewer

        failed: list[str] = []
        threading.excepthook = lambda about: failed.append(repr(about.exc_value))
        viewer = Viewer("127.0.0.1:0", _Segmenter())  # type: ignore[arg-type]
        viewer.start()
        port = viewer._server.port
        for seed in range(first_seed, first_seed + REQUESTS_PER_SERVER):
            _send(port, request(np.random.default_rng(seed), port), _WAIT_S)
            response = _send(
                port,
                f"GET /settings HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode(),
                5,
            )
            if not response.startswith(b"HTTP/1.1 200"):
                raise AssertionError(f"seed {seed}: afterwards the page replies with {response[:60]!r}")
            json.loads(response.partition(b"\r\n\r\n")[2], parse_constant=_no_constant)
        viewer.close()
        if failed:
            raise AssertionError(failed[0])
        return "served"

    return run


def _no_constant(name: str) -> None:
    raise AssertionError(f"the page's JSON contains {name}")


def _send(port: int, content: bytes, seconds: float) -> bytes:
    """Send bytes, and return the part of the response that arrives in time."""
    response, deadline = b"", time.monotonic() + seconds
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(content)
            while time.monotonic() < deadline:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    break
                response += chunk
    except OSError:
        pass
    return response
