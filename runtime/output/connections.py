"""Limits on connections to the web viewer: how many there are, and how long each may take for a request."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

REQUEST_SECONDS = 10.0  # from its first byte to its answer; and between two requests
_MAX_CONNECTIONS = 600  # 200 viewers have two each: pictures and events
_FD_SHARE = 0.5  # of the file descriptors that this process may open


class Connections:
    """The open connections. When there are too many, the oldest one that isn't a viewer's makes room."""

    def __init__(self) -> None:
        self._limit = min(_MAX_CONNECTIONS, int(_FD_SHARE * _max_files()))
        self._open: dict[Any, _Connection] = {}  # by transport, oldest first

    def protocol(self, inner: Any) -> asyncio.Protocol:
        """A protocol that hands on to ``inner`` what the limits let through."""
        return _Connection(inner, self)

    def add(self, connection: _Connection) -> bool:
        """Whether there is room for it; another connection may be ended for it."""
        if len(self._open) >= self._limit:
            waiting = [c for c in self._open.values() if not c.streams]
            if not waiting:
                return False
            oldest = next((c for c in waiting if not c.admitted), waiting[0])
            self.remove(oldest)
            oldest.abort()
        self._open[connection.transport] = connection
        return True

    def remove(self, connection: _Connection) -> None:
        self._open.pop(connection.transport, None)

    def begin_request(self, transport: Any) -> None:
        """A request's header has come: its body and answer have their time."""
        if transport in self._open:
            self._open[transport].wait()

    def admit(self, transport: Any) -> None:
        """It belongs to somebody who may see the page."""
        if transport in self._open:
            self._open[transport].admitted = True

    def begin_stream(self, transport: Any) -> None:
        """The answer has no end."""
        if transport in self._open:
            self._open[transport].stream()

    def close(self) -> None:
        for connection in list(self._open.values()):
            connection.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, inner: Any, connections: Connections) -> None:
        self._inner, self._connections = inner, connections
        self.transport: Any = None
        self.admitted = self.streams = self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if not self._connections.add(self):
            self._refused = True
            transport.abort()
            return
        self._inner.connection_made(transport)
        self.wait()

    def wait(self) -> None:
        """Give it its time from now on."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, self.abort)

    def stream(self) -> None:
        self.streams = True
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
