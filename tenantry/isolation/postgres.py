"""Probe roles for a proof: each has the rights of a tenant's own role, and is removed after it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tenantry.database.pool import Database
from tenantry.database.rights import open_to_tenants
from tenantry.messages.sql_access import SqlCredentials
from tenantry.messages.sql_access_postgres import mark, role_errors, verifier
from tenantry.sql import queries

CONNECTIONS: Final = 1


class PostgresProbes:
    """Probes (`DatabaseProbes`) in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = role_errors(database)
        self._sql = queries("isolation")

    def available(self) -> bool:
        """See `DatabaseProbes.available`."""
        with self._errors, self._database.connection() as connection:
            row = connection.execute(self._sql["may_make_roles"]).fetchone()
        return bool(row and row[0])

    def sweep(self) -> None:
        """See `DatabaseProbes.sweep`."""
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["drop_probes"])

    @contextmanager
    def probe(self, tenant_id: str) -> Iterator[SqlCredentials]:
        """See `DatabaseProbes.probe`."""
        role, password = f"tenantry_probe_{secrets.token_hex(8)}", secrets.token_urlsafe(32)
        with self._errors, self._database.transaction() as connection:
            connection.execute(self._sql["lock_roles"])
            parameters = {
                "role": role,
                "tenant": tenant_id,
                "verifier": verifier(connection, role, password),
                "connections": CONNECTIONS,
            }
            connection.execute(self._sql["make_probe"], parameters)
            mark(connection, role)
        try:
            yield SqlCredentials(
                username=role, password=password, url=self._database.url_for(role, password)
            )
        finally:
            with self._errors, self._database.connection() as connection:
                connection.execute(self._sql["drop_probe"], {"role": role})

    def open(self) -> Sequence[str]:
        """See `DatabaseProbes.open`."""
        with self._errors, self._database.connection() as connection:
            return open_to_tenants(connection)

    def excess(self, tenant_id: str) -> Sequence[str]:
        """See `DatabaseProbes.excess`."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql["excess"], {"tenant": tenant_id}).fetchall()
        return [name for (name,) in rows]
