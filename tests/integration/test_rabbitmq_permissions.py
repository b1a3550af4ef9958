"""What RabbitMQ lets a tenant's own credentials do, and what it doesn't."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
)

from tenantry.broker.port import Credentials, TenantTopology
from tenantry.broker.rabbitmq.administration import hash_password
from tenantry.broker.topology import consumed
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.services_rabbitmq import RabbitHost

ACCESS_REFUSED = 403


@pytest.fixture
def broker(rabbitmq: RabbitHost) -> Iterator[Broker]:
    with brokers.rabbitmq(rabbitmq) as broker:
        yield broker


@pytest.fixture
def tenant(broker: Broker) -> Iterator[tuple[TenantTopology, Credentials]]:
    made = broker.tenant("events", partitions=2)
    credentials, hashed = broker.administration.new_credentials(made.tenant_id)
    broker.administration.ensure_user(made.tenant_id, hashed)
    yield made, credentials
    broker.administration.remove_user(made.tenant_id)


@pytest.fixture
def channel(tenant: tuple[TenantTopology, Credentials]) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(tenant[1].amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


Tenant = tuple[TenantTopology, Credentials]


def test_a_tenant_publishes_to_its_own_stream(
    tenant: Tenant, channel: BlockingChannel, broker: Broker
) -> None:
    made, _ = tenant
    channel.basic_publish(names.stream_name(made.tenant_id), "events.1", b"hello", mandatory=True)
    assert broker.ready(names.partition_queue_name(made.tenant_id, "events", 1)) == [b"hello"]


def test_a_tenant_reads_every_queue_of_its_own(
    tenant: Tenant, channel: BlockingChannel, broker: Broker
) -> None:
    made, _ = tenant
    broker.publish(made, "default", b"default")
    broker.publish(made, "events.1", b"events")
    found = [channel.basic_get(spec.name, auto_ack=True)[2] for spec in consumed(made)]
    assert found == [b"default", None, b"events"]


def test_a_tenant_does_not_read_its_dead_letters(tenant: Tenant, channel: BlockingChannel) -> None:
    refused(lambda: channel.basic_get(names.dead_letter_queue_name(tenant[0].tenant_id)))


def test_a_tenant_neither_writes_nor_reads_what_is_anothers(
    broker: Broker, channel: BlockingChannel
) -> None:
    other = broker.tenant("events")
    connection = channel.connection
    refused(lambda: channel.basic_publish(names.stream_name(other.tenant_id), "events", b""))
    for spec in consumed(other):
        refused(lambda spec=spec: connection.channel().basic_get(spec.name))


def test_a_tenant_does_not_write_past_its_stream(tenant: Tenant, channel: BlockingChannel) -> None:
    made, _ = tenant
    connection = channel.connection
    queue = names.queue_name(made.tenant_id)
    # The default exchange would reach every queue by its name.
    refused(lambda: channel.basic_publish("", queue, b""))
    dead_letters = connection.channel()
    dead_letters.confirm_delivery()
    refused(lambda: dead_letters.basic_publish(names.DEAD_LETTER_EXCHANGE, made.tenant_id, b""))


def test_a_tenant_declares_binds_and_deletes_nothing(
    tenant: Tenant, channel: BlockingChannel
) -> None:
    connection = channel.connection
    stream = names.stream_name(tenant[0].tenant_id)
    queue = names.queue_name(tenant[0].tenant_id)
    refused(lambda: channel.queue_declare("mine"))
    refused(lambda: connection.channel().exchange_declare("mine"))
    refused(lambda: connection.channel().queue_bind(queue, stream, "more"))
    refused(lambda: connection.channel().queue_delete(queue))
    refused(lambda: connection.channel().exchange_delete(stream))


def test_a_name_that_only_begins_like_a_tenants_is_not_its_own(
    broker: Broker, channel: BlockingChannel, tenant: Tenant
) -> None:
    # The id of another tenant may begin with this one's.
    longer = TenantTopology(tenant_id=f"{tenant[0].tenant_id}-2", topics=("events",), partitions=1)
    broker.administration.ensure_topology(longer)
    stream = names.stream_name(longer.tenant_id)
    refused(lambda: channel.basic_publish(stream, "events", b""))


def test_a_new_password_replaces_the_old_one(broker: Broker, tenant: Tenant) -> None:
    made, old = tenant
    new, hashed = broker.administration.new_credentials(made.tenant_id)
    broker.administration.ensure_user(made.tenant_id, hashed)
    with pika.BlockingConnection(pika.URLParameters(new.amqp_url)) as connection:
        assert connection.is_open
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(old.amqp_url))


def test_removing_a_user_closes_its_connections(broker: Broker, tenant: Tenant) -> None:
    made, credentials = tenant
    connection = pika.BlockingConnection(pika.URLParameters(credentials.amqp_url))
    broker.administration.remove_user(made.tenant_id)
    with pytest.raises(ConnectionClosedByBroker):
        connection.process_data_events(time_limit=20)
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(credentials.amqp_url))


def test_the_credentials_url_names_the_brokers_address_and_virtual_host(
    broker: Broker, tenant: Tenant, rabbitmq: RabbitHost
) -> None:
    ours, theirs = urlsplit(rabbitmq.url), urlsplit(tenant[1].amqp_url)
    assert (theirs.scheme, theirs.hostname, theirs.port) == ("amqp", ours.hostname, ours.port)
    assert theirs.path == f"/{rabbitmq.vhost}"


def test_a_password_is_hashed_with_a_salt_of_its_own() -> None:
    first, second = hash_password("secret"), hash_password("secret")
    assert first != second
    raw = base64.b64decode(first)
    assert raw[4:] == hashlib.sha256(raw[:4] + b"secret").digest()


def refused(call: object) -> None:
    with pytest.raises(ChannelClosedByBroker) as caught:
        call()  # type: ignore[operator]
    assert caught.value.reply_code == ACCESS_REFUSED
