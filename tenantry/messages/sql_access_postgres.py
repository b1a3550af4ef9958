"""Tenants' roles in PostgreSQL: passwords are hashed here, so that the server never sees one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import psycopg
import structlog
from psycopg import errors, sql

from tenantry.database.failures import PortErrors, one_line
from tenantry.database.locks import insist
from tenantry.database.pool import Connection, Database
from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tenantry.messages.sql_access import SqlCredentials

log = structlog.get_logger(__name__)

CONNECTIONS: Final = 5
"""Connections a tenant's role may have at once."""

_GRANT: Final = "SELECT tenantry.grant_sql_access(%s, %s, %s)"
_LOCK_OUT: Final = "SELECT tenantry.lock_out_sql_roles(%s)"


class PostgresSqlAccess:
    """Roles that may read their tenant's rows (`SqlAccess`); see migrations 0008 and 0017."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = role_errors(database)

    @contextmanager
    def granting(self, tenant_id: str) -> Iterator[SqlCredentials]:
        """See `SqlAccess.granting`.

        It uses no connection of the pool: the caller may wait for one of those while the context
        lasts.
        """
        password = secrets.token_urlsafe(32)
        with self._errors, self._database.listen_connection() as connection:
            with connection.transaction():
                row = connection.execute("SELECT tenantry.sql_role(%s)", (tenant_id,)).fetchone()
                role = str(row[0]) if row else ""
                granted = (tenant_id, verifier(connection, role, password), CONNECTIONS)
                insist(connection, role, partial(connection.execute, _GRANT, granted))
                mark(connection, role)
                yield SqlCredentials(
                    username=role, password=password, url=self._database.url_for(role, password)
                )
            _end_sessions(connection, role)

    def revoke(self, tenant_id: str) -> bool:
        """See `SqlAccess.revoke`."""
        with self._errors, self._database.connection() as connection:
            named = connection.execute("SELECT tenantry.sql_role(%s)", (tenant_id,)).fetchone()
            role = str(named[0]) if named else ""
            with connection.transaction():
                insist(connection, role, partial(connection.execute, _LOCK_OUT, (tenant_id,)))
            row = connection.execute(
                "SELECT tenantry.revoke_sql_access(%s)", (tenant_id,)
            ).fetchone()
        return bool(row and row[0])


def mark(connection: Connection, role: str) -> None:
    """Mark a role with its installation, as roles belong to the whole server."""
    row = connection.execute("SELECT name FROM tenantry.installation").fetchone()
    if row is not None:
        comment = sql.SQL("COMMENT ON ROLE {} IS {}")
        connection.execute(comment.format(sql.Identifier(role), sql.Literal(f"tenantry-{row[0]}")))


def _end_sessions(connection: Connection, role: str) -> None:
    """End the sessions of the former password. The new password holds even if this fails."""
    try:
        connection.execute("SELECT tenantry.end_sessions(%s)", (role,))
    except psycopg.Error as error:
        log.warning("sql_access.sessions_not_ended", user=role, error=one_line(error))


def verifier(connection: Connection, role: str, password: str) -> str:
    """Hash a password as PostgreSQL stores it (SCRAM-SHA-256)."""
    hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return hashed.decode()


def role_errors(database: Database) -> PortErrors:
    """Return the port's errors for failures with tenants' roles."""

    def otherwise(error: psycopg.Error) -> MessageStoreError | None:
        if isinstance(error, errors.InsufficientPrivilege):
            return MessageStoreError(
                f"{database.where}: {one_line(error)}; tenants' roles need a user of database.url "
                "that may make roles: ALTER ROLE ... CREATEROLE"
            )
        if isinstance(error, errors.DuplicateObject):
            return MessageStoreError(
                f"{database.where}: {one_line(error)}, and was not made by this program: drop it"
            )
        return None

    return PortErrors(
        StoreUnavailableError, MessageStoreError, where=database.where, otherwise=otherwise
    )
