"""The hashes of broker users' passwords: a broker that lost its users gets them back."""

from __future__ import annotations

from collections.abc import Mapping

from tenantry.broker.port import PasswordHash
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.domain.names import UserKind
from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tenantry.sql import queries


class PostgresPasswordHashes:
    """Password hashes (`tenantry.broker.port.PasswordHashes`) in `tenantry.credentials`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(StoreUnavailableError, MessageStoreError, where=database.where)
        self._sql = queries("tenants")

    def propose(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """See `PasswordHashes.propose`."""
        with self._errors, self._database.connection() as connection:
            parameters = {"id": tenant_id, "hash": password.value}
            connection.execute(self._sql[f"propose_{kind}_credentials"], parameters)

    def confirm(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """See `PasswordHashes.confirm`."""
        with self._errors, self._database.connection() as connection:
            query = self._sql[f"confirm_{kind}_credentials"]
            connection.execute(query, {"ids": [tenant_id]})

    def load(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> PasswordHash | None:
        """See `PasswordHashes.load`."""
        with self._errors, self._database.connection() as connection:
            query = self._sql[f"load_{kind}_credentials"]
            row = connection.execute(query, {"id": tenant_id}).fetchone()
        return None if row is None else PasswordHash(value=row[0])

    def remove(self, tenant_id: str) -> None:
        """See `PasswordHashes.remove`."""
        with self._errors, self._database.connection() as connection:
            for kind in UserKind:
                query = self._sql[f"remove_{kind}_credentials"]
                connection.execute(query, {"ids": [tenant_id]})

    def all(self, kind: UserKind = UserKind.PRODUCER) -> Mapping[str, PasswordHash]:
        """See `PasswordHashes.all`."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql[f"all_{kind}_credentials"]).fetchall()
        return {tenant_id: PasswordHash(value=value) for tenant_id, value in rows}
