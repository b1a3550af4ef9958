"""The cursor a handler is given, and the connection under it: tidied up, or cut where it hangs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import psycopg
import structlog
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

if TYPE_CHECKING:
    from tenantry.database.pool import Connection

log = structlog.get_logger(__name__)

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


CANCEL_SECONDS: Final = 2.0

_RESET: Final = (
    "CLOSE ALL; UNLISTEN *; RESET ALL; RESET SESSION AUTHORIZATION; DISCARD TEMP;"
    " SELECT pg_catalog.pg_advisory_unlock_all()"
)
"""What a handler may have left behind on its connection, which others will use."""


def tidy(connection: Connection) -> None:
    """Undo what a handler may have changed on its connection beyond the transaction."""
    # In one message: there is no moment in which the session is not ours by every setting.
    pins: bytes = getattr(connection, "pins", b"")
    connection.execute(_RESET.encode() + b"; " + pins)


def as_it_was(connection: Connection) -> None:
    """Undo what a handler may have changed on the connection's own object."""
    connection.row_factory = tuple_row
    connection.cursor_factory = psycopg.Cursor


def sever(connection: Connection) -> None:
    """Cut a connection under the handler that uses it: nothing done on it can be committed.

    What it has running on the server is cancelled, as far as that can be reached.
    """
    try:
        if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            connection.cancel_safe(timeout=CANCEL_SECONDS)
    except psycopg.Error as error:
        log.warning("handler.not_cancelled", error=str(error))
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error) as error:
        log.debug("handler.connection_was_gone", error=str(error))
