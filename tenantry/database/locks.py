"""Ends other users' sessions that block the daemon's changes to a role or a table."""

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
"""Milliseconds to wait for a session to end."""


def insist(connection: Connection, name: str, step: Callable[[], object]) -> None:
    """Change a role in an open transaction; end the role's sessions where they block it.

    A role may change its own password and settings. While its transaction stays open, no other
    session can change the role. Raises what `step` raises on the last try.
    """
    connection.execute(f"SET LOCAL lock_timeout = {PATIENCE_MS}".encode())
    for left in reversed(range(TRIES)):
        try:
            with connection.transaction():
                step()
        except (errors.LockNotAvailable, errors.InternalError) as error:
            # InternalError means that the role has been changed meanwhile.
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


_HOLDERS: Final = """
SELECT DISTINCT a.pid, a.usename::text
FROM pg_catalog.pg_locks AS l
JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
WHERE l.locktype = 'relation' AND l.granted AND a.datname = current_database()
  AND (c.relnamespace = 'tenantry'::regnamespace OR c.oid = to_regclass('public.messages'))
  AND a.usename <> current_user AND NOT r.rolsuper
ORDER BY a.pid
"""


def end_holders(connection: Connection) -> str:
    """End other users' sessions that lock the daemon's tables; return a text that lists them.

    A role that can name a table can lock it as long as a transaction is open, by preparing a
    statement that would need it. Sessions of the database's own user and of superusers are left
    alone, and so are sessions that this user may not end.
    """
    said = []
    for pid, user in connection.execute(_HOLDERS).fetchall():
        try:
            connection.execute("SELECT pg_catalog.pg_terminate_backend(%s, 2000)", [pid])
        except errors.InsufficientPrivilege:
            said.append(f"process {pid} of {user}, which has to be ended by a superuser")
        else:
            said.append(f"process {pid} of {user}, which was ended")
    return ", ".join(said)
