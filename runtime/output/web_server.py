"""The web viewer's HTTP server: aiohttp in a thread of its own, with limits on what one visitor can hold."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ...errors import InputError, MissingDependencyError
from ...schema import to_json
from .connections import REQUEST_SECONDS, Connections

if TYPE_CHECKING:
    from aiohttp import web

_PAGE = Path(__file__).with_name("web_viewer.html")
_BACKLOG = 128
_EVENTS_PER_S = 8
_SILENT_S = 0.5  # without a new result, after which the page is told how old the last one has got
_STUCK_S = 10.0  # a viewer that takes nothing for so long is let go
_SEND_BUFFER_BYTES = (
    1 << 16
)  # what lies in a socket's buffer gets old: on a slow network, frames are better skipped
_MAX_BODY_BYTES = 10_000
_MAX_ERROR_CHARACTERS = 300
_STOP_SECONDS = 5.0

_HOST = re.compile(r"[\w.-]+(:\d*)?|\[[\da-fA-F:.]+\](:\d*)?", re.ASCII)

_log = logging.getLogger("tfiseg")
_quiet = logging.getLogger("tfiseg.aiohttp")  # what strangers send is no news
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class Backend(Protocol):
    """What the server shows: the viewer."""

    token: str | None
    number: int

    def jpeg(self) -> tuple[int, bytes]: ...
    def event(self) -> dict[str, Any] | None: ...
    def snapshot(self) -> bytes | None: ...
    def settings(self) -> dict[str, Any]: ...
    def change(self, wanted: Any) -> dict[str, Any]: ...


class WebServer:
    """Answers requests for the page, its stream of pictures, its events and its settings.

    Args:
        host, port: to listen at; port 0: any free one.
        backend: what is shown.

    Raises:
        OSError, OverflowError: the address can't be listened at. MissingDependencyError: aiohttp is missing.
    """

    def __init__(self, host: str, port: int, backend: Backend) -> None:
        try:
            import aiohttp  # noqa: F401 - missing, it is named before the pipeline starts
        except ImportError as missing:
            raise MissingDependencyError(
                'the web viewer needs aiohttp: pip install ".[live]" in the repository'
            ) from missing
        self._backend = backend
        self._socket = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
        self.port: int = self._socket.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tfiseg-serve", daemon=True)
        self._connections = Connections()
        self._encoders = ThreadPoolExecutor(2, "tfiseg-page")
        self._picture: asyncio.Future[tuple[int, bytes]] | None = None
        self._event_text, self._event_at = "", 0.0

    # -- from other threads

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(_STOP_SECONDS)

    def notify(self) -> None:
        """There is a new result."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell)

    def close(self) -> None:
        """Send all viewers away and free the address."""
        self._closed = True
        self.notify()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        self._socket.close()
        self._encoders.shutdown(wait=False)

    # -- in the server's thread

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from aiohttp import web

        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._middleware()])
        for path, handler in (
            ("/", self._page),
            ("/stream", self._stream),
            ("/events", self._events),
            ("/settings", self._settings),
            ("/snapshot", self._snapshot),
        ):
            app.router.add_get(path, handler, allow_head=False)
        app.router.add_post("/control", self._control)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_quiet,
            handler_cancellation=True,
            keepalive_timeout=REQUEST_SECONDS,
            lingering_time=1.0,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        make = runner.server
        assert make is not None
        server = await self._loop.create_server(
            lambda: self._connections.protocol(make()), sock=self._socket, backlog=_BACKLOG
        )
        self._ready.set()
        while not self._closed:
            await self._news.wait()
        server.close()
        await asyncio.sleep(0)  # viewers hear of the end
        self._connections.close()
        await runner.cleanup()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _middleware(self) -> Any:
        from aiohttp import web

        @web.middleware
        async def answered(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            self._connections.begin_request(request.transport)
            refusal = self._refusal(request)
            if refusal is not None:
                response: web.StreamResponse = self._text(*refusal)
            else:
                self._connections.admit(request.transport)
                try:
                    response = await handler(request)
                except web.HTTPRequestEntityTooLarge:
                    response = self._text(413, "settings are short")
                except web.HTTPException as wrong:
                    known = {404: "there is no such page", 405: "this page has no such method"}
                    response = self._text(wrong.status, known.get(wrong.status, wrong.reason))
                except ConnectionError:  # a viewer that went away is no error
                    raise
                except Exception:
                    _log.exception("the page could not answer %s", request.path)
                    response = self._text(500, "the page could not be made: see the log")
            if not response.prepared:
                self._add_headers(response)
            return response

        return answered

    def _add_headers(self, response: web.StreamResponse) -> None:
        response.headers["Server"] = "tfiseg"
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"  # the address may hold the token
        response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        if response.status == 200 and self._backend.token:
            cookie = f"{self._cookie_name}={self._backend.token}; HttpOnly; SameSite=Strict"
            response.headers["Set-Cookie"] = cookie

    @property
    def _cookie_name(self) -> str:
        return f"tfiseg-{self.port}"  # cookies know no ports, and a robot may have two cameras

    def _refusal(self, request: web.Request) -> tuple[int, str] | None:
        """Status and reason if this request must not be answered.

        On loopback, other sites' pages must not get in through the user's browser, under a name of theirs
        (Host), by a form (Origin) or as a part of theirs (Sec-Fetch-Site; and no page may frame this one).
        """
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        host = hosts[0] if len(hosts) == 1 else ""
        name = _host_name(host)
        if name is None:
            return 400, "the header Host must be one HOST or HOST:PORT"
        if origins:
            origin = _origin_host(origins[0]) if len(origins) == 1 else None
            if origin is None:
                return 400, "the header Origin must be one SCHEME://HOST:PORT"
            if origin != host.lower():
                return 403, "requests of other pages aren't answered"
        if any(
            s.strip().lower() not in ("same-origin", "none")
            for s in request.headers.getall("Sec-Fetch-Site", [])
        ):
            return 403, "requests of other pages aren't answered"
        token = self._backend.token
        if token is None:
            return None if is_loopback(name) else (403, "this address is for this machine only")
        asked = request.query.get("token", "") or self._cookie(request)
        if not hmac.compare_digest(asked.encode("utf-8", "replace"), token.encode()):
            return 403, "this page needs the token that `tfiseg view` printed"
        return None

    def _cookie(self, request: web.Request) -> str:
        parts = (p.strip().partition("=") for p in request.headers.get("Cookie", "").split(";"))
        return next((value for name, _, value in parts if name == self._cookie_name), "")

    def _text(self, status: int, why: str) -> web.Response:
        from aiohttp import web

        body = why[:_MAX_ERROR_CHARACTERS].encode("utf-8", "replace")
        return web.Response(body=body, status=status, content_type="text/plain", charset="utf-8")

    def _json(self, value: Any) -> web.Response:
        from aiohttp import web

        return web.Response(body=to_json(value).encode(), content_type="application/json")

    # -- pages

    async def _page(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        return web.Response(body=_PAGE.read_bytes(), content_type="text/html", charset="utf-8")

    async def _settings(self, request: web.Request) -> web.StreamResponse:
        return self._json(self._backend.settings())

    async def _control(self, request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > _MAX_BODY_BYTES:
            return self._text(413, "settings are short")
        body = await request.read()
        try:
            return self._json(self._backend.change(json.loads(body, parse_constant=_no_constant)))
        except InputError as wrong:
            return self._text(400, str(wrong))
        except (
            ValueError,
            RecursionError,
        ) as wrong:  # no JSON, no UTF-8, a number of 5000 digits, 2000 brackets
            return self._text(400, f"settings come as a JSON object: {wrong}")

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        picture = await asyncio.get_running_loop().run_in_executor(self._encoders, self._backend.snapshot)
        if picture is None:
            return self._text(503, "there is no picture yet")
        name = f"tfiseg-{time.strftime('%Y%m%d-%H%M%S')}.png"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return web.Response(body=picture, content_type="image/png", headers=headers)

    async def _begin_stream(self, request: web.Request, kind: str) -> web.StreamResponse:
        from aiohttp import web

        self._connections.begin_stream(request.transport)
        if request.transport is not None:
            request.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES
            )
        response = web.StreamResponse(headers={"Content-Type": kind})
        response.force_close()
        self._add_headers(response)
        await response.prepare(request)
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = await self._begin_stream(request, "multipart/x-mixed-replace; boundary=frame")
        number = 0
        while (newest := await self._next_picture(number)) is not None:
            number, part = newest
            await _send(request, response, part)
        return response

    async def _next_picture(self, after: int) -> tuple[int, bytes] | None:
        """Return the newest picture after this number, encoded once for all viewers; None at the end."""
        while self._backend.number <= after and not self._closed:
            await self._news.wait()
        if self._closed:
            return None
        picture = self._picture
        if picture is None or (
            picture.done() and (picture.exception() or picture.result()[0] < self._backend.number)
        ):
            loop = asyncio.get_running_loop()
            picture = self._picture = loop.run_in_executor(self._encoders, self._encoded)
        return await asyncio.shield(picture)

    def _encoded(self) -> tuple[int, bytes]:
        number, jpeg = self._backend.jpeg()
        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
        return number, head + jpeg + b"\r\n"

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = await self._begin_stream(request, "text/event-stream")
        number = 0
        while not self._closed:
            if self._backend.number <= number:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _SILENT_S)
            number = self._backend.number
            now = time.monotonic()
            if now - self._event_at > 0.5 / _EVENTS_PER_S:  # one text for all viewers
                event = self._backend.event()
                self._event_text = "" if event is None else f"data: {to_json(event)}\n\n"
                self._event_at = now
            await _send(request, response, (self._event_text or ":\n\n").encode())
            await asyncio.sleep(1 / _EVENTS_PER_S)
        return response


async def _send(request: web.Request, response: web.StreamResponse, content: bytes) -> None:
    try:
        await asyncio.wait_for(response.write(content), _STUCK_S)
    except (asyncio.TimeoutError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()  # closing it would wait until what lies in its buffer is taken
        raise ConnectionResetError("the viewer takes nothing") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        malformed = not _HOST.fullmatch(host) or (parts.port is None and host.endswith(":"))
    except ValueError:
        return None
    return None if malformed else parts.hostname


def _origin_host(origin: str) -> str | None:
    """Return host and port of an Origin header in lower case; "" without a host, None if malformed."""
    if origin == "null":
        return ""
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018 - raises ValueError if it is none
    except ValueError:
        return None
    if not parts.scheme or parts.path or parts.query or parts.fragment:
        return None
    return parts.netloc.lower()


def is_loopback(host: str) -> bool:
    """Whether a name or address in a URL is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
