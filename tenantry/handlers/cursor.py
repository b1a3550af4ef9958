"""The cursor a handler is given: all of psycopg's, but for what would end the transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

_ENDS: Final = re.compile(
    r"(?:\s|;|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:COMMIT|END|ABORT|BEGIN|START\s+TRANSACTION|PREPARE\s+TRANSACTION|"
    r"ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)


class HandlerMisuseError(Exception):
    """A handler did what it may not do with its cursor."""


class HandlerCursor(psycopg.Cursor[TupleRow]):
    """A cursor that can't be closed, and refuses to begin or end a transaction.

    Savepoints are a handler's to use. What finds a way round this all the same (a COMMIT behind
    another statement, say) is noticed by `misuse`. `touched` tells whether anything can have come
    of it: a statement, or a look at the connection.
    """

    touched = False

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """See `psycopg.Cursor.connection`."""
        self.touched = True
        return self._conn

    def execute(self, query: Any, *arguments: Any, **keywords: Any) -> HandlerCursor:
        """See `psycopg.Cursor.execute`."""
        self._begin(query)
        super().execute(query, *arguments, **keywords)
        return self

    def executemany(self, query: Any, params_seq: Iterable[Any], **keywords: Any) -> None:
        """See `psycopg.Cursor.executemany`."""
        self._begin(query)
        super().executemany(query, params_seq, **keywords)

    def stream(self, query: Any, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        """See `psycopg.Cursor.stream`."""
        self._begin(query)
        return super().stream(query, *arguments, **keywords)

    def copy(self, statement: Any, *arguments: Any, **keywords: Any) -> Any:
        """See `psycopg.Cursor.copy`."""
        self._begin(statement)
        return super().copy(statement, *arguments, **keywords)

    def _begin(self, query: object) -> None:
        _refuse_to_end(query)
        self.touched = True

    def close(self) -> None:
        """Refuse: the cursor is lent."""
        raise HandlerMisuseError("the cursor is not the handler's to close")

    def misuse(self) -> str | None:
        """Say what a handler has done to the transaction that keeps it from being committed."""
        if not self.touched:
            return None
        connection = self._conn
        if connection.closed:
            return None if connection.broken else "the handler closed the connection"
        match connection.pgconn.transaction_status:
            case TransactionStatus.INTRANS:
                return None
            case TransactionStatus.INERROR:
                return "the handler went on after an error in SQL, which has undone its work"
            case TransactionStatus.ACTIVE:
                return "the handler left a statement unfinished"
            case _:
                return "the handler ended the transaction (COMMIT or ROLLBACK)"


def _refuse_to_end(query: object) -> None:
    if isinstance(query, sql.SQL):
        query = query.as_string()
    if isinstance(query, bytes):
        query = query.decode(errors="replace")
    if isinstance(query, str) and _ENDS.match(query):
        raise HandlerMisuseError(
            f"a handler may not begin or end a transaction: {' '.join(query.split())[:50]!r}"
        )
