"""A node's connections to other nodes: for its clients' requests, and for its own.

A control socket trusts its peers. So a request is authenticated and authorised before it is handed
on; a header, trusted from nodes alone, names its caller, whose rights the other node checks again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import orjson
import structlog
from starlette.types import Scope

from tenantry.api.tracing import trace_of
from tenantry.http.auth import (
    HANDED_ON,
    MEANT_FOR,
    Listener,
    caller_header,
    connection_of,
    principal_of,
)
from tenantry.http.middleware import CORRELATION_HEADER, correlation_id_of
from tenantry.http.passing import (
    CONNECT_SECONDS,
    FAILURES,
    IDLE_SECONDS,
    WRITE_SECONDS,
    ClosedWithLoop,
    SocketBackend,
    request_of,
    target_of,
)
from tenantry.http.problems import Problem, unavailable
from tenantry.http.tokens import Scope as TokenScope
from tenantry.http.tokens import Tokens
from tenantry.nodes.joining import this_machine
from tenantry.nodes.port import Introduction

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

MAX_CONNECTIONS: Final = 512
MAX_IDLE: Final = 32
SILENT_SECONDS: Final = 100.0
"""Longer than any answer takes to begin, and longer than a stream is silent."""

TOKEN_LIFE: Final = timedelta(minutes=1)
ASK_SECONDS: Final = 2.0
"""Seconds another node may take for a request of this node's own."""

_NEVER_BEGUN: Final = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)


class UnreachableError(Exception):
    """Another node can't be reached; nothing of the request was sent."""

    def __init__(self, node: str, where: str, reason: str) -> None:
        super().__init__(
            f"node {node} can't be reached at {where} ({reason}): see that it runs, and that "
            "node.address there is a URL that this node can reach"
        )


class Peers:
    """Connections from the node `name` to the others. Used on one event loop."""

    def __init__(
        self,
        name: str,
        introduction: Callable[[str], Introduction | None],
        *,
        tokens: Callable[[], Tokens | None] = lambda: None,
        trusted: Sequence[Path] = (),
    ) -> None:
        """`tokens` gives the issuer of tokens for callers without one, if there is one.

        `trusted` are files of nodes' certificates.
        """
        self._name = name
        self._introduction = introduction
        self._tokens = tokens
        self._trusted = trusted
        self._machine = this_machine()
        self._pools: dict[str, tuple[httpcore.AsyncConnectionPool, ClosedWithLoop]] = {}

    def is_here(self, node: str) -> bool:
        """Tell whether a node is on this machine."""
        there = self._introduction(node)
        return there is not None and there.machine == self._machine

    async def send(self, node: str, scope: Scope, body: bytes) -> httpcore.Response:
        """Hand a request on to a node and give its answer, whose body is still to come.

        Raises `UnreachableError`, and `Problem` if the request may have been carried out.
        """
        where, url, headers = self._way(node, scope, target_of(scope))
        without = {b"host", b"origin", b"cookie"}
        if not self._keeps_token(node, scope):
            without.add(b"authorization")
        if (trace := trace_of(scope)) is not None:
            carried = trace.headers()
            without |= {b"traceparent", b"tracestate"}
            headers += [(name.encode(), value.encode()) for name, value in carried.items()]
        request = request_of(scope, body, url=url, add=headers, without=without)
        return await self._send(node, where, request)

    async def ask(
        self, node: str, scope: Scope, method: str, path: str, body: object = None
    ) -> Any:
        """Make a request to a node in the caller's name; give its JSON, or None if it fails."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._ask(node, scope, method, path, body)
        except (TimeoutError, UnreachableError, Problem, ValueError, *FAILURES) as error:
            _log.warning("api.node_does_not_answer", node=node, error=str(error))
            return None

    async def _ask(self, node: str, scope: Scope, method: str, path: str, body: object) -> Any:
        where, url, headers = self._way(node, scope, path.encode())
        if self._keeps_token(node, scope):
            headers += [pair for pair in scope["headers"] if pair[0].lower() == b"authorization"]
        content = b"" if body is None else orjson.dumps(body)
        headers += [
            (CORRELATION_HEADER.encode(), correlation_id_of(scope).encode()),
            (b"Content-Length", b"%d" % len(content)),
            (b"Content-Type", b"application/json"),
        ]
        request = httpcore.Request(
            method, url, headers=headers, content=content, extensions={"timeout": _TIMEOUT}
        )
        response = await self._send(node, where, request)
        try:
            assert isinstance(response.stream, AsyncIterable)  # noqa: S101 - of an async pool
            parts = [part async for part in response.stream]
        finally:
            with suppress(*FAILURES):
                await response.aclose()
        if response.status != 200:
            raise ValueError(f"it answers with status {response.status}")
        return orjson.loads(b"".join(parts))

    async def _send(self, node: str, where: str, request: httpcore.Request) -> httpcore.Response:
        pool, closing = self._pool(where)
        closing.watch()
        request.extensions["timeout"] = _TIMEOUT
        try:
            return await pool.handle_async_request(request)
        except _NEVER_BEGUN as error:
            raise UnreachableError(node, where, str(error) or type(error).__name__) from error
        except FAILURES as error:
            _log.warning("api.node_lost", node=node, error=f"{type(error).__name__}: {error}")
            raise unavailable(
                f"node {node} broke off before it answered: what was asked may have been done",
                code="no-answer",
            ) from error

    def _way(
        self, node: str, scope: Scope, target: bytes
    ) -> tuple[str, httpcore.URL, list[tuple[bytes, bytes]]]:
        """Give a node's place, the URL of a request there, and the headers that name its caller."""
        there = self._there(node)
        headers = [(HANDED_ON, self._name.encode()), (MEANT_FOR, node.encode())]
        if there.machine == self._machine:
            url = httpcore.URL(scheme=b"http", host=b"localhost", port=None, target=target)
            return there.socket, url, [*headers, (b"Host", b"localhost"), caller_header(scope)]
        base = httpcore.URL(there.address)
        # Behind a proxy the API may have a prefix.
        below = base.target.rstrip(b"/") + target
        url = httpcore.URL(scheme=base.scheme, host=base.host, port=base.port, target=below)
        headers.append((b"Host", urlsplit(there.address).netloc.rpartition("@")[2].encode()))
        who = principal_of(scope)
        is_admin = who.scope is TokenScope.ADMIN
        tokens = self._tokens()
        if tokens is not None and is_admin and not self._has_token(scope):
            minted = tokens.issue(subject=who.name, now=datetime.now(UTC), ttl=TOKEN_LIFE)
            headers.append((b"authorization", b"Bearer " + minted.encode()))
        return there.address, url, headers

    def _there(self, node: str) -> Introduction:
        there = self._introduction(node)
        if there is None:
            raise UnreachableError(node, "an address that is not known here yet", "not seen")
        return there

    @staticmethod
    def _has_token(scope: Scope) -> bool:
        """Tell whether the caller authenticated with its own token."""
        tcp = connection_of(scope).listener is Listener.TCP
        return tcp and not principal_of(scope).anonymous

    def _keeps_token(self, node: str, scope: Scope) -> bool:
        """Tell whether the caller's own token is sent along: only to nodes on other machines."""
        return self._there(node).machine != self._machine and self._has_token(scope)

    def _pool(self, where: str) -> tuple[httpcore.AsyncConnectionPool, ClosedWithLoop]:
        if (found := self._pools.get(where)) is not None:
            return found
        limits: dict[str, Any] = {
            "max_connections": MAX_CONNECTIONS,
            "max_keepalive_connections": MAX_IDLE,
            "keepalive_expiry": IDLE_SECONDS,
        }
        if where.startswith("/"):
            pool = httpcore.AsyncConnectionPool(
                uds=where, network_backend=SocketBackend(), **limits
            )
        else:
            tls = self._tls() if where.startswith("https:") else None
            pool = httpcore.AsyncConnectionPool(
                network_backend=httpcore.AnyIOBackend(), ssl_context=tls, **limits
            )
        self._pools[where] = made = pool, ClosedWithLoop(pool)
        return made

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        for certificate in self._trusted:
            # So nodes with a shared self-signed certificate, or authority, trust one another.
            context.load_verify_locations(certificate)
        return context


_TIMEOUT: Final = {
    "connect": CONNECT_SECONDS,
    "write": WRITE_SECONDS,
    "read": SILENT_SECONDS,
    "pool": CONNECT_SECONDS,
}
