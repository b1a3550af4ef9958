"""What publishes the messages of a call, and waits for their confirms."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import cloudevents, idempotency
from tenantry.api.idempotency import IdempotencyKeys, Once
from tenantry.api.publishing_rates import PublishingRates
from tenantry.api.schemas.common import dumps, json_response
from tenantry.api.schemas.messages import Publication, Publications
from tenantry.api.services import TenantLookup
from tenantry.broker.port import (
    BacklogFullError,
    LoopPublishing,
    MessagesRefusedError,
    Outgoing,
    Publishing,
)
from tenantry.domain import names
from tenantry.domain.tenant import TenantState
from tenantry.exact import members
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem, invalid
from tenantry.http.tokens import Principal
from tenantry.messages.encoding import random_uuids
from tenantry.metrics.refusals import Reason, Refusals, Refused
from tenantry.projections.port import LoopDirectory
from tenantry.tracing import TraceContext, Tracer
from tenantry.turns.one_by_one import SMALL, Turn

PUBLISH_SECONDS: Final = 10.0
LARGE: Final = 8192
"""Bytes from which on parsing a body takes a while: a millisecond or more."""

ON_LOOP: Final = 4096
"""Bytes up to which a body is read on the event loop: a millisecond at most, whatever is in it."""

PORTION: Final = 25
"""Messages of a list that are published at once beside others' small calls."""

MOST_PORTIONS: Final = 20
"""A list has so many portions at most: each is followed by a rest."""

LEAST_SECONDS: Final = 0.1
"""Seconds that a portion has in any case, where the ones before were confirmed in time."""

_SECONDS_OF_A_CALL: Final = 0.01
_SECONDS_OF_A_MESSAGE: Final = 0.0002
_SECONDS_OF_A_BYTE: Final = 5e-8

_CONTENT_TYPE: Final = "application/json"
_PUBLICATIONS: Final[TypeAdapter[Publications]] = TypeAdapter(Publications)
_MAX_TURNS: Final = 10_000
_Sent = TypeVar("_Sent")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def partition_of_key(key: str, partitions: int) -> int:
    """Return the partition of a key: CRC-32 (as in zlib) of its UTF-8 bytes, modulo `partitions`.

    It never changes for the same number of partitions, and any producer can compute it.
    """
    return zlib.crc32(key.encode()) % partitions


class Router:
    """Makes routing keys; messages without a key go to a topic's partitions in turn.

    Callable from any thread.
    """

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], Iterator[int]] = {}

    def routing_key(self, tenant_id: str, topic: str, partitions: int, key: str | None) -> str:
        """Return the routing key of a message; the default topic has one queue, no partitions."""
        if topic == names.DEFAULT_TOPIC:
            return topic
        if key is not None:
            return f"{topic}.{partition_of_key(key, partitions)}"
        return f"{topic}.{self._turn(tenant_id, topic) % partitions}"

    def _turn(self, tenant_id: str, topic: str) -> int:
        turn = self._turns.get((tenant_id, topic))
        if turn is None:
            if len(self._turns) >= _MAX_TURNS:  # turns that begin anew are still balanced
                self._turns.clear()
            turn = self._turns.setdefault((tenant_id, topic), itertools.count())
        return next(turn)


class Wanted(NamedTuple):
    """A message to be published; if `id` is None, it gets a new one."""

    topic: str | None
    key: str | None
    id: str | None
    body: bytes
    content_type: str | None
    headers: Mapping[str, object] | None


class Call(NamedTuple):
    """A publishing call: its tenant, caller, body, idempotency key, and the caller's trace."""

    tenant_id: str
    who: Principal
    body: bytes
    key: str | None
    asked: TraceContext | None


class OnLoop(NamedTuple):
    """What publishing takes on the event loop itself."""

    publishing: LoopPublishing
    directory: LoopDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """What publishing takes, in the daemon or in its front.

    The broker has `timeout` seconds to confirm; `threads` wait for it, except that a small call
    takes none where there is a way `on_loop`. Only the daemon has the keys of `idempotency`: a call
    with a key is not for the front. `asked` is the trace that a call belongs to, if any. `refusals`
    counts calls that a limit of their tenant refused.
    """

    lookup: TenantLookup
    publishing: Publishing
    threads: Pool
    on_loop: OnLoop | None = None
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
        """Publish the messages read from `body`; answer once the broker has confirmed all."""
        call = Call(tenant_id, who, body, key, asked)
        sent = await self._run(body, partial(self._publish_read, call, publications))
        return json_response(sent, 202)

    async def read_and_publish(
        self, tenant_id: str, who: Principal, body: bytes, asked: TraceContext | None = None
    ) -> Response | None:
        """Read a body and publish its messages; None if it can't be read.

        It is read in the tenant's turn for a thread: thousands of messages take some time. A small
        one takes no thread where there is another way: each change of the thread may wait for the
        interpreter, as long as another thread works on a list.
        """
        call = Call(tenant_id, who, body, None, asked)
        if self.on_loop is not None and len(body) <= ON_LOOP and seconds_for(body) <= SMALL:
            send = partial(self._send_on_loop, self.on_loop, call)
            answer = await self.threads.await_in_turn(seconds_for(body), send)
            return None if answer is None else json_response(answer, 202)

        def work(turn: Turn) -> bytes | None:
            with self._alone(body):
                publications = _read(body)
            return None if publications is None else self._publish_read(call, publications, turn)

        sent = await self._run(body, work)
        return None if sent is None else json_response(sent, 202)

    async def publish_events(
        self, request: Request, tenant_id: str, who: Principal, body: bytes
    ) -> Response:
        """Publish the CloudEvents of a call, each under its own id. Raises `Problem`."""
        key = request.headers.get(idempotency.HEADER)
        if key is not None and not _KEY.fullmatch(key):
            problem = "must be 1 to 255 visible ASCII characters"
            raise invalid([(idempotency.HEADER, problem)])
        where = cloudevents.called(request)
        said = cloudevents.said_by(request, body) if key is not None else body
        asked = self.tracer.context_of(request.scope["headers"])

        def work(turn: Turn) -> bytes:
            with self._alone(body):
                events = cloudevents.events_of(request, body)
            wanted = [
                Wanted(
                    where.topic,
                    one.key if where.key is None else where.key,
                    one.id,
                    one.body,
                    one.content_type,
                    one.headers,
                )
                for one in events
            ]
            call = Call(tenant_id, who, said, key, asked)
            return self._send(call, len(wanted), lambda: wanted, turn)

        return json_response(await self._run(body, work), 202)

    async def _run(self, body: bytes, work: Callable[[Turn], _Sent]) -> _Sent:
        """Run what publishes a body on a thread, in the tenant's turn."""
        return await self.threads.run_in_turn(seconds_for(body), work)

    def _publish_read(self, call: Call, publications: Publications, turn: Turn) -> bytes:
        several = _several(publications)
        return self._send(call, len(several), lambda: _wanted(call.body, several), turn)

    async def _send_on_loop(self, on_loop: OnLoop, call: Call) -> bytes | None:
        """Read and publish few messages without a key; None if they can't be read."""
        publications = _read(call.body)
        if publications is None:
            return None
        several = _several(publications)
        state = await self.lookup.publishable_on_loop(on_loop.directory, call.tenant_id, call.who)
        self._admit(state, len(several))
        messages = self._messages(state, _wanted(call.body, several), None)
        with (
            self.tracer.publishing(state.tenant_id, messages, call.asked) as span,
            self._limited(state),
        ):
            sent = _carrying(span.context, messages)
            await on_loop.publishing.publish(sent, within=self.timeout)
        return _answer(messages)

    def _send(
        self, call: Call, count: int, make: Callable[[], Sequence[Wanted]], turn: Turn
    ) -> bytes:
        """Publish `count` messages, made by `make` once the rate admits them; return the answer."""
        state = self.lookup.publishable(call.tenant_id, call.who)
        self._admit(state, count)
        with self._alone(call.body):
            once = None if call.key is None else Once(_call(state), call.key, call.body)
            messages = self._messages(state, make(), once)
        if once is not None and self.idempotency is not None:
            once.claim(self.idempotency)
        if messages:
            with (
                self.tracer.publishing(state.tenant_id, messages, call.asked) as span,
                self._limited(state),
            ):
                sent = _carrying(span.context, messages)
                self._publish_in_turn(turn, sent)
        return _answer(messages)

    def _publish_in_turn(self, turn: Turn, messages: Sequence[Outgoing]) -> None:
        """Publish messages, in portions if others are to get through between them."""
        most = len(messages)
        if turn.in_portions and self.publishing.singly:
            most = max(PORTION, math.ceil(most / MOST_PORTIONS))
        left = self.timeout
        for end in range(most, len(messages) + most, most):
            began = time.monotonic()
            self.publishing.publish(messages[end - most : end], timeout=left)
            seconds = time.monotonic() - began
            left = max(left - seconds, LEAST_SECONDS)
            if end < len(messages):
                turn.rest(seconds)

    def _alone(self, body: bytes) -> AbstractContextManager[object]:
        """Let one thread at a time work on a large body.

        If a dozen threads competed for the interpreter, every other thread of this process would
        wait for all of them each time it needs the interpreter.
        """
        return self._working if len(body) > LARGE else nullcontext()

    def _admit(self, state: TenantState, count: int) -> None:
        try:
            self.rates.admit(state, count)
        except Problem:
            self._refused(state, Reason.RATE)
            raise

    @contextmanager
    def _limited(self, state: TenantState) -> Iterator[None]:
        """Count what the backlog's limit refuses, also where the broker does not name it."""
        try:
            yield
        except BacklogFullError:
            self._refused(state, Reason.BACKLOG)
            raise
        except MessagesRefusedError as error:
            if state.limits.has_backlog:
                # By far the likeliest reason, and one that the publisher can do something about.
                self._refused(state, Reason.BACKLOG)
                raise BacklogFullError(
                    f"the backlog of tenant {state.tenant_id!r} is full"
                ) from error
            raise

    def _refused(self, state: TenantState, reason: Reason) -> None:
        self.refusals.note(Refused(state.tenant_id, state.incarnation, reason))

    def _messages(
        self, state: TenantState, wanted: Sequence[Wanted], once: Once | None
    ) -> list[Outgoing]:
        exchange = names.exchange_name(state.tenant_id)
        if once is None:
            ids = random_uuids(len(wanted))
        else:
            ids = [once.id(number) for number in range(len(wanted))]
        messages = []
        for one, new_id in zip(wanted, ids, strict=True):
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
                    body=one.body,
                    message_id=one.id or new_id,
                    content_type=one.content_type,
                    headers=one.headers,
                )
            )
        return messages


def seconds_for(body: bytes) -> float:
    """Estimate how long publishing a body takes where nothing else goes on.

    A list has at least as many braces as messages: that can be told without reading it.
    """
    messages = body.count(b"{") if body.lstrip().startswith(b"[") else 1
    return _SECONDS_OF_A_CALL + messages * _SECONDS_OF_A_MESSAGE + len(body) * _SECONDS_OF_A_BYTE


def _read(body: bytes) -> Publications | None:
    """Read the messages of a body; None if it can't be read."""
    try:
        return _PUBLICATIONS.validate_python(orjson.loads(body))
    except (json.JSONDecodeError, ValidationError):
        return None


def _several(publications: Publications) -> Sequence[Publication]:
    return [publications] if isinstance(publications, Publication) else publications


def _wanted(body: bytes, publications: Sequence[Publication]) -> list[Wanted]:
    """Return the messages of a body, with their payloads as they came."""
    payloads = members(body, "payload")
    return [
        Wanted(one.topic, one.key, one.id, payload, _CONTENT_TYPE, None)
        for one, payload in zip(publications, payloads, strict=True)
    ]


def _answer(messages: Sequence[Outgoing]) -> bytes:
    return dumps({"ids": [one.message_id for one in messages]})


def _carrying(trace: TraceContext | None, messages: list[Outgoing]) -> list[Outgoing]:
    """Return the messages, with the trace they belong to in their headers."""
    if trace is None:
        return messages
    headers = trace.headers()
    return [
        replace(one, headers={**one.headers, **headers} if one.headers else headers)
        for one in messages
    ]


def _partitions(state: TenantState, topic: str) -> int:
    return 1 if topic == names.DEFAULT_TOPIC else state.partitions_of(topic)


def _call(state: TenantState) -> str:
    """Name the call that a key is for: a former tenant of the id has keys of its own."""
    call = f"POST /tenants/{state.tenant_id}/messages"
    return call if state.incarnation == 1 else f"{call} {state.incarnation}"
