"""How PostgreSQL reads pages: the plans, with the statistics it has and without."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tenantry.database.pool import Connection, Database
from tenantry.messages import pages
from tenantry.messages.port import Order
from tenantry.messages.postgres import PostgresMessageStore

ROWS = 20_000
LATE = 15_000


@pytest.fixture
def connection(database: Database) -> Any:
    PostgresMessageStore(database).create_partition("t")
    with database.connection() as connection:
        yield connection


def fill(connection: Connection) -> None:
    """Give the tenant two topics, one of them only at the end, and a third hardly ever."""
    connection.execute(
        "INSERT INTO tenantry.messages_t (tenant_id, id, position, topic, partition, body,"
        " created_at) SELECT 't', n, n, CASE WHEN n %% 9999 = 7 THEN 'rare' WHEN n > %s THEN 'late'"
        " ELSE 'early' END, 0, '', now() FROM generate_series(1, %s) AS n",
        (LATE, ROWS),
    )


def touched(connection: Connection, topic: str | None, after: int | None, order: Order) -> int:
    """Read a page of 100, and tell how many rows and pages of the index and the table it took."""
    wanted = (pages.begin(order) if after is None else after, 100, topic)[: 3 if topic else 2]
    query = pages.written("t", of_topic=topic is not None, order=order)
    with psycopg.RawCursor(connection) as cursor:
        row = cursor.execute(
            b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, wanted, prepare=False
        ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("topic", [None, "early", "late", "rare", "none"])
def test_a_page_costs_the_same_wherever_it_is(
    connection: Connection, topic: str | None, order: Order, analyzed: bool
) -> None:
    if not analyzed:
        connection.execute(
            "ALTER TABLE tenantry.messages_t SET (autovacuum_enabled = off)", prepare=False
        )
    fill(connection)
    if analyzed:
        connection.execute("ANALYZE tenantry.messages_t")
    for after in (None, 1, ROWS // 2, LATE, ROWS - 1, ROWS):
        assert touched(connection, topic, after, order) < 30


def test_a_page_begins_behind_what_was_removed(connection: Connection) -> None:
    connection.execute(
        "ALTER TABLE tenantry.messages_t SET (autovacuum_enabled = off)", prepare=False
    )
    fill(connection)
    connection.execute("DELETE FROM tenantry.messages_t WHERE position <= %s", [LATE])
    connection.execute("INSERT INTO tenantry.removals (tenant_id, up_to) VALUES ('t', %s)", [LATE])
    for after in (None, 1, ROWS // 2, LATE):
        for topic in (None, "late"):
            assert touched(connection, topic, after, Order.ASCENDING) < 30


def test_no_plan_is_kept_from_when_messages_were_few(database: Database) -> None:
    store = PostgresMessageStore(database)
    store.create_partition("t")
    for _ in range(20):
        assert store.page("t") == []
    with database.connection() as connection:  # the only one there is: nothing ran side by side
        kept = connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()
    assert not [statement for (statement,) in kept if "messages_t" in statement]


@pytest.mark.parametrize("query", [pages.WITH_MESSAGES, pages.WITH_MESSAGES_BACKWARDS])
def test_tenants_without_messages_are_passed_over_by_their_counters(
    connection: Connection, query: bytes
) -> None:
    connection.execute(
        "INSERT INTO tenantry.tenants SELECT 't' || n, 1, 'active', '{}', now(), now()"
        " FROM generate_series(1, 1000) AS n"
    )
    connection.execute(
        "INSERT INTO tenantry.tenant_counters (tenant_id, stored)"
        " SELECT 't' || n, n / 1000 FROM generate_series(1, 1000) AS n"
    )
    with psycopg.RawCursor(connection) as cursor:
        found = cursor.execute(query, ("", 16), prepare=False).fetchone()
        explained = cursor.execute(
            b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, ("", 16), prepare=False
        ).fetchone()
    assert found == ("t1000",)
    assert explained is not None
    text = json.dumps(explained[0])
    assert "messages" not in text.replace("tenant_counters", "")
