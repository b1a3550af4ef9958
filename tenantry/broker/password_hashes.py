"""The hashes of the broker users' passwords: a broker that lost its users gets them back."""

from __future__ import annotations

from collections.abc import Mapping

from tenantry.broker.port import PasswordHash
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tenantry.sql import queries


class PostgresPasswordHashes:
    """Password hashes (`tenantry.broker.port.PasswordHashes`) in `tenantry.credentials`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(StoreUnavailableError, MessageStoreError, where=database.where)
        self._sql = queries("tenants")

    def propose(self, tenant_id: str, password: PasswordHash) -> None:
        """See `PasswordHashes.propose`."""
        with self._errors, self._database.connection() as connection:
            parameters = {"id": tenant_id, "hash": password.value}
            connection.execute(self._sql["propose_credentials"], parameters)

    def confirm(self, tenant_id: str) -> None:
        """See `PasswordHashes.confirm`."""
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["confirm_credentials"], {"ids": [tenant_id]})

    def load(self, tenant_id: str) -> PasswordHash | None:
        """See `PasswordHashes.load`."""
        with self._errors, self._database.connection() as connection:
            row = connection.execute(self._sql["load_credentials"], {"id": tenant_id}).fetchone()
        return None if row is None else PasswordHash(value=row[0])

    def remove(self, tenant_id: str) -> None:
        """See `PasswordHashes.remove`."""
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["remove_credentials"], {"id": tenant_id})

    def all(self) -> Mapping[str, PasswordHash]:
        """See `PasswordHashes.all`."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql["all_credentials"]).fetchall()
        return {tenant_id: PasswordHash(value=value) for tenant_id, value in rows}
