"""What a tenant may put into a message on RabbitMQ, and what that does to nobody."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tenantry.broker.port import Credentials, TenantTopology
from tenantry.broker.rabbitmq.consuming import FIRST_SOUND
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker, RecordingSink
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually

Tenant = tuple[TenantTopology, Credentials]


class Written(pika.BasicProperties):
    """Properties as bytes, whatever they say."""

    def __init__(self, headers: bytes, *, expiration: bytes | None = None) -> None:
        super().__init__()
        flags = 1 << 13 if expiration is None else 1 << 13 | 1 << 8
        self._written = struct.pack(">HI", flags, len(headers)) + headers
        if expiration is not None:
            self._written += bytes((len(expiration),)) + expiration

    def encode(self) -> list[bytes]:
        return [self._written]


def header(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + kind + value


def sized(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


TEXT = b"S" + sized(b"a")
TABLE = b"F" + sized(b"")
DEATHS = {
    "a list of text": (b"A", sized(TEXT)),
    "a list of a table and text": (b"A", sized(TABLE + TEXT)),
    "a list of lists": (b"A", sized(b"A" + sized(b""))),
    "an empty list": (b"A", sized(b"")),
    "text": (b"S", sized(b"a")),
    "nothing": (b"V", b""),
    "a table": (b"F", sized(b"")),
}
WEIRD = {
    "deep": header(b"a", b"A", sized(b"A" + sized(b"A" + sized(TEXT)))) * 20,
    "many tables": b"".join(header(b"%d" % n, b"F", sized(b"")) for n in range(2000)),
    "numbers": header(b"t", b"T", b"\xff" * 8) + header(b"d", b"D", b"\xff" * 5),
    "no text": header(b"\xff", b"S", sized(b"\xed\xa0\x80\x00")) + header(b"b", b"x", sized(b"\0")),
    "forged marks": header(b"x-tenantry-replay", b"S", sized(b"x"))
    + header(b"x-tenantry-replays", b"l", b"\xff" * 8)
    + header(b"timestamp_in_ms", b"l", b"\x80" + b"\0" * 7),
    "routes": header(b"CC", b"A", sized(TEXT * 1000)) + header(b"BCC", b"A", sized(TEXT)),
}


@pytest.fixture
def broker(rabbitmq: RabbitHost) -> Iterator[Broker]:
    with brokers.rabbitmq(rabbitmq) as broker:
        yield broker


@pytest.fixture
def channel(broker: Broker) -> Iterator[tuple[TenantTopology, BlockingChannel]]:
    """Give a tenant, and a channel that its own user has opened."""
    made = broker.tenant()
    credentials, hashed = broker.administration.new_credentials(made.tenant_id)
    broker.administration.ensure_user(made.tenant_id, hashed)
    with pika.BlockingConnection(pika.URLParameters(credentials.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield made, channel
    broker.administration.remove_user(made.tenant_id)


def dead(broker: Broker, tenant: TenantTopology, count: int) -> None:
    queue = names.dead_letter_queue_name(tenant.tenant_id)
    found: list[bytes] = []

    def look() -> bool:
        found.extend(broker.ready(queue))
        return len(found) >= count

    eventually(look, what=f"{count} dead letters: {len(found)}")


def test_a_forged_death_stops_nobodys_dead_letters(
    broker: Broker, channel: tuple[TenantTopology, BlockingChannel]
) -> None:
    tenant, publishing = channel
    assert broker.host is not None
    with pika.BlockingConnection(pika.URLParameters(broker.host.url)) as connection:
        told = connection._impl.server_properties or {}
    if int(str(told["version"]).partition(".")[0]) < FIRST_SOUND:
        pytest.skip(f"RabbitMQ {told['version']} is not sound: it would stop for the whole run")
    stream = names.exchange_name(tenant.tenant_id)
    for kind, value in DEATHS.values():
        forged = Written(header(b"x-death", kind, value), expiration=b"0")
        publishing.basic_publish(stream, "default", b"", forged)
    dead(broker, tenant, len(DEATHS))
    other = broker.tenant()
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(other.queues(), prefetch=10, sink=sink)
    broker.publish(other, "default", b"bad")
    (delivery,) = sink.received(1)
    subscription.settle(sink.heard("consuming"), rejects=[delivery.tag])
    dead(broker, other, 1)


def test_whatever_headers_say_they_come_and_so_do_a_neighbours_messages(
    broker: Broker, channel: tuple[TenantTopology, BlockingChannel]
) -> None:
    tenant, publishing = channel
    other = broker.tenant()
    theirs, ours = RecordingSink(), RecordingSink()
    broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=theirs)
    broker.consuming.subscribe(other.queues(), prefetch=100, sink=ours)
    stream = names.exchange_name(tenant.tenant_id)
    for name, headers in WEIRD.items():
        publishing.basic_publish(stream, "default", name.encode(), Written(headers))
    broker.publish(other, "default", b"ours")
    assert {one.message.body.decode() for one in theirs.received(len(WEIRD))} == set(WEIRD)
    assert [one.message.body for one in ours.received(1)] == [b"ours"]
    assert all(one.message.headers for one in theirs.received(len(WEIRD)))
