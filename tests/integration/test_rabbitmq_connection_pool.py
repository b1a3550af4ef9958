"""Subscriptions spread over connections; a queue that keeps silent costs nobody else theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest

from tenantry.broker.rabbitmq import consuming as pooling
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.domain import names
from tests import brokers, services_rabbitmq
from tests.brokers import Broker, RecordingSink, bodies, running
from tests.services_rabbitmq import RabbitHost, evaluate, own_node
from tests.waiting import DEADLINE, eventually


def connections(consuming: RabbitConsuming) -> list[int]:
    """Give the number of subscriptions on each connection."""
    return [len(one.members) for one in consuming._pool._pool]


def test_more_subscriptions_than_a_connection_holds_take_another(rabbitmq: RabbitHost) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(brokers.rabbitmq(rabbitmq, "classic"))
        few_channels = urlsplit(rabbitmq.url)._replace(query="channel_max=6").geturl()
        consuming = RabbitConsuming(few_channels)
        stack.enter_context(running(consuming))
        eventually(lambda: consuming.connected)
        made = []
        for number in range(7):
            tenant, sink = broker.tenant("events"), RecordingSink()
            subscription = consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
            broker.publish(tenant, "events", b"%d" % number)
            made.append((subscription, sink))
        for number, (_, sink) in enumerate(made):
            assert bodies(sink.received(1)) == [b"%d" % number]
        assert connections(consuming) == [3, 3, 1]
        for subscription, _ in made[1:]:
            subscription.close()
        eventually(lambda: connections(consuming) == [1], what="the others closed")
        assert consuming.connected
        assert consuming.reconnects == 0


@pytest.fixture
def home() -> Iterator[Path]:
    """The directory of the run's node; of one of the test's own where the run's is elsewhere."""
    with ExitStack() as stack:
        named = services_rabbitmq.home()
        if named is None:
            node = stack.enter_context(own_node())
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv(services_rabbitmq.ENVIRONMENT, node.url)
            patch.setenv(services_rabbitmq.MANAGEMENT_ENVIRONMENT, node.management_url)
            named = node.directory
        yield named


@pytest.fixture
def broker(home: Path, rabbitmq: RabbitHost) -> Iterator[Broker]:
    with brokers.rabbitmq(rabbitmq, "quorum") as made:
        yield made


def hold(home: Path, broker: Broker, queue: str, word: str) -> None:
    """Have the process behind a quorum queue stop to answer, or answer again."""
    assert broker.host is not None
    evaluate(home, f"sys:{word}(whereis('{broker.host.vhost}_{queue}')).")


def test_a_silent_queue_is_left_alone_until_it_answers(
    home: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "PATIENCE", DEADLINE)
    monkeypatch.setattr(pooling, "STILL", 0.5)
    consuming = broker.consuming
    assert isinstance(consuming, RabbitConsuming)

    class Patient(RecordingSink):
        # Short for the silent queue alone: the other may answer as late as it likes.
        def silent(self, queues: Sequence[str]) -> None:
            super().silent(queues)
            monkeypatch.setattr(pooling, "PATIENCE", DEADLINE)

    healthy, silent = broker.tenant("events"), broker.tenant()
    hold(home, broker, names.queue_name(silent.tenant_id), "suspend")
    good, bad = RecordingSink(), Patient()
    consuming.subscribe(healthy.queues(), prefetch=10, sink=good)
    consuming.subscribe(silent.queues(), prefetch=10, sink=bad)
    good.heard("consuming")
    monkeypatch.setattr(pooling, "PATIENCE", 1.0)
    # The one that answers goes on with a new connection; the other stays where it is.
    good.heard("consuming", 2)
    assert connections(consuming) == [1, 1]
    assert consuming.connected
    broker.publish(healthy, "events", b"1")
    assert bodies(good.received(1)) == [b"1"]
    assert not bad.log
    assert bad.silences == [(names.queue_name(silent.tenant_id),)]
    hold(home, broker, names.queue_name(silent.tenant_id), "resume")
    # It answers, and is taken back to the others.
    bad.heard("consuming", 2)
    eventually(lambda: connections(consuming) == [2], what="one connection for both")
    with pika.BlockingConnection(pika.URLParameters(broker.host.url)) as connection:  # type: ignore[union-attr]
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", names.queue_name(silent.tenant_id), b"2")
    assert bodies(bad.received(1))[-1:] == [b"2"]
    assert good.log.count(("lost", 1)) == 1
    assert len([word for word, _ in good.log if word == "lost"]) == 1
