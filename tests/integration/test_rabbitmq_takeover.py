"""A new leader shuts the connections of earlier terms out, whatever state they are in."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import AMQPError

from tenantry.broker.adapter import TermFence
from tenantry.broker.port import BrokerUnavailableError
from tenantry.broker.rabbitmq.connection import parameters
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.rabbitmq.term_fence import client_properties, outlived, shut_out
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually

COUNT = 60
LARGE = b"x" * 1_000_000
"""So much that the socket of who does not read is full, whatever its buffers."""


@pytest.fixture
def management(rabbitmq: RabbitHost) -> Iterator[ManagementClient]:
    with closing(ManagementClient(rabbitmq.management_url, vhost=rabbitmq.vhost)) as made:
        yield made


def ours(rabbitmq: RabbitHost) -> str:
    return urlsplit(rabbitmq.url).username or ""


def connect(
    stack: ExitStack, rabbitmq: RabbitHost, name: str, term: int | None
) -> pika.BlockingConnection:
    connection = pika.BlockingConnection(parameters(rabbitmq.url, name, TermFence(term)))

    def close() -> None:
        with suppress(AMQPError, OSError):
            connection.close()

    stack.callback(close)
    return connection


def ready(channel: object, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.message_count  # type: ignore[attr-defined]
    return count


def test_earlier_terms_are_shut_out_and_nobody_else(
    rabbitmq: RabbitHost, management: ManagementClient
) -> None:
    with ExitStack() as stack:
        old = connect(stack, rabbitmq, "consuming", 3)
        same = connect(stack, rabbitmq, "consuming", 4)
        other = connect(stack, rabbitmq, "publishing", None)
        eventually(
            lambda: len(management.connections_of(ours(rabbitmq))) == 3,
            what="connections",
        )
        assert shut_out(management, TermFence(4), user=ours(rabbitmq)) == 1
        with pytest.raises(AMQPError):
            old.channel()
        same.channel()
        other.channel()
        assert shut_out(management, TermFence(), user=ours(rabbitmq)) == 0


CONSUMER = """
import sys, pika
from tenantry.broker.rabbitmq.connection import parameters
from tenantry.broker.adapter import TermFence
channel = pika.BlockingConnection(parameters(sys.argv[1], "consuming", TermFence(1))).channel()
channel.basic_qos(prefetch_count=1000)
channel.basic_consume("q", lambda *_: None)
print("consuming", flush=True)
channel.start_consuming()
"""


def test_what_a_frozen_consumer_holds_is_in_its_queue_again_though_its_socket_is_full(
    rabbitmq: RabbitHost, management: ManagementClient
) -> None:
    with ExitStack() as stack:
        watcher = connect(stack, rabbitmq, "watching", None).channel()
        watcher.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        watcher.confirm_delivery()
        frozen = subprocess.Popen(
            [sys.executable, "-c", CONSUMER, rabbitmq.url], stdout=subprocess.PIPE
        )
        stack.callback(frozen.wait)
        stack.callback(frozen.kill)
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == b"consuming\n"
        frozen.stdout.close()
        frozen.send_signal(signal.SIGSTOP)
        for _ in range(COUNT):
            watcher.basic_publish("", "q", LARGE)
        eventually(lambda: ready(watcher, "q") < COUNT, what="deliveries")
        # The broker lists a connection some seconds after it was made; a lease is longer.
        eventually(
            lambda: len(management.connections_of(ours(rabbitmq))) == 2,
            what="connections",
        )
        began = time.monotonic()
        assert shut_out(management, TermFence(2), user=ours(rabbitmq)) == 1
        took = time.monotonic() - began
        eventually(lambda: ready(watcher, "q") == COUNT, what="messages again")
        print(f"shut out in {took:.1f} s, back after {time.monotonic() - began:.1f} s")


def test_without_a_valid_term_nothing_is_asked_of_the_broker(rabbitmq: RabbitHost) -> None:
    with (
        closing(
            ManagementClient(
                rabbitmq.management_url, vhost=rabbitmq.vhost, fence=TermFence(1, lambda: False)
            )
        ) as lapsed,
        pytest.raises(BrokerUnavailableError, match="term 1 has lapsed"),
    ):
        lapsed.delete_user("nobody")


@pytest.mark.parametrize(
    ("name", "earlier"),
    [
        (f"tenantry publishing, term {'9' * 5000}", False),
        ("tenantry publishing, term \u0661", False),
        ("tenantry consuming 1, of calm-heron, term 11", True),
        ("tenantry dead letters, of calm-heron, term 3", True),
        ("tenantry consuming 1, of calm-heron, term 12", False),
        ("tenantry consuming 1, of other-heron, term 3", False),
        ("tenantry consuming 1, term 3", False),
        ("tenantry publishing, of calm-heron", False),
        ("somebody's, of calm-heron, term 3", False),
        ("", False),
    ],
)
def test_a_connections_name_tells_whether_its_term_is_over(name: str, *, earlier: bool) -> None:
    assert outlived(TermFence(12, installation="calm-heron"), name) is earlier


def test_a_connection_is_called_by_what_others_know_it_by() -> None:
    fence = TermFence(4, installation="calm-heron")
    called = client_properties(fence, "dead letters")["connection_name"]
    assert called == "tenantry dead letters, of calm-heron, term 4"
    assert outlived(TermFence(5, installation="calm-heron"), called)
