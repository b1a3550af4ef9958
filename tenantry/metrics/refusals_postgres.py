"""Refused calls in PostgreSQL, where all nodes count them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tenantry.messages.postgres import store_errors
from tenantry.metrics.refusals import Refused
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database


class PostgresRefusals:
    """Keeps counts of refused calls (`tenantry.metrics.refusals.RefusalStore`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("refusals")

    def add(self, counts: Mapping[Refused, int]) -> None:
        """See `RefusalStore.add`."""
        given = {
            "tenants": [one.tenant_id for one in counts],
            "incarnations": [one.incarnation for one in counts],
            "reasons": [one.reason.value for one in counts],
            "counts": list(counts.values()),
        }
        with store_errors(), self._database.connection() as connection:
            connection.execute(self._sql["add"], given)

    def totals(self) -> Mapping[tuple[str, str], int]:
        """See `RefusalStore.totals`."""

        def read(connection: Connection) -> dict[tuple[str, str], int]:
            rows = connection.execute(self._sql["totals"]).fetchall()
            return {(tenant_id, reason): count for tenant_id, reason, count in rows}

        with store_errors():
            return self._database.read(read)
