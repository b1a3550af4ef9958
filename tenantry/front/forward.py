"""Hands requests on to the daemon, and its answers back, as they come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable, Iterable
from typing import Any, Final

import httpcore
import structlog
from starlette.types import Receive, Scope, Send

from tenantry.http.auth import RELAYED_PEER, connection_of
from tenantry.http.listeners import NOTE
from tenantry.http.middleware import CORRELATION_HEADER, correlation_id_of
from tenantry.http.problems import unavailable

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

MAX_CONNECTIONS: Final = 1024
MAX_IDLE: Final = 64
IDLE_SECONDS: Final = 20.0
"""Shorter than the daemon keeps a connection that nobody uses, lest a request meet its end."""

CONNECT_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 30.0

# They are between two ends of one connection, or are said anew on the next.
_HOP: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        CORRELATION_HEADER.lower().encode(),
        RELAYED_PEER,
    }
)
_NOT_BACK: Final = frozenset({b"connection", b"date", b"keep-alive", b"transfer-encoding"})


class Forward:
    """The daemon's application, at the other end of the relay.

    Who is answered by it has passed everything that stands before the application here; there it
    passes the same again, with the peer's name as the front has seen it.
    """

    def __init__(self, relay: socket.socket) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            uds="the relay",  # no TCP; it is no path
            network_backend=RelayBackend(relay),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=IDLE_SECONDS,
        )
        self._closer: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body is in one piece; give up when its client has gone."""
        message = await receive()
        if message["type"] != "http.request":
            return
        if self._closer is None:
            self._closer = asyncio.create_task(self._close())
        request = _request(scope, message.get("body", b""))
        passing = asyncio.create_task(self._pass(request, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({passing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            gone.cancel()
            passing.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)

    async def _close(self) -> None:
        """Close the connections when the event loop cancels its tasks, at the end."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._pool.aclose()

    async def _pass(self, request: httpcore.Request, send: Send) -> None:
        try:
            response = await self._pool.handle_async_request(request)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            # Whether it was carried out is not known here; keys and message ids tell a repetition.
            _log.warning("front.daemon_does_not_answer", error=f"{type(error).__name__}: {error}")
            problem = unavailable("the daemon does not answer; try again", code="no-answer")
            await problem.response()({"type": "http", "method": "GET"}, _nothing, send)
            return
        try:
            headers = [pair for pair in response.headers if pair[0].lower() not in _NOT_BACK]
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
            assert isinstance(response.stream, AsyncIterable)  # noqa: S101 - of an async pool
            async for part in response.stream:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await response.aclose()


def _request(scope: Scope, body: bytes) -> httpcore.Request:
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in _HOP]
    headers += [
        (CORRELATION_HEADER.encode(), correlation_id_of(scope).encode()),
        (RELAYED_PEER, connection_of(scope).peer.encode()),
    ]
    if body or scope["method"] not in {"GET", "HEAD", "DELETE"}:
        headers.append((b"Content-Length", b"%d" % len(body)))
    return httpcore.Request(
        scope["method"],
        httpcore.URL(scheme=b"http", host=b"daemon", port=None, target=target),
        headers=headers,
        content=body,
        extensions={"timeout": {"connect": CONNECT_SECONDS, "write": WRITE_SECONDS}},
    )


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> dict[str, object]:
    return {"type": "http.disconnect"}


class RelayBackend(httpcore.AsyncNetworkBackend):
    """Makes an HTTP client's connections over the far end of a relay."""

    def __init__(self, far: socket.socket) -> None:
        self._far = far
        self._turn = asyncio.Lock()

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - there is none
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - none apply
    ) -> httpcore.AsyncNetworkStream:
        """Make a connection, waiting where the daemon is slow to take those before it."""
        try:
            mine, theirs = socket.socketpair()
            try:
                mine.setblocking(False)
                async with asyncio.timeout(timeout):
                    await self._pass_on(theirs)
                    reader, writer = await asyncio.open_connection(sock=mine)
            except BaseException:
                mine.close()
                raise
            finally:
                theirs.close()
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("the daemon takes no connection") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(reader, writer)

    async def _pass_on(self, theirs: socket.socket) -> None:
        async with self._turn:
            while True:
                try:
                    socket.send_fds(self._far, [NOTE], [theirs.fileno()])
                except BlockingIOError:
                    await _writable(self._far)
                else:
                    return


class _Stream(httpcore.AsyncNetworkStream):
    """A connection as httpcore wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read what there is; nothing at the end."""
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("the daemon is silent") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write it all."""
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("the daemon reads nothing") from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close it; what is not sent by now is no whole request."""
        self._writer.transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Tell whether an idle connection has come to its end."""
        return self._reader.at_eof() if info == "is_readable" else None


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
