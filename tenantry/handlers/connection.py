"""A handler's connection: cut under it where it hangs, and tidied up for the next."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from tenantry.database.pool import Connection

log = structlog.get_logger(__name__)

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
    """Cut a connection under whoever uses it: nothing that was done on it can be committed.

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
