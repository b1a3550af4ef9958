"""Tenants' dead letters on Iggy, which has none: a table in the database, the oldest first.

A topic would give none of them up alone, and a replay or a discard takes out single ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

from tenantry.broker.iggy.headers import told_by, unpack
from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    QueuedDeadLetter,
)
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.messages.port import Incoming
from tenantry.sql import queries

BYTES: Final = 8 * 1024 * 1024
"""How much is read at once."""

_REASON: Final = "rejected"
"""Nothing else makes a dead letter here: what expires on Iggy is gone."""

_ERRORS: Final = PortErrors(
    BrokerUnavailableError, BrokerError, where="the dead letters can't be read"
)


class IggyDeadLetterBrowser:
    """Browses, on a connection of its own: no other browser begins while its session lives."""

    gone = True
    complete = True

    def __init__(self, connection: psycopg.Connection[Any], tenant_id: str) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._sql = queries("iggy")
        self._after = 0
        self._given: list[int] = []
        row = self._execute("last_rejected").fetchone()
        self._last = 0 if row is None else row[0]

    def next(self, most: int) -> list[QueuedDeadLetter]:
        """Give further messages; none at the end of what was there at the start."""
        rows = self._execute(
            "next_rejected", after=self._after, last=self._last, most=most, bytes=BYTES
        ).fetchall()
        self._given = [row[0] for row in rows]
        if rows:
            self._after = self._given[-1]
        return [_dead_letter(Row(*row)) for row in rows]

    def remove(self, indexes: Collection[int]) -> None:
        """Remove messages, by their place in what `next` gave last."""
        self._execute("remove_rejected", seqs=[self._given[index] for index in indexes])

    def _execute(self, name: str, **parameters: object) -> psycopg.Cursor[Any]:
        with _ERRORS:
            return self._connection.execute(
                self._sql[name], {"tenant": self._tenant_id, **parameters}
            )


class IggyDeadLetters:
    """Dead letters (`tenantry.broker.port.DeadLetters`) in `tenantry.iggy_rejected`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("queues")

    @contextmanager
    def browse(self, tenant_id: str) -> Iterator[IggyDeadLetterBrowser]:
        """See `DeadLetters.browse`."""
        with _ERRORS, self._database.listen_connection() as connection:
            row = connection.execute(self._sql["begin_browse"], {"tenant": tenant_id}).fetchone()
            if row is None:
                raise DeadLettersBusyError(
                    f"the dead letters of tenant {tenant_id!r} are being replayed or discarded"
                )
            try:
                yield IggyDeadLetterBrowser(connection, tenant_id)
            finally:
                # Else it ends with the session, which takes the server a moment to notice.
                with suppress(psycopg.Error):
                    connection.execute(self._sql["end_browse"], {"tenant": tenant_id})


class Row(NamedTuple):
    """A dead letter as it is kept; `properties` are its typed headers and its id on Iggy."""

    seq: int
    id: str | None
    topic: str
    partition: int
    body: bytes
    published_at_ms: int
    properties: bytes
    died_at: datetime


def _dead_letter(row: Row) -> QueuedDeadLetter:
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
    return QueuedDeadLetter(message, _REASON, row.died_at, row.properties)
