"""What a tenant's messages take in memory on their way from RabbitMQ is bounded in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tenantry.broker.budget import OWN, Budget
from tenantry.broker.port import Outgoing, Subscription, TenantTopology
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

LARGE = 2 * OWN
EACH = 8 * LARGE


@pytest.fixture(params=["quorum", "classic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def running(host: RabbitHost, kind: str, budget: Budget) -> Iterator[Broker]:
    with brokers.rabbitmq(host, "classic" if kind == "classic" else "quorum", budget) as broker:
        yield broker


def publish(broker: Broker, tenant: TenantTopology, *messages: bytes, key: str = "events") -> None:
    stream = names.exchange_name(tenant.tenant_id)
    broker.publishing.publish(
        [Outgoing(exchange=stream, routing_key=key, body=body) for body in messages],
        timeout=DEADLINE,
    )


def numbered(count: int, size: int, begin: int = 0) -> list[bytes]:
    return [b"%06d" % number + b"x" * size for number in range(begin, begin + count)]


def subscribe(
    broker: Broker, tenant: TenantTopology, *, prefetch: int = 1000
) -> tuple[Subscription, RecordingSink]:
    sink = RecordingSink()
    return broker.consuming.subscribe(tenant.queues(), prefetch=prefetch, sink=sink), sink


def settle_all(
    subscription: Subscription,
    sink: RecordingSink,
    count: int,
    budget: Budget,
    most: int,
    settled: int = 0,
) -> None:
    """Settle what comes after the first `settled` deliveries until `count` have come.

    At no time is more unsettled than `most`. Nothing is settled twice: RabbitMQ closes the channel
    for an ack of what is acknowledged already.
    """
    while settled < count:
        got = sink.received(settled + 1)
        assert budget.in_hand <= most
        subscription.settle(sink.heard("consuming"), ack_up_to=got[-1].tag)
        settled = len(got)


def test_large_messages_behind_small_ones_come_by_bytes_and_each_once(
    rabbitmq: RabbitHost, kind: str
) -> None:
    budget = Budget(each=EACH, total=4 * EACH)
    with running(rabbitmq, kind, budget) as broker:
        tenant = broker.tenant("events")
        small, large = numbered(150, 10), numbered(60, LARGE, 150)
        publish(broker, tenant, *small, *large)
        subscription, sink = subscribe(broker, tenant)
        settle_all(subscription, sink, 210, budget, EACH + 2 * LARGE)
        assert bodies(sink.received(210))[:150] == small
        assert Counter(bodies(sink.received(210))) == Counter([*small, *large])
        eventually(lambda: budget.in_hand == 0, what="all is settled")
        # Small ones again: the window grows back.
        more = numbered(400, 10, 210)
        publish(broker, tenant, *more)
        settle_all(subscription, sink, 610, budget, EACH, settled=210)
        assert Counter(bodies(sink.received(610))[210:]) == Counter(more)
        assert 100 <= subscription.window <= 1000
        assert broker.ready(names.dead_letter_queue_name(tenant.tenant_id)) == []


def test_what_does_not_fit_is_given_back_and_comes_to_the_next_who_consumes(
    rabbitmq: RabbitHost, kind: str
) -> None:
    budget = Budget(each=EACH, total=4 * EACH)
    with running(rabbitmq, kind, budget) as broker:
        tenant = broker.tenant("events", partitions=3)
        for partition in range(3):
            some = numbered(12, LARGE, partition * 12)
            publish(broker, tenant, *some, key=f"events.{partition}")
        subscription, sink = subscribe(broker, tenant)
        sink.received(8)
        generation = sink.heard("consuming")
        # Nothing is settled: no more comes, and a cancel is answered all the same.
        subscription.cancel()
        sink.heard("cancelled")
        assert len(sink.got) <= 9
        taken = len(sink.got)
        subscription.settle(generation, ack_up_to=sink.got[-1][1].tag)
        subscription.close()
        after, after_sink = subscribe(broker, tenant)
        settle_all(after, after_sink, 36 - taken, budget, EACH + 2 * LARGE)
        seen = Counter(body[:6] for body in bodies([*sink.received(0), *after_sink.received(0)]))
        assert set(seen.values()) == {1}
        assert len(seen) == 36


def test_a_tenant_that_fills_all_the_memory_there_is_stops_no_neighbour(
    rabbitmq: RabbitHost, kind: str
) -> None:
    budget = Budget(each=EACH, total=EACH)
    with running(rabbitmq, kind, budget) as broker:
        hog, ours = broker.tenant("events"), broker.tenant("events")
        publish(broker, hog, *numbered(20, LARGE))
        hogs, hog_sink = subscribe(broker, hog)
        hog_sink.received(8)
        subscription, sink = subscribe(broker, ours)
        small = numbered(300, 1000)
        publish(broker, ours, *small)
        settle_all(subscription, sink, 300, budget, EACH + LARGE + OWN)
        assert Counter(bodies(sink.received(300))) == Counter(small)
        settle_all(hogs, hog_sink, 20, budget, EACH + LARGE + OWN)
