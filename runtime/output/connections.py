"""Limits on the number of connections to the web viewer and on the time of each request."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

REQUEST_SECONDS = 10.0  # from the first byte of a request to its response, and between two requests
_MAX_CONNECTIONS = 600  # 200 viewers with two connections each, for images and events, and a reserve
_FD_SHARE = 0.5  # of the file descriptors that this process may open


class Connections:
    """The open connections. Above the limit, the oldest one that is not a viewer's stream is closed."""

    def __init__(self) -> None:
        self._limit = min(_MAX_CONNECTIONS, int(_FD_SHARE * _max_files()))
        self._open: dict[Any, _Connection] = {}  # by transport, oldest first

    def protocol(self, inner: Any) -> asyncio.Protocol:
        """Return a protocol that enforces the limits in front of ``inner``."""
        return _Connection(inner, self)

    def add(self, connection: _Connection) -> bool:
        """Add a connection, closing another one if needed; return False if there is no room."""
        if len(self._open) >= self._limit:
            candidates = [c for c in self._open.values() if not c.is_stream]
            if not candidates:
                return False
            oldest = next((c for c in candidates if not c.is_admitted), candidates[0])
            self.remove(oldest)
            oldest.abort()
        self._open[connection.transport] = connection
        return True

    def remove(self, connection: _Connection) -> None:
        self._open.pop(connection.transport, None)

    def begin_request(self, transport: Any) -> None:
        """Restart the time limit once the header of a request has arrived."""
        if transport in self._open:
            self._open[transport].start_timer()

    def admit(self, transport: Any) -> None:
        """Mark the connection of an authorized viewer."""
        if transport in self._open:
            self._open[transport].is_admitted = True

    def begin_stream(self, transport: Any) -> None:
        """Remove the time limit of an endless response."""
        if transport in self._open:
            self._open[transport].begin_stream()

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open.values()):
            connection.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, inner: Any, connections: Connections) -> None:
        self._inner, self._connections = inner, connections
        self.transport: Any = None
        self.is_admitted = self.is_stream = self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if not self._connections.add(self):
            self._refused = True
            transport.abort()
            return
        self._inner.connection_made(transport)
        self.start_timer()

    def start_timer(self) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, self.abort)

    def begin_stream(self) -> None:
        self.is_stream = True
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        self._stop_timer()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._refused else self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        self._connections.remove(self)
        if not self._refused:
            self._inner.connection_lost(error)


def _max_files() -> int:
    with contextlib.suppress(ImportError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return soft if soft != resource.RLIM_INFINITY else 1 << 20
    return 1024
