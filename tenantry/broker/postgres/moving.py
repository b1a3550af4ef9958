"""Moving on: what lies in the embedded broker goes to another, none lost and none doubled.

The queues are read under the lease that any reader of them needs, so that no daemon reads them
meanwhile. A message leaves its queue once the other broker has confirmed it. If the move breaks off
in between, the next one publishes such messages again, under the same ids: those without one get
an id made of their number. The store takes an id once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import structlog
from psycopg import sql

from tenantry.broker.port import (
    Administration,
    BrokerError,
    BrokerUnavailableError,
    Outgoing,
    PasswordHash,
    Publishing,
    QueueSpec,
    TenantTopology,
)
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.broker.postgres.reading import MESSAGES, QueueReading
from tenantry.broker.postgres.session import QueueSession
from tenantry.broker.postgres.subscription import Row
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.messages.encoding import headers_json
from tenantry.messages.headers import JsonHeaders, UnreadableHeadersError

log = structlog.get_logger(__name__)

CONFIRM_TIMEOUT: Final = 60.0
"""Seconds the other broker may take for a batch."""

NO_PASSWORD: Final = PasswordHash(value="")
"""What the other broker is told of a password that it can't check: nobody logs in with it."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How many of a tenant's messages and dead letters have gone over."""

    messages: int
    dead_letters: int


class Move:
    """Moves everything to the broker behind `administration` and `publishing`.

    Tenants' objects are made there first; their users get no password, and need their credentials
    rotated. Every call may raise `BrokerError`; whatever has not gone over by then is still here.
    """

    def __init__(
        self, database: Database, *, administration: Administration, publishing: Publishing
    ) -> None:
        self._database = database
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._administration = administration
        self._publishing = publishing

    def run(self, *, progress: Callable[[int], None] = lambda _: None) -> Mapping[str, Moved]:
        """Move until nothing is left; what is published here meanwhile goes along.

        `progress` is told how many more messages have gone over.
        """
        with self._errors, self._database.listen_connection() as connection:
            tenants = [
                TenantTopology(
                    tenant_id=tenant_id,
                    topics=tuple(topics),
                    partitions=max(partitions, default=1),
                    topic_partitions=tuple(partitions),
                    ordered=tuple(ordered),
                )
                for tenant_id, topics, partitions, ordered in connection.execute(_TENANTS)
            ]
            session = QueueSession(connection)
            session.begin()
            moved = {}
            for tenant in tenants:
                readings = self._take_over(session, tenant)
                self._administration.claim(tenant.tenant_id)
                self._administration.ensure_topology(tenant)
                self._administration.ensure_user(tenant.tenant_id, NO_PASSWORD)
                messages = sum(
                    self._move(session, tenant, reading, progress) for reading in readings
                )
                dead_letters = self._move_dead_letters(tenant.tenant_id, progress)
                session.release(readings)
                moved[tenant.tenant_id] = Moved(messages=messages, dead_letters=dead_letters)
            for table in ("credentials", "consumer_credentials"):
                connection.execute(
                    sql.SQL("UPDATE tenantry.{} SET password_hash = ''").format(
                        sql.Identifier(table)
                    )
                )
            session.end(())
        return moved

    def _take_over(self, session: QueueSession, tenant: TenantTopology) -> Sequence[QueueReading]:
        found = session.acquire(tenant.queues(), MESSAGES)
        if found.readings:
            return found.readings
        absent = [one.name for one in tenant.queues() if one.name not in found.names]
        raise BrokerError(
            f"the queue {absent[0]} is not there; start the daemon once, which makes it"
            if absent
            else f"a daemon reads the queues of tenant {tenant.tenant_id}; stop it first"
        )

    def _move(
        self,
        session: QueueSession,
        tenant: TenantTopology,
        reading: QueueReading,
        progress: Callable[[int], None],
    ) -> int:
        """Move a queue to its end, in its order."""
        count = 0
        exchange, key = tenant.exchange, reading.spec.routing_key
        while True:
            session.renew()
            parts = session.fetch([reading], ())
            if not parts:
                return count
            _, rows = parts[0]
            self._publishing.publish(
                [_outgoing(exchange, key, row) for row in rows], timeout=CONFIRM_TIMEOUT
            )
            session.acknowledge([(reading, row[1]) for row in rows])
            count += len(rows)
            progress(len(rows))

    def _move_dead_letters(self, tenant_id: str, progress: Callable[[int], None]) -> int:
        """Move the dead letters; they say themselves from where they were rejected."""
        count = 0
        with PostgresDeadLetters(self._database).browse(tenant_id) as browser:
            while batch := browser.next(MESSAGES):
                self._publishing.publish(
                    [
                        Outgoing(
                            exchange=names.DEAD_LETTER_EXCHANGE,
                            routing_key=tenant_id,
                            body=one.body,
                            message_id=one.id,
                            content_type=one.content_type,
                            headers={
                                **_amqp(one.headers or {}),
                                "x-first-death-queue": QueueSpec.of(
                                    tenant_id, one.topic, one.partition
                                ).name,
                                "timestamp_in_ms": one.published_at_ms,
                            },
                        )
                        for one in (queued.message for queued in batch)
                    ],
                    timeout=CONFIRM_TIMEOUT,
                )
                browser.remove(range(len(batch)))
                count += len(batch)
                progress(len(batch))
        return count


def warn_of_what_is_left(database: Database) -> None:
    """Say in the log if the embedded broker still holds messages, which nobody reads any more."""
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
        headers={"timestamp_in_ms": published_at, **_amqp(JsonHeaders(headers or "{}"))},
    )


def _amqp(headers: Mapping[str, object]) -> Mapping[str, object]:
    """Give headers as AMQP can say them: a number it has no type for goes as its digits.

    Headers that can't be read go as one, by the name of `undecodable`.
    """
    try:
        return {name: _sayable(value) for name, value in headers.items()}
    except UnreadableHeadersError:
        return {"undecodable": headers_json(headers).decode()}


def _sayable(value: object) -> object:
    match value:
        case bool():
            return value
        case Decimal():
            return str(value)
        case int():
            return value if -(2**63) <= value < 2**63 else str(Decimal(value))
        case dict():
            return {name: _sayable(item) for name, item in value.items()}
        case list():
            return [_sayable(item) for item in value]
        case _:
            return value
