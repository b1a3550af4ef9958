"""The API as the page calls it: in this process, with its viewer's token, past the same doors.

So the page has no right of its own: who is shown what, and who may do what, is decided where it is
decided for every call, and what is another node's is handed on to it as any call is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson
from starlette.types import Message, Receive, Scope, Send

from tenantry import exact
from tenantry.api.idempotency import HEADER as IDEMPOTENCY_KEY
from tenantry.api.paging import BadCursorError, Cursors
from tenantry.http.auth import CALLER, connection_of, mark
from tenantry.http.middleware import CORRELATION_HEADER, correlation_id_of
from tenantry.http.oidc import Logins

_COPIED: Final = (b"host", b"origin", CALLER)
"""Headers of the page's request by which a foreign web page is told, and whom another node names:
they may do no more here than there.
"""

NOTE_SECONDS: Final = 60
"""How long it is said what was done."""

_NOTE: Final = "a note of the page"
_TIME: Final = 8
_LARGE: Final = 256 * 1024
"""Bytes of an answer that are read on a thread."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answers: `body` is JSON that was read, None where there was none."""

    status: int
    body: Any

    @property
    def well(self) -> bool:
        """Whether it is what was asked for."""
        return self.status < 300

    @property
    def problem(self) -> str:
        """What went wrong, in a sentence; empty where nothing did."""
        if self.well:
            return ""
        detail = self.body.get("detail") if isinstance(self.body, dict) else None
        return str(detail or f"the answer has the status {self.status}")

    def items(self) -> Sequence[Any]:
        """Give what is in a list; nothing where the list is not known."""
        return self.body["data"] if self.well else ()


class Api:
    """The API for one request of the page; `token` is its viewer's, where there is one."""

    def __init__(self, scope: Scope, token: str | None) -> None:
        self._outer = scope
        self._token = token

    @property
    def has_token(self) -> bool:
        """Whether its viewer has one."""
        return self._token is not None

    def with_token(self, token: str) -> Api:
        """Give the same API for the holder of another token."""
        return Api(self._outer, token)

    async def redeem(self, code: str) -> str:
        """Give the token of a session for a code, once. Raises `Problem`.

        The one thing that is no call of the API: nobody is let in yet.
        """
        services = self._outer["app"].state.services
        token: str = await services.pools.reads.run(services.login_codes.redeem, code)
        return token

    def note(self, done: str, to: str) -> str:
        """Write down for this viewer what was done, to be told on the page `to` alone."""
        now = int(time.time()).to_bytes(_TIME)
        return self.cursors.seal(now + done.encode(), _NOTE, self._token or "", to)

    def noted(self, note: str, here: str) -> str:
        """Read such a note; nothing where it is no such, of another viewer or place, or old."""
        try:
            value = self.cursors.open(note, _NOTE, self._token or "", here)
        except BadCursorError:
            return ""
        age = time.time() - int.from_bytes(value[:_TIME])
        return value[_TIME:].decode() if abs(age) <= NOTE_SECONDS else ""

    @property
    def cursors(self) -> Cursors:
        """What seals with a key that all nodes have."""
        cursors: Cursors = self._outer["app"].state.services.cursors
        return cursors

    @property
    def logins(self) -> Logins | None:
        """What knows of people who log in by a provider, if they do."""
        return logins_of(self._outer)

    async def get(self, path: str, **params: object) -> Answer:
        """Ask for something; what is None of the parameters is left out."""
        return await self.call("GET", path, params=params)

    async def exactly(self, path: str, **params: object) -> Answer:
        """Ask for what holds JSON of tenants: no number in it is changed by being read."""
        return await self.call("GET", path, params=params, read=_exact)

    async def read(self, path: str, read: Callable[[bytes], Any], **params: object) -> Answer:
        """Ask for something that is read otherwise, if all is well."""
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
        """Call the API, once for an idempotency key, and `read` its answer to the end."""
        content = b"" if body is None else orjson.dumps(body)
        scope = self._scope(method, path, params or {}, content)
        if key is not None:
            scope["headers"].append((IDEMPOTENCY_KEY.lower().encode(), key.encode()))
        sent = False
        status, parts = 500, []

        async def receive() -> Message:
            nonlocal sent
            if sent:
                # Whoever waits for the client to go is ended with the answer.
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
        """Ask for something that goes on, for as long as the page's client waits for it."""
        await self._outer["app"](
            self._scope(self._outer["method"], path, params, b""), receive, send
        )

    @staticmethod
    async def _read(read: Callable[[bytes], Any], written: bytes) -> Any:
        if len(written) > _LARGE:  # it would keep the event loop for long
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
    """Give what a request's application has people log in by a provider with, if they do."""
    logins: Logins | None = scope["app"].state.services.logins
    return logins


def _exact(written: bytes) -> Any:
    return exact.loads(written.decode())
