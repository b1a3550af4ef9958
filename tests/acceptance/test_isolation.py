"""A tenant's own user reaches its own stream and queues, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from tests.acceptance.program import Program, Tenant

ACCESS_REFUSED = 403

Attempt = Callable[[Any, Tenant, Tenant], object]


def publish_to_the_others_stream(channel: Any, _own: Tenant, other: Tenant) -> None:
    channel.confirm_delivery()
    channel.basic_publish(other.stream, "default", b"1")


def publish_to_the_others_queue_by_the_default_exchange(
    channel: Any, _own: Tenant, other: Tenant
) -> None:
    channel.confirm_delivery()
    channel.basic_publish("", other.queue, b"1")


def publish_to_its_own_queue_by_the_default_exchange(
    channel: Any, own: Tenant, _other: Tenant
) -> None:
    channel.confirm_delivery()
    channel.basic_publish("", own.queue, b"1")


def publish_to_the_dead_letter_exchange(channel: Any, own: Tenant, _other: Tenant) -> None:
    channel.confirm_delivery()
    channel.basic_publish("dlx_exchange", own.id, b"1")


def consume_the_others_queue(channel: Any, _own: Tenant, other: Tenant) -> None:
    channel.basic_consume(other.queue, lambda *_: None)


def get_from_the_others_partition(channel: Any, _own: Tenant, other: Tenant) -> None:
    channel.basic_get(f"{other.stream}.events.0")


def get_its_own_dead_letters(channel: Any, own: Tenant, _other: Tenant) -> None:
    channel.basic_get(own.dead_letters)


def get_the_others_dead_letters(channel: Any, _own: Tenant, other: Tenant) -> None:
    channel.basic_get(other.dead_letters)


def purge_the_others_queue(channel: Any, _own: Tenant, other: Tenant) -> None:
    channel.queue_purge(other.queue)


def declare_a_queue(channel: Any, _own: Tenant, _other: Tenant) -> None:
    channel.queue_declare("mine")


def declare_a_nameless_queue(channel: Any, _own: Tenant, _other: Tenant) -> None:
    channel.queue_declare("", exclusive=True)


def declare_an_exchange(channel: Any, _own: Tenant, _other: Tenant) -> None:
    channel.exchange_declare("mine")


def delete_its_own_stream(channel: Any, own: Tenant, _other: Tenant) -> None:
    channel.exchange_delete(own.stream)


def bind_the_others_queue_to_its_own_stream(channel: Any, own: Tenant, other: Tenant) -> None:
    channel.queue_bind(other.queue, own.stream, "default")


def unbind_its_own_queue(channel: Any, own: Tenant, _other: Tenant) -> None:
    channel.queue_unbind(own.queue, own.stream, "default")


ATTEMPTS: tuple[Attempt, ...] = (
    publish_to_the_others_stream,
    publish_to_the_others_queue_by_the_default_exchange,
    publish_to_its_own_queue_by_the_default_exchange,
    publish_to_the_dead_letter_exchange,
    consume_the_others_queue,
    get_from_the_others_partition,
    get_its_own_dead_letters,
    get_the_others_dead_letters,
    purge_the_others_queue,
    declare_a_queue,
    declare_a_nameless_queue,
    declare_an_exchange,
    delete_its_own_stream,
    bind_the_others_queue_to_its_own_stream,
    unbind_its_own_queue,
)


def test_a_tenants_user_is_refused_everything_but_its_own_stream_and_queues(
    running: Program,
) -> None:
    # One id is a prefix of the other: a permission pattern without an end would match both.
    own = running.create("acme", topics=["events"])
    other = tenant_beginning_with(running, own)
    with pika.BlockingConnection(pika.URLParameters(own.amqp_url)) as connection:
        for attempt in ATTEMPTS:
            channel = connection.channel()
            with pytest.raises(ChannelClosedByBroker) as refused:
                attempt(channel, own, other)
            assert refused.value.reply_code == ACCESS_REFUSED, attempt.__name__
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(own.stream, "default", b"1", mandatory=True)
        assert connection.channel().basic_get(f"{own.stream}.events.0") == (None, None, None)
    assert running.stop() == 0
    assert running.ready_messages(other.queue, other.dead_letters, own.dead_letters) == 0


def tenant_beginning_with(program: Program, own: Tenant) -> Tenant:
    body = {"name": "longer", "id": f"{own.id}-2", "topics": ["events"]}
    answer = program.call("POST", "/tenants", body)
    assert answer.status_code == 201
    shown = answer.json()
    return Tenant(
        id=shown["id"],
        password=shown["credentials"]["password"],
        amqp_url=shown["credentials"]["amqp_url"],
        shown=shown,
    )
