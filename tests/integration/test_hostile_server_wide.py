"""What one role can use up for a whole server, on a server that has little of it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest

from tenantry.broker.port import BrokerError, BrokerUnavailableError
from tenantry.broker.postgres.publishing import PostgresPublishing
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.domain.events import TenantPaused
from tenantry.journal.listener import JournalListener
from tenantry.journal.port import Expected, JournalUnavailableError, Metadata
from tenantry.journal.postgres import PostgresEventStore
from tests import brokers, scratch
from tests.brokers import RecordingSink, bodies
from tests.services_postgres import own_server
from tests.waiting import DEADLINE, eventually

SMALL = (
    "max_notify_queue_pages = 64", "max_locks_per_transaction = 10", "max_connections = 30",
    "superuser_reserved_connections = 3", "fsync = off", "autovacuum = off",
)  # fmt: skip


@pytest.fixture(scope="module")
def small_server() -> Iterator[str]:
    """The URL of a server with room for few notifications and few locks."""
    # Not pytest's directory, which nobody but its owner may enter: the server runs as another.
    home = scratch.made("tenantry-test-small-")
    home.chmod(0o755)
    directory = home / "postgres"
    server = own_server(directory)
    if not (directory / "postgresql.auto.conf").exists():
        server.start()
        server.stop()
    if int((directory / "PG_VERSION").read_text()) < 17:
        pytest.skip("the queue of notifications has no limit that could be set")
    with (directory / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{line}\n" for line in SMALL)
    url = server.start()
    migrate(url)
    yield url
    server.stop()
    shutil.rmtree(home, ignore_errors=True)


@contextmanager
def listening(database: Database) -> Iterator[JournalListener]:
    listener = JournalListener(database)
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        eventually(lambda: listener.connected)
        yield listener
    finally:
        listener.stop()
        thread.join(DEADLINE)


@pytest.fixture
def opened(small_server: str) -> Iterator[Database]:
    database = Database(small_server, pool_size=4)
    database.open()
    yield database
    database.close()


def fill_the_queue(url: str) -> None:
    """Notify until there is no room for more."""
    with psycopg.connect(url, autocommit=True) as loud:
        for _ in range(1000):
            try:
                loud.execute("SELECT pg_notify('anything', repeat('x', 7000) || random())")
            except psycopg.OperationalError:
                return
    raise AssertionError("the queue never fills")


def test_a_full_queue_of_notifications_fails_no_commit_and_keeps_nobody_from_hearing(
    small_server: str, opened: Database
) -> None:
    with (
        listening(opened) as listener,
        brokers.postgres(opened) as broker,
        psycopg.connect(small_server) as deaf,
    ):
        tenant = broker.tenant()
        sink = RecordingSink()
        broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
        sink.heard("consuming")
        deaf.execute("LISTEN anything")
        deaf.commit()
        deaf.execute("SELECT 1")
        with opened.connection() as connection:
            asleep = "SELECT bool_and(asleep) FROM tenantry.queues"
            eventually(lambda: connection.execute(asleep).fetchone() == (True,), what="sleep")
        fill_the_queue(small_server)
        broker.publish(tenant, "default", b"1")
        assert bodies(sink.received(1)) == [b"1"]
        store = PostgresEventStore(opened, listener=listener)
        with opened.connection() as connection:
            row = connection.execute("SELECT position FROM tenantry.journal_head").fetchone()
        assert row is not None
        heard: list[bool] = []
        waiting = threading.Thread(target=lambda: heard.append(listener.appends.wait(row[0], 60)))
        waiting.start()
        # Another program's: its own signal tells nobody here.
        PostgresEventStore(opened).append(
            f"tenant-{tenant.tenant_id}",
            [TenantPaused(tenant_id=tenant.tenant_id)],
            expected=Expected.ANY,
            metadata=Metadata(actor="test"),
        )
        waiting.join(DEADLINE)
        assert heard == [True]
        assert store.wait_for_events(row[0], 0)
        broker.administration.remove_topology(tenant.tenant_id)


def test_whose_commit_finds_the_queue_of_notifications_filled_meanwhile_is_told_to_try_again(
    small_server: str, opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = PostgresPublishing._put
    with brokers.postgres(opened) as broker, psycopg.connect(small_server) as deaf:
        tenant = broker.tenant()
        with opened.connection() as connection:
            connection.execute("UPDATE tenantry.queues SET asleep = true")
        deaf.execute("LISTEN anything")
        deaf.commit()
        deaf.execute("SELECT 1")

        def fill_up(self: PostgresPublishing, *given: Any) -> None:
            put(self, *given)
            fill_the_queue(small_server)

        monkeypatch.setattr(PostgresPublishing, "_put", fill_up)
        with pytest.raises(BrokerUnavailableError, match="too many notifications"):
            broker.publish(tenant, "default", b"not now")
        monkeypatch.undo()
        # Once whoever kept it is gone, and by then without being told, it is taken.
        broker.publish(tenant, "default", b"now")
        assert broker.ready(tenant.queues()[0].name) == [b"now"]
        broker.administration.remove_topology(tenant.tenant_id)


def test_an_event_whose_commit_finds_the_queue_of_notifications_full_is_to_be_appended_again(
    small_server: str, opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stream = PostgresEventStore(opened), f"tenant-{uuid4().hex}"

    def append() -> None:
        store.append(
            stream,
            [TenantPaused(tenant_id="a")],
            expected=Expected.ANY,
            metadata=Metadata(actor="test"),
        )

    lent = Database.connection

    @contextmanager
    def filled_before_the_commit(self: Database, *given: Any) -> Iterator[Any]:
        with lent(self, *given) as connection, connection.transaction():
            yield connection
            connection.execute("NOTIFY anything")
            fill_the_queue(small_server)

    with psycopg.connect(small_server) as deaf:
        deaf.execute("LISTEN anything")
        deaf.commit()
        deaf.execute("SELECT 1")
        monkeypatch.setattr(Database, "connection", filled_before_the_commit)
        with pytest.raises(JournalUnavailableError, match="too many notifications"):
            append()
        monkeypatch.undo()
    append()
    assert len(store.read_stream(stream)) == 1


def test_after_the_table_of_locks_was_full_everything_goes_on_by_itself(
    small_server: str, opened: Database
) -> None:
    with brokers.postgres(opened) as broker:
        tenant = broker.tenant()
        sink = RecordingSink()
        broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
        sink.heard("consuming")
        with psycopg.connect(small_server, autocommit=True) as greedy:
            pid = greedy.info.backend_pid
            with pytest.raises(psycopg.errors.OutOfMemory):
                greedy.execute("SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 50000) n")
            with suppress(BrokerError):
                broker.publish(tenant, "default", b"perhaps")
        # Its locks go with its process, which ends after the connection.
        eventually(lambda: not psutil.pid_exists(pid), what="its end")
        broker.publish(tenant, "default", b"certainly")
        eventually(
            lambda: b"certainly" in bodies([one for _, one in sink.got]),
            what="what was published afterwards",
        )
        broker.administration.remove_topology(tenant.tenant_id)
