"""A tenant's own consumers: the interface of readers, and the reader that a URL needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.tenant_client.amqp_reading import AmqpReader
from tenantry.tenant_client.connecting import Kind, kind_of
from tenantry.tenant_client.iggy_reading import IggyReader, Turns
from tenantry.tenant_client.sql_reading import SqlReader


class TopicReader(Protocol):
    """A consumer of one topic, among others of its group. Belongs to the thread that opened it.

    Messages received and not committed are delivered again, to this consumer or another, once this
    one is closed or lost.
    """

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; once lost it stays lost until the next `open`."""

    def open(self) -> None:
        """Connect, log in and begin to consume. Raises `TenantClientError`."""

    def close(self) -> None:
        """Leave the group and free the connection; harmless twice, and before `open`."""

    def receive(self, most: int, seconds: float) -> Sequence[bytes]:
        """Return the bodies of up to `most` further messages, those that arrive within `seconds`.

        Raises `TenantClientError`.
        """

    def commit(self) -> None:
        """Settle all received messages: none is delivered again. Raises `TenantClientError`."""

    def at_end(self) -> bool:
        """Return whether nothing waits for the group any more. Raises `TenantClientError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reader reads: a topic of a tenant, at the broker that `url` leads to.

    The consumers of a topic share their `turns`.
    """

    url: str
    tenant_id: str
    topic: str
    name: str
    prefetch: int
    turns: Turns
    tls: Tls = SYSTEMS


def reader_for(reading: Reading) -> TopicReader:
    """Make the reader that a URL needs; nothing is connected. Raises `TenantClientError`."""
    match kind_of(reading.url):
        case Kind.AMQP:
            return AmqpReader(
                reading.url,
                queue=names.group_queue_name(reading.tenant_id, reading.topic),
                name=reading.name,
                prefetch=reading.prefetch,
                tls=reading.tls,
            )
        case Kind.IGGY:
            return IggyReader(
                reading.url,
                stream=names.exchange_name(reading.tenant_id),
                topic=reading.topic,
                turns=reading.turns,
                ca_file=reading.tls.ca_file,
            )
        case Kind.SQL:
            return SqlReader(reading.url, topic=reading.topic, name=reading.name)
