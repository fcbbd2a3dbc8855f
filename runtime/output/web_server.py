"""The HTTP server of the web viewer: aiohttp in its own thread, with limits on each connection."""

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
_SILENT_S = 0.5  # without a new result, after which the page gets the age of the last one
_STUCK_S = 10.0  # without reading, after which a viewer is disconnected
_SEND_BUFFER_BYTES = 1 << 16  # small, because buffered frames get old: slow networks had better skip frames
_MAX_BODY_BYTES = 10_000
_MAX_ERROR_CHARACTERS = 300
_STOP_SECONDS = 5.0
_TOO_LARGE = f"the request must have at most {_MAX_BODY_BYTES} bytes"
_OTHER_SITE = "requests from other sites are refused"

_HOST = re.compile(r"[\w.-]+(:\d*)?|\[[\da-fA-F:.]+\](:\d*)?", re.ASCII)

_log = logging.getLogger("tfiseg")
_quiet = logging.getLogger("tfiseg.aiohttp")  # malformed requests of strangers are not logged
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class Backend(Protocol):
    """The interface of ``Viewer`` that the server uses."""

    token: str | None
    number: int

    def jpeg(self) -> tuple[int, bytes]: ...
    def event(self) -> dict[str, Any] | None: ...
    def snapshot(self) -> bytes | None: ...
    def settings(self) -> dict[str, Any]: ...
    def change(self, settings: Any) -> dict[str, Any]: ...


class WebServer:
    """A server of the page, its image stream, its events and its settings.

    Args:
        port: port; 0 for any free one.

    Raises:
        OSError: the address cannot be used.
        OverflowError: the port is out of range.
        MissingDependencyError: aiohttp is missing.
    """

    def __init__(self, host: str, port: int, backend: Backend) -> None:
        try:
            import aiohttp  # noqa: F401 - a missing package is an error before the pipeline starts
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
        self._image: asyncio.Future[tuple[int, bytes]] | None = None
        self._event_text, self._event_at = "", 0.0

    # -- called from other threads

    def start(self) -> None:
        """Start the server's thread."""
        self._thread.start()
        self._ready.wait(_STOP_SECONDS)

    def notify(self) -> None:
        """Announce a new result."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake_handlers)

    def close(self) -> None:
        """Disconnect all viewers and free the address."""
        self._closed = True
        self.notify()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        self._socket.close()
        self._encoders.shutdown(wait=False)

    # -- called in the server's thread

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from aiohttp import web

        self._loop = asyncio.get_running_loop()
        self._new_result = asyncio.Event()
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
        create_protocol = runner.server
        assert create_protocol is not None
        server = await self._loop.create_server(
            lambda: self._connections.protocol(create_protocol()), sock=self._socket, backlog=_BACKLOG
        )
        self._ready.set()
        while not self._closed:
            await self._new_result.wait()
        server.close()
        await asyncio.sleep(0)  # lets the streams end
        self._connections.close()
        await runner.cleanup()

    def _wake_handlers(self) -> None:
        event, self._new_result = self._new_result, asyncio.Event()
        event.set()

    def _middleware(self) -> Any:
        from aiohttp import web

        @web.middleware
        async def respond(
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
                    response = self._text(413, _TOO_LARGE)
                except web.HTTPException as error:
                    texts = {404: "there is no such page", 405: "this page does not support the method"}
                    response = self._text(error.status, texts.get(error.status, error.reason))
                except ConnectionError:  # the viewer disconnected
                    raise
                except Exception:
                    _log.exception("the web viewer failed to answer %s", request.path)
                    response = self._text(500, "the request failed: see the log of tfiseg")
            if not response.prepared:
                self._add_headers(response)
            return response

        return respond

    def _add_headers(self, response: web.StreamResponse) -> None:
        response.headers["Server"] = "tfiseg"
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"  # the URL may contain the token
        response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        if response.status == 200 and self._backend.token:
            cookie = f"{self._cookie_name}={self._backend.token}; HttpOnly; SameSite=Strict"
            response.headers["Set-Cookie"] = cookie

    @property
    def _cookie_name(self) -> str:
        return f"tfiseg-{self.port}"  # cookies are shared by all ports, and a robot may have two cameras

    def _refusal(self, request: web.Request) -> tuple[int, str] | None:
        """Return the status and the reason if a request must be refused.

        On loopback, pages of other sites must not get access through the user's browser: by a host name of
        theirs (Host), by a form (Origin), or by embedding this page (Sec-Fetch-Site, frame-ancestors).
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
                return 403, _OTHER_SITE
        if any(
            s.strip().lower() not in ("same-origin", "none")
            for s in request.headers.getall("Sec-Fetch-Site", [])
        ):
            return 403, _OTHER_SITE
        token = self._backend.token
        if token is None:
            return None if is_loopback(name) else (403, "only this machine can open this address")
        given = request.query.get("token", "") or self._cookie(request)
        if not hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            return 403, "this page needs the token in the URL that `tfiseg view` printed"
        return None

    def _cookie(self, request: web.Request) -> str:
        parts = (p.strip().partition("=") for p in request.headers.get("Cookie", "").split(";"))
        return next((value for name, _, value in parts if name == self._cookie_name), "")

    def _text(self, status: int, text: str) -> web.Response:
        from aiohttp import web

        body = text[:_MAX_ERROR_CHARACTERS].encode("utf-8", "replace")
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
            return self._text(413, _TOO_LARGE)
        body = await request.read()
        try:
            return self._json(self._backend.change(json.loads(body, parse_constant=_refuse_constant)))
        except InputError as error:
            return self._text(400, str(error))
        except (ValueError, RecursionError) as error:  # no JSON or UTF-8, or too many digits or brackets
            return self._text(400, f"settings must be a JSON object: {error}")

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        image = await asyncio.get_running_loop().run_in_executor(self._encoders, self._backend.snapshot)
        if image is None:
            return self._text(503, "there is no image yet")
        name = f"tfiseg-{time.strftime('%Y%m%d-%H%M%S')}.png"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return web.Response(body=image, content_type="image/png", headers=headers)

    async def _begin_stream(self, request: web.Request, content_type: str) -> web.StreamResponse:
        from aiohttp import web

        self._connections.begin_stream(request.transport)
        if request.transport is not None:
            request.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES
            )
        response = web.StreamResponse(headers={"Content-Type": content_type})
        response.force_close()
        self._add_headers(response)
        await response.prepare(request)
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = await self._begin_stream(request, "multipart/x-mixed-replace; boundary=frame")
        number = 0
        while (newest := await self._next_image(number)) is not None:
            number, part = newest
            await _send(request, response, part)
        return response

    async def _next_image(self, after: int) -> tuple[int, bytes] | None:
        """Return the newest image after this number, encoded once for all viewers; None at the end."""
        while self._backend.number <= after and not self._closed:
            await self._new_result.wait()
        if self._closed:
            return None
        image = self._image
        if image is None or (
            image.done() and (image.exception() or image.result()[0] < self._backend.number)
        ):
            loop = asyncio.get_running_loop()
            image = self._image = loop.run_in_executor(self._encoders, self._encode)
        return await asyncio.shield(image)

    def _encode(self) -> tuple[int, bytes]:
        number, jpeg = self._backend.jpeg()
        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
        return number, head + jpeg + b"\r\n"

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = await self._begin_stream(request, "text/event-stream")
        number = 0
        while not self._closed:
            if self._backend.number <= number:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._new_result.wait(), _SILENT_S)
            number = self._backend.number
            now = time.monotonic()
            if now - self._event_at > 0.5 / _EVENTS_PER_S:  # all viewers get the same text
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
            request.transport.abort()  # close() would wait until the buffer is sent
        raise ConnectionResetError("the viewer does not read") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")


def _host_name(host: str) -> str | None:
    """Return the name in a Host header without the port, or None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        malformed = not _HOST.fullmatch(host) or (parts.port is None and host.endswith(":"))
    except ValueError:
        return None
    return None if malformed else parts.hostname


def _origin_host(origin: str) -> str | None:
    """Return the host and port of an Origin header in lower case, "" if null, None if malformed."""
    if origin == "null":
        return ""
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018 - raises ValueError if malformed
    except ValueError:
        return None
    if not parts.scheme or parts.path or parts.query or parts.fragment:
        return None
    return parts.netloc.lower()


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
