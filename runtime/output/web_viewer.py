"""The web viewer: a page that shows a running pipeline, for machines without a screen.

Viewers never slow the pipeline down.
"""

from __future__ import annotations

import secrets
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import cv2

from ...errors import InputError
from ...plugins.settings import MAX_OUT_SIDE
from ..pipeline.pipeline import Pipeline
from ..pipeline.result import Result
from ..segmenter import Segmenter
from .web_server import WebServer, is_loopback

DEFAULT_ADDRESS = "127.0.0.1:8765"
_JPEG_QUALITY = 80
_SILENT_S = 2.0  # age of the newest frame from which the page shows a note
_MAX_AREA = MAX_OUT_SIDE**2  # as of the option of a segmenter


class Viewer:
    """A sink that serves the newest result on a web page; call ``attach``, then ``start``.

    Args:
        address: "HOST:PORT", "HOST" or ":PORT"; port 0 for any free one. On a loopback address (the default),
            only this machine can open the page. On any other address, viewers need the token in ``url``.
        segmenter: the segmenter, whose thresholds and classes the page can change.

    Raises:
        InputError: the address is malformed, unknown or in use.
    """

    name = "serve"

    def __init__(self, address: str, segmenter: Segmenter) -> None:
        host, port = _host_port(address)
        self.segmenter = segmenter
        self._all_things = segmenter.things
        self._pipeline: Pipeline | None = None
        self._lock = threading.Lock()
        self._newest: Result | None = None
        self.number = 0  # counts results
        self.note = ""
        self.token = None if is_loopback(host) else secrets.token_urlsafe(16)
        try:
            self._server = WebServer(host, port, self)
        except (OSError, OverflowError) as error:
            raise InputError(f"can't serve at {host}:{port}: {error}") from error
        name = _reachable_host(host)
        self.url = f"http://{name}:{self._server.port}/" + (f"?token={self.token}" if self.token else "")

    def attach(self, pipeline: Pipeline) -> None:
        """Set the pipeline whose state the page shows and controls."""
        self._pipeline = pipeline

    def start(self) -> None:
        """Start the server."""
        self._server.start()

    def close(self) -> None:
        """Disconnect all viewers and free the address."""
        self._server.close()

    def write(self, result: Result) -> None:
        """Set the result to show. This is cheap: the server's threads encode images."""
        with self._lock:
            self._newest = result
            self.number += 1
        self._server.notify()

    # -- called in the server's threads

    def jpeg(self) -> tuple[int, bytes]:
        """Return the number of the newest result, and its overlay as JPEG; there must be one."""
        with self._lock:
            number, result = self.number, self._newest
        assert result is not None, "called before the first result"
        assert result.overlay is not None, "the pipeline must draw"
        encoded = cv2.imencode(".jpg", result.overlay, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        return number, encoded.tobytes()

    def event(self) -> dict[str, Any] | None:
        """Return the values that the page shows beside the image; None before the first result."""
        result = self._newest
        if result is None or self._pipeline is None:
            return None
        age_ms = result.age_ms
        instances, stats = result.instances, self._pipeline.stats()
        colors = instances.colors
        rows = [
            {
                "name": instance.title,
                "score": instance.score,
                "area": instance.area,
                "color": "rgb({2}, {1}, {0})".format(*colors[instance.number]),
            }
            for instance in instances
        ]
        return {
            "fps": self._pipeline.recent_fps(),
            "age_ms": age_ms,
            "captured": stats["captured"],
            "dropped": stats["dropped"],
            "note": self._join_notes(age_ms, stats["reconnects"]),
            "instances": rows,
            "stage_ms": instances.stage_ms,
        }

    def _join_notes(self, age_ms: float, reconnects: int) -> str:
        notes = [self.note] if self.note else []
        if age_ms > _SILENT_S * 1e3 and not (self._pipeline and self._pipeline.paused):
            notes.append(f"no new frame for {age_ms / 1e3:.0f} s: the source is lost or slow")
        if reconnects:
            notes.append(f"the source was lost and reopened {reconnects} times")
        return "; ".join(notes)

    def snapshot(self) -> bytes | None:
        """Return the newest overlay as PNG; None before the first result."""
        newest = self._newest
        overlay = None if newest is None else newest.overlay
        return None if overlay is None else cv2.imencode(".png", overlay)[1].tobytes()

    def settings(self) -> dict[str, Any]:
        """Return the settings that the page can change, and the names that it shows."""
        names = self.segmenter.class_names
        return {
            "source": self._pipeline.source.name if self._pipeline else "",
            "paused": self._pipeline.paused if self._pipeline else False,
            "min_score": self.segmenter.min_score,
            "min_area": self.segmenter.min_area or 0,
            "things": list(self.segmenter.things),
            "classes": [{"id": k, "name": names[k]} for k in self._all_things],
        }

    def change(self, settings: Any) -> dict[str, Any]:
        """Change settings and return all of them.

        Args:
            settings: new values of "paused", "min_score" (0..1), "min_area" (pixels) or "things" (class IDs).

        Raises:
            InputError: a name or value is invalid; nothing is changed.
        """
        checks = {
            "paused": lambda v: isinstance(v, bool),
            "min_score": lambda v: _is_number(v) and 0 <= v <= 1,
            "min_area": lambda v: _is_number(v) and 0 <= v <= _MAX_AREA,
            "things": lambda v: isinstance(v, list) and all(_is_id(c) and c in self._all_things for c in v),
        }
        if not isinstance(settings, dict):
            raise InputError("settings must be a JSON object")
        for name, value in settings.items():
            if name not in checks or not checks[name](value):
                raise InputError(f"{name[:40]} can't be {_short_repr(value)}")
        if self._pipeline is not None and "paused" in settings:
            (self._pipeline.pause if settings["paused"] else self._pipeline.resume)()
        if "min_score" in settings:
            self.segmenter.min_score = float(settings["min_score"])
        if "min_area" in settings:
            self.segmenter.min_area = int(settings["min_area"])
        if "things" in settings:
            self.segmenter.things = tuple(dict.fromkeys(settings["things"]))
        return self.settings()


def _short_repr(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python refuses to print a number of more than 4300 digits
        return "so large a number"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _host_port(address: str) -> tuple[str, int]:
    """Split "HOST:PORT", "HOST", ":PORT" or "[IPv6]:PORT"."""
    try:
        parts = urlsplit(f"//{address}" if not address.startswith(":") else f"//127.0.0.1{address}")
        default = urlsplit(f"//{DEFAULT_ADDRESS}")
        port = parts.port if parts.port is not None else default.port
    except ValueError as error:
        raise InputError(f'the address of the web viewer must be "HOST:PORT", got {address!r}') from error
    assert port is not None
    return parts.hostname or "127.0.0.1", port


def _reachable_host(host: str) -> str:
    """Return a host name for the URL: other machines cannot open 0.0.0.0."""
    if host in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing; selects the address of the default route
                return str(probe.getsockname()[0])
            except OSError:
                return socket.gethostname()
    return f"[{host}]" if ":" in host else host
