"""The API as the page calls it, and who looks: with the viewer's token, past the same checks.

So the page has no rights of its own: the access table decides about its calls as about all others,
and a call for another node's tenant is handed on to that node like any other call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import orjson
from starlette.types import Message, Receive, Scope, Send

from tenantry import exact
from tenantry.api import access
from tenantry.api.idempotency import HEADER as IDEMPOTENCY_KEY
from tenantry.api.paging import BadCursorError, Cursors
from tenantry.http import tokens
from tenantry.http.auth import CALLER, connection_of, mark
from tenantry.http.middleware import CORRELATION_HEADER, correlation_id_of
from tenantry.http.oidc import Logins
from tenantry.http.problems import Problem

_COPIED: Final = (b"host", b"origin", CALLER)
"""Headers copied from the page's request: `host` and `origin` tell a foreign web page; `CALLER`
names the caller of a request that another node hands on. Neither gets more rights by the page.
"""

NOTE_SECONDS: Final = 60
"""How long a note of what was done is valid."""

_NOTE: Final = "a note of the page"
_TIME: Final = 8
_LARGE: Final = 256 * 1024
"""An answer of more bytes than this is read on a thread."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the API; `body` is the JSON as it was read, None for an empty body."""

    status: int
    body: Any

    @property
    def well(self) -> bool:
        """Whether the call succeeded."""
        return self.status < 300

    @property
    def problem(self) -> str:
        """What went wrong, in a sentence; empty where nothing did."""
        if self.well:
            return ""
        detail = self.body.get("detail") if isinstance(self.body, dict) else None
        return str(detail or f"the answer has the status {self.status}")

    def items(self) -> Sequence[Any]:
        """Return the items of a list; none after a failed call."""
        return self.body["data"] if self.well else ()


class Api:
    """The API for one request of the page; `token` is the viewer's, None without one."""

    def __init__(self, scope: Scope, token: str | None) -> None:
        self._outer = scope
        self._token = token

    @property
    def has_token(self) -> bool:
        """Whether the viewer has a token."""
        return self._token is not None

    def with_token(self, token: str) -> Api:
        """Return the same API for another token."""
        return Api(self._outer, token)

    async def redeem(self, code: str) -> str:
        """Exchange a login code, which is good once, for a session's token. Raises `Problem`.

        This is no call of the API, since the viewer is not authenticated yet.
        """
        services = self._outer["app"].state.services
        token: str = await services.pools.reads.run(services.login_codes.redeem, code)
        return token

    def note(self, done: str, to: str) -> str:
        """Seal a note of what was done; only this viewer, on the page `to`, is shown it."""
        now = int(time.time()).to_bytes(_TIME)
        return self.cursors.seal(now + done.encode(), _NOTE, self._token or "", to)

    def noted(self, note: str, here: str) -> str:
        """Read such a note; empty if it is forged, old, or for another viewer or page."""
        try:
            value = self.cursors.open(note, _NOTE, self._token or "", here)
        except BadCursorError:
            return ""
        age = time.time() - int.from_bytes(value[:_TIME])
        return value[_TIME:].decode() if abs(age) <= NOTE_SECONDS else ""

    @property
    def cursors(self) -> Cursors:
        """Seals values with a key that all nodes share."""
        cursors: Cursors = self._outer["app"].state.services.cursors
        return cursors

    @property
    def logins(self) -> Logins | None:
        """Logins by an identity provider; None where that is not set up."""
        return logins_of(self._outer)

    async def get(self, path: str, **params: object) -> Answer:
        """GET a path; parameters that are None are left out."""
        return await self.call("GET", path, params=params)

    async def exactly(self, path: str, **params: object) -> Answer:
        """GET a path whose answer holds tenants' JSON: reading it changes no number in it."""
        return await self.call("GET", path, params=params, read=_exact)

    async def read(self, path: str, read: Callable[[bytes], Any], **params: object) -> Answer:
        """GET a path, and read the answer by `read`; an error's body is read as JSON."""
        answer = await self.call("GET", path, params=params, read=bytes)
        if not answer.well:
            return Answer(answer.status, orjson.loads(answer.body))
        return Answer(answer.status, await self._read(read, answer.body))

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        body: object = None,
        key: str | None = None,
        read: Callable[[bytes], Any] = orjson.loads,
    ) -> Answer:
        """Call the API, with an idempotency key if given, and read its whole answer by `read`."""
        content = b"" if body is None else orjson.dumps(body)
        scope = self._scope(method, path, params or {}, content)
        if key is not None:
            scope["headers"].append((IDEMPOTENCY_KEY.lower().encode(), key.encode()))
        sent = False
        status, parts = 500, []

        async def receive() -> Message:
            nonlocal sent
            if sent:
                # The API may wait here for a disconnect; that wait ends with the answer.
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self._outer["app"](scope, receive, send)
        written = b"".join(parts)
        return Answer(status, await self._read(read, written) if written else None)

    async def follow(self, path: str, receive: Receive, send: Send, **params: object) -> None:
        """Pass an endless answer of the API on to the page's client, until the client leaves."""
        await self._outer["app"](
            self._scope(self._outer["method"], path, params, b""), receive, send
        )

    @staticmethod
    async def _read(read: Callable[[bytes], Any], written: bytes) -> Any:
        if len(written) > _LARGE:  # reading it would block the event loop for long
            return await asyncio.to_thread(read, written)
        return read(written)

    def _scope(self, method: str, path: str, params: Mapping[str, object], content: bytes) -> Scope:
        given = {name: value for name, value in params.items() if value is not None}
        scope: Scope = {
            **{name: self._outer.get(name) for name in ("asgi", "http_version", "scheme")},
            **{name: self._outer.get(name) for name in ("client", "server")},
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": quote(path, safe="/").encode(),
            "root_path": "",
            "query_string": urlencode(given).encode(),
            "headers": self._headers(content),
        }
        mark(scope, connection_of(self._outer))
        return scope

    def _headers(self, content: bytes) -> list[tuple[bytes, bytes]]:
        headers = [pair for pair in self._outer["headers"] if pair[0].lower() in _COPIED]
        headers.append(
            (CORRELATION_HEADER.lower().encode(), correlation_id_of(self._outer).encode())
        )
        if self._token is not None:
            headers.append((b"authorization", b"Bearer " + self._token.encode()))
        if content:
            headers.append((b"content-type", b"application/json"))
            headers.append((b"content-length", b"%d" % len(content)))
        return headers


def logins_of(scope: Scope) -> Logins | None:
    """Return the application's logins by an identity provider; None where there are none."""
    logins: Logins | None = scope["app"].state.services.logins
    return logins


def _exact(written: bytes) -> Any:
    return exact.loads(written.decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """The page's viewer, as the API knows them."""

    name: str
    scope: tokens.Scope
    tenant_id: str | None
    payloads: bool
    anonymous: bool

    @classmethod
    def of(cls, told: Any) -> Self:
        """Make a viewer from the answer of `GET /whoami`."""
        return cls(
            name=told["name"],
            scope=tokens.Scope(told["scope"]),
            tenant_id=told["tenant_id"],
            payloads=told["payloads"],
            anonymous=told["anonymous"],
        )

    def may(self, call: str) -> bool:
        """Tell whether the viewer may make a call, such as `POST /tenants/{tenant_id}/pause`."""
        method, _, path = call.partition(" ")
        return access.may((method, path), self.scope, payloads=self.payloads)

    def must(self, call: str) -> None:
        """Raise `Problem`, a 403, unless the viewer may make a call."""
        if not self.may(call):
            raise Problem(403, f"the scope {self.scope.value} is not good for this")

    @property
    def is_tenant(self) -> bool:
        """Whether the viewer is a tenant's, and sees that tenant's page alone."""
        return self.scope is tokens.Scope.TENANT


class NotLetIn(Exception):  # noqa: N818 - no error: it asks who it is
    """The viewer has no token, or a bad one; the message says which."""


def let_in(answer: Answer) -> Answer:
    """Return a successful answer; raise for a missing token, and for any other error."""
    if answer.status == 401:
        raise NotLetIn(answer.problem)
    if not answer.well:
        raise Problem(answer.status, answer.problem)
    return answer


def let_in_or_ask_again(api: Api, who: Answer) -> Answer:
    """Ask for another token if the browser's is no longer valid."""
    if api.has_token and who.status in {403, 404}:
        raise NotLetIn(who.problem)
    return let_in(who)


async def viewer_of(api: Api) -> Viewer:
    """Return the viewer. Raises `NotLetIn`, `Problem`."""
    return Viewer.of(let_in(await api.get("/whoami")).body)


async def admitted(api: Api, call: str) -> Viewer:
    """Return the viewer if they may make a call. Raises `NotLetIn`, `Problem`."""
    viewer = await viewer_of(api)
    viewer.must(call)
    return viewer


async def with_tenant(api: Api, tenant_id: str, call: str) -> tuple[Viewer, Any]:
    """Give the viewer, if they may make a call, and a tenant. Raises `NotLetIn`, `Problem`."""
    who, tenant = await asyncio.gather(api.get("/whoami"), api.get(f"/tenants/{tenant_id}"))
    viewer, found = Viewer.of(let_in(who).body), let_in(tenant).body
    viewer.must(call)
    return viewer, found
