"""What publishes on an event loop publishes as threads do, and waits for no longer than told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tenantry.broker.port import (
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    LoopPublishing,
    MessagesRefusedError,
    Outgoing,
    TenantTopology,
    UnroutableError,
)
from tenantry.broker.rabbitmq.publishing import RabbitLoopPublishing, RabbitPublishing
from tenantry.database.pool import Database
from tenantry.domain.limits import Limits
from tests import brokers
from tests.brokers import Broker, RecordingSink
from tests.waiting import DEADLINE

MOST = 10


@pytest.fixture(params=["postgres", "rabbitmq-quorum"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind = brokers.KINDS[request.param]
    with kind.run(*map(request.getfixturevalue, kind.services)) as made:
        yield made


@pytest.fixture
def embedded(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as made:
        yield made


def run(act: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE):
            await act()

    asyncio.run(main())


def message(tenant: TenantTopology, body: bytes, key: str = "default") -> Outgoing:
    return Outgoing(
        exchange=tenant.exchange,
        routing_key=key,
        body=body,
        message_id=body.decode(),
        content_type="application/json",
        headers={"number": 1, "text": "é"},
    )


async def publish(way: LoopPublishing, *messages: Outgoing) -> None:
    await way.publish(messages, within=DEADLINE)


def test_what_is_published_is_delivered_as_it_was(broker: Broker) -> None:
    tenant = broker.tenant("events", partitions=2)

    async def act() -> None:
        way = broker.on_loop()
        await publish(way)
        await publish(way, message(tenant, b"1"), message(tenant, b"2", "events.1"))
        await asyncio.gather(
            *[publish(way, message(tenant, b"%d" % number)) for number in range(3, 40)]
        )

    run(act)
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
    came = {one.message.id: one.message for one in sink.received(39)}
    subscription.close()
    assert came.keys() == {str(number) for number in range(1, 40)}
    assert {one.topic for name, one in came.items() if name != "2"} == {"default"}
    found = came["2"]
    assert (found.topic, found.partition) == ("events", 1)
    assert (found.body, found.content_type) == (b"2", "application/json")
    assert dict(found.headers or {}).items() >= {"number": 1, "text": "é"}.items()


def test_a_stream_that_is_not_there_fails_its_call_alone(broker: Broker) -> None:
    tenant = broker.tenant()
    nowhere = Outgoing(exchange="tenant_x_stream", routing_key="default", body=b"")

    async def act() -> None:
        way = broker.on_loop()
        good = [publish(way, message(tenant, b"%d" % number)) for number in range(20)]
        bad, *_ = await asyncio.gather(publish(way, nowhere), *good, return_exceptions=True)
        assert isinstance(bad, UnroutableError)

    run(act)
    assert len(broker.ready(tenant.queues()[0].name)) == 20


def test_a_message_that_the_broker_refuses_fails_alone(broker: Broker) -> None:
    tenant = broker.tenant()

    async def act() -> None:
        way = broker.on_loop()
        with pytest.raises(BrokerError, match="id is longer than 255 bytes"):
            await publish(way, message(tenant, b"x" * 256))
        await publish(way, message(tenant, b"good"))

    run(act)
    assert broker.ready(tenant.queues()[0].name) == [b"good"]


def test_a_full_backlog_refuses_and_keeps_what_was_confirmed(broker: Broker) -> None:
    tenant = broker.tenant()
    broker.administration.claim(tenant.tenant_id)
    _, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    broker.administration.ensure_limits(tenant, Limits(backlog_messages=MOST))
    confirmed: list[bytes] = []

    async def go_on(way: LoopPublishing) -> None:
        while True:  # a new limit may take a moment to apply
            body = b"%d" % len(confirmed)
            await publish(way, message(tenant, body))
            confirmed.append(body)

    async def act() -> None:
        with pytest.raises((BacklogFullError, MessagesRefusedError)):
            await go_on(broker.on_loop())

    run(act)
    assert len(confirmed) >= MOST
    assert broker.ready(tenant.queues()[0].name) == confirmed


def test_who_waits_no_more_leaves_nothing_behind(broker: Broker) -> None:
    tenant = broker.tenant()

    async def act() -> None:
        way = broker.on_loop()
        given_up = asyncio.create_task(publish(way, message(tenant, b"given up")))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await publish(way, message(tenant, b"good"))

    run(act)
    # It may have been taken; it is not published twice.
    assert broker.ready(tenant.queues()[0].name) in ([b"good"], [b"given up", b"good"])


def test_a_call_ends_in_time_while_rabbitmq_is_away_and_when_it_is_stopped() -> None:
    away = RabbitPublishing("amqp://a:b@127.0.0.1:9/")
    lost = Outgoing(exchange="e", routing_key="k", body=b"")

    async def act() -> None:
        way = RabbitLoopPublishing(away)
        with brokers.running(away):
            with pytest.raises(BrokerUnavailableError, match="can't be reached"):
                await way.publish([lost], within=0.2)
            assert not away._incoming
            waiting = asyncio.create_task(publish(way, lost))
            await asyncio.sleep(0)
        with pytest.raises(BrokerUnavailableError, match="stopped"):
            await waiting
        with pytest.raises(BrokerUnavailableError, match="stopped"):
            await publish(way, lost)

    run(act)


@contextmanager
def queues_locked(database_url: str) -> Iterator[psycopg.Connection]:
    """Keep what is published waiting; give the session that does."""
    with psycopg.connect(database_url) as locking:
        locking.execute("LOCK TABLE tenantry.queued IN EXCLUSIVE MODE")
        yield locking


def test_what_the_database_takes_too_long_for_is_not_stored_afterwards(
    embedded: Broker, database_url: str
) -> None:
    tenant = embedded.tenant()

    async def act() -> None:
        way = embedded.on_loop(statement_timeout=0.2)
        with (
            queues_locked(database_url),
            pytest.raises(BrokerUnavailableError, match="statement timeout"),
        ):
            await publish(way, message(tenant, b"late"))

    run(act)
    assert embedded.ready(tenant.queues()[0].name) == []


def test_a_call_ends_in_time_whatever_the_database_does(
    embedded: Broker, database_url: str
) -> None:
    tenant = embedded.tenant()

    async def act() -> None:
        way = embedded.on_loop()
        with (
            queues_locked(database_url),
            pytest.raises(BrokerUnavailableError, match=r"in 0\.2 s"),
        ):
            await way.publish([message(tenant, b"late")], within=0.2)
        await publish(way, message(tenant, b"good"))

    run(act)


def test_what_may_have_been_published_as_its_connection_was_lost_is_not_published_again(
    embedded: Broker, database_url: str
) -> None:
    tenant = embedded.tenant()
    publishing = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%tenantry.enqueue%'"
        " AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
    )

    async def act() -> None:
        way = embedded.on_loop()
        with queues_locked(database_url), psycopg.connect(database_url, autocommit=True) as other:
            lost = asyncio.create_task(publish(way, message(tenant, b"lost")))
            while not other.execute(publishing).fetchall():  # noqa: ASYNC110 - the server tells
                await asyncio.sleep(0)
            with pytest.raises(BrokerUnavailableError):
                await lost
        await publish(way, message(tenant, b"good"))

    run(act)
    assert embedded.ready(tenant.queues()[0].name) == [b"good"]
