"""The message store on PostgreSQL: one round trip a batch, into the tenant's partition by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, LiteralString

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow, class_row

from tenantry import failpoints
from tenantry.database.failures import UNFIT, PortErrors, one_line
from tenantry.messages import pages
from tenantry.messages.insertion import Sifted, insert, sift
from tenantry.messages.port import (
    FIRST,
    NOTHING,
    Counts,
    ForeignRowsError,
    Incoming,
    MessageStoreError,
    Order,
    PartitionMissingError,
    Partitions,
    StoredMessage,
    StoreResult,
    StoreUnavailableError,
    Tried,
    Whose,
)
from tenantry.messages.reuse import differing

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database
    from tenantry.domain.tenant import TenantState

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the largest body that is stored; `jsonb` itself ends at 256 MiB."""

_PARTITIONS: Final[LiteralString] = """
SELECT tenant_id, coalesce(leaf.attached, false) AND totals.tenant_id IS NOT NULL
FROM (SELECT substr(c.relname, 10) AS tenant_id, i.inhrelid IS NOT NULL AS attached
      FROM pg_class AS c
      LEFT JOIN pg_inherits AS i
        ON i.inhrelid = c.oid AND i.inhparent = 'public.messages'::regclass
        AND NOT i.inhdetachpending
      WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relkind = 'r'
        AND starts_with(c.relname, 'messages_')) AS leaf
FULL JOIN tenantry.tenant_counters AS totals USING (tenant_id)
"""

FOREIGN_ROWS: Final = "TN002"
"""What `tenantry.refuse_foreign_rows` says of a detached partition."""


def store_errors(
    tenant_id: str | None = None, *, waited_for: tuple[type[psycopg.Error], ...] = ()
) -> PortErrors:
    """Give the port's errors of what goes wrong with a tenant's partition, or with no one's."""

    def otherwise(error: psycopg.Error) -> MessageStoreError | None:
        if tenant_id is not None and isinstance(error, errors.UndefinedTable):
            return PartitionMissingError(f"tenant {tenant_id!r} has no partition")
        if error.sqlstate == FOREIGN_ROWS:
            return ForeignRowsError(one_line(error))
        return None

    return PortErrors(
        StoreUnavailableError, MessageStoreError, waited_for=waited_for, otherwise=otherwise
    )


class PostgresMessageStore:
    """Keeps each tenant's messages in a partition of `public.messages`."""

    def __init__(self, database: Database, *, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._max_bytes = max_bytes

    def vacate(self, former: TenantState) -> None:
        """See `MessageStore.vacate`."""
        self._forget(former.tenant_id)
        self._call(
            "SELECT tenantry.vacate(%s, %s, %s)",
            former.tenant_id,
            former.incarnation,
            former.updated_at,
        )

    def create_partition(self, tenant_id: str, whose: Whose = FIRST) -> None:
        """See `MessageStore.create_partition`."""
        self._call(
            "SELECT tenantry.open_partition(%s, %s, %s)", tenant_id, whose.incarnation, whose.since
        )

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        """Drop the tenant's partition, unless `retain`, and the list of its dead letters.

        These have gone with its queues either way.
        """
        self._forget(tenant_id)
        if retain:
            return 0
        row = self._call("SELECT tenantry.drop_messages_partition(%s)", tenant_id)
        return int(row[0]) if row else 0

    def partitions(self) -> Partitions:
        """See `MessageStore.partitions`."""
        with store_errors(), self._database.connection() as connection:
            rows = connection.execute(_PARTITIONS).fetchall()
        whole = frozenset(tenant_id for tenant_id, is_whole in rows if is_whole)
        return Partitions(
            whole=whole, partial=frozenset(tenant_id for tenant_id, _ in rows) - whole
        )

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,  # noqa: ARG002 - nothing is tried twice here
    ) -> StoreResult:
        """Store a batch; what can't be stored is set aside and named in the result."""
        with (
            store_errors(tenant_id, waited_for=UNFIT),
            self._database.connection() as connection,
        ):
            sifted = sift(connection, batch, self._max_bytes)
            stored, duplicates = insert(connection, tenant_id, sifted)
            reused = _reused(connection, tenant_id, sifted) if duplicates else ()
        failpoints.reach("after_commit")
        unstorable = tuple(sorted(sifted.unstorable, key=lambda one: one.index))
        return StoreResult(
            stored=stored, duplicates=duplicates, unstorable=unstorable, reused=reused
        )

    def page(
        self,
        tenant_id: str,
        *,
        topic: str | None = None,
        after: int | None = None,
        limit: int = 50,
        order: Order = Order.ASCENDING,
    ) -> list[StoredMessage]:
        """Read a page of a tenant's messages by position; an index gives it at constant cost."""
        query = pages.rows(tenant_id, of_topic=topic is not None, order=order)
        after = pages.begin(order) if after is None else after
        wanted = {"topic": topic, "after": after, "limit": limit}
        with (
            store_errors(tenant_id),
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(StoredMessage)) as cursor,
        ):
            return cursor.execute(query, wanted, prepare=False).fetchall()

    def counts(self, tenant_id: str) -> Counts:
        """Give the tenant's running totals."""
        row = self._call(
            "SELECT stored, duplicates, dead_lettered FROM tenantry.tenant_counters"
            " WHERE tenant_id = %s",
            tenant_id,
        )
        if row is None:
            return Counts(stored=0, duplicates=0, dead_lettered=0)
        return Counts(stored=row[0], duplicates=row[1], dead_lettered=row[2])

    def _forget(self, tenant_id: str) -> None:
        """Forget what is known of messages that were not stored."""
        self._call("SELECT tenantry.drop_letters(%s)", tenant_id)
        self._call("DELETE FROM tenantry.attempts WHERE tenant_id = %s RETURNING key", tenant_id)

    def _call(self, query: LiteralString, *parameters: object) -> TupleRow | None:
        with store_errors(), self._database.connection() as connection:
            return connection.execute(query, parameters).fetchone()


def _reused(connection: Connection, tenant_id: str, sifted: Sifted) -> tuple[int, ...]:
    messages = [sifted.messages[index] for index in sifted.indexes]
    places = differing(connection, tenant_id, messages, sifted.is_json)
    refused = {one.index for one in sifted.unstorable}
    return tuple(index for at in places if (index := sifted.indexes[at]) not in refused)
