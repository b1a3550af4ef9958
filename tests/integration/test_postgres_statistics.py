"""Statements read what they need, whatever the planner takes tables to be.

A database counts the rows of tables now and then, also when these have just run empty, and plans by
that until it counts again: for a minute or so after a backlog has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from unittest.mock import Mock

import psycopg
import pytest

from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres.reading import QueueReading
from tenantry.broker.postgres.rotation import QueueRotation
from tenantry.broker.postgres.session import QueueSession
from tenantry.database.pool import Database
from tenantry.sql import queries
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
SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)::integer
FROM pg_stat_xact_user_tables WHERE relname LIKE %s
"""
"""Rows of some tables that this session has read lately."""

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
            before = _read(connection, "queued%")
            USES[use](session, connection, reading, tenant.tenant_id, seqs)
            assert _read(connection, "queued%") - before <= 2 * WANTED


def _read(connection: psycopg.Connection, tables: str) -> int:
    row = connection.execute(READ, [tables]).fetchone()
    return 0 if row is None else int(row[0])


def test_no_more_ids_are_read_than_are_looked_for_among_those_of_removed_messages(
    database_url: str,
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        connection.execute(
            "INSERT INTO tenantry_fence.remembered_0"
            " SELECT 1, hashtextextended(n::text, 0), hashtextextended(n::text, 1)"
            " FROM generate_series(1, 5000) AS n"
        )
        before = _read(connection, "remembered%")
        wanted = [str(number) for number in range(1, WANTED + 1)]
        row = connection.execute("SELECT tenantry.remembered(1, %s)", [wanted]).fetchone()
        assert row == (wanted,)
        assert _read(connection, "remembered%") - before <= 3 * WANTED


def test_no_more_idempotency_keys_are_read_than_one_owner_has(database_url: str) -> None:
    fill = (
        "INSERT INTO tenantry.idempotency_keys (key, fingerprint, owner, turn)"
        " SELECT n::text::bytea, '', (n % 5)::text::bytea, n / 5 FROM generate_series(1, 2000) AS n"
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE tenantry.idempotency_keys SET (autovacuum_enabled = false)")
        connection.execute(fill)
        connection.execute("DELETE FROM tenantry.idempotency_keys")
        # As nothing is known of its columns, the planner goes by their number alone.
        connection.execute("DELETE FROM pg_statistic")
        connection.execute("VACUUM (TRUNCATE FALSE, ANALYZE) tenantry.idempotency_keys")
        connection.execute(fill)
        before = _read(connection, "idempotency_keys")
        connection.execute(
            "SELECT tenantry.claim_idempotency_key('1', 'new', '', interval '1 day', 390)"
        )
        # Servers before 17 read all keys of the owner for the newest, once.
        assert _read(connection, "idempotency_keys") - before <= 400 + 100
        row = connection.execute(
            "SELECT count(*) FROM tenantry.idempotency_keys WHERE owner = '1'"
        ).fetchone()
        assert row == (391,)


def test_letters_are_not_sorted_anew_for_each_message_that_is_matched_with_them(
    database_url: str,
) -> None:
    fill = (
        "INSERT INTO tenantry.dead_letters (tenant_id, id, fingerprint, copy, replays, recorded,"
        " reason, error, attempts, dead_lettered_at, topic, partition, size)"
        " SELECT t, gen_random_uuid(), sha256(n::text::bytea), 0, 0, true, 'x', 'x', 1, now(), 't',"
        " 0, 1"
        " FROM generate_series(1, 2000) AS n, unnest('{acme,b,c,d,e,f,g,h,i,j}'::text[]) AS t"
    )
    sql = queries("dead_letters")
    given = {
        "tenant": "acme",
        "browse": None,
        "named": [],
        "ids": [],
        "alike": [sha256(str(one).encode()).digest() for one in range(1, WANTED + 1)],
        "died": [None] * WANTED,
        "most": [1] * WANTED,
    }
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE tenantry.dead_letters SET (autovacuum_enabled = false)")
        connection.execute(fill)
        connection.execute("DELETE FROM tenantry.dead_letters")
        connection.execute("VACUUM (TRUNCATE FALSE, ANALYZE)")
        connection.execute(fill)
        with connection.transaction():
            connection.execute(sql["lock"], given)
            before = _read(connection, "dead_letters")
            found = connection.execute(sql["rows"], given).fetchall()
            assert len({row[0] for row in found}) == WANTED
            assert _read(connection, "dead_letters") - before <= 2000 + 4 * WANTED


def _fill(connection: psycopg.Connection, tenants: Sequence[TenantTopology]) -> None:
    for tenant in tenants:
        connection.execute(FILL, {"stream": tenant.exchange, "lying": LYING})
