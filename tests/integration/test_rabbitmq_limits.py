"""What RabbitMQ refuses a tenant beyond its limits, and what it lets be."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest
from pika.exceptions import ConnectionClosedByBroker, ProbableAccessDeniedError

from tenantry.broker.port import BrokerError, MessagesRefusedError, NotOursError, Outgoing
from tenantry.broker.rabbitmq import limits as limiting
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.domain import names
from tenantry.domain.limits import NO_LIMITS, Limits
from tests import brokers
from tests.brokers import Broker
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def broker(rabbitmq: RabbitHost) -> Iterator[Broker]:
    with brokers.rabbitmq(rabbitmq) as broker:
        yield broker


def administration(broker: Broker) -> RabbitAdministration:
    assert isinstance(broker.administration, RabbitAdministration)
    return broker.administration


def test_connections_and_channels_beyond_the_limit_are_refused_with_the_reason(
    broker: Broker,
) -> None:
    tenant = broker.tenant()
    credentials, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    broker.administration.ensure_limits(tenant, Limits(connections=2, channels=3))
    url = pika.URLParameters(credentials.amqp_url)
    with pika.BlockingConnection(url) as first, pika.BlockingConnection(url):
        # RabbitMQ counts a connection or a channel a moment after it has opened it.
        with pytest.raises(ProbableAccessDeniedError, match=r"connection limit \(2\)"):
            eventually(lambda: pika.BlockingConnection(url).close())
        for _ in range(3):
            first.channel()
        with pytest.raises(ConnectionClosedByBroker, match="channels opened"):
            eventually(lambda: first.channel().close())
        # As another password is set, the limits stay.
        _, hashed = broker.administration.new_credentials(tenant.tenant_id)
        broker.administration.ensure_user(tenant.tenant_id, hashed)
        assert administration(broker).management.user_limits() == {
            names.username(tenant.tenant_id): {"max-connections": 2, "max-channels": 3}
        }
        broker.administration.ensure_limits(tenant, NO_LIMITS)
        assert not administration(broker).management.user_limits()


def test_a_user_of_another_installation_is_held_to_nothing(
    broker: Broker, rabbitmq: RabbitHost
) -> None:
    tenant = broker.tenant()
    management = administration(broker).management
    name = names.username(tenant.tenant_id)
    management.put_user(name, "", tags=["tenantry-another"])
    with pytest.raises(NotOursError):
        broker.administration.ensure_limits(tenant, Limits(connections=2))
    assert not management.user_limits()
    management.put_user_limit(name, "max-connections", 7)
    assert not broker.administration.survey().limits
    management.delete_user(name)


def test_each_queue_of_a_tenant_has_its_share_and_dead_letters_and_copies_are_left_alone(
    broker: Broker,
) -> None:
    tenant = broker.tenant("events", partitions=3)
    _, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    broker.administration.ensure_limits(tenant, Limits(backlog_messages=10, backlog_bytes=4001))
    management = administration(broker).management
    policy = management.operator_policies()[limiting.policy_name(tenant.tenant_id)]
    assert policy["definition"] == {"max-length": 3, "max-length-bytes": 1001}
    group = names.group_queue_name(tenant.tenant_id, "events")
    letters = names.dead_letter_queue_name(tenant.tenant_id)
    alike = names.queue_name(f"{tenant.tenant_id}-2")
    assert set(management.queue_arguments(policy["pattern"])) == set(tenant.queue_names)
    assert not {group, letters, alike} & set(management.queue_arguments(policy["pattern"]))


def test_who_does_not_wait_for_confirms_goes_beyond_the_limit_by_what_is_on_its_way(
    broker: Broker,
) -> None:
    tenant = broker.tenant()
    broker.administration.ensure_limits(tenant, Limits(backlog_messages=100))

    def refused(count: int = 1) -> bool:
        try:
            broker.publish(tenant, "default", *[b"%d" % number for number in range(count)])
        except MessagesRefusedError:
            return True
        return False

    # A policy holds a moment after it was made; who was refused goes on once the queue says so.
    eventually(lambda: refused(10), what="the limit holds")
    broker.ready(tenant.queue_names[0])
    eventually(lambda: not refused(), what="room again")

    many = [
        Outgoing(exchange=tenant.exchange, routing_key="default", body=b"x", message_id=str(n))
        for n in range(3000)
    ]
    with pytest.raises(MessagesRefusedError):
        broker.publishing.publish(many, timeout=DEADLINE)
    assert eventually(refused)
    assert len(broker.ready(tenant.queue_names[0])) <= 100 + 500


def test_a_classic_queue_which_would_drop_messages_gets_no_limit(rabbitmq: RabbitHost) -> None:
    with brokers.rabbitmq(rabbitmq, "classic") as classic:
        assert "backlog_messages" not in classic.administration.kept_limits.names
        tenant = classic.tenant()
    with brokers.rabbitmq(rabbitmq) as quorum:
        with pytest.raises(BrokerError, match="would drop messages"):
            quorum.administration.ensure_limits(tenant, Limits(backlog_messages=1))
        assert not administration(quorum).management.operator_policies()
        quorum.publish(tenant, "default", *[b"%d" % number for number in range(10)])
        assert len(quorum.ready(tenant.queue_names[0])) == 10
