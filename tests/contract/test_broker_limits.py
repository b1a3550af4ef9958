"""Each kind of broker enforces tenants' limits as far as it can, and refusals end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.broker.port import BacklogFullError, MessagesRefusedError, Outgoing, TenantTopology
from tenantry.domain.limits import NO_LIMITS, Limits
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies
from tests.waiting import DEADLINE, eventually

FULL = BacklogFullError, MessagesRefusedError
MOST = 10
OVERSHOOT = 1
"""Messages beyond the limit that a broker takes from a client that waits for each confirm."""


@pytest.fixture(params=brokers.KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind = brokers.KINDS[request.param]
    with kind.run(*map(request.getfixturevalue, kind.services)) as made:
        yield made


def limited(broker: Broker, *topics: str, limits: Limits) -> TenantTopology:
    """Make a tenant with a user and these limits; skip where the broker does not keep them."""
    if not limits.of_the_broker.keys() <= broker.administration.kept_limits.names:
        pytest.skip("this broker keeps no such limit")
    tenant = broker.tenant(*topics)
    broker.administration.claim(tenant.tenant_id)
    _, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    broker.administration.ensure_limits(tenant, limits)
    return tenant


def fill(broker: Broker, tenant: TenantTopology, size: int = 1) -> list[bytes]:
    """Publish message after message until one is refused; return the confirmed bodies."""
    confirmed: list[bytes] = []

    def refused() -> bool:
        # A new limit may take a moment to apply.
        body = b"%04d" % len(confirmed) + b"." * (size - 4)
        try:
            broker.publish(tenant, "default", body)
        except FULL:
            return True
        confirmed.append(body)
        return False

    eventually(refused, what="a message that is refused")
    return confirmed


def test_a_full_backlog_refuses_what_is_published_and_loses_nothing_that_was_confirmed(
    broker: Broker,
) -> None:
    tenant = limited(broker, limits=Limits(backlog_messages=MOST))
    confirmed = fill(broker, tenant)
    if broker.kind != "rabbitmq":  # where the policy has to reach the queue first
        assert MOST <= len(confirmed) <= MOST + OVERSHOOT
    with pytest.raises(FULL):
        broker.publish(tenant, "default", b"beyond")
    other = broker.tenant()
    broker.publish(other, "default", b"another's")
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
    generation = sink.heard("consuming")
    found = sink.received(len(confirmed))
    assert bodies(found) == confirmed
    # Rejected and acked messages make room alike, and neither are delivered again.
    subscription.settle(generation, rejects=(1,), ack_up_to=len(confirmed))

    def taken() -> bool:
        try:
            broker.publish(tenant, "default", b"after")
        except FULL:
            return False
        return True

    eventually(taken, what="room")
    assert bodies(sink.received(len(confirmed) + 1))[len(confirmed) :] == [b"after"]
    subscription.close()


def test_a_backlog_may_be_limited_in_bytes_and_in_both(broker: Broker) -> None:
    limits = Limits(backlog_messages=1000, backlog_bytes=2_000)
    tenant = limited(broker, limits=limits)
    if broker.kind == "memory":
        pytest.skip("it counts messages alone")
    confirmed = fill(broker, tenant, size=200)
    if broker.kind != "rabbitmq":
        assert len(confirmed) == 10
    # Without the limit the broker takes more, though no message has left the queue.
    broker.administration.ensure_limits(tenant, NO_LIMITS)
    more = [b"more %d" % number for number in range(50)]
    eventually(lambda: _published(broker, tenant, more), what="the end of the limit")


def _published(broker: Broker, tenant: TenantTopology, found: list[bytes]) -> bool:
    try:
        broker.publish(tenant, "default", *found)
    except FULL:
        return False
    return True


def test_a_message_that_comes_again_is_taken_though_the_backlog_is_full(broker: Broker) -> None:
    tenant = limited(broker, limits=Limits(backlog_messages=MOST))
    confirmed = fill(broker, tenant)
    sink = RecordingSink()
    first = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
    sink.received(len(confirmed))
    first.close()
    again = RecordingSink()
    second = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=again)
    assert sorted(bodies(again.received(len(confirmed)))) == sorted(confirmed)
    second.close()


def test_limits_are_seen_as_they_are_and_go_with_their_tenant(broker: Broker) -> None:
    kept = broker.administration.kept_limits.names
    wanted = {
        name: value
        for name, value in (("connections", 3), ("channels", 9), ("backlog_messages", 100))
        if name in kept
    }
    tenant = limited(broker, "logs", limits=Limits(**wanted))
    if not wanted:
        return

    def found() -> object:
        return broker.administration.survey().limits.get(tenant.tenant_id)

    assert found() == broker.administration.limits_of(tenant, Limits(**wanted))
    fewer = Limits(connections=5)
    broker.administration.ensure_limits(tenant, fewer)
    assert found() == broker.administration.limits_of(tenant, fewer)
    broker.administration.ensure_limits(tenant, fewer)
    broker.administration.ensure_limits(tenant, Limits(**wanted))
    broker.administration.remove_user(tenant.tenant_id)
    broker.administration.remove_topology(tenant.tenant_id)
    assert found() is None


def test_messages_to_another_tenant_are_not_counted(broker: Broker) -> None:
    tenant = limited(broker, limits=Limits(backlog_messages=1))
    fill(broker, tenant)
    other = broker.tenant()
    exchange = other.exchange
    messages = [
        Outgoing(exchange=exchange, routing_key="default", body=b"x", message_id=f"m{number}")
        for number in range(50)
    ]
    broker.publishing.publish(messages, timeout=DEADLINE)
