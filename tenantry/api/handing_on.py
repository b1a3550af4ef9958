"""Hands requests on to the node that owns their tenant, and passes its answers back unchanged.

Only the owner knows what a tenant's actors do, and carries out its commands; requests that the
database alone can answer are answered on any node. While a tenant moves between nodes, its requests
wait.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import uuid4

import orjson
from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.api import errors, idempotency
from tenantry.api.idempotency import Once
from tenantry.api.peers import Peers, UnreachableError
from tenantry.api.streams import LOOK_AT_TOKEN_SECONDS
from tenantry.domain import names
from tenantry.http.auth import (
    ELSEWHERE,
    HANDED_ON,
    MEANT_FOR,
    Listener,
    connection_of,
    is_still_let_in,
)
from tenantry.http.identity import Identity
from tenantry.http.passing import pass_back, while_client_waits
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem, unavailable
from tenantry.nodes.port import Cluster
from tenantry.unavailable import UnavailableError

OWNERS: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("GET", "/tenants/{tenant_id}"),
        ("DELETE", "/tenants/{tenant_id}"),
        ("PUT", "/tenants/{tenant_id}/config/concurrency"),
        ("PUT", "/tenants/{tenant_id}/limits"),
        ("POST", "/tenants/{tenant_id}/pause"),
        ("POST", "/tenants/{tenant_id}/resume"),
        ("POST", "/tenants/{tenant_id}/credentials/rotate"),
        ("POST", "/tenants/{tenant_id}/sql-access"),
        ("DELETE", "/tenants/{tenant_id}/sql-access"),
        ("POST", "/tenants/{tenant_id}/consumer-access"),
        ("DELETE", "/tenants/{tenant_id}/consumer-access"),
        ("POST", "/tenants/{tenant_id}/topics"),
        ("GET", "/tenants/{tenant_id}/audit"),
        ("POST", "/tenants/{tenant_id}/dead-letters/replay"),
        ("DELETE", "/tenants/{tenant_id}/dead-letters"),
        ("GET", "/messages/stream"),
    }
)
"""Calls that the tenant's owner answers."""

ANYWHERE: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("POST", "/tenants/{tenant_id}/messages"),
        ("POST", "/tenants/{tenant_id}/move"),
        ("GET", "/tenants/{tenant_id}/events"),
        ("GET", "/tenants/{tenant_id}/stats"),
        ("GET", "/tenants/{tenant_id}/asyncapi.json"),
        ("GET", "/tenants/{tenant_id}/messages/{message_id:any}"),
        ("GET", "/tenants/{tenant_id}/dead-letters"),
        ("GET", "/tenants/{tenant_id}/dead-letters/{letter_id}"),
    }
)
"""Calls about one tenant that any node answers by itself."""

_COMPILED: Final = [(method, compile_path(path)[0]) for method, path in OWNERS]
PATIENCE: Final = 20.0
"""Seconds to wait for a tenant that moves to another node."""

UNREACHABLE_PATIENCE: Final = 5.0
"""Seconds in which an unreachable node is tried again while it renews its term. If it does not,
other nodes take over its tenants, and `PATIENCE` holds.
"""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.5

_NOBODY: Final = "(which one is being settled)"
_ELSEWHERE: Final = ELSEWHERE.lower().encode()


class HandOn:
    """The innermost middleware: hands a request on if another node owns its tenant.

    A request that was handed on once is answered here, or by a 503 if the tenant is not here; the
    node that handed it on then finds the right one. Nodes on one machine may share an address: a
    request that arrives there for another of them is passed to that node's control socket.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cluster: Cluster,
        peers: Peers,
        exists: Callable[[str], bool],
        reads: Pool,
        identity: Identity,
    ) -> None:
        """`exists` tells whether there is a tenant; blocking calls run in `reads`."""
        self._app = app
        self._cluster = cluster
        self._peers = peers
        self._exists = exists
        self._reads = reads
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send)
        except (Problem, UnavailableError) as error:
            problem = errors.of(error)
            assert problem is not None  # noqa: S101 - of these kinds
            await problem.response()(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        handed = any(name == HANDED_ON for name, _ in scope["headers"])
        meant_for = Headers(scope=scope).get(MEANT_FOR.decode(), self._cluster.name)
        if handed and meant_for != self._cluster.name:
            await self._to_sibling(meant_for, scope, receive, send)
        elif (tenant_id := _tenant_of(scope)) is not None:
            if handed:
                await self._answer_handed_on(tenant_id, scope, receive, send)
            else:
                await self._to_owner(tenant_id, scope, _Sent(receive), send)
        elif handed:
            await self._app(scope, receive, send)
        elif (method, path) == ("POST", "/tenants"):
            await self._create(scope, _Sent(receive), send)
        elif (method, path) == ("POST", "/isolation"):
            await self._to_node(self._cluster.first(), scope, receive, send)
        elif (method, path) == ("GET", "/status"):
            await self._to_node(_only(scope, "node"), scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_handed_on(
        self, tenant_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            node = await self._node_for(tenant_id, new=False)
        except _NobodysError:
            node = _NOBODY
        if node != self._cluster.name:
            raise _elsewhere(tenant_id, node)
        await self._app(scope, receive, send)

    def _others(self) -> bool:
        return len(self._cluster.glance()) > 1

    async def _to_sibling(self, node: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the node it is meant for, which shares this node's address.

        It goes to that node's control socket; a request from a control socket goes no further.
        """
        if connection_of(scope).listener is Listener.CONTROL or not self._peers.is_here(node):
            raise _not_here(f"node {node[:80]!r} is not the one that was reached; try again", "?")
        await self._to_node(node, scope, receive, send)

    async def _to_node(self, node: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on to a node, unless it is this one. 404 for an unknown name."""
        if node is None or node == self._cluster.name:
            await self._app(scope, receive, send)
            return
        if all(one.name != node for one in self._cluster.glance()):
            raise Problem(404, f"there is no node {node[:80]!r}", code="node-not-found")
        sent = _Sent(receive)
        if (body := await sent.body()) is None:
            return
        try:
            response = await self._peers.send(node, scope, body)
        except UnreachableError as error:
            raise _unreachable(error) from error
        await while_client_waits(pass_back(response, send), receive)

    async def _create(self, scope: Scope, sent: _Sent, send: Send) -> None:
        """Have a tenant created on the node it is placed on; choose its id if none is given."""
        body = await sent.body()
        if body is None:
            return
        if self._others():
            tenant_id = self._new_id(scope, sent, body)
            if tenant_id is not None and names.is_tenant_id(tenant_id):
                await self._to_owner(tenant_id, scope, sent, send, new=True)
                return
        await self._app(scope, sent.receive(), send)

    def _new_id(self, scope: Scope, sent: _Sent, body: bytes) -> str | None:
        try:
            wanted = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(wanted, dict):
            return None
        given = wanted.get("id")
        if given is not None:
            return given if isinstance(given, str) else None
        key = Headers(scope=scope).get(idempotency.HEADER)
        if key is not None:
            return Once("POST /tenants", key, body).id()
        wanted["id"] = str(uuid4())
        sent.replace(orjson.dumps(wanted))
        return str(wanted["id"])

    async def _to_owner(
        self, tenant_id: str, scope: Scope, sent: _Sent, send: Send, *, new: bool = False
    ) -> None:
        """Have the tenant's owner answer; look for it again while the tenant moves."""
        loop = asyncio.get_running_loop()
        began, pause = loop.time(), FIRST_PAUSE
        while True:
            waited = loop.time() - began
            node = None
            try:
                node = await self._node_for(tenant_id, new=new)
                if await self._attempt(node, scope, sent, send):
                    return
                if waited > PATIENCE:
                    raise _elsewhere(tenant_id, node)
            except UnreachableError as error:
                lost = node is not None and self._cluster.is_silent(node)
                if waited > (PATIENCE if lost else UNREACHABLE_PATIENCE):
                    raise _unreachable(error) from error
            except _NobodysError:
                if waited > PATIENCE:
                    raise _elsewhere(tenant_id, _NOBODY) from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _node_for(self, tenant_id: str, *, new: bool) -> str:
        """Name the node that is to answer; for a tenant that does not exist, this one."""
        own = self._cluster.name
        if tenant_id in self._cluster.owned:
            return own
        return await self._reads.run(self._look_for, tenant_id, new=new)

    def _look_for(self, tenant_id: str, *, new: bool) -> str:
        own = self._cluster.name
        owned = self._cluster.owners([tenant_id]).get(tenant_id)
        node = None if owned is None else owned.node
        if node is not None and node != own:
            return node
        if new:
            return node or self._cluster.place(tenant_id) or own
        # No owner yet, or this node without knowing it yet, or a deleted tenant.
        if owned is not None and self._exists(tenant_id):
            raise _NobodysError
        return own

    async def _attempt(self, node: str, scope: Scope, sent: _Sent, send: Send) -> bool:
        """Have a node answer; False if it says that the tenant is not there."""
        answer = _Answer(send, self._others)
        if node == self._cluster.name:
            await self._app(dict(scope), sent.receive(), answer)
            return not answer.elsewhere
        body = await sent.body()
        if body is None:  # the client has gone
            return True
        response = await self._peers.send(node, scope, body)
        passing = while_client_waits(pass_back(response, answer), sent.original)
        if any(name.lower() == b"content-length" for name, _ in response.headers):
            await passing
        else:
            await self._while_let_in(passing, scope, answer)
        return not answer.elsewhere

    async def _while_let_in(
        self, passing: Coroutine[Any, Any, None], scope: Scope, send: Send
    ) -> None:
        """Pass an answer on, and end it when the caller's token ends.

        The node that answers has not seen the token.
        """
        going_on = asyncio.create_task(passing)
        try:
            while not going_on.done():
                await asyncio.wait({going_on}, timeout=LOOK_AT_TOKEN_SECONDS)
                if not going_on.done() and not await is_still_let_in(scope, self._identity):
                    going_on.cancel()
                    await asyncio.wait({going_on})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
            await going_on
        finally:
            going_on.cancel()


class RefuseHandedOn:
    """Takes the place of `HandOn` in a daemon that has not joined as a node: it has no actors.

    A node's address is known before its daemon, a standby until then, works as a node. A node that
    hands a request on to it is told to try again, instead of a standby's refusal of commands.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and any(name == HANDED_ON for name, _ in scope["headers"]):
            problem = _not_here("this daemon is not at work as a node yet; try again", "?")
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _NobodysError(Exception):
    """No node owns the tenant at the moment."""


class _Sent:
    """A request's body in one piece, which can be read several times."""

    def __init__(self, receive: Receive) -> None:
        self.original = receive
        self._first: Message | None = None

    async def body(self) -> bytes | None:
        """Give the body; None if the client has disconnected."""
        message = await self._message()
        return message.get("body", b"") if message["type"] == "http.request" else None

    def replace(self, body: bytes) -> None:
        """Replace the body."""
        self._first = {"type": "http.request", "body": body, "more_body": False}

    def receive(self) -> Receive:
        """Make a `receive` that gives the body, and then the messages after it."""
        taken = False

        async def again() -> Message:
            nonlocal taken
            if taken:
                return await self.original()
            taken = True
            return await self._message()

        return again

    async def _message(self) -> Message:
        if self._first is None:
            self._first = await self.original()
        return self._first


class _Answer:
    """Passes an answer to the client, unless it says that the tenant is elsewhere."""

    def __init__(self, send: Send, others: Callable[[], bool]) -> None:
        """Without `others`, nodes that may own the tenant, such an answer is passed on as well."""
        self._send = send
        self._others = others
        self.elsewhere = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 503:
            headers = message.get("headers", ())
            said = any(name.lower() == _ELSEWHERE for name, _ in headers)
            self.elsewhere = said and self._others()
        if not self.elsewhere:
            await self._send(message)


def _tenant_of(scope: Scope) -> str | None:
    """Name the tenant whose owner is to answer a request; None if any node may."""
    for method, pattern in _COMPILED:
        if scope["method"] == method and (match := pattern.match(scope["path"])):
            named = match.groupdict().get("tenant_id") or _only(scope, "tenant_id")
            past = _only(scope, "at") is not None  # any node can read it
            return named if named is not None and names.is_tenant_id(named) and not past else None
    return None


def _only(scope: Scope, name: str) -> str | None:
    """Give a query parameter's value, if it occurs exactly once."""
    query = scope["query_string"].decode("latin-1")
    found = [value for key, value in parse_qsl(query, keep_blank_values=True) if key == name]
    return found[0] if len(found) == 1 else None


def _elsewhere(tenant_id: str, node: str) -> Problem:
    return _not_here(f"tenant {tenant_id!r} is not at work on node {node} yet; try again", node)


def _not_here(detail: str, node: str) -> Problem:
    problem = unavailable(detail, code="not-taking-commands")
    problem.headers[ELSEWHERE] = node
    return problem


def _unreachable(error: UnreachableError) -> Problem:
    return unavailable(str(error), code="node-unreachable")
