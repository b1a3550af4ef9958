"""Handing requests on to another process: what of a request is sent, what of its answer comes back.

A request that is handed on has passed the middleware here, and passes the same one again there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

import httpcore
from starlette.types import Receive, Scope, Send

from tenantry.http.auth import CALLER, MARKS, RELAYED_PEER
from tenantry.http.middleware import CORRELATION_HEADER, correlation_id_of
from tenantry.http.problems import BrokenOffError
from tenantry.unixpath import addressed

CONNECT_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 20.0
"""Shorter than the server's keep-alive, lest a request is sent on a connection that it closes."""

# Hop-by-hop headers, those set anew for the next connection, and those not for clients to set.
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
        CALLER,
    }
)
_NOT_BACK: Final = frozenset({b"connection", b"date", b"keep-alive", b"transfer-encoding"})

FAILURES: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
"""The errors of a request at the other end of a connection."""


def target_of(scope: Scope) -> bytes:
    """Give a request's target, as its client has written it."""
    target: bytes = scope["raw_path"]
    return target + b"?" + scope["query_string"] if scope["query_string"] else target


def request_of(
    scope: Scope,
    body: bytes,
    *,
    url: httpcore.URL,
    add: Iterable[tuple[bytes, bytes]],
    without: Collection[bytes] = (),
) -> httpcore.Request:
    """Make the request to hand on, without some of the client's headers and with others instead."""
    left = {*_HOP, *MARKS, *without}
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in left]
    headers += [(CORRELATION_HEADER.encode(), correlation_id_of(scope).encode()), *add]
    if body or scope["method"] not in {"GET", "HEAD", "DELETE"}:
        headers.append((b"Content-Length", b"%d" % len(body)))
    return httpcore.Request(
        scope["method"],
        url,
        headers=headers,
        content=body,
        extensions={"timeout": {"connect": CONNECT_SECONDS, "write": WRITE_SECONDS}},
    )


async def pass_back(response: httpcore.Response, send: Send) -> None:
    """Give an answer to the client as it comes, and close it.

    An answer without a length, a stream, ends when the other end breaks it off. Any other one
    that is broken off raises `BrokenOffError`.
    """
    try:
        headers = [pair for pair in response.headers if pair[0].lower() not in _NOT_BACK]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        assert isinstance(response.stream, AsyncIterable)  # noqa: S101 - of an async pool
        try:
            async for part in response.stream:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except FAILURES as error:
            if any(name.lower() == b"content-length" for name, _ in headers):
                raise BrokenOffError(f"{type(error).__name__}: {error}") from error
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        await response.aclose()


async def while_client_waits(passing: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run a task for a client whose request has been read; cancel it if the client disconnects."""
    doing = asyncio.create_task(passing)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        gone.cancel()
        doing.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ClosedWithLoop:
    """Closes a connection pool when the event loop cancels its tasks at the end."""

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._pool = pool
        self._closer: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Start, on the event loop; a second call does nothing."""
        if self._closer is None:
            self._closer = asyncio.create_task(self._close())

    async def _close(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self._pool.aclose()


class SocketBackend(httpcore.AsyncNetworkBackend):
    """Connects to Unix sockets, also where their paths exceed the kernel's limit."""

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - none apply
    ) -> httpcore.AsyncNetworkStream:
        """Make a connection."""
        try:
            with addressed(Path(path)) as address:
                async with asyncio.timeout(timeout):
                    return Stream(*await asyncio.open_unix_connection(address))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{path} takes no connection") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error


class Stream(httpcore.AsyncNetworkStream):
    """A connection with the interface of httpcore."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read what has arrived; nothing at the end of the stream."""
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("the other end is silent") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write it all."""
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("the other end reads nothing") from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close it; bytes not sent by now would be no whole request."""
        self._writer.transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Tell whether the other end has closed an idle connection."""
        return self._reader.at_eof() if info == "is_readable" else None
