"""Where messages may be by now: in the tenant's rows, among its dead letters, in its queues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pika
import psycopg

from tenantry.broker.iggy.headers import told_by, unpack
from tests.ledger.entries import KEY_HEADER, meaning, sha256

PAGE = 5_000
LARGEST_PREFETCH = 65_535
LONGEST_WALK = 300.0

_ROWS = f"""
SELECT coalesce(headers->>'{KEY_HEADER}', id), topic, partition, payload::text, body, content_type,
       position, tableoid::regclass::text
FROM public.messages WHERE tenant_id = %s AND position > %s ORDER BY position LIMIT %s
"""

_REJECTED = f"""
SELECT coalesce(headers->>'{KEY_HEADER}', id), topic || '.' || partition, content_type, body
FROM tenantry.rejected WHERE tenant_id = %s ORDER BY seq
"""

_REJECTED_ON_IGGY = """
SELECT id, topic || '.' || partition, properties, body
FROM tenantry.iggy_rejected WHERE tenant_id = %s AND NOT gone ORDER BY seq
"""

_QUEUED = f"""
SELECT coalesce(m.headers->>'{KEY_HEADER}', m.id), q.topic || '.' || q.partition, m.content_type,
       m.body
FROM tenantry.queues AS q JOIN tenantry.queued AS m ON m.queue = q.id
WHERE q.name = %s ORDER BY m.seq
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A stored message."""

    key: str
    topic: str
    partition: int
    content_type: str | None
    position: int
    table: str
    sha256: str | None
    meaning: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A message in a queue."""

    key: str
    routing_key: str
    content_type: str | None
    sha256: str


def rows(connection: psycopg.Connection[Any], tenant_id: str, after: int) -> Iterator[Row]:
    """Follow a tenant's positions as a reader does."""
    while True:
        page = connection.execute(_ROWS, [tenant_id, after, PAGE]).fetchall()
        for key, topic, partition, payload, body, content_type, position, table in page:
            after = position
            yield Row(
                key=key,
                topic=topic,
                partition=partition,
                content_type=content_type,
                position=position,
                table=table,
                sha256=None if body is None else sha256(body),
                meaning=None if payload is None else meaning(payload),
            )
        if len(page) < PAGE:
            return


def queued(broker_url: str, queue: str) -> list[Queued]:
    """List the ready messages of a queue, and leave them there; a missing queue holds none."""
    found: list[Queued] = []

    def take(_channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        found.append(
            Queued(
                key=_key(properties),
                routing_key=method.routing_key,
                content_type=properties.content_type,
                sha256=sha256(body),
            )
        )

    with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
        count = _count(connection, queue)
        # Taken without an ack: all of it goes back when the connection closes. A channel may have
        # so many unacknowledged.
        for _ in range(-(-count // LARGEST_PREFETCH)):
            channel = connection.channel()
            channel.basic_qos(prefetch_count=LARGEST_PREFETCH)
            channel.basic_consume(queue, take)
        until = time.monotonic() + LONGEST_WALK
        while len(found) < count and time.monotonic() < until:
            connection.process_data_events(time_limit=1)
    return found


def rejected_in_sql(connection: psycopg.Connection[Any], tenant_id: str) -> list[Queued]:
    """List a tenant's dead letters on the embedded broker, or on Iggy."""
    with connection.cursor(binary=True) as cursor:
        on_iggy = [
            Queued(
                key=key,
                routing_key=place,
                content_type=told_by(unpack(properties)[1], key, 0).content_type,
                sha256=sha256(body),
            )
            for key, place, properties, body in cursor.execute(_REJECTED_ON_IGGY, [tenant_id])
        ]
    return on_iggy + _queued_rows(connection, _REJECTED, tenant_id)


def queued_in_sql(connection: psycopg.Connection[Any], queue: str) -> list[Queued]:
    """List the messages in a queue of the embedded broker."""
    return _queued_rows(connection, _QUEUED, queue)


def _queued_rows(connection: psycopg.Connection[Any], query: str, of: str) -> list[Queued]:
    with connection.cursor(binary=True) as cursor:
        return [
            Queued(key=key, routing_key=routing_key, content_type=kind, sha256=sha256(body))
            for key, routing_key, kind, body in cursor.execute(query, [of])
        ]


def count_rejected(connection: psycopg.Connection[Any], tenants: list[str]) -> int:
    """Count tenants' dead letters on the embedded broker, or on Iggy."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM tenantry.rejected WHERE tenant_id = ANY(%(of)s))"
        " + (SELECT count(*) FROM tenantry.iggy_rejected"
        "    WHERE tenant_id = ANY(%(of)s) AND NOT gone)",
        {"of": tenants},
    ).fetchone()
    assert row is not None
    return int(row[0])


def _count(connection: pika.BlockingConnection, queue: str) -> int:
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).method.message_count)
    except pika.exceptions.ChannelClosedByBroker as closed:
        if closed.reply_code != 404:
            raise
        return 0


def ready(broker_url: str, queues: list[str]) -> int:
    """Count the ready messages of queues, by the queues' own counts."""
    with pika.BlockingConnection(pika.URLParameters(broker_url)) as connection:
        channel = connection.channel()
        return sum(
            channel.queue_declare(queue, passive=True).method.message_count for queue in queues
        )


def _key(properties: pika.BasicProperties) -> str:
    return str((properties.headers or {}).get(KEY_HEADER) or properties.message_id)
