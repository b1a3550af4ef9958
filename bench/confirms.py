"""`python -m bench.confirms`: a producer's batch, beside pika's BlockingConnection."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pika

from tenantry.tenant_client.amqp import AmqpClient, TenantMessage
from tests.rabbitmq_node import PrivateNode

EXCHANGE = QUEUE = "measured"
SIZES = (1, 10, 100)
ROUNDS = 30


def batch(size: int) -> list[TenantMessage]:
    """Make messages like the producer's."""
    return [
        TenantMessage(routing_key=QUEUE, body=b"event-1-1", message_id=uuid.uuid4().hex)
        for _ in range(size)
    ]


def ours(url: str, size: int) -> float:
    """Send batches by the producer's own client; return the median seconds of a batch."""
    client = AmqpClient(url, name="ours")
    client.open()

    def send() -> None:
        assert len(client.publish(EXCHANGE, batch(size)).confirmed) == size

    taken = median(send)
    client.close()
    return taken


def blocking(url: str, size: int) -> float:
    """Send batches by pika's BlockingConnection, which waits for each message's confirm."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()

        def send() -> None:
            for one in batch(size):
                properties = pika.BasicProperties(delivery_mode=2, message_id=one.message_id)
                channel.basic_publish(
                    EXCHANGE, one.routing_key, one.body, properties, mandatory=True
                )

        return median(send)


def median(send: Callable[[], None]) -> float:
    """Return the median seconds of several calls."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        send()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Measure both on a private RabbitMQ, into one quorum queue."""
    with tempfile.TemporaryDirectory() as home, PrivateNode(Path(home)) as node:
        with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(EXCHANGE, durable=True)
            channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(QUEUE, EXCHANGE, QUEUE)
        for size in SIZES:
            own, other = ours(node.url, size), blocking(node.url, size)
            print(
                f"{size:4} messages: ours {own * 1000:7.1f} ms,"
                f" BlockingConnection {other * 1000:7.1f} ms, {other / own:5.1f} times"
            )


if __name__ == "__main__":
    main()
