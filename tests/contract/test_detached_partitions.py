"""What becomes of a partition that was detached by hand, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.messages.port import ForeignRowsError, Incoming
from tenantry.messages.postgres import PostgresMessageStore

TENANT = "a-tenant"
LEAF = 'tenantry."messages_a-tenant"'
DETACH = f"ALTER TABLE public.messages DETACH PARTITION {LEAF}"


@pytest.fixture
def store(database: Database) -> PostgresMessageStore:
    store = PostgresMessageStore(database)
    store.create_partition(TENANT)
    keep(store, "before")
    return store


@pytest.fixture
def by_hand(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def keep(store: PostgresMessageStore, identity: str) -> None:
    message = Incoming(identity, "default", 0, b"{}", "application/json", None, None)
    assert store.store(TENANT, [message]).stored == 1


def seen(by_hand: psycopg.Connection) -> list[str]:
    rows = by_hand.execute("SELECT id FROM public.messages ORDER BY position").fetchall()
    return [row[0] for row in rows]


def put_foreign_row(by_hand: psycopg.Connection) -> None:
    by_hand.execute(
        f"INSERT INTO {LEAF} (tenant_id, id, position, topic, partition, body, created_at)"
        " VALUES ('other', 'theirs', 999, 'default', 0, '', now())".encode()
    )


def fences(by_hand: psycopg.Connection) -> int:
    query = f"SELECT count(*) FROM pg_trigger WHERE tgrelid = '{LEAF}'::regclass"
    row = by_hand.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_a_detached_partition_is_attached_again_with_what_was_stored_meanwhile(
    store: PostgresMessageStore, by_hand: psycopg.Connection
) -> None:
    by_hand.execute(DETACH.encode())
    keep(store, "meanwhile")
    assert seen(by_hand) == []
    assert store.partitions().partial == {TENANT}
    store.create_partition(TENANT)
    keep(store, "after")
    assert seen(by_hand) == ["before", "meanwhile", "after"]
    assert store.partitions().whole.keys() == {TENANT}
    assert store.counts(TENANT).stored == 3
    left = by_hand.execute("SELECT FROM pg_constraint WHERE conname = 'of_tenant'").fetchall()
    assert left == []


def test_one_that_was_fenced_as_a_table_of_its_own_meanwhile_is_attached_without_that(
    store: PostgresMessageStore, by_hand: psycopg.Connection, database_url: str
) -> None:
    by_hand.execute(DETACH.encode())
    migrate(database_url)
    assert fences(by_hand) == 1
    store.create_partition(TENANT)
    assert fences(by_hand) == 0
    assert seen(by_hand) == ["before"]


def test_one_whose_detaching_was_broken_off_is_attached_again(
    store: PostgresMessageStore, by_hand: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT FROM public.messages")
        # DETACH commits its first transaction, then waits for the reader, and gives up.
        by_hand.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            by_hand.execute(f"{DETACH} CONCURRENTLY".encode())
    assert store.partitions().partial == {TENANT}
    store.create_partition(TENANT)
    assert store.partitions().whole.keys() == {TENANT}
    assert seen(by_hand) == ["before"]


def test_one_with_rows_of_another_tenant_is_neither_attached_nor_dropped(
    store: PostgresMessageStore, by_hand: psycopg.Connection
) -> None:
    by_hand.execute(DETACH.encode())
    put_foreign_row(by_hand)
    for attempt in (
        lambda: store.create_partition(TENANT),
        lambda: store.drop_partition(TENANT, retain=False),
    ):
        with pytest.raises(ForeignRowsError, match=r"messages_a-tenant.*of other, say; move them"):
            attempt()
    assert store.partitions().partial == {TENANT}
    keep(store, "meanwhile")
    by_hand.execute(f"DELETE FROM {LEAF} WHERE tenant_id = 'other'".encode())
    store.create_partition(TENANT)
    assert seen(by_hand) == ["before", "meanwhile"]


def test_a_detached_partition_is_dropped_with_its_tenant(
    store: PostgresMessageStore, by_hand: psycopg.Connection
) -> None:
    by_hand.execute(DETACH.encode())
    assert store.drop_partition(TENANT, retain=False) == 1
    assert by_hand.execute("SELECT to_regclass(%s)", [LEAF]).fetchone() == (None,)


def test_attaching_waits_for_nobody_who_reads_or_writes_other_tenants(
    store: PostgresMessageStore, by_hand: psycopg.Connection, database_url: str
) -> None:
    store.create_partition("other")
    by_hand.execute(DETACH.encode())
    with psycopg.connect(database_url) as busy:
        busy.execute("SELECT count(*) FROM public.messages")
        busy.execute(
            "INSERT INTO tenantry.messages_other"
            " (tenant_id, id, position, topic, partition, body, created_at)"
            " VALUES ('other', 'x', 1, 'default', 0, '', now())"
        )
        store.create_partition(TENANT)
    assert sorted(seen(by_hand)) == ["before", "x"]
