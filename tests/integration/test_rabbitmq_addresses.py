"""Several addresses of a RabbitMQ cluster: a node that is away is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tenantry.broker.port import BrokerUnavailableError, Outgoing, TenantTopology
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.domain import names
from tenantry.urls import at_address
from tests import brokers
from tests.brokers import RecordingSink, bodies
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE

AWAY = "127.0.0.1:1"


def after_one_that_is_away(url: str) -> str:
    place = url.split("@")[1].split("/", maxsplit=1)[0]
    return at_address(url, f"{AWAY},{place}")


@pytest.fixture
def administration(rabbitmq: RabbitHost) -> Iterator[RabbitAdministration]:
    with closing(
        RabbitAdministration(
            url=after_one_that_is_away(rabbitmq.url),
            management_url=after_one_that_is_away(rabbitmq.management_url),
            queue_type="classic",
            installation=brokers.INSTALLATION,
        )
    ) as made:
        yield made


def test_everything_goes_on_at_the_next_address(
    rabbitmq: RabbitHost, administration: RabbitAdministration
) -> None:
    administration.check()
    tenant = TenantTopology(tenant_id=rabbitmq.vhost, topics=(), partitions=1)
    administration.ensure_topology(tenant)
    credentials, _ = administration.new_credentials(tenant.tenant_id)
    assert AWAY not in (credentials.amqp_url or AWAY), "a tenant is led to a node that is away"
    url = after_one_that_is_away(rabbitmq.url)
    consuming, publishing = RabbitConsuming(url), RabbitPublishing(url)
    with brokers.running(consuming), brokers.running(publishing):
        sink = RecordingSink()
        consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
        message = Outgoing(
            exchange=names.exchange_name(tenant.tenant_id), routing_key="default", body=b"hello"
        )
        publishing.publish([message], timeout=DEADLINE)
        assert bodies(sink.received(1)) == [b"hello"]
    with RabbitDeadLetters(url).browse(tenant.tenant_id) as browser:
        assert browser.next(1) == []


def test_where_none_can_be_reached_all_are_named() -> None:
    away = RabbitAdministration(
        url="amqp://a:b@127.0.0.1:1,127.0.0.1:2/",
        management_url="http://a:b@127.0.0.1:1",
        queue_type="classic",
        installation=brokers.INSTALLATION,
    )
    with (
        closing(away),
        pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1 or 127\.0\.0\.1:2"),
    ):
        away.ensure_topology(TenantTopology(tenant_id="a", topics=(), partitions=1))
