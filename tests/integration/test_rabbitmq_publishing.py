"""Publishing to RabbitMQ: limits, neighbours, and messages that can't be sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing, UnroutableError
from tenantry.broker.rabbitmq import unconfirmed
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE


@pytest.fixture
def broker(rabbitmq: RabbitHost) -> Iterator[Broker]:
    with brokers.rabbitmq(rabbitmq, "classic") as broker:
        yield broker


def test_many_callers_publish_at_once_through_a_small_window(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unconfirmed, "MAX_UNCONFIRMED", 20)
    tenant = broker.tenant("events")
    expected = {b"%d-%d" % (caller, number) for caller in range(8) for number in range(60)}
    with ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(
                broker.publish, tenant, "events", *[b"%d-%d" % (caller, n) for n in range(60)]
            )
            for caller in range(8)
        ]
        for call in calls:
            call.result(DEADLINE)
    assert set(broker.ready(tenant.queues()[1].name)) == expected


def test_a_stream_that_is_not_there_does_not_fail_a_neighbour(broker: Broker) -> None:
    tenant = broker.tenant("events")
    nowhere = [Outgoing(exchange="tenant_x_stream", routing_key="default", body=b"")] * 3
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            bad = pool.submit(broker.publishing.publish, nowhere, timeout=DEADLINE)
            broker.publish(tenant, "events", *[b"%d" % number for number in range(200)])
            with pytest.raises(UnroutableError, match="tenant_x_stream"):
                bad.result(DEADLINE)
    assert len(set(broker.ready(tenant.queues()[1].name))) == 200


def test_a_large_message_passes_whole(broker: Broker) -> None:
    tenant = broker.tenant("events")
    body = bytes(range(256)) * 8_000
    stream = names.exchange_name(tenant.tenant_id)
    large = Outgoing(exchange=stream, routing_key="events", body=body)
    broker.publishing.publish([large], timeout=DEADLINE)
    assert broker.ready(tenant.queues()[1].name) == [body]


def test_a_message_amqp_has_no_way_to_say_fails_alone(broker: Broker) -> None:
    tenant = broker.tenant("events")
    stream = names.exchange_name(tenant.tenant_id)
    bad = Outgoing(exchange=stream, routing_key="events", body=b"", message_id="x" * 256)
    with pytest.raises(BrokerError, match="message id is longer than 255 bytes"):
        broker.publishing.publish([bad], timeout=DEADLINE)
    broker.publish(tenant, "events", b"good")
    assert broker.ready(tenant.queues()[1].name) == [b"good"]


def test_nothing_is_published_without_messages(broker: Broker) -> None:
    broker.publishing.publish([], timeout=0)


def test_a_call_ends_in_time_while_the_broker_is_away() -> None:
    away = RabbitPublishing("amqp://a:b@127.0.0.1:9/")
    with brokers.running(away):
        message = Outgoing(exchange="e", routing_key="k", body=b"")
        with pytest.raises(BrokerUnavailableError, match="can't be reached"):
            away.publish([message], timeout=0.2)
    assert not away._incoming
    assert not away._waiting


def test_stopping_fails_those_who_wait_and_those_who_come_later() -> None:
    away = RabbitPublishing("amqp://a:b@127.0.0.1:9/")
    message = Outgoing(exchange="e", routing_key="k", body=b"")
    with ThreadPoolExecutor(1) as pool:
        waiting = threading.Event()
        with brokers.running(away):

            def call() -> None:
                waiting.set()
                away.publish([message], timeout=DEADLINE)

            result = pool.submit(call)
            waiting.wait(DEADLINE)
        with pytest.raises(BrokerUnavailableError, match="stopped"):
            result.result(DEADLINE)
    with pytest.raises(BrokerUnavailableError, match="stopped"):
        away.publish([message], timeout=DEADLINE)
