"""What RabbitMQ lets a tenant's own credentials do, and what it doesn't."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, ConnectionClosedByBroker

from tenantry.broker.port import BrokerUnavailableError, Credentials, TenantTopology
from tenantry.broker.rabbitmq.administration import RabbitAdministration, hash_password
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.held_logins import held_client
from tests.services_rabbitmq import RabbitHost, virtual_host
from tests.waiting import DEADLINE, eventually

ACCESS_REFUSED = 403
PRECONDITION_FAILED = 406


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
    channel.basic_publish(names.exchange_name(made.tenant_id), "events.1", b"hello", mandatory=True)
    assert broker.ready(names.partition_queue_name(made.tenant_id, "events", 1)) == [b"hello"]


def test_a_tenant_reads_every_queue_of_its_own(
    tenant: Tenant, channel: BlockingChannel, broker: Broker
) -> None:
    made, _ = tenant
    broker.publish(made, "default", b"default")
    broker.publish(made, "events.1", b"events")
    found = [channel.basic_get(spec.name, auto_ack=True)[2] for spec in made.queues()]
    assert found == [b"default", None, b"events"]


def test_a_tenant_does_not_read_its_dead_letters(tenant: Tenant, channel: BlockingChannel) -> None:
    refused(lambda: channel.basic_get(names.dead_letter_queue_name(tenant[0].tenant_id)))


def test_a_tenant_neither_writes_nor_reads_what_is_anothers(
    broker: Broker, channel: BlockingChannel
) -> None:
    other = broker.tenant("events")
    connection = channel.connection
    refused(lambda: channel.basic_publish(names.exchange_name(other.tenant_id), "events", b""))
    for spec in other.queues():
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
    stream = names.exchange_name(tenant[0].tenant_id)
    queue = names.queue_name(tenant[0].tenant_id)
    refused(lambda: channel.queue_declare("mine"))
    refused(lambda: connection.channel().exchange_declare("mine"))
    refused(lambda: connection.channel().queue_bind(queue, stream, "more"))
    refused(lambda: connection.channel().queue_delete(queue))
    refused(lambda: connection.channel().exchange_delete(stream))


BUILT_IN = ("amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.topic")


def test_a_tenant_uses_no_exchange_but_its_stream(
    tenant: Tenant, channel: BlockingChannel, broker: Broker
) -> None:
    made, _ = tenant
    other = broker.tenant()
    connection = channel.connection
    stream, queue = names.exchange_name(made.tenant_id), names.queue_name(made.tenant_id)
    theirs = names.exchange_name(other.tenant_id)
    for exchange in ("", *BUILT_IN, names.DEAD_LETTER_EXCHANGE, "amq.rabbitmq.trace", theirs):
        fresh = connection.channel()
        fresh.confirm_delivery()
        refused(lambda: fresh.basic_publish(exchange, queue, b""))  # noqa: B023
    for exchange in (*BUILT_IN, names.DEAD_LETTER_EXCHANGE, stream, theirs):
        for bind in (
            lambda: connection.channel().queue_bind(queue, exchange, "#"),  # noqa: B023
            lambda: connection.channel().exchange_bind(stream, exchange, "#"),  # noqa: B023
            lambda: connection.channel().exchange_bind(exchange, stream, "#"),  # noqa: B023
            lambda: connection.channel().queue_unbind(queue, exchange, "#"),  # noqa: B023
            lambda: connection.channel().exchange_unbind(stream, exchange, "#"),  # noqa: B023
        ):
            refused(bind)


def test_no_header_leads_a_message_out_of_its_stream(
    tenant: Tenant, channel: BlockingChannel, broker: Broker
) -> None:
    made, _ = tenant
    other = broker.tenant("events")
    theirs = [spec.name for spec in other.queues()]
    keys = [*theirs, names.queue_name(made.tenant_id), other.tenant_id, made.tenant_id, "events.0"]
    channel.basic_publish(
        names.exchange_name(made.tenant_id),
        "default",
        b"hello",
        pika.BasicProperties(headers={"CC": [*keys, "events.1"], "BCC": keys}),
        mandatory=True,
    )
    for spec in other.queues():
        assert broker.ready(spec.name) == []
    dead_letters = [names.dead_letter_queue_name(one.tenant_id) for one in (made, other)]
    assert [broker.ready(queue) for queue in dead_letters] == [[], []]
    # Among its own it copies: that is its own affair.
    assert [broker.ready(spec.name) for spec in made.queues()] == [[b"hello"]] * 3


def test_a_tenant_makes_no_queue_of_any_kind_and_no_exchange_of_any_name(
    tenant: Tenant, channel: BlockingChannel
) -> None:
    made, _ = tenant
    connection = channel.connection
    stream, queue = names.exchange_name(made.tenant_id), names.queue_name(made.tenant_id)
    for name in (
        "",
        queue,
        f"{stream}.more.0",
        names.queue_name("tomorrows"),
        names.dead_letter_queue_name("tomorrows"),
        "tenantry_claim_tomorrows",
    ):
        kinds: list[dict[str, Any]] = [
            {"exclusive": True},
            {"auto_delete": True},
            {"durable": True},
            {"durable": True, "arguments": {"x-queue-type": "quorum" if name else "classic"}},
        ]
        for how in kinds:
            refused(lambda: connection.channel().queue_declare(name, **how))  # noqa: B023
    for name in (stream, names.exchange_name("tomorrows"), "mine"):
        refused(
            lambda: connection.channel().exchange_declare(
                name,  # noqa: B023
                durable=True,
                arguments={"alternate-exchange": names.exchange_name("tomorrows")},
            )
        )


def test_a_reply_reaches_nobody(tenant: Tenant, channel: BlockingChannel, broker: Broker) -> None:
    """Direct reply-to needs no permission, and leads to its own connection alone."""
    made, _ = tenant
    connection = channel.connection
    asking = connection.channel()
    asking.basic_consume("amq.rabbitmq.reply-to", lambda *_: None, auto_ack=True)
    asking.basic_publish(
        names.exchange_name(made.tenant_id),
        "default",
        b"question",
        pika.BasicProperties(reply_to="amq.rabbitmq.reply-to"),
    )
    with pika.BlockingConnection(pika.URLParameters(broker.host.url)) as ours:  # type: ignore[union-attr]
        reader = ours.channel()
        found = eventually(
            lambda: [
                properties
                for _, properties, _ in [reader.basic_get(names.queue_name(made.tenant_id))]
                if properties is not None
            ],
            what="the question",
        )
    reply_to = found[0].reply_to
    assert reply_to.startswith("amq.rabbitmq.reply-to.")
    answering = connection.channel()
    answering.confirm_delivery()
    refused(lambda: answering.basic_publish("", reply_to, b"answer"))


def test_who_guesses_a_name_learns_that_it_is_there_and_how_much_lies_in_it_but_nothing_of_that(
    tenant: Tenant, channel: BlockingChannel, broker: Broker
) -> None:
    """RabbitMQ asks for no permission to look at a queue; docs/security.md says so."""
    other = broker.tenant()
    broker.publish(other, "default", b"secret")
    theirs = names.queue_name(other.tenant_id)
    seen = channel.queue_declare(theirs, passive=True).method
    assert (seen.message_count, seen.consumer_count) == (1, 0)
    channel.exchange_declare(names.exchange_name(other.tenant_id), passive=True)
    connection = channel.connection
    refused(lambda: connection.channel().basic_get(theirs))
    refused(lambda: connection.channel().queue_purge(theirs))
    with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
        connection.channel().queue_declare(names.queue_name("nobody-has-it"), passive=True)
    assert broker.ready(theirs) == [b"secret"]


def test_a_message_is_published_in_nobody_elses_name(
    tenant: Tenant, channel: BlockingChannel
) -> None:
    forged = pika.BasicProperties(user_id=names.username("other"))
    with pytest.raises(ChannelClosedByBroker) as caught:
        channel.basic_publish(names.exchange_name(tenant[0].tenant_id), "default", b"", forged)
    assert caught.value.reply_code == PRECONDITION_FAILED


def test_a_tenant_enters_no_other_virtual_host_and_not_the_management_api(
    broker: Broker, tenant: Tenant
) -> None:
    _, credentials = tenant
    with virtual_host() as elsewhere:
        url = urlsplit(credentials.amqp_url)._replace(path=f"/{elsewhere.vhost}").geturl()
        there = pika.URLParameters(url)
        with pytest.raises((AMQPConnectionError, ConnectionClosedByBroker)):
            pika.BlockingConnection(there)
    assert broker.host is not None
    management = urlsplit(broker.host.management_url)
    for path in ("whoami", "users", "connections", "permissions", "policies", "parameters"):
        answer = httpx.get(
            f"http://{management.hostname}:{management.port}/api/{path}",
            auth=(credentials.username, credentials.password),
            trust_env=False,
            timeout=DEADLINE,
        )
        assert answer.status_code == httpx.codes.UNAUTHORIZED


def test_a_name_that_only_begins_like_a_tenants_is_not_its_own(
    broker: Broker, channel: BlockingChannel, tenant: Tenant
) -> None:
    # The id of another tenant may begin with this one's.
    longer = TenantTopology(tenant_id=f"{tenant[0].tenant_id}-2", topics=("events",), partitions=1)
    broker.administration.ensure_topology(longer)
    stream = names.exchange_name(longer.tenant_id)
    refused(lambda: channel.basic_publish(stream, "events", b""))


def test_a_new_password_replaces_the_old_one(broker: Broker, tenant: Tenant) -> None:
    made, old = tenant
    new, hashed = broker.administration.new_credentials(made.tenant_id)
    broker.administration.ensure_user(made.tenant_id, hashed)
    with pika.BlockingConnection(pika.URLParameters(new.amqp_url)) as connection:
        assert connection.is_open
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(old.amqp_url))


def test_what_was_connected_by_an_earlier_password_is_closed_and_nobody_elses(
    broker: Broker, tenant: Tenant
) -> None:
    made, credentials = tenant
    other = broker.tenant()
    theirs, hashed = broker.administration.new_credentials(other.tenant_id)
    broker.administration.ensure_user(other.tenant_id, hashed)
    try:
        with (
            pika.BlockingConnection(pika.URLParameters(theirs.amqp_url)) as neighbour,
            pika.BlockingConnection(pika.URLParameters(credentials.amqp_url)) as old,
        ):
            # RabbitMQ opens a connection before it enters it among its user's.
            eventually(lambda: connections_of(broker, credentials.username), what="the entry")
            broker.administration.end_sessions(made.tenant_id)
            with pytest.raises(ConnectionClosedByBroker, match="the password was changed"):
                old.process_data_events(time_limit=DEADLINE)
            neighbour.channel().close()
    finally:
        broker.administration.remove_user(other.tenant_id)


def test_connections_that_cant_be_closed_now_are_closed_at_the_next_look(
    broker: Broker, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, credentials = tenant
    administration = rabbit(broker)

    def away(*_: object) -> None:
        raise BrokerUnavailableError("the management API does not answer")

    with pika.BlockingConnection(pika.URLParameters(credentials.amqp_url)) as old:
        new = rotated(broker, made)
        with monkeypatch.context() as patched:
            patched.setattr(administration.management, "close_connections", away)
            administration.end_sessions(made.tenant_id)
        old.process_data_events(time_limit=0)
        with pika.BlockingConnection(pika.URLParameters(new.amqp_url)) as good:
            assert "the password was changed" in ends(old, administration)
            good.channel().close()


def test_what_logs_in_by_an_earlier_password_and_opens_later_is_closed_and_nothing_else(
    broker: Broker, tenant: Tenant
) -> None:
    """RabbitMQ asks for the password once, and opens the connection up to ten seconds later."""
    made, credentials = tenant
    administration = rabbit(broker)
    with held_client(credentials.amqp_url) as held:
        new = rotated(broker, made)
        administration.end_sessions(made.tenant_id)
        with (
            pika.BlockingConnection(pika.URLParameters(new.amqp_url)) as good,
            held.go_on() as late,
        ):
            late.channel().close()
            assert "the password was changed" in ends(late, administration)
            good.channel().close()


def test_who_has_logged_in_as_a_deleted_tenant_does_not_stay_as_the_next_one_of_its_id(
    broker: Broker, tenant: Tenant
) -> None:
    made, credentials = tenant
    administration = rabbit(broker)
    with held_client(credentials.amqp_url) as held:
        administration.remove_user(made.tenant_id)
        new = rotated(broker, made)
        with (
            pika.BlockingConnection(pika.URLParameters(new.amqp_url)) as good,
            held.go_on() as late,
        ):
            late.channel().close()
            assert "the tenant was deleted" in ends(late, administration)
            good.channel().close()


def test_removing_a_user_closes_its_connections(broker: Broker, tenant: Tenant) -> None:
    made, credentials = tenant
    with pika.BlockingConnection(pika.URLParameters(credentials.amqp_url)) as connection:
        eventually(lambda: connections_of(broker, credentials.username), what="the entry")
        broker.administration.remove_user(made.tenant_id)
        with pytest.raises(ConnectionClosedByBroker):
            connection.process_data_events(time_limit=DEADLINE)
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


def rotated(broker: Broker, tenant: TenantTopology) -> Credentials:
    """Give a tenant's user a new password."""
    credentials, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    return credentials


def rabbit(broker: Broker) -> RabbitAdministration:
    administration = broker.administration
    assert isinstance(administration, RabbitAdministration)
    return administration


def connections_of(broker: Broker, user: str) -> list[object]:
    """Give the connections of a user that RabbitMQ would close by its name."""
    assert broker.host is not None
    listed = httpx.get(
        f"{broker.host.management_url}/api/connections/username/{user}",
        trust_env=False,
        timeout=DEADLINE,
    )
    return list(listed.raise_for_status().json())


def ends(connection: pika.BlockingConnection, administration: RabbitAdministration) -> str:
    """Look for late connections until this one is closed, and give the reason."""

    def look() -> str:
        administration.late.look()
        try:
            connection.process_data_events(time_limit=0.1)
        except ConnectionClosedByBroker as closed:
            return closed.reply_text
        return ""

    return eventually(look, what="the end of the connection")


def refused(call: object) -> None:
    with pytest.raises(ChannelClosedByBroker) as caught:
        call()  # type: ignore[operator]
    assert caught.value.reply_code == ACCESS_REFUSED
