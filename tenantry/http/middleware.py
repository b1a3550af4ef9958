"""Around every request: its correlation id, its log context, its bounds in size and time."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.http.auth import ELSEWHERE, HANDED_ON, Listener, client_of, connection_of
from tenantry.http.problems import BrokenOffError, Problem, too_many, unavailable

CORRELATION_HEADER: Final = "X-Request-ID"

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_CORRELATION_KEY: Final = "tenantry.correlation_id"
_PATIENCE: Final = 16

HELD_BYTES: Final = 64 * 1024 * 1024
"""Bytes of request bodies held at once, per listener."""

_SHARE: Final = 4
"""One client on TCP may hold one part in so many of them, to leave room for the others."""

OPEN_BYTES: Final = 64 * 1024
"""Bytes of a body that a client may send before it is known."""

_BODILESS: Final = frozenset({"GET", "HEAD"})
"""Methods without a body."""


def correlation_id_of(scope: Scope) -> str:
    """Give the id shared by everything this request causes."""
    return str(scope[_CORRELATION_KEY])


class RequestContext:
    """The outermost middleware: sets the correlation id, and answers uncaught errors with a 500.

    A sane `X-Request-ID` is taken over, otherwise one is made; the answer carries it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(CORRELATION_HEADER, "")
        correlation_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
        scope[_CORRELATION_KEY] = correlation_id
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[CORRELATION_HEADER] = correlation_id
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
                _log.debug(
                    "api.request",
                    method=scope["method"],
                    path=scope["path"],
                    status=message["status"],
                    peer=connection_of(scope).peer,
                )
            await send(message)

        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            try:
                await self._app(scope, receive, send_marked)
            except BrokenOffError as error:
                _log.debug(
                    "api.answer_broken_off",
                    method=scope["method"],
                    path=scope["path"],
                    reason=str(error),
                )
                await _hang_up(scope, receive, error)
            except Exception:
                _log.exception("api.request_crashed", method=scope["method"], path=scope["path"])
                if started:
                    raise
                problem = Problem(500, "an error of the server's own; its log tells more")
                await problem.response()(scope, receive, send_marked)


async def _hang_up(scope: Scope, receive: Receive, error: BrokenOffError) -> None:
    """Close the client's connection in the middle of an answer."""
    hang_up = connection_of(scope).hang_up
    if hang_up is None:
        raise error
    hang_up()
    # The server logs an error if an answer stops before it knows that the connection has ended.
    while (await receive())["type"] != "http.disconnect":
        pass


class _Held:
    """The bytes that one request's body takes of the budget of all bodies."""

    def __init__(
        self, held: Counter[Listener | str], listener: Listener, client: str, most: int, share: int
    ) -> None:
        """`client` may have `share` of the budget; it is empty where clients are not told apart."""
        self._held = held
        self._listener = listener
        self._client = client
        self._most = most
        self._share = share
        self._mine = 0

    def take(self, size: int) -> None:
        problem = None
        if self._held[self._listener] + size > self._most:
            problem = unavailable("too much is being sent at once; try again", code="busy")
        elif self._client and self._held[self._client] + size > self._share:
            problem = too_many(f"a client may send {self._share} bytes at once")
        if problem is not None:
            problem.headers["Connection"] = "close"
            raise problem
        self._count(size)

    def release(self) -> None:
        self._count(-self._mine)
        if self._client and not self._held[self._client]:
            del self._held[self._client]

    def _count(self, size: int) -> None:
        self._mine += size
        self._held[self._listener] += size
        if self._client:
            self._held[self._client] += size


class BoundedBody:
    """Reads a request's body before the application runs, bounded in size and time.

    A larger body is a 413, a body that does not arrive within `seconds` a 408. All bodies of a
    listener hold at most `held_bytes`; beyond that a request gets a 503, or a 429 if its client
    alone holds a quarter. GET and HEAD take no body: a request that announces one is a 400, and the
    body is not read.

    `is_open` tells whether a path takes bodies from unknown clients, of at most `OPEN_BYTES`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        seconds: float,
        held_bytes: int = HELD_BYTES,
        is_open: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._is_open = is_open
        self._seconds = seconds
        self._held_bytes = held_bytes
        self._held: Counter[Listener | str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        listener = connection_of(scope).listener
        held = _Held(
            self._held,
            listener,
            client_of(scope) if listener is Listener.TCP else "",
            self._held_bytes,
            max(self._max_bytes, self._held_bytes // _SHARE),
        )
        try:
            await self._serve(scope, receive, send, held)
        finally:
            held.release()

    async def _serve(self, scope: Scope, receive: Receive, send: Send, held: _Held) -> None:
        headers = Headers(scope=scope)
        try:
            if scope["method"] in _BODILESS:
                _refuse_body(scope["method"], headers)
            most = self._max_bytes
            if self._is_open(scope["path"]):
                most = min(most, OPEN_BYTES)
            _refuse_early(headers, most)
            async with asyncio.timeout(self._seconds):
                body = await _read(receive, held, most)
        except TimeoutError:
            problem = Problem(408, f"the body did not arrive within {self._seconds:g} seconds")
            problem.headers["Connection"] = "close"
            await problem.response()(scope, receive, send)
            return
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        replayed = False

        async def receive_again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send)


def _refuse_early(headers: Headers, most: int) -> None:
    """Answer a client that waits for `100 Continue`, or that announces far too large a body."""
    announced = headers.get("content-length", "")
    # The client chooses how many digits it has: check that before converting it.
    size = int(announced) if announced.isdecimal() and len(announced) < 18 else None
    if announced and (size is None or size > most * _PATIENCE):
        raise _too_large(most)
    if size is not None and size > most and "expect" in headers:
        raise _too_large(most)


async def _read(receive: Receive, held: _Held, most: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            held.take(len(part))
            parts.append(part)
        else:
            # Many clients read the answer only after sending everything: let them.
            parts.clear()
            held.release()
            if size > most * _PATIENCE:
                raise _too_large(most)
        if not message.get("more_body", False):
            if size > most:
                raise _too_large(most)
            return b"".join(parts)


def _too_large(most: int) -> Problem:
    return Problem(
        413,
        f"the body is larger than {most} bytes",
        # The rest of the body would follow on the connection, and is not wanted.
        headers={"Connection": "close"},
    )


def _refuse_body(method: str, headers: Headers) -> None:
    announced = headers.get("content-length", "0")
    if "transfer-encoding" in headers or announced.strip("0"):
        raise Problem(400, f"{method} takes no body", headers={"Connection": "close"})


MAX_REQUESTS: Final = 1024
MAX_OF_A_CLIENT: Final = 256
REQUEST_SECONDS: Final = 90.0
"""Longer than any command, page or long poll takes; a last resort."""

UNREAD_BYTES: Final = 64 * 1024 * 1024
"""Bytes of unread answers to one client on TCP; a single answer may have more."""

PART_BYTES: Final = 256 * 1024
"""Bytes passed to the server at once: it buffers whatever it is given, read or not."""

_UNCOUNTED: Final = frozenset({"/healthz", "/readyz"})
_ENDLESS: Final = frozenset({"/messages/stream", "/ui/tail"})


class _Answer:
    """An answer on its way to a client, in parts; each waits until the one before is sent."""

    def __init__(self, scope: Scope, send: Send, unread: Counter[str], client: str) -> None:
        self._scope = scope
        self._send = send
        self._unread = unread
        self._client = client
        self._size = 0
        self._refused = False

    async def __call__(self, message: Message) -> None:
        """Pass a part on, or refuse the answer if the client has too much unread."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif not self._refused:
            await self._pass_on(message)

    async def _begin(self, message: Message) -> None:
        size = int(dict(message.get("headers", ())).get(b"content-length", 0))
        if self._client and size > PART_BYTES:
            unread = self._unread[self._client]
            if unread and unread + size > UNREAD_BYTES:
                self._refused = True
                problem = too_many(f"a client may leave {UNREAD_BYTES} bytes of answers unread")
                await problem.response()(self._scope, _nothing_more, self._send)
                return
            self._size = size
            self._unread[self._client] += size
        await self._send(message)

    async def _pass_on(self, message: Message) -> None:
        body = message.get("body", b"")
        last = max(0, len(body) - 1) // PART_BYTES * PART_BYTES
        for begin in range(0, last, PART_BYTES):
            part = body[begin : begin + PART_BYTES]
            await self._send({"type": message["type"], "body": part, "more_body": True})
        await self._send({**message, "body": body[last:]} if last else message)

    def ended(self) -> None:
        """Return the answer's bytes to the budget."""
        if self._size:
            self._unread[self._client] -= self._size
            if not self._unread[self._client]:
                del self._unread[self._client]


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}


class Limits:
    """Refuses requests beyond the limits, and ends those that take too long.

    A request counts once its body has arrived, so that a client that sends slowly takes no place.
    The control socket is counted separately, and its clients are not told apart. Health checks are
    always answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        most: int = MAX_REQUESTS,
        most_of_a_client: int = MAX_OF_A_CLIENT,
        seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._app = app
        self._most = most
        self._most_of_a_client = most_of_a_client
        self._seconds = seconds
        self._served: Counter[Listener] = Counter()
        self._clients: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        listener = connection_of(scope).listener
        client = client_of(scope) if listener is Listener.TCP else ""
        if self._served[listener] >= self._most:
            problem = unavailable("too many requests at once; try again", code="busy")
        elif client and self._clients[client] >= self._most_of_a_client:
            problem = too_many(f"a client may have {self._most_of_a_client} requests at once")
        else:
            self._served[listener] += 1
            self._clients[client] += 1
            answer = _Answer(scope, send, self._unread, client)
            try:
                await self._bounded(scope, receive, answer)
            finally:
                answer.ended()
                self._served[listener] -= 1
                self._clients[client] -= 1
                if not self._clients[client]:
                    del self._clients[client]
            return
        await problem.response()(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _ENDLESS:
            await self._app(scope, receive, send)
            return
        started = sending = False

        async def watched(message: Message) -> None:
            nonlocal started, sending
            started = sending = True
            await send(message)
            sending = False

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if sending and limit.expired():
                raise BrokenOffError("its client reads too slowly") from None
            if started or not limit.expired():
                raise
            problem = Problem(
                504,
                f"no answer within {self._seconds:g} seconds; what was asked may still happen",
                code="request-timeout",
                title="No answer in time",
            )
            await problem.response()(scope, receive, send)


class StartingApp:
    """What the listeners serve: 503 while the daemon starts, then the application."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    def open(self, app: ASGIApp) -> None:
        """Let requests through from now on."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503 with a problem document, or pass the request on."""
        app = self._app
        if app is None:
            problem = unavailable("the daemon is starting", code="starting")
            if any(name == HANDED_ON for name, _ in scope["headers"]):
                problem.headers[ELSEWHERE] = "?"
            await problem.response()(scope, receive, send)
        else:
            await app(scope, receive, send)
