"""The multi-tenant producer and the proof of isolation against a real RabbitMQ."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from tenantry.domain import names
from tenantry.producer.run import produce
from tenantry.tenant_client.connecting import Addresses
from tests.integration.broker_api import BrokerApi, depth, small, taken
from tests.waiting import DEADLINE, eventually


def queues(tenant_id: str, partitions: int) -> list[str]:
    return [
        names.partition_queue_name(tenant_id, topic, partition)
        for topic in ("events", "logs", "notifications")
        for partition in range(partitions)
    ]


def test_messages_are_spread_evenly(api: BrokerApi, channel: Any) -> None:
    lines: list[str] = []
    advanced: list[int] = []
    options = small(producers=3, partitions=3, batches=3)
    result = produce(options, api, say=lines.append, progress=advanced.append)
    assert (result.total.sent, result.total.confirmed, result.total.failed) == (540, 540, 0)
    assert result.succeeded
    assert sum(advanced) == options.messages == 540
    for tenant_id in ("1", "2"):
        assert [depth(channel, queue) for queue in queues(tenant_id, 3)] == [30] * 9
    assert depth(channel, names.queue_name("1")) == 0


def test_the_lines_are_those_of_the_contract(api: BrokerApi) -> None:
    lines: list[str] = []
    produce(small(partitions=3, ensure_access=True), api, say=lines.append)
    assert lines[:16] == [
        "--- Multi-tenant producer has started, tenants: 2, producers: 1, partitions: 3 ---",
        "--- Creating root client to manage streams and users ---",
        "--- Creating streams and users with permissions for each tenant ---",
        "Created stream: tenant_1_stream with ID: 1",
        "Created user: tenant_1_producer with ID: 1, with permissions for stream: tenant_1_stream",
        "Created stream: tenant_2_stream with ID: 2",
        "Created user: tenant_2_producer with ID: 2, with permissions for stream: tenant_2_stream",
        "--- Creating clients for each tenant ---",
        "--- Ensuring access to streams for each tenant ---",
        "Ensured access to stream: tenant_1_stream",
        "Ensured no access to stream: tenant_2_stream",
        "Ensured access to stream: tenant_2_stream",
        "Ensured no access to stream: tenant_1_stream",
        "--- Starting 1 producer(s) for each tenant ---",
        lines[14],
        lines[15],
    ]
    sent = [line for line in lines if line.startswith("Sent")]
    assert len(sent) == 2 * 3 * 2
    assert "Sent: 10 message(s) by tenant: 1, producer: 1, to: tenant_1_stream -> events" in sent
    assert lines[-3:] == [
        "Tenant: 1, sent: 60, confirmed: 60, failed: 0",
        "Tenant: 2, sent: 60, confirmed: 60, failed: 0",
        "Total: sent: 120, confirmed: 120, failed: 0",
    ]


def test_messages_are_text_persistent_and_unmistakable(api: BrokerApi, channel: Any) -> None:
    produce(small(tenants=1, producers=2), api, say=lambda _line: None)
    found = [one for queue in queues("1", 2) for one in taken(channel, queue)]
    expected = Counter(
        f"{kind}-{producer}-{message}".encode()
        for kind in ("event", "log", "notification")
        for producer in (1, 2)
        for message in range(1, 21)
    )
    assert Counter(body for _, body in found) == expected
    assert len({properties.message_id for properties, _ in found}) == len(found)
    assert {properties.content_type for properties, _ in found} == {"text/plain"}
    assert {properties.delivery_mode for properties, _ in found} == {2}
    assert all(properties.headers["timestamp_in_ms"] > 1e12 for properties, _ in found)


def test_it_may_run_twice_and_an_existing_tenant_keeps_its_partitions(
    api: BrokerApi, channel: Any
) -> None:
    api.send("POST", "/tenants", {"id": "1", "name": "one", "topics": ["events"], "partitions": 2})
    lines: list[str] = []
    result = produce(small(partitions=4), api, say=lines.append)
    assert result.succeeded
    assert "Found stream: tenant_1_stream with ID: 1" in lines
    assert any("tenant 1 exists with 2 partition(s)" in line for line in lines)
    assert produce(small(partitions=4), api, say=lines.append).succeeded
    assert sum(depth(channel, queue) for queue in queues("1", 2)) == 120
    ids = [p.message_id for queue in queues("1", 2) for p, _ in taken(channel, queue)]
    assert len(set(ids)) == 120


def test_a_daemon_that_is_still_starting_is_waited_for(api: BrokerApi) -> None:
    api.unavailable = 2
    assert produce(small(tenants=1, batches=1), api, say=lambda _line: None).succeeded


def test_lost_connections_lose_no_message(api: BrokerApi, channel: Any) -> None:
    lines: list[str] = []
    cut = threading.Event()
    results: list[Any] = []

    def hold(_count: int) -> None:
        # Nobody is through before the connections are cut.
        cut.wait(DEADLINE)

    def run() -> None:
        options = small(batches=60, batch_size=3, interval=0.01)
        results.append(produce(options, api, say=lines.append, progress=hold))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        eventually(lambda: api.cut_connections(least=6), what="all that send are connected")
    finally:
        cut.set()
    eventually(lambda: api.cut_connections() or not thread.is_alive(), what="another cut")
    thread.join(DEADLINE)
    assert results[0].succeeded, [line for line in lines if not line.startswith("Sent")]
    for tenant_id in ("1", "2"):
        found = [one for queue in queues(tenant_id, 2) for one in taken(channel, queue)]
        assert len({properties.message_id for properties, _ in found}) == 3 * 60 * 3


def test_what_no_queue_takes_is_tried_again_and_then_counted(
    api: BrokerApi, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.producer.run.ATTEMPTS", 2)
    monkeypatch.setattr("tenantry.producer.run.FIRST_BACKOFF", 0.01)
    produce(small(tenants=1, batches=1), api, say=lambda _line: None)
    channel.queue_unbind(
        names.partition_queue_name("1", "logs", 1), names.exchange_name("1"), "logs.1"
    )
    lines: list[str] = []
    result = produce(small(tenants=1), api, say=lines.append)
    assert (result.total.sent, result.total.confirmed) == (60, 50)
    assert not result.succeeded
    assert sum(line.startswith("Retrying: 5") for line in lines) == 2
    failed = [line for line in lines if line.startswith("Failed: 5")]
    assert len(failed) == 2
    assert "no queue takes it" in failed[0]


def test_a_broker_that_stays_away_is_given_up(
    api: BrokerApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.producer.run.ATTEMPTS", 2)
    monkeypatch.setattr("tenantry.producer.run.FIRST_BACKOFF", 0.01)
    options = small(tenants=1, batches=50, addresses=Addresses(amqp="127.0.0.1:1"))
    result = produce(options, api, say=lambda _line: None)
    assert (result.total.sent, result.total.failed) == (1500, 1500)
