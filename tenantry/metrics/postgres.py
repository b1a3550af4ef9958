"""Statistics and refused calls in PostgreSQL.

Each tenant's statistics are a ring of slots, written for all tenants in one call; refused calls of
all nodes are counted in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from tenantry.messages.postgres import store_errors
from tenantry.metrics.refusals import Refused
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
