"""Chooses the client and the reader for a tenant's URL, and the address they connect to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol
from urllib.parse import urlsplit

from tenantry import urls
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.tenant_client.amqp import (
    AmqpClient,
    AmqpReader,
    PublishResult,
    TenantClientError,
    TenantMessage,
)
from tenantry.tenant_client.iggy import IggyReader, IggyTenantClient, Turns
from tenantry.tenant_client.sql import SqlClient, SqlReader


class Kind(Enum):
    """The protocol of a tenant's client."""

    AMQP = "AMQP"
    IGGY = "Iggy"
    SQL = "SQL"


_KINDS: Final = dict.fromkeys(urls.AMQP, Kind.AMQP) | dict.fromkeys(urls.IGGY, Kind.IGGY)
_BROKERS: Final = {
    Kind.AMQP: "RabbitMQ",
    Kind.IGGY: "Apache Iggy",
    Kind.SQL: "the embedded one",
}


class TenantClient(Protocol):
    """A tenant's connection to a broker of any kind."""

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; once lost it stays lost until the next `open`."""

    def open(self) -> None:
        """Connect and log in. Raises `TenantClientError`."""

    def close(self) -> None:
        """Close and free the connection; harmless twice, and before `open`."""

    def idle(self, seconds: float) -> None:
        """Let time pass. Raises `TenantClientError` if the connection is known to be lost."""

    def publish(self, exchange: str, batch: Sequence[TenantMessage]) -> PublishResult:
        """Publish a batch and wait for the broker's answer to each message. Never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where tenants connect: each a HOST:PORT, or None for the address in their credentials."""

    amqp: str | None = None
    iggy: str | None = None

    def at(self, url: str) -> str:
        """Return a tenant's URL with the address given for its broker.

        Raises `TenantClientError` if an address is given for another kind of broker.
        """
        kind = kind_of(url)
        given = {Kind.AMQP: self.amqp, Kind.IGGY: self.iggy}
        for one, place in given.items():
            if place is not None and one != kind:
                raise TenantClientError(
                    f"the broker is {_BROKERS[kind]}: it has no {one.value} address"
                )
        place = given.get(kind)
        return url if place is None else urls.at_address(url, place)


EVERYWHERE: Final = Addresses()
"""Every tenant connects to the address in its credentials."""


def kind_of(url: str) -> Kind:
    """Return which client a URL needs."""
    return _KINDS.get(urlsplit(url).scheme, Kind.SQL)


def client_for(url: str, *, name: str, tls: Tls = SYSTEMS) -> TenantClient:
    """Make the client that a URL needs; nothing is connected. Raises `TenantClientError`."""
    match kind_of(url):
        case Kind.AMQP:
            return AmqpClient(url, name=name, tls=tls)
        case Kind.IGGY:
            return IggyTenantClient(url, ca_file=tls.ca_file)
        case Kind.SQL:
            return SqlClient(url, name=name)


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
