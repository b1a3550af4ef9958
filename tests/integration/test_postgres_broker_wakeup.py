"""The embedded broker's reader sleeps until it is told of a message, and wakes up only for many."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import psycopg
import pytest

from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres import consuming, reader_wakeup
from tenantry.broker.postgres.reading import QueueReading
from tenantry.broker.postgres.session import QueueSession
from tenantry.broker.postgres.subscription import Row
from tenantry.database.pool import Database
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies, subscribed
from tests.waiting import eventually

HOUR = 3600.0


@pytest.fixture
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader looks nowhere by itself for an hour."""
    monkeypatch.setattr(consuming, "LEASE", 3 * HOUR)
    monkeypatch.setattr(consuming, "LOOK_EVERY", HOUR)


@pytest.fixture
def never_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message comes soon after another."""
    monkeypatch.setattr(reader_wakeup, "QUIET", 0.0)


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


def put(connection: psycopg.Connection[Any], tenant: TenantTopology, *each: bytes) -> None:
    brokers.put(connection, tenant, *each)
    connection.commit()


def sleeps(broker: Broker, *sinks: RecordingSink) -> None:
    """Wait until the reader polls no queue of those who had a message, nor dozes for one.

    Without one it may not have begun to.
    """
    for sink in sinks:
        sink.received(1)
    reader = broker.consuming
    assert isinstance(reader, consuming.PostgresConsuming)
    eventually(lambda: reader._reader_wakeup.pause(0.0) == inf, what="a reader that sleeps")


def marked_at(connection: psycopg.Connection[Any], tenant: TenantTopology) -> list[str]:
    """Give the transactions that wrote the tenant's queues last."""
    found = connection.execute(
        "SELECT xmin::text FROM tenantry.queues WHERE tenant_id = %s ORDER BY id",
        [tenant.tenant_id],
    ).fetchall()
    connection.commit()
    return [one for (one,) in found]


@pytest.mark.usefixtures("no_rounds", "never_many")
def test_messages_now_and_then_are_told_of_and_no_mark_is_written_for_them(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    sink = subscribed(broker, tenant)
    with psycopg.connect(database_url) as connection:
        put(connection, tenant, b"1")
        sleeps(broker, sink)
        before = marked_at(connection, tenant)
        for count in range(2, 7):
            put(connection, tenant, b"%d" % count)
            sink.received(count)
        assert marked_at(connection, tenant) == before
    assert broker.consuming.connected


@pytest.mark.usefixtures("no_rounds")
def test_many_messages_wake_the_reader_up_and_it_falls_asleep_again(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    sink = subscribed(broker, tenant)
    with psycopg.connect(database_url) as connection:
        put(connection, tenant, b"1")
        sleeps(broker, sink)
        before = marked_at(connection, tenant)
        put(connection, tenant, *(b"%d" % number for number in range(2, 7)))
        sink.received(6)
        sleeps(broker)
        assert marked_at(connection, tenant) != before
        put(connection, tenant, b"7")
        sink.received(7)


@pytest.mark.usefixtures("no_rounds", "never_many")
def test_a_notification_that_comes_with_the_answer_to_a_statement_is_heeded_at_once(
    broker: Broker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = broker.tenant(), broker.tenant()
    sinks = [subscribed(broker, tenant) for tenant in (first, second)]
    fetch = QueueSession.fetch

    noticed = threading.Event()
    with psycopg.connect(database_url) as connection:
        for tenant in (first, second):
            put(connection, tenant, b"1")
        sleeps(broker, *sinks)

        def during_another(
            session: QueueSession, readings: Sequence[QueueReading], *arguments: Any, **options: Any
        ) -> list[tuple[QueueReading, list[Row]]]:
            found = fetch(session, readings, *arguments, **options)
            if found and not noticed.is_set():
                put(connection, second, b"meanwhile")
                monkeypatch.setattr(QueueSession, "fetch", fetch)
                eventually(
                    lambda: bool(session.open_transactions()) and session.has_been_told,
                    what="an answer brings the notification",
                )
                noticed.set()
            return found

        monkeypatch.setattr(QueueSession, "fetch", during_another)
        put(connection, first, b"now")
        assert bodies(sinks[0].received(2)) == [b"1", b"now"]
        assert bodies(sinks[1].received(2)) == [b"1", b"meanwhile"]
    assert noticed.is_set()
    assert [word for sink in sinks for word, _ in sink.log if word == "lost"] == []
