"""Messages: published with confirms.

Numbers beyond 64 bits and long decimals lose digits as Python's or orjson's floats. A payload is
therefore never re-written: its text is cut out of the request and passed on.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import idempotency
from tenantry.api.idempotency import IdempotencyKeys, Once
from tenantry.api.openapi import Routes
from tenantry.api.publishing_rates import PublishingRates
from tenantry.api.routing import FastRoute, Who, held_by_app, is_json
from tenantry.api.schemas.common import dumps, json_response
from tenantry.api.schemas.messages import Accepted, Publication, Publications
from tenantry.api.services import TenantLookup
from tenantry.broker.port import BacklogFullError, MessagesRefusedError, Outgoing, Publishing
from tenantry.domain import names
from tenantry.domain.tenant import TenantState
from tenantry.http.auth import principal_of
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem
from tenantry.http.tokens import Principal
from tenantry.messages.encoding import random_uuids
from tenantry.metrics.refusals import Reason, Refusals, Refused
from tenantry.tracing import TraceContext, Tracer

PUBLISH_SECONDS: Final = 10.0
LARGE: Final = 8192
"""Bytes of a body from which on to read it takes a while: a millisecond or more."""

_CONTENT_TYPE: Final = "application/json"
_PATH: Final = re.compile("/tenants/([^/]+)/messages")
_PUBLICATIONS: Final[TypeAdapter[Publications]] = TypeAdapter(Publications)
_MAX_TURNS: Final = 10_000
_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Numbers as text: this decoder only finds where a value ends.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)


def partition_of_key(key: str, partitions: int) -> int:
    """Give the partition of a key: CRC-32 (as in zlib) of its UTF-8 bytes, modulo `partitions`.

    It never changes for the same number of partitions, and any producer can compute it.
    """
    return zlib.crc32(key.encode()) % partitions


class Router:
    """Gives routing keys; messages without a key take turns over a topic's partitions.

    Callable from any thread.
    """

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], Iterator[int]] = {}

    def routing_key(self, tenant_id: str, topic: str, partitions: int, key: str | None) -> str:
        """Give the routing key of a message; the default topic has one queue and no partitions."""
        if topic == names.DEFAULT_TOPIC:
            return topic
        if key is not None:
            return f"{topic}.{partition_of_key(key, partitions)}"
        return f"{topic}.{self._turn(tenant_id, topic) % partitions}"

    def _turn(self, tenant_id: str, topic: str) -> int:
        turn = self._turns.get((tenant_id, topic))
        if turn is None:
            if len(self._turns) >= _MAX_TURNS:  # begun anew, a turn is still balanced
                self._turns.clear()
            turn = self._turns.setdefault((tenant_id, topic), itertools.count())
        return next(turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """What messages are published with, in the daemon or in its front.

    `timeout` is how long the broker has to confirm, in seconds; `threads` wait for it. The keys of
    `idempotency` are the daemon's: calls with one are not for the fast route. `asked` is the trace
    that a call belongs to, if it does. What is refused for a limit of its tenant is noted in
    `refusals`.
    """

    lookup: TenantLookup
    publishing: Publishing
    threads: Pool
    idempotency: IdempotencyKeys | None = None
    timeout: float = PUBLISH_SECONDS
    router: Router = field(default_factory=Router)
    rates: PublishingRates = field(default_factory=PublishingRates)
    tracer: Tracer = field(default_factory=Tracer)
    refusals: Refusals = field(default_factory=Refusals)
    _working: threading.Lock = field(default_factory=threading.Lock)

    async def publish(
        self,
        tenant_id: str,
        who: Principal,
        publications: Publications,
        body: bytes,
        *,
        key: str | None = None,
        asked: TraceContext | None = None,
    ) -> Response:
        """Publish what was read of a body; the answer, once the broker has confirmed all."""
        sent = await self.threads.run(
            self._send, tenant_id, who, publications, body, key=key, asked=asked
        )
        return json_response(sent, 202)

    async def read_and_publish(
        self, tenant_id: str, who: Principal, body: bytes, asked: TraceContext | None = None
    ) -> Response | None:
        """Publish what is in a body; None where it can't be read.

        It is read once it is the tenant's turn: thousands of messages take some time.
        """

        def work() -> bytes | None:
            try:
                with self._alone(body):
                    publications = _PUBLICATIONS.validate_python(orjson.loads(body))
            except (json.JSONDecodeError, ValidationError):
                return None
            return self._send(tenant_id, who, publications, body, asked=asked)

        sent = await self.threads.run(work)
        return None if sent is None else json_response(sent, 202)

    def _send(
        self,
        tenant_id: str,
        who: Principal,
        publications: Publications,
        body: bytes,
        *,
        key: str | None = None,
        asked: TraceContext | None,
    ) -> bytes:
        several = [publications] if isinstance(publications, Publication) else publications
        state = self.lookup.publishable(tenant_id, who)
        self._admit(state, len(several))
        with self._alone(body):
            payloads = members(body, "payload")
            once = None if key is None else Once(_call(state), key, body)
            messages = self._messages(state, several, payloads, once)
        if once is not None and self.idempotency is not None:
            once.claim(self.idempotency)
        with self.tracer.publishing(state.tenant_id, messages, asked) as span:
            self._publish(state, _carrying(span.context, messages))
        return dumps({"ids": [one.message_id for one in messages]})

    def _alone(self, body: bytes) -> AbstractContextManager[object]:
        """Let one thread at a time work on a large body.

        A dozen that all want the interpreter would have everybody else in this process wait for
        all of them, each time that somebody wants it.
        """
        return self._working if len(body) > LARGE else nullcontext()

    def _admit(self, state: TenantState, count: int) -> None:
        try:
            self.rates.admit(state, count)
        except Problem:
            self._refused(state, Reason.RATE)
            raise

    def _publish(self, state: TenantState, messages: Sequence[Outgoing]) -> None:
        try:
            self.publishing.publish(messages, timeout=self.timeout)
        except BacklogFullError:
            self._refused(state, Reason.BACKLOG)
            raise
        except MessagesRefusedError as error:
            if state.limits.has_backlog:
                # By far the likeliest reason, and who publishes too much can do something about it.
                self._refused(state, Reason.BACKLOG)
                raise BacklogFullError(
                    f"the backlog of tenant {state.tenant_id!r} is full"
                ) from error
            raise

    def _refused(self, state: TenantState, reason: Reason) -> None:
        self.refusals.note(Refused(state.tenant_id, state.incarnation, reason))

    def _messages(
        self,
        state: TenantState,
        publications: Sequence[Publication],
        payloads: Sequence[bytes],
        once: Once | None,
    ) -> list[Outgoing]:
        """Make the messages of `publications` and `payloads`, which were read of one body."""
        exchange = names.exchange_name(state.tenant_id)
        if once is None:
            ids = random_uuids(len(publications))
        else:
            ids = [once.id(number) for number in range(len(publications))]
        messages = []
        for one, payload, new_id in zip(publications, payloads, ids, strict=True):
            topic = names.DEFAULT_TOPIC if one.topic is None else one.topic
            if topic != names.DEFAULT_TOPIC and topic not in state.topics:
                raise Problem(
                    404,
                    f"tenant {state.tenant_id!r} has no topic {topic[:80]!r}",
                    code="topic-not-found",
                    title="No such topic",
                )
            messages.append(
                Outgoing(
                    exchange=exchange,
                    routing_key=self.router.routing_key(
                        state.tenant_id, topic, _partitions(state, topic), one.key
                    ),
                    body=payload,
                    message_id=one.id or new_id,
                    content_type=_CONTENT_TYPE,
                )
            )
        return messages


def _carrying(trace: TraceContext | None, messages: list[Outgoing]) -> list[Outgoing]:
    """Give messages that say of which trace they are a part."""
    if trace is None:
        return messages
    headers = trace.headers()
    return [replace(one, headers=headers) for one in messages]


def _partitions(state: TenantState, topic: str) -> int:
    return 1 if topic == names.DEFAULT_TOPIC else state.partitions_of(topic)


def _call(state: TenantState) -> str:
    """Name a call that a key is for: a key of a former tenant of the id is not this one's."""
    call = f"POST /tenants/{state.tenant_id}/messages"
    return call if state.incarnation == 1 else f"{call} {state.incarnation}"


def fast_route(publisher: Publisher) -> FastRoute:
    """Give the short way to publishing, for calls without an idempotency key."""

    async def serve(request: Request, match: re.Match[str], body: bytes) -> Response | None:
        if idempotency.HEADER in request.headers or not is_json(request):
            return None
        asked = publisher.tracer.context_of(request.scope["headers"])
        who = principal_of(request.scope)
        return await publisher.read_and_publish(match[1], who, body, asked)

    return FastRoute(method="POST", path=_PATH, serve=serve)


routes = Routes("messages")


@routes(
    "POST /tenants/{tenant_id}/messages",
    "Publish messages",
    Accepted,
    errors=(404, 409, 429),
    status=202,
)
async def publish(
    publisher: Annotated[Publisher, held_by_app("publisher")],
    tenant_id: str,
    publications: Publications,
    request: Request,
    who: Who,
    *,
    idempotency_key: idempotency.Key = None,
) -> Response:
    """Publish one message or a list of them; answers once the broker has confirmed all.

    After a 503 some may have been taken: send all again, with the same ids or the same
    `Idempotency-Key`, and each is stored once. With a key, ids that are left out are made
    from it, so that a repeated call has the same answer. A 429 says that the tenant publishes
    faster than its rate, or that its backlog is full.
    """
    body = await request.body()
    asked = publisher.tracer.context_of(request.scope["headers"])
    return await publisher.publish(
        tenant_id, who, publications, body, key=idempotency_key, asked=asked
    )


def members(body: bytes, name: str) -> list[bytes]:
    """Cut the text of the member `name` out of an object, or out of every object of an array.

    `body` has been read as JSON, and every object has the member. Raises `json.JSONDecodeError`
    where nesting is deeper than this interpreter follows.
    """
    text = body.decode()
    try:
        at = _skip(text, 0)
        if text[at] == "{":
            return [_member(text, at, name)[0]]
        found = []
        at = _skip(text, at + 1)
        while text[at] != "]":
            member, at = _member(text, at, name)
            found.append(member)
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None
    return found


def _member(text: str, at: int, name: str) -> tuple[bytes, int]:
    """Give the member's text, of the last one where a name comes twice, and the object's end."""
    found = ""
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, begin)
        if key == name:
            found = text[begin:end]
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found.encode(), at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
