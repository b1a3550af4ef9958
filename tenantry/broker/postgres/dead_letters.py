"""Tenants' dead letters on the embedded broker, browsed from the oldest on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg

from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    QueuedDeadLetter,
)
from tenantry.broker.postgres.reading import BYTES
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming
from tenantry.sql import queries

_REASON: Final = "rejected"
"""Nothing else makes a dead letter here: no queue has limits, no message expires."""

_ERRORS: Final = PortErrors(
    BrokerUnavailableError, BrokerError, where="the dead letters can't be read"
)


class PostgresDeadLetterBrowser:
    """Browses, on a connection of its own: no other browser begins while its session lives."""

    gone = True
    complete = True

    def __init__(self, connection: psycopg.Connection[Any], tenant_id: str) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._sql = queries("queues")
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
        return [QueuedDeadLetter(_message(Incoming(*row[1:])), _REASON, None, None) for row in rows]

    def remove(self, indexes: Collection[int]) -> None:
        """Remove messages, by their place in what `next` gave last."""
        self._execute("remove_rejected", seqs=[self._given[index] for index in indexes])

    def _execute(self, name: str, **parameters: object) -> psycopg.Cursor[Any]:
        with _ERRORS:
            return self._connection.execute(
                self._sql[name], {"tenant": self._tenant_id, **parameters}
            )


def _message(read: Incoming) -> Incoming:
    """Give a message as it was read, its headers still text."""
    text: Any = read.headers
    return read._replace(id=read.id or None, headers=None if text is None else JsonHeaders(text))


class PostgresDeadLetters:
    """Dead letters (`tenantry.broker.port.DeadLetters`) in `tenantry.rejected`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("queues")

    @contextmanager
    def browse(self, tenant_id: str) -> Iterator[PostgresDeadLetterBrowser]:
        """See `DeadLetters.browse`."""
        with _ERRORS, self._database.listen_connection() as connection:
            if not self._begun(connection, tenant_id):
                raise DeadLettersBusyError(
                    f"the dead letters of tenant {tenant_id!r} are being replayed or discarded"
                )
            try:
                yield PostgresDeadLetterBrowser(connection, tenant_id)
            finally:
                self._end(connection, tenant_id)

    def _begun(self, connection: psycopg.Connection[Any], tenant_id: str) -> bool:
        row = connection.execute(self._sql["begin_browse"], {"tenant": tenant_id}).fetchone()
        return row is not None

    def _end(self, connection: psycopg.Connection[Any], tenant_id: str) -> None:
        # Else it ends with the session, which takes the server a moment to notice.
        with suppress(psycopg.Error):
            connection.execute(self._sql["end_browse"], {"tenant": tenant_id})
