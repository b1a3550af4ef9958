"""What every broker promises, held against each kind that is registered and the one in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.broker.port import QueueSpec, Subscription, TenantTopology, UnroutableError
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies
from tests.waiting import eventually


@pytest.fixture(params=brokers.KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind = brokers.KINDS[request.param]
    with kind.run(*map(request.getfixturevalue, kind.services)) as made:
        yield made


def subscribed(
    broker: Broker, tenant: TenantTopology, *, prefetch: int = 100
) -> tuple[Subscription, RecordingSink]:
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=prefetch, sink=sink)
    return subscription, sink


def test_what_is_published_is_delivered_with_topic_and_partition(broker: Broker) -> None:
    tenant = broker.tenant("events", partitions=2)
    _, sink = subscribed(broker, tenant)
    for key in ("default", "events", "events.0", "events.1"):
        broker.publish(tenant, key, key.encode())
    seen = {
        (one.message.body, one.message.topic, one.message.partition) for one in sink.received(4)
    }
    assert seen == {
        (b"default", "default", 0),
        (b"events", "events", 0),
        (b"events.0", "events", 0),
        (b"events.1", "events", 1),
    }


def test_a_delivery_carries_its_id_and_is_not_redelivered_at_first(broker: Broker) -> None:
    tenant = broker.tenant("events")
    _, sink = subscribed(broker, tenant)
    broker.publish(tenant, "events", b"one")
    (delivery,) = sink.received(1)
    assert delivery.message.id == "one"
    assert not delivery.redelivered


def test_one_tenants_messages_are_no_other_tenants(broker: Broker) -> None:
    ours, theirs = broker.tenant("events"), broker.tenant("events")
    _, our_sink = subscribed(broker, ours)
    _, their_sink = subscribed(broker, theirs)
    broker.publish(theirs, "events", b"theirs")
    broker.publish(ours, "events", b"ours")
    assert bodies(our_sink.received(1)) == [b"ours"]
    assert bodies(their_sink.received(1)) == [b"theirs"]


def test_tags_rise_by_one_in_a_generation(broker: Broker) -> None:
    tenant = broker.tenant("events", partitions=3)
    broker.publish(tenant, "events.0", *[b"a%d" % n for n in range(20)])
    broker.publish(tenant, "events.1", *[b"b%d" % n for n in range(20)])
    _, sink = subscribed(broker, tenant)
    assert [one.tag for one in sink.received(40)] == list(range(1, 41))


def test_a_queue_is_delivered_in_order(broker: Broker) -> None:
    tenant = broker.tenant("events")
    _, sink = subscribed(broker, tenant, prefetch=500)
    expected = [b"%04d" % n for n in range(300)]
    broker.publish(tenant, "events", *expected)
    assert bodies(sink.received(300)) == expected


def test_no_more_than_the_prefetch_is_unsettled(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", *[b"%d" % n for n in range(25)])
    subscription, sink = subscribed(broker, tenant, prefetch=10)
    generation = sink.heard("consuming")
    sink.received(10)
    assert broker_gives_nothing_more(broker, tenant, sink, 10)
    subscription.settle(generation, rejects=(), ack_up_to=5)
    sink.received(15)
    subscription.settle(generation, rejects=(), ack_up_to=16)
    assert len(sink.received(25)) == 25


def broker_gives_nothing_more(
    broker: Broker, tenant: TenantTopology, sink: RecordingSink, count: int
) -> bool:
    """Send a message through another queue of the channel; earlier deliveries arrive before it."""
    broker.publish(tenant, "default", b"behind")
    found = sink.received(count + 1)
    assert bodies(found)[count:] == [b"behind"]
    sink.got.pop()
    return True


def test_what_is_acked_does_not_come_again(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1", b"2", b"3")
    subscription, sink = subscribed(broker, tenant)
    sink.received(3)
    subscription.settle(sink.heard("consuming"), rejects=(), ack_up_to=2)
    subscription.close()
    _, after = subscribed(broker, tenant)
    (again,) = after.received(1)
    assert again.message.body == b"3"
    assert again.redelivered


def test_single_acks_leave_what_lies_between_them(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", *[b"%d" % n for n in range(1, 10)])
    subscription, sink = subscribed(broker, tenant)
    sink.received(9)
    generation = sink.heard("consuming")
    subscription.settle(generation, ack_up_to=2)
    subscription.settle(generation, rejects=(4,), acks=(5, 6, 8))
    subscription.settle(generation, acks=(9,))
    subscription.close()
    _, after = subscribed(broker, tenant)
    again = after.received(2)
    assert bodies(again) == [b"3", b"7"]
    assert all(one.redelivered for one in again)


def test_a_widened_queue_delivers_beside_what_is_unsettled_and_that_stays_valid(
    broker: Broker,
) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", *[b"%02d" % n for n in range(35)])
    subscription, sink = subscribed(broker, tenant, prefetch=10)
    generation = sink.heard("consuming")
    sink.received(10)
    events = tenant.queues()[1]
    for round_ in (2, 3):
        subscription.renew_prefetch(generation, events)
        sink.received(10 * round_)
    assert broker_gives_nothing_more(broker, tenant, sink, 30)
    assert not any(one.redelivered for one in sink.received(30))
    # Tags of the first consumer's and the second's deliveries, and up to the third's last one.
    subscription.settle(generation, acks=(2, 13), rejects=(5,))
    subscription.settle(generation, ack_up_to=31)
    assert bodies(sink.received(35))[30:] == [b"%02d" % n for n in range(30, 35)]
    subscription.cancel()
    assert sink.heard("cancelled") == generation
    subscription.settle(generation, acks=(36,))
    subscription.close()
    _, after = subscribed(broker, tenant)
    assert bodies(after.received(4)) == [b"%02d" % n for n in range(30, 34)]


def test_a_cancel_right_after_a_widening_ends_deliveries_all_the_same(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", *[b"%02d" % n for n in range(30)])
    subscription, sink = subscribed(broker, tenant, prefetch=10)
    generation = sink.heard("consuming")
    sink.received(10)
    subscription.renew_prefetch(generation, tenant.queues()[1])
    subscription.cancel()
    sink.heard("cancelled")
    count = len(sink.got)
    subscription.settle(generation, ack_up_to=count)
    subscription.close()
    _, after = subscribed(broker, tenant)
    assert len(after.received(30 - count)) == 30 - count
    assert len(sink.got) == count


def test_what_is_rejected_becomes_a_dead_letter(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1", b"bad", b"3")
    subscription, sink = subscribed(broker, tenant)
    bad = next(one.tag for one in sink.received(3) if one.message.body == b"bad")
    subscription.settle(sink.heard("consuming"), rejects=(bad,), ack_up_to=3)
    letters: list[bytes] = []
    queue = names.dead_letter_queue_name(tenant.tenant_id)
    eventually(lambda: letters.extend(broker.ready(queue)) or letters)
    assert letters == [b"bad"]
    subscription.close()
    broker.publish(tenant, "events", b"4")
    _, after = subscribed(broker, tenant)
    assert bodies(after.received(1)) == [b"4"]


def test_unsettled_messages_come_again_in_order_when_the_channel_closes(broker: Broker) -> None:
    tenant = broker.tenant("events")
    expected = [b"%02d" % n for n in range(30)]
    broker.publish(tenant, "events", *expected)
    subscription, sink = subscribed(broker, tenant)
    sink.received(30)
    subscription.close()
    _, after = subscribed(broker, tenant)
    again = after.received(30)
    assert bodies(again) == expected
    assert all(one.redelivered for one in again)


def test_after_a_cancel_nothing_is_delivered_but_the_rest_can_be_settled(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1", b"2")
    subscription, sink = subscribed(broker, tenant)
    sink.received(2)
    subscription.cancel()
    generation = sink.heard("cancelled")
    assert generation == sink.heard("consuming")
    broker.publish(tenant, "events", b"3")
    subscription.settle(generation, rejects=(), ack_up_to=2)
    subscription.close()
    _, after = subscribed(broker, tenant)
    assert bodies(after.received(1)) == [b"3"]
    assert len(sink.got) == 2


def test_a_cancel_while_it_begins_to_consume_lets_what_has_come_be_settled(broker: Broker) -> None:
    tenant = broker.tenant("events", partitions=3)
    for key in ("default", "events.0"):
        broker.publish(tenant, key, *[b"%s %02d" % (key.encode(), n) for n in range(20)])
    subscription, sink = subscribed(broker, tenant)
    sink.received(1)  # of one queue; the other queues may not have answered
    subscription.cancel()
    generation = sink.heard("cancelled")
    assert "lost" not in dict(sink.log)
    count = len(sink.got)
    subscription.settle(generation, ack_up_to=count)
    subscription.close()
    _, after = subscribed(broker, tenant)
    broker.publish(tenant, "default", b"the last")
    found = after.received(40 - count + 1)
    assert not any(one.redelivered for one in found)
    assert {*bodies(found)}.isdisjoint(bodies([one for _, one in sink.got]))


def test_a_cancelled_subscription_begins_again_when_asked(broker: Broker) -> None:
    tenant = broker.tenant("events")
    subscription, sink = subscribed(broker, tenant)
    first = sink.heard("consuming")
    subscription.cancel()
    sink.heard("cancelled")
    broker.publish(tenant, "events", b"1")
    subscription.resubscribe()
    assert sink.heard("consuming", 2) > first
    assert bodies(sink.received(1)) == [b"1"]


def test_a_settlement_of_an_older_generation_does_nothing(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1")
    subscription, sink = subscribed(broker, tenant)
    old = sink.heard("consuming")
    sink.received(1)
    subscription.resubscribe()
    new = sink.heard("consuming", 2)
    assert new > old
    assert len(sink.received(2)) == 2
    subscription.settle(old, rejects=(), ack_up_to=1)
    subscription.close()
    _, after = subscribed(broker, tenant)
    assert bodies(after.received(1)) == [b"1"]


def test_one_that_was_closed_by_others_settles_nothing_any_more(broker: Broker) -> None:
    """A replaced consumer that hung settles deliveries when it wakes."""
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1", b"2")
    subscription, sink = subscribed(broker, tenant)
    generation = sink.heard("consuming")
    sink.received(2)
    subscription.close()
    second, after = subscribed(broker, tenant)
    assert bodies(after.received(2)) == [b"1", b"2"]
    subscription.settle(generation, rejects=[1], ack_up_to=2)
    subscription.cancel()
    subscription.close()
    second.close()
    _, last = subscribed(broker, tenant)
    assert bodies(last.received(2)) == [b"1", b"2"]


def test_a_subscription_whose_queue_is_missing_waits_until_it_is_told(broker: Broker) -> None:
    tenant = broker.tenant("events")
    sink = RecordingSink()
    absent = QueueSpec(name="tenant_nobody_queue", topic="default", partition=0)
    subscription = broker.consuming.subscribe((*tenant.queues(), absent), prefetch=10, sink=sink)
    sink.heard("lost")
    assert sink.missing == [True]
    assert ("consuming", 1) not in sink.log
    subscription.close()


def test_a_queue_deleted_under_its_consumer_is_missing_until_it_is_made_again(
    broker: Broker,
) -> None:
    tenant = broker.tenant("events")
    subscription, sink = subscribed(broker, tenant)
    sink.heard("consuming")
    broker.administration.remove_topology(tenant.tenant_id)
    sink.heard("lost")
    assert sink.missing == [True]
    broker.administration.ensure_topology(tenant)
    subscription.resubscribe()
    sink.heard("consuming", 2)
    broker.publish(tenant, "events", b"1")
    assert bodies(sink.received(1)) == [b"1"]


def test_a_message_no_queue_takes_is_unroutable(broker: Broker) -> None:
    tenant = broker.tenant("events")
    with pytest.raises(UnroutableError, match="nothing"):
        broker.publish(tenant, "nothing", b"1")
    nobody = TenantTopology(tenant_id="nobody", topics=(), partitions=1)
    with pytest.raises(UnroutableError, match="tenant_nobody_stream"):
        broker.publish(nobody, "default", b"1")
    broker.publish(tenant, "events", b"2")
    assert broker.ready(tenant.queues()[1].name) == [b"2"]


def test_making_a_topology_twice_changes_nothing_and_takes_new_topics(broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1")
    broker.administration.ensure_topology(tenant)
    wider = TenantTopology(tenant_id=tenant.tenant_id, topics=("events", "logs"), partitions=1)
    broker.administration.ensure_topology(wider)
    broker.publish(wider, "logs", b"2")
    _, sink = subscribed(broker, wider)
    assert sorted(bodies(sink.received(2))) == [b"1", b"2"]


def test_removing_a_topology_counts_what_is_dropped_and_may_be_repeated(broker: Broker) -> None:
    tenant, other = broker.tenant("events", "logs"), broker.tenant("events")
    broker.publish(tenant, "events", b"1", b"2")
    broker.publish(tenant, "logs", b"3")
    broker.publish(other, "events", b"4")
    assert broker.administration.remove_topology(tenant.tenant_id) == 3
    assert broker.administration.remove_topology(tenant.tenant_id) == 0
    with pytest.raises(UnroutableError):
        broker.publish(tenant, "events", b"5")
    assert broker.ready(other.queues()[1].name) == [b"4"]


def test_pending_counts_what_is_ready_without_dead_letters(broker: Broker) -> None:
    tenant, idle = broker.tenant("events"), broker.tenant()
    broker.publish(tenant, "default", b"1", b"2", b"bad")
    broker.publish(tenant, "events", b"3")
    subscription, sink = subscribed(broker, tenant)
    bad = next(one.tag for one in sink.received(4) if one.message.body == b"bad")
    subscription.settle(sink.heard("consuming"), rejects=(bad,), ack_up_to=None)
    subscription.close()
    expected = {tenant.tenant_id: 3, idle.tenant_id: 0}

    def counted() -> bool:
        counts = broker.queues.queue_counts()
        return all(counts[name].ready == count for name, count in expected.items())

    eventually(counted)


def test_a_broker_in_order_passes_its_check(broker: Broker) -> None:
    broker.administration.check()


def test_a_user_can_be_made_twice_and_removed_twice(broker: Broker) -> None:
    tenant = broker.tenant()
    for _ in range(2):
        _, hashed = broker.administration.new_credentials(tenant.tenant_id)
        broker.administration.ensure_user(tenant.tenant_id, hashed)
    broker.administration.remove_user(tenant.tenant_id)
    broker.administration.remove_user(tenant.tenant_id)


def test_passwords_are_new_each_time_and_shown_by_no_repr(broker: Broker) -> None:
    first, hashed = broker.administration.new_credentials("acme")
    second, _ = broker.administration.new_credentials("acme")
    assert first.username == "tenant_acme_producer"
    assert first.password != second.password
    assert first.password not in f"{first!r} {hashed!r}"
    assert hashed.value not in repr(hashed)


def test_in_order_who_consumes_next_is_given_first_what_was_in_hand_before(broker: Broker) -> None:
    tenant = broker.tenant("events", ordered=True)
    numbered = [b"%02d" % n for n in range(20)]
    broker.publish(tenant, "events", *numbered[:10])
    first, sink = subscribed(broker, tenant, prefetch=5)
    generation = sink.heard("consuming")
    sink.received(5)
    first.settle(generation, ack_up_to=1)
    first.cancel()
    sink.heard("cancelled")
    broker.publish(tenant, "events", *numbered[10:])
    first.close()
    _, later = subscribed(broker, tenant)
    assert bodies(later.received(19)) == numbered[1:]
