"""Statistics in PostgreSQL: a ring of slots a tenant, written for all of them in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from tenantry.messages.postgres import store_errors
from tenantry.metrics.statistics import BUCKETS, Note, Slot
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database


class PostgresStatistics:
    """Keeps statistics (`tenantry.metrics.statistics.StatisticsStore`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("statistics")

    def note(self, at: datetime, notes: Mapping[str, Note]) -> None:
        """See `StatisticsStore.note`."""
        wanted = {
            "at": at,
            "tenants": list(notes),
            "backlogs": [one.backlog for one in notes.values()],
            "latencies": list(chain.from_iterable(one.latencies for one in notes.values())),
            "bounds": BUCKETS,
        }
        with store_errors(), self._database.connection() as connection:
            connection.execute(self._sql["note"], wanted)
            connection.execute(self._sql["forget_gone"], wanted)

    def read(
        self, tenant_id: str, *, hourly: bool, start: datetime, end: datetime
    ) -> Sequence[Slot]:
        """See `StatisticsStore.read`."""
        step = 60 if hourly else 1
        wanted = {"tenant": tenant_id, "step": step, "start": start, "end": end}

        def read(connection: Connection) -> list[Slot]:
            with connection.cursor(row_factory=class_row(Slot)) as cursor:
                return cursor.execute(self._sql["read"], wanted).fetchall()

        with store_errors():
            return self._database.read(read)
