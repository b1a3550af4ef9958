"""The multi-tenant consumer, and what its users may do, against a real RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tenantry.broker.topology import GROUP_BYTES
from tenantry.consumer.run import ConsumerOptions, Tally, consume
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.isolation.proof import verify_isolation
from tenantry.producer.run import produce
from tenantry.tenant_client.access import TenantAccess, ensure_consumers
from tenantry.tenant_client.amqp import AmqpReader
from tenantry.tenant_runs import RunResult
from tests.integration.broker_api import BrokerApi, depth, small
from tests.waiting import DEADLINE, eventually

TOPICS = ("events", "logs", "notifications")
FOLLOWING = ConsumerOptions(tenants=1, partitions=2, ensure_access=False, follow=True)


def options(**given: Any) -> ConsumerOptions:
    return ConsumerOptions(**({"tenants": 2, "partitions": 2, "ensure_access": False} | given))


def quietly(api: BrokerApi, **given: Any) -> RunResult[Tally]:
    return consume(options(**given), api, say=lambda _line: None, stop=threading.Event())


@dataclass
class Run:
    """A consumer that goes on, on a thread of its own."""

    lines: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    counted: list[int] = field(default_factory=list)
    result: RunResult[Tally] | None = None

    @property
    def started(self) -> bool:
        return any(line.startswith("--- Starting") for line in self.lines)

    @property
    def received(self) -> int:
        return sum(self.counted)


@contextmanager
def following(api: BrokerApi, wanted: ConsumerOptions = FOLLOWING) -> Iterator[Run]:
    run = Run()

    def work() -> None:
        run.result = consume(
            wanted, api, say=run.lines.append, stop=run.stop, progress=run.counted.append
        )

    thread = threading.Thread(target=work)
    thread.start()
    try:
        eventually(lambda: run.started or not thread.is_alive())
        yield run
    finally:
        run.stop.set()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_what_is_sent_after_the_group_is_made_is_received_once_and_the_lines_are_told(
    api: BrokerApi, channel: Any
) -> None:
    produce(small(), api, say=lambda _line: None)
    assert quietly(api).total.received == 0, "the group is younger than these"
    produce(small(), api, say=lambda _line: None)
    lines: list[str] = []
    proving = options(ensure_access=True)
    result = consume(proving, api, say=lines.append, stop=threading.Event())
    assert result.succeeded
    assert (result.total.received, result.total.failed) == (120, 0)
    assert lines[:14] == [
        "--- Multi-tenant consumer has started, tenants: 2, consumers: 1, partitions: 2 ---",
        "--- Creating root client to manage streams and users ---",
        "--- Creating streams and users with permissions for each tenant ---",
        "Found stream: tenant_1_stream with ID: 1",
        "Found user: tenant_1_consumer with ID: 1, with permissions for stream: tenant_1_stream",
        "Found stream: tenant_2_stream with ID: 2",
        "Found user: tenant_2_consumer with ID: 2, with permissions for stream: tenant_2_stream",
        "--- Creating clients for each tenant ---",
        "--- Ensuring access to streams for each tenant ---",
        "Ensured access to stream: tenant_1_stream",
        "Ensured no access to stream: tenant_2_stream",
        "Ensured access to stream: tenant_2_stream",
        "Ensured no access to stream: tenant_1_stream",
        "--- Starting 1 consumer(s) for each tenant ---",
    ]
    line = "Received: 10 message(s) by tenant: 1, consumer: 1, from: tenant_1_stream -> events"
    assert lines.count(line) == 2
    assert lines[-3:] == [
        "Tenant: 1, received: 60, failed: 0",
        "Tenant: 2, received: 60, failed: 0",
        "Total: received: 120, failed: 0",
    ]
    assert quietly(api).total.received == 0, "it was committed"
    for topic in TOPICS:
        stored = [names.partition_queue_name("1", topic, partition) for partition in (0, 1)]
        assert [depth(channel, queue) for queue in stored] == [20, 20], "nothing was taken there"


def test_a_tenant_that_is_not_there_is_made_and_keeps_its_producers_password(
    api: BrokerApi,
) -> None:
    lines: list[str] = []
    consume(options(tenants=1), api, say=lines.append, stop=threading.Event())
    assert "Created stream: tenant_1_stream with ID: 1" in lines
    assert any(line.startswith("Created user: ") for line in lines)
    producer = api.access("1").credentials
    consume(options(tenants=1), api, say=lines.append, stop=threading.Event())
    with pika.BlockingConnection(pika.URLParameters(producer.url)):
        pass


def test_consumers_share_a_topic_and_what_one_that_dies_had_goes_to_another(
    api: BrokerApi, channel: Any
) -> None:
    queues = [names.group_queue_name("1", topic) for topic in TOPICS]

    def send() -> None:
        produce(small(tenants=1, batches=30, interval=0.05), api, say=lambda _line: None)

    def readers(queue: str) -> int:
        count: int = channel.queue_declare(queue, passive=True).method.consumer_count
        return count

    def by() -> set[str]:
        return {line.split("consumer: ")[1][0] for line in run.lines if line.startswith("Received")}

    with following(api, options(tenants=1, consumers=2, follow=True)) as run:
        # Who comes alone is given all that has been sent by then.
        eventually(lambda: all(readers(queue) == 2 for queue in queues), what="two of each topic")
        sending = threading.Thread(target=send)
        sending.start()
        eventually(lambda: by() == {"1", "2"}, what="messages for both")
        eventually(api.cut_connections)
        sending.join(DEADLINE)
        eventually(lambda: run.received >= 900, what="all that was sent")
        eventually(
            lambda: any(line.startswith("Retrying: ") for line in run.lines), what="another try"
        )
    assert run.result is not None
    assert run.result.succeeded
    assert quietly(api, tenants=1).total.received == 0


def test_a_message_that_was_not_committed_comes_to_another(api: BrokerApi) -> None:
    access = reading(api)
    produce(small(tenants=1, batches=1), api, say=lambda _line: None)
    queue = names.group_queue_name("1", "events")

    def reader() -> AmqpReader:
        return AmqpReader(access.credentials.url, queue=queue, name="test", prefetch=20)

    first, second = reader(), reader()
    first.open()
    assert len(first.receive(10, DEADLINE)) == 10
    second.open()
    assert second.receive(10, 0.1) == []
    first.close()
    assert len(second.receive(10, DEADLINE)) == 10
    assert second.at_end()
    second.commit()
    second.close()
    second.open()
    assert second.receive(1, 0.2) == []
    second.close()


def test_a_broker_that_stays_away_is_given_up_with_a_reason(
    api: BrokerApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.consumer.run.ATTEMPTS", 3)
    monkeypatch.setattr("tenantry.consumer.run.FIRST_BACKOFF", 0.001)
    with following(api) as run:
        eventually(lambda: depth_of_consumers(api) == 3)
        for topic in TOPICS:
            api.http.delete(
                f"/queues/{api.host.vhost}/{names.group_queue_name('1', topic)}"
            ).raise_for_status()
        eventually(lambda: sum(line.startswith("Failed: ") for line in run.lines) == 3)
    assert run.result is not None
    assert run.result.total.failed == 3
    assert not run.result.succeeded


def depth_of_consumers(api: BrokerApi) -> int:
    found = api.http.get(f"/consumers/{api.host.vhost}").raise_for_status().json()
    return sum(one["queue"]["name"].startswith("tenant_1_consumer.") for one in found)


def test_a_group_that_nobody_reads_keeps_nobody_from_publishing_and_is_bounded(
    api: BrokerApi, channel: Any
) -> None:
    reading(api)
    queue = names.group_queue_name("1", "events")
    whole = channel.queue_declare(names.partition_queue_name("1", "events", 0), passive=True)
    body = b"x" * (8 * 1024 * 1024)
    channel.confirm_delivery()
    for _ in range(GROUP_BYTES // len(body) + 4):
        channel.basic_publish("tenant_1_stream", "events.0", body, mandatory=True)
    assert depth(channel, queue) == GROUP_BYTES // len(body)
    stored = channel.queue_declare(whole.method.queue, passive=True).method.message_count
    assert stored == GROUP_BYTES // len(body) + 4, "what the daemon stores is whole"


# As one who holds a consumer's credentials.


def reading(api: BrokerApi, tenant_id: str = "1") -> TenantAccess:
    return ensure_consumers(api, tenant_id, topics=TOPICS, partitions=2, say=lambda _line: None)


ATTACKS: dict[str, Callable[[BlockingChannel], object]] = {
    "reads what the daemon stores": lambda c: c.basic_get("tenant_1_stream.events.0"),
    "reads the default queue": lambda c: c.basic_get("tenant_1_queue"),
    "empties what the daemon stores": lambda c: c.queue_purge("tenant_1_stream.events.0"),
    "deletes what the daemon stores": lambda c: c.queue_delete("tenant_1_stream.events.0"),
    "reads dead letters": lambda c: c.basic_get("tenant_1_dead_letters"),
    "publishes": lambda c: c.basic_publish("tenant_1_stream", "events.0", b"x"),
    "publishes to a queue": lambda c: c.basic_publish("", "tenant_1_stream.events.0", b"x"),
    "publishes to its group's queue": lambda c: c.basic_publish(
        "", "tenant_1_consumer.events", b""
    ),
    "publishes to a fanout of the broker's": lambda c: c.basic_publish("amq.fanout", "", b"x"),
    "deletes its group's queue": lambda c: c.queue_delete("tenant_1_consumer.events"),
    "makes a queue of its group's name": lambda c: c.queue_declare("tenant_1_consumer.mine"),
    "makes a queue of a name of the broker's": lambda c: c.queue_declare(""),
    "makes an exclusive queue": lambda c: c.queue_declare("tenant_1_consumer.x", exclusive=True),
    "makes an exchange": lambda c: c.exchange_declare("tenant_1_consumer.x", "fanout"),
    "binds its group's queue to its stream": lambda c: c.queue_bind(
        "tenant_1_consumer.events", "tenant_1_stream", "logs.0"
    ),
    "binds its group's queue to a neighbour's stream": lambda c: c.queue_bind(
        "tenant_1_consumer.events", "tenant_2_stream", "events.0"
    ),
    "unbinds its group's queue": lambda c: c.queue_unbind(
        "tenant_1_consumer.events", "tenant_1_stream", "events.0"
    ),
    "binds a neighbour's stream to its own": lambda c: c.exchange_bind(
        "tenant_1_stream", "tenant_2_stream", "events.0"
    ),
    "reads a neighbour's group": lambda c: c.basic_get("tenant_2_consumer.events"),
    "empties a neighbour's group": lambda c: c.queue_purge("tenant_2_consumer.events"),
    "reads what is stored of a neighbour": lambda c: c.basic_get("tenant_2_stream.events.0"),
    "reads a group of a name that begins alike": lambda c: c.basic_get("tenant_11_consumer.a"),
    "reads a group by a name that goes on": lambda c: c.basic_get("tenant_1_consumer.a.tenant_2"),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_a_holder_of_a_consumers_credentials_is_refused(api: BrokerApi, attack: str) -> None:
    access, _other = reading(api), reading(api, "2")
    with pika.BlockingConnection(pika.URLParameters(access.credentials.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(ChannelClosedByBroker) as refused:
            ATTACKS[attack](channel)
        assert refused.value.reply_code == 403


def test_a_producers_credentials_do_not_read_the_group(api: BrokerApi) -> None:
    reading(api)
    with pika.BlockingConnection(pika.URLParameters(api.access("1").credentials.url)) as connection:
        with pytest.raises(ChannelClosedByBroker) as refused:
            connection.channel().basic_get("tenant_1_consumer.events")
        assert refused.value.reply_code == 403


def test_a_right_too_many_is_found_by_the_proof(api: BrokerApi) -> None:
    access, other = reading(api), reading(api, "2")
    everybody = [access.topology, other.topology]

    def leaks() -> set[str]:
        report = verify_isolation([access], everybody, say=lines.append, kind=UserKind.CONSUMER)
        return {f"{one.action} {one.target}" for one in report.leaks}

    lines: list[str] = []
    assert leaks() == set()
    own = r"^tenant_1_consumer\.[a-z0-9_-]+$"
    for rights, found in (
        (
            {"write": "^$", "read": r"^tenant_[12]_consumer\.events$"},
            "read tenant_2_consumer.events",
        ),
        ({"write": "^$", "read": "^tenant_1_.*"}, "read tenant_1_stream.events.0 (as its reader)"),
        ({"write": "^tenant_1_.*", "read": own}, "write tenant_1_stream (as its reader)"),
        (
            {"configure": own, "write": "^$", "read": own},
            "configure tenant_1_consumer.default (as its reader)",
        ),
    ):
        api.allow("1", kind=UserKind.CONSUMER, **rights)
        assert found in leaks()
    assert any(line.startswith("LEAK: tenant 1 ") and "tenant 2" in line for line in lines)
