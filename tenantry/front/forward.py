"""Hands requests on to the daemon, and its answers back, as they come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import structlog
from starlette.types import Receive, Scope, Send

from tenantry.http.auth import MARKS, RELAYED_PEER, connection_of
from tenantry.http.listeners import NOTE
from tenantry.http.passing import (
    FAILURES,
    IDLE_SECONDS,
    ClosedWithLoop,
    Stream,
    pass_back,
    request_of,
    target_of,
    while_client_waits,
)
from tenantry.http.problems import unavailable

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

MAX_CONNECTIONS: Final = 1024
MAX_IDLE: Final = 64


class Forward:
    """The daemon's application, at the other end of the relay.

    A request has passed the front's middleware before it comes here. In the daemon it passes the
    same middleware again, with the peer's name as the front has seen it.
    """

    def __init__(self, relay: socket.socket) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            uds="the relay",  # not TCP; a label, not a path
            network_backend=RelayBackend(relay),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=IDLE_SECONDS,
        )
        self._closing = ClosedWithLoop(self._pool)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body is in one piece; give up when its client has gone."""
        message = await receive()
        if message["type"] != "http.request":
            return
        self._closing.watch()
        request = _request(scope, message.get("body", b""))
        await while_client_waits(self._pass(request, send), receive)

    async def _pass(self, request: httpcore.Request, send: Send) -> None:
        try:
            response = await self._pool.handle_async_request(request)
        except FAILURES as error:
            # The front can't know whether the daemon carried the request out; a repetition is
            # recognized by its idempotency key or message ids.
            _log.warning("front.daemon_does_not_answer", error=f"{type(error).__name__}: {error}")
            problem = unavailable("the daemon does not answer; try again", code="no-answer")
            await problem.response()({"type": "http", "method": "GET"}, _nothing, send)
            return
        await pass_back(response, send)


def _request(scope: Scope, body: bytes) -> httpcore.Request:
    # A request that another node hands on keeps its marks on the way through the front.
    add = [pair for pair in scope["headers"] if pair[0].lower() in MARKS]
    add.append((RELAYED_PEER, connection_of(scope).peer.encode()))
    url = httpcore.URL(scheme=b"http", host=b"daemon", port=None, target=target_of(scope))
    return request_of(scope, body, url=url, add=add)


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
        return Stream(reader, writer)

    async def _pass_on(self, theirs: socket.socket) -> None:
        async with self._turn:
            while True:
                try:
                    socket.send_fds(self._far, [NOTE], [theirs.fileno()])
                except BlockingIOError:
                    await _writable(self._far)
                else:
                    return


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
