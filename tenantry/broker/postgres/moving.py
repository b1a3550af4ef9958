"""Reads the embedded broker's messages for a move to another broker.

The queues are read under the lease that every reader needs, so that no daemon reads them meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import structlog

from tenantry.broker.moving import MESSAGES, Batch, amqp_headers
from tenantry.broker.port import BrokerError, Outgoing, TenantTopology
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.broker.postgres.reading import QueueReading
from tenantry.broker.postgres.session import QueueSession
from tenantry.broker.postgres.subscription import Row
from tenantry.broker.postgres.users import VERIFIER
from tenantry.database.pool import Database
from tenantry.messages.headers import JsonHeaders

log = structlog.get_logger(__name__)

_TENANTS: Final = """
SELECT of_topic.tenant_id,
       coalesce(array_agg(of_topic.topic ORDER BY of_topic.topic)
                FILTER (WHERE of_topic.topic <> 'default'), '{}'),
       coalesce(array_agg(of_topic.partitions ORDER BY of_topic.topic)
                FILTER (WHERE of_topic.topic <> 'default'), '{}'),
       coalesce((SELECT array_agg(ordered.topic)
                 FROM tenantry.tenants AS t
                 CROSS JOIN jsonb_array_elements_text(t.state -> 'ordered') AS ordered (topic)
                 WHERE t.id = of_topic.tenant_id), '{}')
FROM (SELECT tenant_id, topic, max(partition) + 1 AS partitions
      FROM tenantry.queues GROUP BY tenant_id, topic) AS of_topic
GROUP BY of_topic.tenant_id ORDER BY of_topic.tenant_id
"""


class EmbeddedReading:
    """A tenant's queues (`tenantry.broker.moving.Reading`), one after another."""

    def __init__(
        self, session: QueueSession, tenant: TenantTopology, readings: Sequence[QueueReading]
    ) -> None:
        self._session = session
        self._exchange = tenant.exchange
        self._to_read = list(readings)
        self._given: Sequence[Row] = ()
        self._stay: list[int] = []
        self.left = 0

    def next(self) -> Batch | None:
        """See `Reading.next`."""
        while self._to_read:
            reading = self._to_read[0]
            self._session.renew()
            parts = self._session.fetch([reading], self._stay)
            if parts:
                self._given = parts[0][1]
                key = reading.spec.routing_key
                messages = [_outgoing(self._exchange, key, row) for row in self._given]
                return Batch(messages, reading.spec.ordered)
            self._leave_queue()
        return None

    def settle(self, refused: Sequence[bool]) -> None:
        """See `Reading.settle`."""
        reading = self._to_read[0]
        numbers = [row[1] for row in self._given]
        gone = [number for number, no in zip(numbers, refused, strict=True) if not no]
        if gone:
            self._session.acknowledge([(reading, number) for number in gone])
        self._stay += [number for number, no in zip(numbers, refused, strict=True) if no]
        self.left += refused.count(True)
        if self._stay and reading.spec.ordered:
            self._leave_queue()

    def _leave_queue(self) -> None:
        del self._to_read[0]
        self._stay = []


class EmbeddedSource:
    """The embedded broker (`tenantry.broker.moving.Source`)."""

    hashes: Final = VERIFIER

    def __init__(self, connection: psycopg.Connection[Any], database: Database) -> None:
        self.dead_letters: Final = PostgresDeadLetters(database)
        self._connection = connection
        self._session = QueueSession(connection)

    @classmethod
    @contextmanager
    def opened(cls, database: Database) -> Iterator[EmbeddedSource]:
        """Become a reader of the queues, for the length of the block."""
        with database.listen_connection() as connection:
            source = cls(connection, database)
            source._session.begin()
            yield source
            source._session.end(())

    def tenants(self) -> Sequence[TenantTopology]:
        """See `Source.tenants`."""
        return [
            TenantTopology(
                tenant_id=tenant_id,
                topics=tuple(topics),
                partitions=max(partitions, default=1),
                topic_partitions=tuple(partitions),
                ordered=tuple(ordered),
            )
            for tenant_id, topics, partitions, ordered in self._connection.execute(_TENANTS)
        ]

    @contextmanager
    def read(self, tenant: TenantTopology) -> Iterator[EmbeddedReading]:
        """See `Source.read`."""
        readings = self._take_over(tenant)
        yield EmbeddedReading(self._session, tenant, readings)
        self._session.release(readings)

    def _take_over(self, tenant: TenantTopology) -> Sequence[QueueReading]:
        found = self._session.acquire(tenant.queues(), MESSAGES)
        if found.readings:
            return found.readings
        absent = [one.name for one in tenant.queues() if one.name not in found.names]
        raise BrokerError(
            f"the queue {absent[0]} is not there; start the daemon once, which makes it"
            if absent
            else f"a daemon reads the queues of tenant {tenant.tenant_id}; stop it first"
        )


def warn_of_what_is_left(database: Database) -> None:
    """Warn in the log if the embedded broker, which is read no more, still holds messages."""
    with database.connection() as connection:
        row = connection.execute("SELECT EXISTS (SELECT FROM tenantry.queued)").fetchone()
    if row is not None and row[0]:
        log.warning(
            "broker.messages_left_behind",
            remedy="the embedded broker holds messages: tenantry stop, tenantry broker migrate",
        )


def _outgoing(exchange: str, key: str, row: Row) -> Outgoing:
    _, seq, published_at, identity, content_type, headers, body, *_ = row
    return Outgoing(
        exchange=exchange,
        routing_key=key,
        body=body,
        message_id=identity or f"embedded-{seq}",
        content_type=content_type,
        headers={"timestamp_in_ms": published_at, **amqp_headers(JsonHeaders(headers or "{}"))},
    )
