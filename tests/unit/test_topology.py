"""The description of a tenant's objects on the broker."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tenantry.broker.port import TenantTopology
from tenantry.broker.topology import (
    GROUP_BYTES,
    GROUP_SECONDS,
    UNLIMITED_DELIVERIES,
    counts_by_tenant,
    is_dead_letter_queue,
    is_group_queue,
    owner,
    permissions,
    plan,
)
from tenantry.domain import names
from tenantry.domain.names import UserKind

ACME = TenantTopology(tenant_id="acme", topics=("events", "logs"), partitions=2)


def test_topics_have_partitions_of_their_own_and_those_in_order_one_consumer_at_a_time() -> None:
    described = plan(replace(ACME, topic_partitions=(1, 3), ordered=("logs",)), "quorum")
    of_topics = [one for one in described.queues if ".events." in one.name or ".logs." in one.name]
    one_at_a_time = {
        one.name.removeprefix("tenant_acme_stream."): one.arguments.get("x-single-active-consumer")
        for one in of_topics
    }
    assert one_at_a_time == {"events.0": None, "logs.0": True, "logs.1": True, "logs.2": True}


def test_every_object_has_the_name_of_the_contract() -> None:
    described = plan(ACME, "quorum")
    assert described.exchanges == ("dlx_exchange", "tenant_acme_stream")
    assert [queue.name for queue in described.queues] == [
        "tenant_acme_dead_letters",
        "tenant_acme_queue",
        "tenant_acme_stream.events.0",
        "tenant_acme_stream.events.1",
        "tenant_acme_stream.logs.0",
        "tenant_acme_stream.logs.1",
    ]


def test_partition_0_is_also_bound_with_the_bare_topic() -> None:
    keys = [
        (binding.queue, binding.routing_key)
        for binding in plan(ACME, "quorum").bindings
        if binding.exchange == "tenant_acme_stream"
    ]
    assert keys[:4] == [
        ("tenant_acme_queue", "default"),
        ("tenant_acme_stream.events.0", "events.0"),
        ("tenant_acme_stream.events.0", "events"),
        ("tenant_acme_stream.events.1", "events.1"),
    ]


def test_dead_letters_have_an_exchange_in_common_and_a_queue_each() -> None:
    (binding,) = [b for b in plan(ACME, "quorum").bindings if b.exchange == "dlx_exchange"]
    assert (binding.queue, binding.routing_key) == ("tenant_acme_dead_letters", "acme")


def test_a_quorum_queue_dead_letters_safely_and_never_for_being_redelivered() -> None:
    dead_letters, *queues = plan(ACME, "quorum").queues
    for queue in queues:
        assert queue.arguments == {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "dlx_exchange",
            "x-dead-letter-routing-key": "acme",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-delivery-limit": UNLIMITED_DELIVERIES,
        }
    assert "x-dead-letter-exchange" not in dead_letters.arguments


def test_a_classic_queue_has_no_argument_that_only_quorum_queues_take() -> None:
    dead_letters, *queues = plan(ACME, "classic").queues
    assert dead_letters.arguments == {"x-queue-type": "classic"}
    for queue in queues:
        assert set(queue.arguments) == {
            "x-queue-type",
            "x-dead-letter-exchange",
            "x-dead-letter-routing-key",
        }


def test_what_is_consumed_names_topic_and_partition() -> None:
    assert [(spec.topic, spec.partition) for spec in ACME.queues()] == [
        ("default", 0),
        ("events", 0),
        ("events", 1),
        ("logs", 0),
        ("logs", 1),
    ]


def test_a_tenant_writes_its_stream_and_reads_its_queues_and_nothing_else() -> None:
    allowed = permissions("acme")
    assert re.search(allowed.write, "tenant_acme_stream")
    for foreign in ("", "tenant_acme_stream2", "xtenant_acme_stream", "tenant_acme-2_stream"):
        assert not re.search(allowed.write, foreign)
    for spec in ACME.queues():
        assert re.search(allowed.read, spec.name)
    for foreign in (
        "tenant_acme_dead_letters",
        "tenant_acme_stream",
        "tenant_acme_streamxevents.0",
        "tenant_acme_stream.events.0.more",
        "tenant_acme_queue2",
        "tenant_acme-2_queue",
    ):
        assert not re.search(allowed.read, foreign)
    assert not re.search(allowed.configure, "anything")


@pytest.mark.parametrize("tenant_id", ["a", "1", "a-b", "queue", "stream", "a" * 40])
def test_a_queues_owner_is_read_from_its_name(tenant_id: str) -> None:
    made = TenantTopology(tenant_id=tenant_id, topics=("a_b-c",), partitions=1)
    for spec in made.queues():
        assert owner(spec.name) == tenant_id
        assert not is_dead_letter_queue(spec.name)
    dead_letters = names.dead_letter_queue_name(tenant_id)
    assert owner(dead_letters) == tenant_id
    assert is_dead_letter_queue(dead_letters)


@pytest.mark.parametrize("name", ["", "events", "tenant_", "tenant_A_queue", "tenant_a_queue2"])
def test_other_queues_have_no_owner(name: str) -> None:
    assert owner(name) is None


def test_with_consumer_access_each_topic_has_a_queue_that_never_fills() -> None:
    described = plan(replace(ACME, consumer_access=True), "quorum")
    groups = {one.name: one.arguments for one in described.queues if is_group_queue(one.name)}
    assert list(groups) == [
        "tenant_acme_consumer.default",
        "tenant_acme_consumer.events",
        "tenant_acme_consumer.logs",
    ]
    for arguments in groups.values():
        assert arguments == {
            "x-queue-type": "quorum",
            "x-max-length-bytes": GROUP_BYTES,
            "x-message-ttl": GROUP_SECONDS * 1000,
            "x-overflow": "drop-head",
            "x-delivery-limit": UNLIMITED_DELIVERIES,
        }
    keys = [one.routing_key for one in described.bindings if one.queue.endswith("consumer.events")]
    assert keys == ["events.0", "events", "events.1"]
    assert all(not is_group_queue(one.name) for one in plan(ACME, "classic").queues)


def test_what_waits_for_a_tenants_own_consumers_is_no_backlog() -> None:
    counted = counts_by_tenant({"tenant_acme_queue": (1, 2), "tenant_acme_consumer.events": (4, 8)})
    assert (counted["acme"].ready, counted["acme"].unsettled) == (1, 2)
    assert owner("tenant_acme_consumer.events") == "acme"


def test_a_user_that_consumes_reads_its_group_and_nothing_else() -> None:
    allowed = permissions("acme", UserKind.CONSUMER)
    for topic in ("default", "events", "a_b-c"):
        assert re.search(allowed.read, names.group_queue_name("acme", topic))
    for foreign in (
        "",
        "tenant_acme_queue",
        "tenant_acme_stream",
        "tenant_acme_stream.events.0",
        "tenant_acme_dead_letters",
        "tenant_acme_consumer",
        "tenant_acme_consumer.",
        "tenant_acme_consumer.events.0",
        "tenant_acme_consumerxevents",
        "xtenant_acme_consumer.events",
        "tenant_acme-2_consumer.events",
    ):
        assert not re.search(allowed.read, foreign)
        assert not re.search(allowed.write, foreign) or not foreign
        assert not re.search(allowed.configure, foreign) or not foreign
