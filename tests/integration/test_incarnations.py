"""Partitions of those who have an id one after the other, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tenantry.database.loop import LoopQueries
from tenantry.database.migrations import migrate, migrations
from tenantry.database.pool import Database
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.messages.port import (
    FIRST,
    ForeignRowsError,
    Incoming,
    Order,
    PartitionMissingError,
    Whose,
    whose,
)
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.reader import PostgresPageReader

LONGEST = "a-" + "x" * 37 + "z"
AT = datetime(2020, 1, 1, 12, 0, 0, 123_456, tzinfo=UTC)
FORMER = TenantState(
    tenant_id=LONGEST, name="a", lifecycle=Lifecycle.DELETED, workers=1, topics=(), partitions=1,
    version=4, created_at=AT, updated_at=AT, retained=True,
)  # fmt: skip
NEXT = replace(FORMER, lifecycle=Lifecycle.PROVISIONING, incarnation=2, created_version=5)


def message(identity: str, payload: bytes) -> Incoming:
    return Incoming(identity, "default", 0, payload, None, None, None)


@pytest.fixture
def store(database: Database) -> PostgresMessageStore:
    """One that holds what a deleted tenant has left: two rows."""
    store = PostgresMessageStore(database)
    store.create_partition(LONGEST, whose(FORMER))
    store.store(LONGEST, [message("1", b'"old"'), message("2", b'"old"')])
    return store


def read(database: Database, call: Callable[[PostgresPageReader], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await call(PostgresPageReader(LoopQueries(database)))

    return asyncio.run(run())


def page(database: Database, retained: int | None = None) -> tuple[list[str], Whose]:
    found = read(
        database,
        lambda reader: reader.written_page(
            LONGEST, topic=None, after=None, limit=10, order=Order.ASCENDING, retained=retained
        ),
    )
    rows = json.loads(b"[%b]" % found.text)
    return [f"{one['position']} {one['payload']}" for one in rows], found.whose


def in_messages(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        query = "SELECT payload #>> '{}' FROM public.messages ORDER BY position"
        return [row[0] for row in connection.execute(query)]


def test_the_next_tenant_of_an_id_has_rows_ids_and_positions_of_its_own(
    store: PostgresMessageStore, database: Database, database_url: str
) -> None:
    store.vacate(FORMER)
    with pytest.raises(PartitionMissingError):
        page(database)  # nothing of the former lies where the next one's is looked for
    assert page(database, retained=1) == (["1 old", "2 old"], Whose(1, None))
    store.create_partition(LONGEST, whose(NEXT))
    assert page(database) == ([], Whose(2, AT))
    assert store.store(LONGEST, [message("1", b'"new"')]).stored == 1
    assert page(database) == (["1 new"], Whose(2, AT))
    assert in_messages(database_url) == ["new"]
    assert store.counts(LONGEST).stored == 1
    store.create_partition(LONGEST, whose(NEXT))  # as at each start
    assert page(database) == (["1 new"], Whose(2, AT))


def test_each_that_was_retained_stays_and_undoing_the_next_one_drops_none(
    store: PostgresMessageStore, database: Database
) -> None:
    store.vacate(FORMER)
    store.vacate(FORMER)  # as after a creation whose first event was not recorded
    store.create_partition(LONGEST, whose(NEXT))
    store.store(LONGEST, [message("1", b'"new"')])
    store.vacate(NEXT)
    third = replace(NEXT, incarnation=3)
    store.create_partition(LONGEST, whose(third))
    assert store.drop_partition(LONGEST, retain=False) == 0
    assert page(database, retained=1)[0] == ["1 old", "2 old"]
    assert page(database, retained=2)[0] == ["1 new"]
    assert LONGEST not in store.partitions().whole.keys() | store.partitions().partial


def test_a_partition_left_from_a_former_is_put_aside_also_when_the_next_ones_is_made(
    store: PostgresMessageStore, database: Database
) -> None:
    store.create_partition(LONGEST, whose(NEXT))
    assert page(database) == ([], Whose(2, AT))
    assert page(database, retained=1)[0] == ["1 old", "2 old"]


def test_one_that_was_detached_by_hand_is_put_aside_unless_it_holds_others_rows(
    store: PostgresMessageStore, database: Database, database_url: str
) -> None:
    leaf = f'tenantry."messages_{LONGEST}"'
    with psycopg.connect(database_url, autocommit=True) as by_hand:
        by_hand.execute(f"ALTER TABLE public.messages DETACH PARTITION {leaf}".encode())
        by_hand.execute(
            f"INSERT INTO {leaf} (tenant_id, id, position, topic, partition, body, created_at)"
            " VALUES ('other', 'x', 9, 'default', 0, '', now())".encode()
        )
        with pytest.raises(ForeignRowsError):
            store.vacate(FORMER)
        by_hand.execute(f"DELETE FROM {leaf} WHERE tenant_id = 'other'".encode())
    store.vacate(FORMER)
    assert page(database, retained=1)[0] == ["1 old", "2 old"]


def test_room_is_made_after_the_second_of_the_end_is_over(
    store: PostgresMessageStore, database: Database
) -> None:
    with database.connection() as connection:
        (ended,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        store.vacate(replace(FORMER, updated_at=ended))
        (now,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
    assert now.replace(microsecond=0) > ended.replace(microsecond=0)
    # A time of the future, by a clock that was set back, is not waited for to its end.
    store.vacate(replace(FORMER, updated_at=now + timedelta(days=1)))


def test_a_database_of_before_learns_whose_its_partitions_are(empty_database_url: str) -> None:
    known = migrations()
    (number,) = [one.number for one in known if one.name == "incarnations"]
    before = [one for one in known if one.number < number]
    migrate(empty_database_url, known=before)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for tenant_id, times in (("once", 1), ("twice", 2)):
            connection.execute("SELECT tenantry.create_messages_partition(%s)", [tenant_id])
            for _ in range(times):
                connection.execute(
                    "SELECT * FROM tenantry.append_events(%s, NULL, ARRAY[gen_random_uuid()],"
                    " ARRAY['TenantCreated'], ARRAY[1], ARRAY[%s::jsonb], '{}')",
                    [f"tenant-{tenant_id}", json.dumps({"tenant_id": tenant_id})],
                )
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        found = connection.execute(
            "SELECT tenant_id, incarnation, since = (SELECT max(recorded_at) FROM tenantry.events"
            " WHERE stream = 'tenant-' || tenant_id COLLATE \"C\")"
            " FROM tenantry.tenant_counters ORDER BY 1"
        ).fetchall()
    assert found == [("once", 1, None), ("twice", 2, True)]


def test_a_store_that_is_told_nothing_takes_it_for_the_first(database: Database) -> None:
    store = PostgresMessageStore(database)
    store.create_partition(LONGEST)
    assert page(database) == ([], FIRST)
