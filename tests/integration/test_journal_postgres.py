"""The journal on PostgreSQL beyond the contract: rules in the database, outages, listening."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest

from tenantry.database.pool import Connection, Database
from tenantry.domain.events import TenantCreated, WorkersResized
from tenantry.journal import postgres as journal_postgres
from tenantry.journal.listener import JournalListener
from tenantry.journal.port import (
    ANY,
    JournalError,
    JournalUnavailableError,
    Metadata,
    RecordedEvent,
    UnknownEventError,
    VersionConflictError,
)
from tenantry.journal.postgres import PostgresEventStore
from tests.waiting import DEADLINE, eventually

METADATA = Metadata(actor="test")
CREATED = TenantCreated(tenant_id="acme", name="Acme", workers=1, topics=(), partitions=1)


def append(store: PostgresEventStore, workers: int = 1) -> list[RecordedEvent]:
    event = WorkersResized(tenant_id="acme", previous=0, workers=workers)
    return store.append("tenant-acme", [event], expected=ANY, metadata=METADATA)


@contextmanager
def listening(database: Database) -> Iterator[JournalListener]:
    listener = JournalListener(database)
    thread = threading.Thread(target=listener.run, name="listener")
    thread.start()
    try:
        eventually(lambda: listener.connected)
        yield listener
    finally:
        listener.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert not listener.connected


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tenantry.events SET type = 'Nothing'",
        "UPDATE tenantry.events SET type = type WHERE false",
        "DELETE FROM tenantry.events",
        "TRUNCATE tenantry.events",
        "UPDATE tenantry.journal_head SET position = 0",
        "DELETE FROM tenantry.journal_head",
    ],
)
def test_the_database_itself_refuses_to_change_the_past(database: Database, statement: str) -> None:
    store = PostgresEventStore(database)
    recorded = append(store)
    with (
        pytest.raises(psycopg.errors.RestrictViolation),
        database.connection() as connection,
    ):
        connection.execute(statement.encode())
    assert store.read_all() == recorded


def test_an_event_of_a_newer_program_is_an_error_not_a_gap(database: Database) -> None:
    store = PostgresEventStore(database)
    with database.connection() as connection:
        connection.execute(
            "SELECT tenantry.append_events('tenant-acme', 0, ARRAY[%s::uuid], '{Cloned}', '{1}',"
            " ARRAY['{}'::jsonb], '{}')",
            [uuid4()],
        )
    with pytest.raises(UnknownEventError, match="Cloned"):
        store.read_all()


def test_a_database_without_the_schema_is_an_error_in_plain_words(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    database.open()
    with pytest.raises(JournalError, match="does not exist"):
        PostgresEventStore(database).read_all()
    database.close()


def test_an_absent_database_is_told_as_such(database: Database) -> None:
    store = PostgresEventStore(database)
    database.close()
    for call in (
        lambda: append(store),
        store.read_all,
        lambda: store.read_stream("tenant-acme"),
        lambda: store.read_tenant("acme"),
        lambda: store.load_snapshot("tenant-acme"),
        lambda: store.wait_for_events(0, 0),
    ):
        with pytest.raises(JournalUnavailableError):
            call()


def test_an_append_whose_answer_was_lost_can_be_repeated(database: Database) -> None:
    """The connection ends after the commit; the caller can't know, and tries again."""
    ids = [uuid4()]
    store = PostgresEventStore(database)
    with pytest.raises(JournalUnavailableError):
        store_with(database, LoseTheAnswer()).append(
            "tenant-acme", [CREATED], expected=0, metadata=METADATA, ids=ids
        )
    assert store.append("tenant-acme", [CREATED], expected=0, metadata=METADATA, ids=ids) == []
    assert [one.id for one in store.read_all()] == ids


class LoseTheAnswer:
    """A projection that commits and then has the connection ended."""

    def apply(self, connection: Connection, recorded: Sequence[RecordedEvent]) -> None:
        connection.pgconn.exec_(b"COMMIT")
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


class Broken:
    """A projection that fails."""

    def apply(self, connection: Connection, recorded: Sequence[RecordedEvent]) -> None:
        connection.execute("SELECT 1/0")


def store_with(database: Database, projection: LoseTheAnswer | Broken) -> PostgresEventStore:
    return PostgresEventStore(database, projections=[projection])


def test_a_projection_that_fails_undoes_the_append(database: Database) -> None:
    with pytest.raises(JournalError, match="division by zero"):
        append(store_with(database, Broken()))
    store = PostgresEventStore(database)
    assert store.read_all() == []
    assert append(store)[0].position == 1


def test_a_conflict_with_a_projection_leaves_nothing(database: Database) -> None:
    store = store_with(database, Broken())
    with pytest.raises(VersionConflictError):
        store.append("tenant-acme", [CREATED], expected=3, metadata=METADATA)
    assert store.append("ops-1", [CREATED], expected=0, metadata=METADATA)[0].position == 1


def test_a_listener_wakes_those_who_wait_for_another_programs_append(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It does not look by itself before the test is over.
    monkeypatch.setattr(journal_postgres, "POLL_BESIDE_LISTENER", 3600)
    other = Database(database_url)
    other.open()
    with listening(database) as listener:
        store = PostgresEventStore(database, listener=listener)
        append(store)
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(store.wait_for_events(1, 3600)))
        waiter.start()
        append(PostgresEventStore(other))
        waiter.join(DEADLINE)
        assert answers == [True]
    other.close()


def test_a_waiter_without_a_listener_looks_by_itself(database: Database, database_url: str) -> None:
    other = Database(database_url)
    other.open()
    store = PostgresEventStore(database)
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(store.wait_for_events(0, DEADLINE)))
    waiter.start()
    append(PostgresEventStore(other))
    waiter.join(DEADLINE)
    assert answers == [True]
    other.close()


def test_a_listener_comes_back_after_its_connection_is_lost(
    database: Database, database_url: str
) -> None:
    with listening(database) as listener:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        other = Database(database_url)
        other.open()
        position = append(PostgresEventStore(other))[0].position
        other.close()
        # Whether it was appended before or after it listens again, it is heard of.
        assert listener.appends.wait(position - 1, DEADLINE)


def test_a_listener_stops_before_it_has_ever_connected() -> None:
    listener = JournalListener(Database("postgresql://nobody@127.0.0.1:1/nowhere"))
    thread = threading.Thread(target=listener.run)
    thread.start()
    listener.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    listener.stop()
