"""Whoever holds our tables though they are no business of theirs."""

from __future__ import annotations

from typing import Final

from psycopg import errors

from tenantry.database.pool import Connection

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


def end(connection: Connection) -> str:
    """End others' sessions that hold tables of ours; say which there were.

    Who can name a table can hold it as long as a transaction is open, by preparing a statement
    that would need it. Sessions of the database's own user and of superusers are let be, and so are
    those that this user may not end.
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
