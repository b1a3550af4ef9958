"""Publishing to the embedded broker: a message is confirmed by the commit that inserts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

import psycopg
from psycopg import errors

from tenantry.broker import topology as layout
from tenantry.broker.port import (
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    Outgoing,
    UnroutableError,
)
from tenantry.database.failures import PortErrors, one_line
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Connection, Database
from tenantry.domain import names
from tenantry.messages.encoding import (
    LAST_MS,
    Array,
    bigint_array,
    bytea_array,
    headers_array,
    headers_json,
    text_array,
)
from tenantry.messages.headers import UnreadableHeadersError
from tenantry.sql import queries

BACKLOG_FULL: Final = "TN003"
"""The SQLSTATE that `tenantry.admit_to_backlog` raises when a tenant's backlog is full."""

EXACT_TIME: Final = "timestamp_in_ms"

AT_ONCE: Final = 1000
"""Messages inserted by one call of the database."""


_PUT: Final = b"SELECT tenantry.enqueue($1, $2, $3, $4, $5, $6, $7)"


def _refused(error: psycopg.Error) -> BrokerError | None:
    if isinstance(error, errors.UndefinedObject):
        return UnroutableError(error.diag.message_primary or one_line(error))
    if error.sqlstate == BACKLOG_FULL:
        return BacklogFullError(error.diag.message_primary or one_line(error))
    return None


_ERRORS: Final = PortErrors(
    BrokerUnavailableError, BrokerError, where="a message can't be queued", otherwise=_refused
)


class PostgresPublishing:
    """Publishes in one transaction per call: all messages are taken, or none."""

    singly: Final = False

    def __init__(self, database: Database) -> None:
        self._database = database
        self._enqueue = queries("queues")["enqueue"]
        self._put_rejected = queries("queues")["put_rejected"]

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        """Return once every message is committed to its queue. Callable from any thread.

        Raises `UnroutableError`; `BacklogFullError`; `BrokerUnavailableError`, when they may have
        been taken; and `BrokerError` for a message that the database refuses.
        """
        if not messages:
            return
        until = time.monotonic() + timeout
        with (
            _ERRORS,
            self._database.transaction(timeout) as connection,
        ):
            left = max(1, round((until - time.monotonic()) * 1000))
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [str(left)])
            for exchange, group in groupby(messages, attrgetter("exchange")):
                part = list(group)
                if exchange == names.DEAD_LETTER_EXCHANGE:
                    self._put_among_dead_letters(connection, part)
                    continue
                for start in range(0, len(part), AT_ONCE):
                    self._put(connection, exchange, part[start : start + AT_ONCE])

    def _put(self, connection: Connection, exchange: str, part: Sequence[Outgoing]) -> None:
        parameters = {"stream": exchange, **_columns(part)}
        connection.execute(self._enqueue, parameters, prepare=True)

    def _put_among_dead_letters(self, connection: Connection, part: Sequence[Outgoing]) -> None:
        """Store another broker's dead letters, with the queue that their headers name."""
        now = time.time_ns() // 1_000_000
        marks = (layout.FIRST_DEATH_QUEUE, layout.FIRST_DEATH_NUMBER, EXACT_TIME)
        for one in part:
            headers = dict(one.headers or {})
            place = names.place_in(one.routing_key, headers.get(layout.FIRST_DEATH_QUEUE))
            own = {name: value for name, value in headers.items() if name not in marks}
            put = connection.execute(
                self._put_rejected,
                {
                    "tenant": one.routing_key,
                    "topic": place[0],
                    "partition": place[1],
                    "published_at_ms": _published_at(one, now),
                    "id": one.message_id,
                    "content_type": one.content_type,
                    "headers": headers_json(own).decode() if own else None,
                    "body": one.body,
                },
            )
            if not put.rowcount:
                raise UnroutableError(f"tenant {one.routing_key} has no queues")


class PostgresLoopPublishing:
    """Publishes on an event loop (`tenantry.broker.port.LoopPublishing`), by one statement a call.

    It is a transaction by itself.
    """

    def __init__(self, queries: LoopQueries) -> None:
        self._queries = queries

    async def publish(self, messages: Sequence[Outgoing], *, within: float) -> None:
        """See `PostgresPublishing.publish`."""
        if not messages:
            return
        exchange = messages[0].exchange
        tenant = exchange.removeprefix("tenant_").removesuffix("_stream")
        columns = [(one.oid, one.data) for one in _columns(messages).values()]
        with _ERRORS:
            try:
                async with asyncio.timeout(within):
                    await self._queries.row(
                        _PUT, [exchange.encode(), *columns], client=tenant, once=True
                    )
            except TimeoutError:
                raise BrokerUnavailableError(
                    f"the database did not take the messages in {within:g} s"
                ) from None


def _columns(part: Sequence[Outgoing]) -> dict[str, Array]:
    """Return the parameters of `tenantry.enqueue` after the first, in their order."""
    now = time.time_ns() // 1_000_000
    return {
        "keys": text_array([one.routing_key for one in part]),
        "ids": text_array([one.message_id for one in part]),
        "bodies": bytea_array([one.body for one in part]),
        "content_types": text_array([one.content_type for one in part]),
        "headers": headers_array([one.headers for one in part]),
        "published_at_ms": bigint_array([_published_at(one, now) for one in part]),
    }


def _published_at(message: Outgoing, now: int) -> int:
    """Return the publishing time in a message's header, as over AMQP; else the present."""
    try:
        given = (message.headers or {}).get(EXACT_TIME)
    except UnreadableHeadersError:
        return now
    return given if type(given) is int and 0 <= given <= LAST_MS else now
