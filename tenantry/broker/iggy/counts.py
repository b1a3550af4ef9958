"""Counts the messages in tenants' topics: those beyond the stored offset and not settled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tenantry.broker.port import BrokerError, BrokerUnavailableError, QueueSpec
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.sql import queries


class Standing(NamedTuple):
    """The progress of a consumed partition: all below `floor` is settled, and `beyond` more."""

    floor: int
    beyond: int
    unsettled: int


class Rejected(NamedTuple):
    """Dead letters: their number by tenant, and their offsets, by queue."""

    counts: Mapping[str, int]
    places: Mapping[str, Sequence[int]]


NONE: Final = Rejected({}, {})


class StandingBooks:
    """Knowledge of messages and dead letters that the server does not have."""

    def __init__(self, database: Database, standing: Callable[[], Mapping[str, Standing]]) -> None:
        self._database = database
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._sql = queries("iggy")
        self.standing: Final = standing
        """Gives the partitions that are consumed here and now, by queue."""

    def rejected(self) -> Rejected:
        """Count the dead letters, and list their offsets."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        with self._errors, self._database.connection() as connection:
            for tenant_id, topic, partition, offset in connection.execute(
                self._sql["rejected_places"]
            ):
                places[QueueSpec.of(tenant_id, topic, partition).name].append(offset)
            counts = dict(connection.execute(self._sql["count_rejected"]).fetchall())
        return Rejected(counts, places)

    def drop(self, tenant_id: str) -> int:
        """Forget a tenant's dead letters and offsets; return how many dead letters there were."""
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["drop_offsets"], {"tenant": tenant_id})
            row = connection.execute(self._sql["drop_rejected"], {"tenant": tenant_id}).fetchone()
        return 0 if row is None else int(row[0])

    def lying(
        self, queue: str, rejected: Rejected, here: Standing | None, *, floor: int, end: int
    ) -> int:
        """Count the unsettled messages of a partition from `floor` up to, not including, `end`.

        `here` is the partition's progress, if this process consumes it.
        """
        if here is not None:
            return max(0, end - max(floor, here.floor) - here.beyond)
        passed = sum(1 for offset in rejected.places.get(queue, ()) if floor <= offset < end)
        return max(0, end - floor - passed)
