"""Dead letters in a database table, of all tenants in one: browsed from the oldest on.

The embedded broker and Iggy use it, each with its own statements and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias

import psycopg

from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    QueuedDeadLetter,
)
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.sql import queries

BYTES: Final = 8 * 1024 * 1024
"""Bytes read at once; one message always is."""

REJECTED: Final = "rejected"
"""The reason of every dead letter here: neither full queues nor expiry make any."""

Statements: TypeAlias = Mapping[str, bytes]
"""`last_rejected`, `next_rejected` (rows that begin with a number, which rises) and
`remove_rejected`."""

ReadRow: TypeAlias = Callable[[Sequence[Any]], QueuedDeadLetter]

_ERRORS: Final = PortErrors(
    BrokerUnavailableError, BrokerError, where="the dead letters can't be read"
)


class TableBrowser:
    """Browses on a connection of its own: while its session lives, no other browser can begin."""

    gone = True
    complete = True

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        tenant_id: str,
        statements: Statements,
        read_row: ReadRow,
    ) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._sql = statements
        self._read_row = read_row
        self._after = 0
        self._given: list[int] = []
        row = self._execute("last_rejected").fetchone()
        self._last = 0 if row is None else row[0]

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers, in the table, of the messages last returned by `next`."""
        return self._given

    def next(self, most: int) -> list[QueuedDeadLetter]:
        """Return further messages; none once those of the start are through."""
        rows = self._execute(
            "next_rejected", after=self._after, last=self._last, most=most, bytes=BYTES
        ).fetchall()
        self._given = [row[0] for row in rows]
        if rows:
            self._after = self._given[-1]
        return [self._read_row(row) for row in rows]

    def remove(self, indexes: Collection[int]) -> None:
        """Remove messages, by their index in the latest result of `next`."""
        self._execute("remove_rejected", seqs=[self._given[index] for index in indexes])

    def _execute(self, name: str, **parameters: object) -> psycopg.Cursor[Any]:
        with _ERRORS:
            return self._connection.execute(
                self._sql[name], {"tenant": self._tenant_id, **parameters}
            )


class TableDeadLetters:
    """Dead letters (`tenantry.broker.port.DeadLetters`) in a table."""

    def __init__(self, database: Database, statements: Statements, read_row: ReadRow) -> None:
        self._database = database
        self._statements = statements
        self._read_row = read_row
        self._sql = queries("queues")

    @contextmanager
    def browse(self, tenant_id: str) -> Iterator[TableBrowser]:
        """See `DeadLetters.browse`."""
        with _ERRORS, self._database.listen_connection() as connection:
            row = connection.execute(self._sql["begin_browse"], {"tenant": tenant_id}).fetchone()
            if row is None:
                raise DeadLettersBusyError(
                    f"the dead letters of tenant {tenant_id!r} are being replayed or discarded"
                )
            try:
                yield TableBrowser(connection, tenant_id, self._statements, self._read_row)
            finally:
                # Otherwise it ends with the session, and the server takes a moment to notice that.
                with suppress(psycopg.Error):
                    connection.execute(self._sql["end_browse"], {"tenant": tenant_id})
