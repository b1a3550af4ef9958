"""Changes to roles that their own sessions hold up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from psycopg import errors

from tenantry.database.pool import Connection

log = structlog.get_logger(__name__)

TRIES: Final = 4

PATIENCE_MS: Final = 500
"""Milliseconds to wait for a role before its sessions are ended."""

ENDING_MS: Final = 2000
"""Milliseconds that a session may take to end."""


def insist(connection: Connection, name: str, step: Callable[[], object]) -> None:
    """Change a role in an open transaction, over its own sessions where need be.

    A role may change its own password and settings: in a transaction that it leaves open, nobody
    else changes the role until that ends. Raises what `step` raises at last.
    """
    connection.execute(f"SET LOCAL lock_timeout = {PATIENCE_MS}".encode())
    for left in reversed(range(TRIES)):
        try:
            with connection.transaction():
                step()
        except (errors.LockNotAvailable, errors.InternalError) as error:
            # The second is what is said where the role has been changed meanwhile.
            if not left:
                raise
            _end_sessions(connection, name, error)
        else:
            return


def _end_sessions(connection: Connection, name: str, error: Exception) -> None:
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid, %s)), count(*)"
        " FROM pg_stat_activity AS a WHERE a.usename = %s",
        [ENDING_MS, name],
    ).fetchone()
    ended, there = row or (0, 0)
    if there:
        log.warning("broker.role_was_held", user=name, sessions_ended=ended, error=str(error))
