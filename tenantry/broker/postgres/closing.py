"""Ends publishing for a tenant that is being deleted, before its queues are removed."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import structlog
from psycopg import errors, sql

from tenantry.database.pool import Connection
from tenantry.sql import queries

log = structlog.get_logger(__name__)

GRACE: Final = 2.0
"""Seconds a transaction that has published may take to end by itself."""

ENDING: Final = 5.0
"""Seconds to wait in all for transactions whose sessions are ended, or can't be ended."""

AGAIN: Final = 0.02

TRIES: Final = 3

_GRACE_MS: Final = round(GRACE * 1000)


class Publisher(NamedTuple):
    """A transaction that has put messages into a queue, and may act for the tenant."""

    transaction: str
    pid: int
    user: str
    endable: bool


def close_exchange(connection: Connection, exchange: str, user: str) -> None:
    """Remove an exchange's routing keys, and wait for transactions that have published by them.

    The order matters: a transaction that reads the keys from now on finds none, and one that has
    read them has held a lock on the queues' table since before that. After a while the sessions of
    such transactions are ended. Those that can't be ended are named in the log; what they commit
    after all is swept.
    """
    until = time.monotonic() + GRACE
    for left in reversed(range(TRIES)):
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {_GRACE_MS}".encode())
                connection.execute(queries("queues")["close_exchange"], {"stream": exchange})
        except errors.LockNotAvailable:
            # A transaction at REPEATABLE READ has published by these keys.
            if not left:
                raise
            _end(connection, publishing(connection, user))
        else:
            break
    known = publishing(connection, user)
    ended = False
    while known:
        now = time.monotonic()
        if now >= until and not ended:
            _end(connection, known)
            ended = True
        if now >= until + ENDING:
            _blame(known)
            return
        time.sleep(AGAIN)
        still = {one.transaction for one in publishing(connection, user)}
        known = [one for one in known if one.transaction in still]


def publishing(connection: Connection, user: str) -> list[Publisher]:
    """List the open transactions that may have published as a tenant's `user`."""
    rows = connection.execute(queries("queues")["publishing"], {"user": user})
    return [Publisher(*row) for row in rows]


def _end(connection: Connection, known: list[Publisher]) -> None:
    for one in known:
        if not one.endable:
            continue
        try:
            connection.execute(sql.SQL("SELECT pg_terminate_backend(%s)"), [one.pid])
        except errors.InsufficientPrivilege:
            continue  # logged by `_blame`, if it does not end by itself
        log.warning("broker.publisher_ended", pid=one.pid, user=one.user, reason="tenant_deleted")


def _blame(known: list[Publisher]) -> None:
    for one in known:
        log.warning(
            "broker.publisher_outlives_its_tenant",
            pid=one.pid,
            user=one.user,
            remedy="it has published in a transaction that is still open: what it commits will be"
            " swept; end its session (pg_terminate_backend)",
        )
