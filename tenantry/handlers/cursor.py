"""The cursor a handler is given: all of psycopg's, but for what would end the transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    another statement, say) is noticed by `misuse`.
    """

    def execute(self, query: Any, *arguments: Any, **keywords: Any) -> HandlerCursor:
        """See `psycopg.Cursor.execute`."""
        _refuse_to_end(query)
        super().execute(query, *arguments, **keywords)
        return self

    def executemany(self, query: Any, params_seq: Iterable[Any], **keywords: Any) -> None:
        """See `psycopg.Cursor.executemany`."""
        _refuse_to_end(query)
        super().executemany(query, params_seq, **keywords)

    def close(self) -> None:
        """Refuse: the cursor is lent."""
        raise HandlerMisuseError("the cursor is not the handler's to close")

    def misuse(self) -> str | None:
        """Say what a handler has done to the transaction that keeps it from being committed."""
        if self.connection.closed:
            return None if self.connection.broken else "the handler closed the connection"
        match self.connection.pgconn.transaction_status:
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
