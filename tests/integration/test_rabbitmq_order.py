"""What RabbitMQ delivers of a queue in order: everything as it was published, whoever consumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from tenantry.broker.budget import OWN, Budget
from tenantry.broker.port import Delivery, Outgoing
from tenantry.broker.topology import QueueType
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker, RecordingSink
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

LARGE = 2 * OWN
EACH = 8 * LARGE


@pytest.fixture(params=["quorum", "classic"])
def kind(request: pytest.FixtureRequest) -> QueueType:
    return "classic" if request.param == "classic" else "quorum"


@pytest.fixture
def broker(rabbitmq: RabbitHost, kind: QueueType) -> Iterator[Broker]:
    with brokers.rabbitmq(rabbitmq, kind) as made:
        yield made


def firsts(deliveries: Iterable[Delivery]) -> list[bytes]:
    """Give what came, each where it came first."""
    return list(dict.fromkeys(one.message.body[:6] for one in deliveries))


def numbered(numbers: Iterable[int], size: int = 0) -> list[bytes]:
    return [b"%06d" % number + b"x" * size for number in numbers]


def test_a_second_consumer_is_given_nothing_before_the_first_has_gone_with_what_it_had(
    broker: Broker, rabbitmq: RabbitHost, kind: QueueType
) -> None:
    """As after a lost connection of which the broker does not know yet, or beside a frozen node."""
    tenant = broker.tenant("events", ordered=True)
    broker.publish(tenant, "events", *numbered(range(10)))
    first, sink = RecordingSink(), RecordingSink()
    held = broker.consuming.subscribe(tenant.queues(), prefetch=5, sink=first)
    first.received(5)
    with brokers.rabbitmq(rabbitmq, kind) as other:
        other.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
        sink.heard("consuming")
        broker.publish(tenant, "default", b"unordered")
        eventually(lambda: [*sink.got, *first.got[5:]], what="the other queue goes to either")
        assert _of_events(sink.got) == []
        held.close()
        eventually(lambda: _of_events(sink.got) == numbered(range(10)), what="all of it, in order")


def _of_events(got: Sequence[tuple[int, Delivery]]) -> list[bytes]:
    return [one.message.body for _, one in got if one.message.topic == "events"]


def test_on_a_new_channel_everything_begins_where_the_former_had_settled(broker: Broker) -> None:
    tenant = broker.tenant("events", ordered=True)
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=40, sink=sink)
    broker.publish(tenant, "events", *numbered(range(100)))
    settled = 0
    for round_ in range(1, 4):
        generation = sink.heard("consuming", round_)
        eventually(lambda n=generation: len([g for g, _ in sink.got if g == n]) >= 40)  # type: ignore[misc]
        subscription.settle(generation, acks=[1, 3], ack_up_to=7)
        settled = 7 * round_
        subscription.resubscribe()
    generation = sink.heard("consuming", 4)
    eventually(lambda: len([g for g, _ in sink.got if g == generation]) >= 40)
    last = [one.message.body for g, one in sink.got if g == generation]
    # What was acknowledged last may come again; what comes is in order and without a gap.
    begin = int(last[0])
    assert begin <= settled
    assert last[:40] == numbered(range(begin, begin + 40))


def test_messages_that_do_not_fit_come_in_order_all_the_same(
    rabbitmq: RabbitHost, kind: QueueType
) -> None:
    budget = Budget(each=EACH, total=4 * EACH)
    with brokers.rabbitmq(rabbitmq, kind, budget) as broker:
        too_much_comes_in_order(broker, budget)


def too_much_comes_in_order(broker: Broker, budget: Budget) -> None:
    tenant = broker.tenant("events", ordered=True)
    stream = names.exchange_name(tenant.tenant_id)
    broker.publishing.publish(
        [
            Outgoing(exchange=stream, routing_key="events", body=body)
            for body in (*numbered(range(50)), *numbered(range(50, 90), LARGE))
        ],
        timeout=DEADLINE,
    )
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=1000, sink=sink)
    eventually(lambda: subscription._admission.shedding, what="they do not fit")  # type: ignore[attr-defined]
    assert budget.in_hand >= EACH
    settled = 0
    expected = numbered(range(90))

    def settle() -> bool:
        nonlocal settled
        got = list(sink.got)
        if len(got) > settled:
            settled = len(got)
            generation, one = got[-1]
            subscription.settle(generation, ack_up_to=one.tag)
        return len(firsts(one for _, one in got)) == 90

    eventually(settle, what="all of them")
    assert firsts(one for _, one in sink.got) == expected
    assert sink.missing, "another channel was taken"
