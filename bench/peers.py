"""The peers that the daemon is compared with: pika alone, and a plain handler."""

from __future__ import annotations

import time
from typing import Any

import pika
import psycopg

from bench.load import Filler

QUEUE = "bench"
ARGUMENTS = {"x-queue-type": "quorum"}


def _fill(url: str, count: int) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    Filler(url, [("", QUEUE)], count).run()


def pika_alone(url: str, count: int, *, prefetch: int = 2000, every: int = 500) -> float:
    """Only consume and ack in batches of `every`; return messages a second."""
    _fill(url, count)
    seen = 0
    started = ended = 0.0

    def on_message(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal seen, started, ended
        if not seen:
            started = time.perf_counter()
        seen += 1
        if seen % every == 0 or seen == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if seen == count:
            ended = time.perf_counter()
            channel.connection.close()

    def on_channel(channel: Any) -> None:
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(QUEUE, on_message)

    connection = pika.SelectConnection(
        pika.URLParameters(url),
        on_open_callback=lambda c: c.channel(on_open_callback=on_channel),
        on_close_callback=lambda c, _: c.ioloop.stop(),
    )
    connection.ioloop.start()
    return count / (ended - started)


def plain_handler(url: str, database: str, count: int, *, prefetch: int = 100) -> float:
    """Insert, commit and ack each message by itself; return messages a second."""
    _fill(url, count)
    with (
        psycopg.connect(database, autocommit=True) as store,
        pika.BlockingConnection(pika.URLParameters(url)) as connection,
    ):
        store.execute(
            "CREATE TABLE IF NOT EXISTS plain (id text PRIMARY KEY, payload jsonb NOT NULL,"
            " created_at timestamptz NOT NULL DEFAULT now())"
        )
        channel = connection.channel()
        channel.basic_qos(prefetch_count=prefetch)
        started = time.perf_counter()
        for seen, (method, properties, body) in enumerate(channel.consume(QUEUE), start=1):
            store.execute(
                "INSERT INTO plain (id, payload) VALUES (%s, %s::jsonb) ON CONFLICT DO NOTHING",
                (properties.message_id, body.decode()),
            )
            channel.basic_ack(method.delivery_tag)
            if seen == count:
                break
        elapsed = time.perf_counter() - started
        channel.cancel()
    return count / elapsed
