"""Brokers for tests, each kind behind the same handle, and a sink."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

import pika
import psycopg
from apache_iggy import Consumer, PollingStrategy

from tenantry.broker import topology as layout
from tenantry.broker.adapter import BrokerAdapter
from tenantry.broker.budget import Budget
from tenantry.broker.iggy import adapter as iggy_adapter
from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.client import Access, Sessions
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.dead_letters import IggyDeadLetters
from tenantry.broker.iggy.probes import IggyProbes
from tenantry.broker.iggy.publishing import IggyPublishing
from tenantry.broker.port import (
    Administration,
    Consuming,
    DeadLetters,
    Delivery,
    LoopPublishing,
    Outgoing,
    Probes,
    Publishing,
    Queues,
    TenantTopology,
)
from tenantry.broker.postgres import adapter as embedded_adapter
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.broker.postgres.consuming import PostgresConsuming
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.broker.postgres.publishing import PostgresLoopPublishing, PostgresPublishing
from tenantry.broker.rabbitmq import adapter as rabbitmq_adapter
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.probes import RabbitProbes
from tenantry.broker.rabbitmq.publishing import RabbitLoopPublishing, RabbitPublishing
from tenantry.broker.topology import QueueType
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.domain import names
from tests.fakes.broker import MemoryBroker
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

INSTALLATION = "test"
"""Whose tenants' users are."""

ENQUEUE = """
SELECT tenantry.enqueue(%s, ARRAY['default'], ARRAY[%s], ARRAY[%s::bytea], ARRAY['text/plain'],
    ARRAY[NULL::jsonb], ARRAY[0::bigint])
"""
"""Put a text into a queue of the embedded broker: an exchange, an id, a body."""


@dataclass
class RecordingSink:
    """Remembers what it is told, in order; `log` holds the words, `got` the deliveries."""

    log: list[tuple[str, int]] = field(default_factory=list)
    got: list[tuple[int, Delivery]] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)
    silences: list[tuple[str, ...]] = field(default_factory=list)

    def consuming(self, generation: int) -> None:
        self.log.append(("consuming", generation))

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        self.log.append(("deliveries", generation))
        self.got.extend((generation, delivery) for delivery in batch)

    def cancelled(self, generation: int) -> None:
        self.log.append(("cancelled", generation))

    def silent(self, queues: Sequence[str]) -> None:
        self.silences.append(tuple(queues))

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:
        assert reason
        self.missing.append(missing)
        self.log.append(("lost", generation))

    def heard(self, word: str, times: int = 1) -> int:
        """Wait until it has heard a word so many times; give the generation of the last one."""
        return eventually(
            lambda: _last([g for w, g in self.log if w == word], times),
            what=f"{word} {times} times; heard {self.log}",
        )

    def received(self, count: int) -> list[Delivery]:
        """Wait until it has received so many deliveries in all."""
        eventually(lambda: len(self.got) >= count, what=f"{count} deliveries: {len(self.got)}")
        return [delivery for _, delivery in self.got]


def _last(generations: list[int], times: int) -> int:
    return generations[-1] if len(generations) >= times else 0


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker's faces, and what lies in its queues; in memory it has no dead letters to browse."""

    kind: str
    administration: Administration
    consuming: Consuming
    publishing: Publishing
    queues: Queues
    dead_letters: DeadLetters | None = None
    probes: Probes | None = None
    memory: MemoryBroker | None = None
    host: RabbitHost | None = None
    database: Database | None = None
    sessions: Sessions | None = None

    def tenant(self, *topics: str, partitions: int = 1, ordered: bool = False) -> TenantTopology:
        """Make the topology of a new tenant, with an id nobody else has."""
        made = TenantTopology(
            tenant_id=f"t{uuid.uuid4().hex[:12]}",
            topics=topics,
            partitions=partitions,
            ordered=topics if ordered else (),
        )
        self.administration.ensure_topology(made)
        return made

    def on_loop(self, statement_timeout: float | None = None) -> LoopPublishing:
        """Give the way to publish on an event loop: RabbitMQ and the embedded broker have one."""
        if isinstance(self.publishing, RabbitPublishing):
            return RabbitLoopPublishing(self.publishing)
        assert self.database is not None
        queries = LoopQueries(self.database, statement_timeout=statement_timeout)
        return PostgresLoopPublishing(queries)

    def publish(self, tenant: TenantTopology, key: str, *bodies: bytes) -> None:
        """Publish messages to the tenant's exchange; a message's id is its body."""
        self.publishing.publish(
            [
                Outgoing(
                    exchange=names.exchange_name(tenant.tenant_id),
                    routing_key=key,
                    body=body,
                    message_id=body.decode(),
                )
                for body in bodies
            ],
            timeout=DEADLINE,
        )

    def ready(self, queue: str) -> list[bytes]:
        """Take all messages out of a queue, oldest first."""
        if self.memory is not None:
            return [message.body for message in self.memory.messages(queue)]
        if self.sessions is not None and self.database is not None:
            return _lying_on(self.sessions, self.database, queue)
        if self.database is not None:
            return _lying_in(self.database, queue)
        assert self.host is not None
        bodies: list[bytes] = []
        with pika.BlockingConnection(pika.URLParameters(self.host.url)) as connection:
            channel = connection.channel()
            while True:
                method, _, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return bodies
                bodies.append(body)


@contextmanager
def memory() -> Iterator[Broker]:
    """Run the broker in memory."""
    broker = MemoryBroker()
    with running(broker):
        yield Broker(
            kind="memory",
            administration=broker,
            consuming=broker,
            publishing=broker,
            queues=broker,
            memory=broker,
        )


@contextmanager
def rabbitmq(
    host: RabbitHost, queue_type: QueueType = "quorum", budget: Budget | None = None
) -> Iterator[Broker]:
    """Run the adapters of RabbitMQ on a virtual host."""
    administration = RabbitAdministration(
        url=host.url,
        management_url=host.management_url,
        queue_type=queue_type,
        installation=INSTALLATION,
    )
    consuming = RabbitConsuming(host.url, budget=budget)
    publishing = RabbitPublishing(host.url)
    with ExitStack() as stack:
        stack.callback(administration.close)
        stack.enter_context(running(consuming))
        stack.enter_context(running(publishing))
        yield Broker(
            kind="rabbitmq",
            administration=administration,
            consuming=consuming,
            publishing=publishing,
            queues=administration,
            dead_letters=RabbitDeadLetters(host.url),
            probes=RabbitProbes(administration),
            host=host,
        )


@contextmanager
def postgres(database: Database, budget: Budget | None = None) -> Iterator[Broker]:
    """Run the embedded broker in a database."""
    consuming = PostgresConsuming(database, budget=budget)
    administration = PostgresAdministration(
        database, installation=INSTALLATION, in_hand=consuming.in_hand
    )
    with running(consuming):
        yield Broker(
            kind="postgres",
            administration=administration,
            consuming=consuming,
            publishing=PostgresPublishing(database),
            queues=administration,
            dead_letters=PostgresDeadLetters(database),
            database=database,
        )


@contextmanager
def iggy(url: str, database: Database, budget: Budget | None = None) -> Iterator[Broker]:
    """Run the adapters of Iggy on a server, with a database for dead letters."""
    access = Access.of(url)
    consuming = IggyConsuming(access, database, budget=budget)
    sessions = Sessions(access)
    administration = IggyAdministration(
        sessions,
        database,
        installation=INSTALLATION,
        standing=consuming.standing,
        consumed=consuming.consumed,
    )
    with ExitStack() as stack:
        stack.callback(sessions.close)
        stack.enter_context(running(consuming))
        yield Broker(
            kind="iggy",
            administration=administration,
            consuming=consuming,
            publishing=IggyPublishing(sessions, IggyDeadLetters(database)),
            queues=administration,
            dead_letters=IggyDeadLetters(database),
            probes=IggyProbes(sessions, INSTALLATION),
            database=database,
            sessions=sessions,
        )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of broker: its adapter, how it is run, and the fixtures that running it takes."""

    adapter: BrokerAdapter | None
    run: Callable[..., AbstractContextManager[Broker]]
    services: tuple[str, ...] = ()


KINDS: Final[Mapping[str, Kind]] = {
    "memory": Kind(adapter=None, run=memory),
    "postgres": Kind(adapter=embedded_adapter, run=postgres, services=("database",)),
    "rabbitmq-quorum": Kind(adapter=rabbitmq_adapter, run=rabbitmq, services=("rabbitmq",)),
    "rabbitmq-classic": Kind(
        adapter=rabbitmq_adapter,
        run=lambda host: rabbitmq(host, "classic"),
        services=("rabbitmq",),
    ),
    "iggy": Kind(adapter=iggy_adapter, run=iggy, services=("iggy", "database")),
}
"""What the contract is held against: all that is registered, and memory."""


def _lying_in(database: Database, queue: str) -> list[bytes]:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT m.seq, m.body FROM tenantry.queued AS m JOIN tenantry.queues AS q"
            " ON q.id = m.queue WHERE q.name = %(queue)s"
            " UNION ALL SELECT seq, body FROM tenantry.rejected"
            " WHERE format('tenant_%%s_dead_letters', tenant_id) = %(queue)s ORDER BY seq",
            {"queue": queue},
        )
        return [body for _, body in rows]


def _lying_on(sessions: Sessions, database: Database, queue: str) -> list[bytes]:
    """Read a partition from its beginning; dead letters, out of their table."""
    tenant_id = layout.owner(queue) or ""
    if queue == names.dead_letter_queue_name(tenant_id):
        with database.connection() as connection:
            rows = connection.execute(
                "SELECT body FROM tenantry.iggy_rejected WHERE tenant_id = %s AND NOT gone"
                " ORDER BY seq",
                [tenant_id],
            )
            return [body for (body,) in rows]
    _, _, rest = queue.partition("_stream.")
    topic, _, number = rest.rpartition(".")
    with sessions.session() as session:
        messages = session.call(
            lambda client: client.poll_messages(
                names.exchange_name(tenant_id),
                topic or "default",
                consumer=Consumer.Single("tests"),
                polling_strategy=PollingStrategy.First(),
                count=1000,
                auto_commit=False,
                partition_id=int(number or 0),
            )
        )
    return [message.payload() for message in messages]


@contextmanager
def running(
    service: MemoryBroker | PostgresConsuming | RabbitConsuming | RabbitPublishing | IggyConsuming,
) -> Iterator[None]:
    """Run a service on a thread and join it."""
    thread = threading.Thread(target=service.run, name=type(service).__name__)
    thread.start()
    try:
        yield
    finally:
        service.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def subscribed(broker: Broker, tenant: TenantTopology, prefetch: int = 1000) -> RecordingSink:
    """Subscribe to a tenant's queues; give what remembers its deliveries."""
    sink = RecordingSink()
    broker.consuming.subscribe(tenant.queues(), prefetch=prefetch, sink=sink)
    return sink


def put(
    connection: psycopg.Connection[tuple[object, ...]], tenant: TenantTopology, *each: bytes
) -> None:
    """Put messages into a tenant's default queue of the embedded broker, each under an id."""
    for body in each:
        exchange = names.exchange_name(tenant.tenant_id)
        connection.execute(ENQUEUE, [exchange, uuid.uuid4().hex, body])


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    """Give the bodies of deliveries."""
    return [delivery.message.body for delivery in deliveries]
