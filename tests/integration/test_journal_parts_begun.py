"""Parts of the journal on PostgreSQL: how the first one came to be, and when another is begun."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tenantry.database import migrations
from tenantry.database.pool import Database
from tenantry.domain.events import WorkersResized
from tenantry.journal.postgres import PostgresEventStore
from tests.integration.journal_in_parts import METADATA, Journal
from tests.waiting import DEADLINE

BEFORE_PARTS = 39


@pytest.fixture
def journal(database: Database) -> Journal:
    return Journal(database)


def test_a_journal_from_before_there_were_parts_is_the_first_part_as_it_is(
    empty_database_url: str,
) -> None:
    known = migrations.migrations()
    migrations.migrate(empty_database_url, known=[one for one in known if one.number <= 39])
    insert = (
        "SELECT tenantry.append_events('tenant-a', NULL, ARRAY[gen_random_uuid()],"
        " '{TenantPaused}', '{1}', ARRAY['{\"tenant_id\": \"a\"}'::jsonb], '{}')"
    )
    events = "SELECT * FROM tenantry.events ORDER BY position"
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for _ in range(5):
            connection.execute(insert)
        before = connection.execute(events).fetchall()
        table = connection.execute("SELECT 'tenantry.events'::regclass::oid::bigint").fetchone()
        parts = next(one for one in known if one.number == BEFORE_PARTS + 1)
        # It broke off after the first two steps, and others went on appending.
        for step in parts.steps[:2]:
            connection.execute(step.encode())
        connection.execute(insert)
        migrations.migrate(empty_database_url)
        connection.execute(insert)  # as an older program does
        after = connection.execute(events).fetchall()
        moved = connection.execute("SELECT 'tenantry.events_1'::regclass::oid::bigint").fetchone()
    assert [row[:-1] for row in after[:5]] == before
    assert [(row[0], row[2], row[-1]) for row in after] == [(n, n, 1) for n in range(1, 8)]
    assert moved == table


def test_reading_all_of_a_large_journal_for_its_conversion_holds_up_nobody(
    empty_database_url: str,
) -> None:
    """The step that looks at every row is done while others read and append."""
    known = migrations.migrations()
    migrations.migrate(empty_database_url, known=[one for one in known if one.number <= 39])
    first, second, _ = next(one for one in known if one.number == BEFORE_PARTS + 1).steps
    with (
        psycopg.connect(empty_database_url, autocommit=True) as connection,
        psycopg.connect(empty_database_url) as migrating,
    ):
        connection.execute(first.encode())
        migrating.execute(second.encode())  # and its transaction is still open
        connection.execute("SET lock_timeout = '5s'")
        connection.execute(
            "SELECT tenantry.append_events('s-1', 0, ARRAY[gen_random_uuid()], '{A}', '{1}',"
            " ARRAY['{}'::jsonb], '{}')"
        )
        assert connection.execute("SELECT count(*) FROM tenantry.events").fetchone() == (1,)


def test_a_part_is_begun_once_there_is_enough_in_the_open_one(journal: Journal) -> None:
    assert journal.parts.begin(1) is None, "one without events goes on"
    journal.live("a", 4)
    assert journal.parts.begin(4) is None
    assert journal.parts.begin(3) == 2
    assert journal.parts.begin(1) is None
    journal.live("a", 5)
    first, second = journal.parts.listed()
    assert (first.number, first.first_position, first.last_position, first.events) == (1, 1, 3, 3)
    assert (second.first_position, second.last_position, second.events) == (4, None, 1)
    assert (first.open, second.open) == (False, True)
    assert first.last_at == journal.store.read_all()[2].recorded_at


def test_a_part_is_begun_with_a_new_month(journal: Journal) -> None:
    journal.live("a")
    assert journal.parts.begin(1_000_000) is None
    with journal.database.connection() as connection, connection.transaction():
        connection.execute(
            "SET LOCAL session_replication_role = replica;"
            " UPDATE tenantry.events SET recorded_at = recorded_at - interval '32 days'"
        )
    assert journal.parts.begin(1_000_000) == 2


def test_parts_are_begun_while_others_append_and_nothing_is_lost(journal: Journal) -> None:
    failed: list[Exception] = []

    def append(tenant_id: str) -> None:
        try:
            store = PostgresEventStore(journal.database)
            for n in range(60):
                event = WorkersResized(tenant_id=tenant_id, previous=n, workers=n)
                store.append(f"ops-{tenant_id}", [event], expected=n, metadata=METADATA)
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=append, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        journal.parts.begin(7)
    for thread in threads:
        thread.join(DEADLINE)
    assert failed == []
    assert [one.position for one in journal.store.read_all(limit=1000)] == list(range(1, 181))
    parts = journal.parts.listed()
    assert len(parts) > 5
    assert [one.first_position for one in parts[1:]] == [
        (one.last_position or 0) + 1 for one in parts[:-1]
    ]


def test_pages_are_read_over_the_ends_of_parts_also_of_those_that_others_have_begun(
    journal: Journal,
) -> None:
    reader = PostgresEventStore(journal.database)
    for n in range(6):
        journal.live("a", 10 + n, 20 + n)
        journal.parts.begin(1)
        if n == 3:
            assert reader.read_all(limit=1)[0].position == 1  # it knows of these parts
    head = journal.head()
    for limit in (1, 3, head, 100):
        for after in range(head + 1):
            positions = [one.position for one in reader.read_all(after=after, limit=limit)]
            assert positions == list(range(after + 1, min(head, after + limit) + 1))
