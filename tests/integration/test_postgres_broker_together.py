"""The embedded broker fetches at once for all tenants with few messages, and for others alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tenantry.broker.port import Delivery, TenantTopology
from tenantry.broker.postgres.consuming import FEW_BYTES, FEW_EACH
from tenantry.broker.postgres.reading import QueueReading
from tenantry.broker.postgres.session import QueueSession
from tenantry.broker.postgres.subscription import Row
from tenantry.broker.topology import owner
from tenantry.database.pool import Database
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies, put, subscribed
from tests.waiting import DEADLINE


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """For each fetch that brought something, the tenants that it asked for."""
    noted: list[set[str]] = []
    fetch = QueueSession.fetch

    def noting(
        session: QueueSession, readings: Sequence[QueueReading], *arguments: Any, **options: Any
    ) -> list[tuple[QueueReading, list[Row]]]:
        found = fetch(session, readings, *arguments, **options)
        if found:
            noted.append({owner(one.spec.name) or "" for one in readings})
        return found

    monkeypatch.setattr(QueueSession, "fetch", noting)
    return noted


@contextmanager
def reader_at_a_halt(broker: Broker, database_url: str) -> Iterator[TenantTopology]:
    """Keep the reader in the sink of the tenant given, so that it begins on what follows at once.

    Otherwise it fetches whenever it gets to run, and may find the first of several messages alone.
    """
    tenant = broker.tenant()
    entered, leave = threading.Event(), threading.Event()

    class Halting(RecordingSink):
        def deliveries(self, generation: int, batch: list[Delivery]) -> None:
            entered.set()
            assert leave.wait(DEADLINE)

    broker.consuming.subscribe(tenant.queues(), prefetch=1, sink=Halting())
    with psycopg.connect(database_url) as connection:
        put(connection, tenant, b"halt")
    assert entered.wait(DEADLINE)
    try:
        yield tenant
    finally:
        leave.set()


def test_one_fetch_brings_the_few_messages_of_many_tenants_each_to_its_own(
    broker: Broker, database_url: str, fetches: list[set[str]]
) -> None:
    tenants = [broker.tenant() for _ in range(5)]
    with reader_at_a_halt(broker, database_url) as halting:
        with psycopg.connect(database_url) as connection:
            for tenant in tenants:
                put(connection, tenant, b"1 " + tenant.tenant_id.encode())
                put(connection, tenant, b"2 " + tenant.tenant_id.encode())
        sinks = [subscribed(broker, tenant) for tenant in tenants]
    for tenant, sink in zip(tenants, sinks, strict=True):
        own = tenant.tenant_id.encode()
        assert bodies(sink.received(2)) == [b"1 " + own, b"2 " + own]
    assert [asked - {halting.tenant_id} for asked in fetches[1:]] == [
        {tenant.tenant_id for tenant in tenants}
    ]


def test_who_has_many_is_fetched_for_alone_from_then_on(
    broker: Broker, database_url: str, fetches: list[set[str]]
) -> None:
    quiet, busy = broker.tenant(), broker.tenant()
    expected = [b"%d" % number for number in range(3 * FEW_EACH)]
    with reader_at_a_halt(broker, database_url) as halting:
        with psycopg.connect(database_url) as connection:
            put(connection, busy, *expected)
            put(connection, quiet, b"one")
        ear, sink = subscribed(broker, quiet), subscribed(broker, busy)
    assert bodies(ear.received(1)) == [b"one"]
    assert bodies(sink.received(len(expected))) == expected
    assert [asked - {halting.tenant_id} for asked in fetches[1:]] == [
        {quiet.tenant_id, busy.tenant_id},
        {busy.tenant_id},
    ]


def test_large_messages_keep_nobody_s_from_coming_with_them_or_after(
    broker: Broker, database_url: str
) -> None:
    tenants = [broker.tenant() for _ in range(4)]
    sinks = [subscribed(broker, tenant) for tenant in tenants]
    large = b"x" * (FEW_BYTES // 2)
    with psycopg.connect(database_url) as connection:
        for tenant in tenants:
            put(connection, tenant, large, large, large)
    for sink in sinks:
        assert bodies(sink.received(3)) == [large] * 3
