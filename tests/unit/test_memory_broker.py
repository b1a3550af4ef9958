"""The faults of the broker in memory, which tests of others rely on."""

from __future__ import annotations

import pytest

from tenantry.broker.port import BrokerUnavailableError, Outgoing, TenantTopology
from tests.brokers import RecordingSink, bodies
from tests.fakes.broker import MemoryBroker
from tests.waiting import DEADLINE

ACME = TenantTopology(tenant_id="acme", topics=("events",), partitions=1)


def publish(broker: MemoryBroker, *messages: bytes) -> None:
    stream = "tenant_acme_stream"
    broker.publish(
        [Outgoing(exchange=stream, routing_key="events", body=body) for body in messages],
        timeout=DEADLINE,
    )


def consuming() -> tuple[MemoryBroker, RecordingSink]:
    broker, sink = MemoryBroker(), RecordingSink()
    broker.ensure_topology(ACME)
    broker.subscribe(ACME.queues(), prefetch=10, sink=sink)
    return broker, sink


def test_nothing_is_told_before_somebody_lets_it() -> None:
    broker, sink = consuming()
    publish(broker, b"1")
    assert sink.log == []
    broker.deliver()
    assert sink.log == [("consuming", 1), ("deliveries", 1)]


def test_a_dropped_channel_comes_back_with_what_was_unsettled() -> None:
    broker, sink = consuming()
    publish(broker, b"1", b"2")
    broker.deliver()
    broker.drop_channels()
    broker.deliver()
    assert [word for word, _ in sink.log] == [
        "consuming",
        "deliveries",
        "lost",
        "consuming",
        "deliveries",
    ]
    again = [delivery for generation, delivery in sink.got if generation == 2]
    assert bodies(again) == [b"1", b"2"]
    assert all(delivery.redelivered for delivery in again)
    assert sink.missing == [False]


def test_a_broker_that_is_away_refuses_everything_and_comes_back_with_its_queues() -> None:
    broker, sink = consuming()
    publish(broker, b"1")
    broker.disconnect()
    broker.deliver()
    for call in (broker.check, broker.queue_counts, lambda: publish(broker, b"2")):
        with pytest.raises(BrokerUnavailableError):
            call()
    assert sink.got == []
    broker.connect()
    broker.deliver()
    assert bodies([delivery for _, delivery in sink.got]) == [b"1"]


def test_a_deleted_queue_is_missing_for_its_consumer() -> None:
    broker, sink = consuming()
    publish(broker, b"1")
    assert broker.delete_queue(ACME.queues()[1].name) == 1
    broker.deliver()
    assert sink.missing == [True]
    broker.drop_channels()
    broker.deliver()
    assert [word for word, _ in sink.log].count("consuming") == 0
