"""Tenants' dead letters on Iggy, which has none: they are in a table, `tenantry.iggy_rejected`.

A topic can't remove a single message, and a replay or a discard takes out single ones. Dead letters
moved from another broker come by the dead-letter exchange, as on every broker. They get places that
no topic has: topics made at the time 0, and offsets below it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from tenantry.broker import topology as layout
from tenantry.broker.dead_letter_table import REJECTED, TableDeadLetters
from tenantry.broker.iggy.headers import (
    EXACT_TIME,
    own_id,
    pack,
    published,
    sendable,
    told,
    told_by,
    unpack,
    uuid_of,
)
from tenantry.broker.iggy.partition import Partition
from tenantry.broker.iggy.topology import Place
from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing, QueuedDeadLetter
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.messages.port import Incoming
from tenantry.sql import queries

if TYPE_CHECKING:
    from apache_iggy import ReceiveMessage

DATABASE_TIMEOUT: Final = 3.0
"""Seconds the database may take for a statement. A dead letter has as many more as writing it takes
at `SLOWEST`: with too little time it would be tried for ever."""

SLOWEST: Final = 1_000_000
"""Bytes a second."""

_ERRORS: Final = PortErrors(
    BrokerUnavailableError, BrokerError, where="the dead letters can't be written"
)


class IggyDeadLetters(TableDeadLetters):
    """Dead letters (`tenantry.broker.port.DeadLetters`) as written by `DeadLetterWriter`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, queries("iggy"), _dead_letter)
        self._put = queries("iggy")["reject"]

    def put(self, messages: Sequence[Outgoing]) -> None:
        """Store messages sent to the dead-letter exchange, all or none.

        A message with a number is stored once. Raises `BrokerError`.
        """
        unknown = time.time_ns()
        try:
            rows = [_moved(one, unknown + index) for index, one in enumerate(messages)]
        except (ValueError, TypeError, OverflowError) as error:
            raise BrokerError(f"Iggy holds no such headers: {error}") from error
        with _ERRORS, self._database.transaction() as connection:
            connection.cursor().executemany(self._put, rows)


def _moved(message: Outgoing, unknown: int) -> dict[str, object]:
    headers = dict(message.headers or {})
    tenant_id = message.routing_key
    topic, partition = names.place_in(tenant_id, headers.pop(layout.FIRST_DEATH_QUEUE, None))
    number = headers.pop(layout.FIRST_DEATH_NUMBER, unknown)
    made_at = headers.pop(EXACT_TIME, None)
    own = uuid_of(message.message_id or "")
    typed = sendable(message.message_id if own is None else None, message.content_type, headers)
    return {
        "tenant": tenant_id,
        "topic": topic,
        "partition": partition,
        "made": 0,
        "offset": -number if type(number) is int else -unknown,
        "id": message.message_id,
        "published_at_ms": made_at if type(made_at) is int else time.time_ns() // 1_000_000,
        "properties": pack(own or 0, typed),
        "body": message.body,
    }


class Row(NamedTuple):
    """A stored dead letter; `properties` are its typed headers and its id on Iggy."""

    seq: int
    id: str | None
    topic: str
    partition: int
    body: bytes
    published_at_ms: int
    properties: bytes
    died_at: datetime


def _dead_letter(columns: Sequence[Any]) -> QueuedDeadLetter:
    row = Row(*columns)
    _, typed = unpack(row.properties)
    read = told_by(typed, row.id or "", row.published_at_ms)
    message = Incoming(
        row.id,
        row.topic,
        row.partition,
        row.body,
        read.content_type,
        read.headers,
        row.published_at_ms,
    )
    return QueuedDeadLetter(message, REJECTED, row.died_at, row.properties)


class DeadLetterWriter:
    """Writes rejected messages, and saved offsets, to the database, on its own connection.

    It belongs to one event loop from its first call until `close`, and takes a call at a time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("iggy")
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    async def beyond(self, partition: Partition) -> list[int]:
        """Return the offsets of dead letters that the partition will deliver again.

        Dead letters that were settled and can't be delivered again are forgotten.
        """
        parameters = self._parameters(partition) | {"floor": partition.window.floor}
        await self._execute("forget_gone", parameters)
        rows = await self._execute("rejected_beyond", parameters)
        return [int(str(row[0])) for row in rows]

    async def write(self, partition: Partition, message: ReceiveMessage) -> None:
        """Store a message, as it is; harmless twice."""
        place, stamp, body = partition.place, message.timestamp(), message.payload()
        own = own_id(message, place.topic, place.partition, stamp)
        read = told(message, own, published(message, stamp))
        await self._execute(
            "reject",
            self._parameters(partition)
            | {
                "offset": message.offset(),
                "id": None if read.id is None else read.id.replace("\x00", "\ufffd"),
                "published_at_ms": read.published_at_ms,
                "properties": _properties(message),
                "body": body,
            },
            seconds=DATABASE_TIMEOUT + len(body) / SLOWEST,
        )

    async def keep_offset(self, place: Place, made: int, offset: int) -> None:
        """Save the group's stored offset for a partition of a topic made at `made`."""
        await self._execute("keep_offset", _at(place) | {"made": made, "offset": offset})

    async def kept_offset(self, place: Place, made: int) -> int | None:
        """Return the saved offset, or None if there is none for the topic made at `made`."""
        rows = await self._execute("kept_offset", _at(place) | {"made": made})
        return int(str(rows[0][0])) if rows else None

    async def forget_offsets(self, place: Place) -> None:
        """Forget the saved offsets of all partitions of the topic."""
        await self._execute("forget_offsets", _at(place))

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _parameters(self, partition: Partition) -> dict[str, object]:
        return _at(partition.place) | {"made": partition.made}

    async def _execute(
        self, name: str, parameters: Mapping[str, object], *, seconds: float | None = None
    ) -> list[tuple[object, ...]]:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT if seconds is None else seconds):
                if self._connection is None or self._connection.closed:
                    self._connection = await self._database.connect_async()
                cursor = await self._connection.execute(self._sql[name], parameters)
                return await cursor.fetchall() if cursor.description else []
        except BaseException:
            await self.close()
            raise


def _at(place: Place) -> dict[str, object]:
    return {
        "tenant": layout.owner_of(place.stream),
        "topic": place.topic,
        "partition": place.partition,
    }


def _properties(message: ReceiveMessage) -> bytes:
    try:
        return pack(message.id(), message.user_headers())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return pack(message.id(), None)
