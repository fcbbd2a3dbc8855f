"""A small web page that shows a pipeline at work: for robots, which have no screen. Several may look; none
slows the pipeline."""

from __future__ import annotations

import secrets
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import cv2

from ...errors import InputError
from ..pipeline.pipeline import Pipeline
from ..pipeline.result import Result
from ..segmenter import Segmenter
from .web_server import WebServer, is_loopback

DEFAULT_ADDRESS = "127.0.0.1:8765"
_JPEG_QUALITY = 80
_LOST_S = 2.0
_MOST_AREA = (1 << 30) - 1


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
        self._lock = threading.Lock()
        self._newest: Result | None = None
        self.number = 0  # of the newest result
        self.note = ""
        self.token = None if is_loopback(host) else secrets.token_urlsafe(16)
        try:
            self._server = WebServer(host, port, self)
        except (OSError, OverflowError) as wrong:
            raise InputError(f"can't serve at {host}:{port}: {wrong}") from wrong
        shown = _reachable_name(host)
        self.url = f"http://{shown}:{self._server.port}/" + (f"?token={self.token}" if self.token else "")

    def attach(self, pipeline: Pipeline) -> None:
        """The pipeline that is shown and paused."""
        self._pipeline = pipeline

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        """Send all viewers away and free the address."""
        self._server.close()

    def write(self, result: Result) -> None:
        """Show this result from now on. It costs nothing: pictures are encoded in the server's threads."""
        with self._lock:
            self._newest = result
            self.number += 1
        self._server.notify()

    # -- for the server's threads

    def jpeg(self) -> tuple[int, bytes]:
        """The newest picture, with its number; there must be one."""
        with self._lock:
            number, result = self.number, self._newest
        assert result is not None, "asked before the first result"
        assert result.overlay is not None, "the pipeline must draw"
        encoded = cv2.imencode(".jpg", result.overlay, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        return number, encoded.tobytes()

    def event(self) -> dict[str, Any] | None:
        """What the page shows beside the picture; None before the first one."""
        result = self._newest
        if result is None or self._pipeline is None:
            return None
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
        return {
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
            "things": lambda v: isinstance(v, list) and all(_is_id(c) and c in self._all_things for c in v),
        }
        if not isinstance(wanted, dict):
            raise InputError("settings come as a JSON object")
        for name, value in wanted.items():
            if name not in checks or not checks[name](value):
                raise InputError(f"{name[:40]} can't be {_shown(value)}")
        if self._pipeline is not None and "paused" in wanted:
            (self._pipeline.pause if wanted["paused"] else self._pipeline.resume)()
        if "min_score" in wanted:
            self.segmenter.min_score = float(wanted["min_score"])
        if "min_area" in wanted:
            self.segmenter.min_area = int(wanted["min_area"])
        if "things" in wanted:
            self.segmenter.things = tuple(dict.fromkeys(wanted["things"]))
        return self.settings()


def _shown(value: Any) -> str:
    """A value for a message; a number may have too many digits to be written."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "so large a number"


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
