"""The embedded broker's statements read what they need, whatever the planner takes tables to be.

A database counts the rows of queues now and then, also when these have just run empty, and plans by
that until it counts again: for a minute or so after a backlog has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from unittest.mock import Mock

import psycopg
import pytest

from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres.reading import QueueReading
from tenantry.broker.postgres.rotation import QueueRotation
from tenantry.broker.postgres.session import QueueSession
from tenantry.database.pool import Database
from tests import brokers
from tests.brokers import Broker

TENANTS, LYING, WANTED = 5, 400, 20

FILL = """
SELECT tenantry.enqueue(
    %(stream)s, array_agg('default'::text), array_agg(n::text), array_agg('body'::bytea),
    array_agg('text/plain'::text), array_agg(NULL::jsonb), array_agg(0::bigint))
FROM generate_series(1, %(lying)s) AS n
"""

FIRST = """
SELECT m.seq FROM tenantry.queued AS m JOIN tenantry.queues AS q ON q.id = m.queue
WHERE q.tenant_id = %s ORDER BY m.seq LIMIT %s
"""

READ = """
SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::integer
FROM pg_stat_xact_user_tables WHERE schemaname = 'tenantry' AND relname LIKE 'queued%'
"""
"""Rows of the queues that this session has read lately."""

Use = Callable[[QueueSession, psycopg.Connection, QueueReading, str, Sequence[int]], object]


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


def taken(
    _: QueueSession,
    connection: psycopg.Connection,
    __: QueueReading,
    tenant: str,
    seqs: Sequence[int],
) -> None:
    topics, partitions = ["default"] * len(seqs), [0] * len(seqs)
    found = connection.execute(
        "SELECT tenantry.take(%s, %s::text[], %s::integer[], %s::bigint[])",
        [tenant, topics, partitions, list(seqs)],
    ).fetchone()
    assert found == (list(seqs),)


USES: dict[str, Use] = {
    "stored": taken,
    "acknowledged": lambda session, _, reading, __, seqs: session.acknowledge(
        [(reading, one) for one in seqs]
    ),
    "rejected": lambda session, _, reading, __, seqs: session.reject(
        [(reading, one) for one in seqs]
    ),
    "fetched": lambda session, _, reading, __, seqs: session.fetch([reading], [], most=len(seqs)),
    "looked for": lambda session, _, reading, __, ___: session.promising(
        {reading.id: 0}, [reading.id]
    ),
    "looked for where none is known": lambda session, _, __, ___, ____: session.promising({}, []),
    "swept": lambda _, connection, __, ___, ____: QueueRotation(Mock()).sweep(connection),
}


@pytest.mark.parametrize("counted", ["empty", "full"])
@pytest.mark.parametrize("use", USES)
def test_no_more_messages_are_read_than_are_wanted(
    broker: Broker, database_url: str, use: str, counted: str
) -> None:
    tenants = [broker.tenant() for _ in range(TENANTS)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        for segment in range(4):  # nothing counts them again
            connection.execute(
                f"ALTER TABLE tenantry.queued_{segment} SET (autovacuum_enabled = false)"
            )
        _fill(connection, tenants)
        if counted == "empty":
            connection.execute("DELETE FROM tenantry.queued")
        connection.execute("VACUUM (TRUNCATE FALSE, ANALYZE)")
        if counted == "empty":
            _fill(connection, tenants)
        tenant = tenants[2]
        session = QueueSession(connection)
        session.begin()
        [reading] = session.acquire(tenant.queues(), prefetch=1000).readings
        seqs = [row[0] for row in connection.execute(FIRST, [tenant.tenant_id, WANTED])]
        with connection.transaction():
            before = _read(connection)
            USES[use](session, connection, reading, tenant.tenant_id, seqs)
            assert _read(connection) - before <= 2 * WANTED


def _read(connection: psycopg.Connection) -> int:
    row = connection.execute(READ).fetchone()
    return 0 if row is None else int(row[0])


def _fill(connection: psycopg.Connection, tenants: Sequence[TenantTopology]) -> None:
    for tenant in tenants:
        connection.execute(FILL, {"stream": tenant.exchange, "lying": LYING})
