"""Removing messages in PostgreSQL: one function removes them and remembers their ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog
from psycopg import errors

from tenantry.messages.postgres import store_errors
from tenantry.messages.retention import Limited, Removal
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

log = structlog.get_logger(__name__)

NOT_YET: Final = Removal(aged=0, crowded=0, more=False, due=1.0)


class PostgresMessageRemovals:
    """Removes messages (`tenantry.messages.retention.MessageRemovals`) in the store's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("retention")

    def limited(self) -> Mapping[str, Limited]:
        """See `MessageRemovals.limited`."""
        with store_errors(), self._database.connection() as connection:
            rows = connection.execute(self._sql["limited"]).fetchall()
        return {
            tenant_id: Limited((seconds, most), excess, aged, crowded)
            for tenant_id, seconds, most, excess, aged, crowded in rows
        }

    def remove(self, tenant_id: str, most: int) -> Removal:
        """See `MessageRemovals.remove`."""
        parameters = {"tenant": tenant_id, "most": most}
        with store_errors(tenant_id), self._database.connection() as connection:
            for _ in range(2):
                row = connection.execute(self._sql["remove"], parameters).fetchone()
                if row is None or row[0]:
                    break
                if not self._make_ready(connection, tenant_id):
                    return NOT_YET
        return NOT_YET if row is None or not row[0] else Removal(*row[1:])

    def forget(self, mine: Callable[[str], bool]) -> None:
        """See `MessageRemovals.forget`."""
        with store_errors(), self._database.connection() as connection:
            rows = connection.execute(self._sql["long_past"]).fetchall()
            ids = [tenant_id for (tenant_id,) in rows if mine(tenant_id)]
            if ids:
                connection.execute(self._sql["forget"], {"ids": ids})

    def _make_ready(self, connection: Connection, tenant_id: str) -> bool:
        """Prepare the database for a removal; False if that has to wait."""
        try:
            connection.execute(self._sql["turn"])
        except errors.LockNotAvailable:
            log.info("retention.waits", tenant=tenant_id, reason="remembered ids are being read")
            return False
        connection.execute(self._sql["begin"], {"tenant": tenant_id})
        return True
