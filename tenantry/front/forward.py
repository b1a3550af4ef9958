"""Hands requests on to the daemon, and its answers back, as they come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable
from typing import Final

import httpcore
import structlog
from starlette.types import Receive, Scope, Send

from tenantry.front.relayed import RelayBackend
from tenantry.http.connection import RELAYED_PEER, connection_of
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
