"""Statistics on a real PostgreSQL: a ring of slots, in which each count stands exactly once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tenantry.database.pool import Database
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.metrics.postgres import PostgresStatistics
from tenantry.metrics.statistics import BUCKETS, NONE, Note
from tests.fakes.messages import TENANT, incoming
from tests.waiting import DEADLINE, eventually

AT = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
QUICK = (5, *NONE[1:])
WAITING = (
    "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def store_more(store: PostgresMessageStore, *ids: str) -> None:
    store.store(TENANT, [incoming(one) for one in ids])


def read(database: Database, *, hourly: bool = False) -> list[tuple[datetime, int, int, int]]:
    week = timedelta(days=7)
    slots = PostgresStatistics(database).read(TENANT, hourly=hourly, start=AT - week, end=AT + week)
    return [(one.at, one.stored, one.duplicates, one.backlog) for one in slots]


def test_what_became_of_messages_since_they_were_noted_last_is_in_a_minute_and_an_hour(
    store: PostgresMessageStore, database: Database
) -> None:
    statistics = PostgresStatistics(database)
    store.create_partition("other")
    store_more(store, "1", "2", "3")
    store_more(store, "3")
    statistics.note(AT, {TENANT: Note(4, QUICK), "other": Note(0, NONE), "nobody": Note(1, NONE)})
    assert read(database) == [(AT, 3, 1, 4)]
    assert read(database, hourly=True) == [(AT.replace(minute=0), 3, 1, 4)]
    # Counts of the same minute are added, as when a tenant moves from one node to another.
    store_more(store, "4")
    statistics.note(AT, {TENANT: Note(2, QUICK)})
    statistics.note(AT, {TENANT: Note(0, NONE)})
    assert read(database) == [(AT, 4, 1, 4)]
    slots = statistics.read(TENANT, hourly=False, start=AT, end=AT + timedelta(minutes=1))
    assert slots[0].latencies == [10, *NONE[1:]]
    assert len(slots[0].latencies) == BUCKETS


def test_a_slot_whose_time_has_come_again_begins_anew_and_none_is_more_than_a_week_old(
    store: PostgresMessageStore, database: Database
) -> None:
    statistics = PostgresStatistics(database)
    for number in range(3):
        store_more(store, str(number))
        statistics.note(AT + timedelta(days=number), {TENANT: Note(number, NONE)})
    assert read(database) == [(AT + timedelta(days=2), 1, 0, 2)]
    assert [one[1] for one in read(database, hourly=True)] == [1, 1, 1]
    store_more(store, "9")
    statistics.note(AT + timedelta(days=7), {TENANT: Note(0, NONE)})
    with database.connection() as connection:
        rows = connection.execute("SELECT step, count(*) FROM tenantry.statistics GROUP BY step")
        assert dict(rows.fetchall()) == {1: 1, 60: 3}


def test_nothing_is_written_of_a_tenant_of_which_there_is_nothing_to_note(
    store: PostgresMessageStore, database: Database
) -> None:
    PostgresStatistics(database).note(AT, {TENANT: Note(0, NONE)})
    assert read(database) == []


def test_the_next_tenant_of_an_id_begins_with_nothing(
    store: PostgresMessageStore, database: Database
) -> None:
    statistics = PostgresStatistics(database)
    store_more(store, "1", "2")
    statistics.note(AT, {TENANT: Note(0, NONE)})
    store.drop_partition(TENANT, retain=False)
    assert read(database) == []
    store.create_partition(TENANT)
    store_more(store, "1")
    statistics.note(AT, {TENANT: Note(0, NONE)})
    assert read(database) == [(AT, 1, 0, 0)]


@pytest.mark.parametrize("before", [(), ("0",)], ids=["for the first time", "once more"])
def test_what_is_being_noted_as_a_tenant_goes_is_not_the_next_ones(
    store: PostgresMessageStore, database: Database, database_url: str, before: tuple[str, ...]
) -> None:
    statistics = PostgresStatistics(database)
    if before:
        store_more(store, *before)
        statistics.note(AT - timedelta(minutes=1), {TENANT: Note(0, NONE)})
    store_more(store, "1", "2", "3")
    going = threading.Thread(target=store.drop_partition, args=(TENANT,), kwargs={"retain": False})
    with psycopg.connect(database_url) as noting:
        noting.execute(
            "SELECT tenantry.note_statistics(%s, %s, '{0}', %s, %s)",
            [AT, [TENANT], list(QUICK), BUCKETS],
        )
        going.start()
        with psycopg.connect(database_url, autocommit=True) as watcher:
            eventually(
                lambda: not going.is_alive() or watcher.execute(WAITING).fetchall(),
                what="a deletion that waits for the statistics",
            )
        noting.commit()
        going.join(DEADLINE)
    assert read(database) == []
    assert read(database, hourly=True) == []
    store.create_partition(TENANT)
    store_more(store, "1")
    statistics.note(AT, {TENANT: Note(0, NONE)})
    assert read(database) == [(AT, 1, 0, 0)]


def test_of_a_tenant_that_goes_as_it_is_noted_for_the_first_time_nothing_is_left(
    store: PostgresMessageStore, database: Database, database_url: str
) -> None:
    store_more(store, "1")
    notes = {TENANT: Note(0, QUICK)}
    noting = threading.Thread(target=PostgresStatistics(database).note, args=(AT, notes))
    with psycopg.connect(database_url) as going:
        going.execute("DELETE FROM tenantry.tenant_counters")
        noting.start()
        with psycopg.connect(database_url, autocommit=True) as watcher:
            eventually(
                lambda: not noting.is_alive() or watcher.execute(WAITING).fetchall(),
                what="a note that waits for the deletion",
            )
        going.commit()
        noting.join(DEADLINE)
    with database.connection() as connection:
        for table in ("statistics", "statistics_marks"):
            assert connection.execute(f"SELECT FROM tenantry.{table}").rowcount == 0, table
