"""The multi-tenant consumer: prepares tenants, proves their isolation, receives, and counts."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.isolation.port import IsolationReport
from tenantry.isolation.proof import verify_isolation
from tenantry.tenant_client.access import (
    Api,
    ProducerError,
    Say,
    TenantAccess,
    ensure_consumers,
    installation_of,
)
from tenantry.tenant_client.amqp import TenantClientError
from tenantry.tenant_client.connecting import EVERYWHERE, Addresses
from tenantry.tenant_client.iggy_reading import Turns
from tenantry.tenant_client.reading import Reading, reader_for

TOPICS: Final = ("events", "logs", "notifications")
"""The topics every tenant gets; those that it has beside them are read as well."""

AT_ONCE: Final = 128
"""Consumers, each with its connection, that run at the same time; more wait their turn."""

LINGER: Final = 0.25
"""Seconds that a batch may take to fill."""

ATTEMPTS: Final = 10
FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 5.0
"""Seconds: with ten attempts a consumer outlives half a minute without a broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What consumers have received and committed, and how many of them gave up."""

    received: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one consumer reads; it ends when nothing is left, or with `follow` when it is told."""

    url: str
    tenant_id: str
    topic: str
    consumer: int
    batch_size: int
    follow: bool
    turns: Turns
    tls: Tls = SYSTEMS


class Receiver:
    """Receives an assignment's messages, batch by batch. `run` belongs on a thread of its own."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        say: Say,
        stop: threading.Event,
        received: Callable[[int], None],
    ) -> None:
        """`received` is told how many messages each committed batch had."""
        self._assignment = assignment
        self._say = say
        self._stop = stop
        self._received = received
        self._reader = reader_for(
            Reading(
                url=assignment.url,
                tenant_id=assignment.tenant_id,
                topic=assignment.topic,
                name=f"consumer {assignment.consumer} of {assignment.topic}",
                prefetch=assignment.batch_size * 2,
                turns=assignment.turns,
                tls=assignment.tls,
            )
        )
        self.tenant_id = assignment.tenant_id
        self._whom = f"by tenant: {assignment.tenant_id}, consumer: {assignment.consumer}"
        exchange = names.exchange_name(assignment.tenant_id)
        self._where = f"from: {exchange} -> {assignment.topic}"

    def run(self) -> Tally:
        """Receive to the end and count. Never raises for what the broker does.

        A lost connection is made again, so often, with backoff; what was not committed comes again.
        """
        received = failures = 0
        delay = FIRST_BACKOFF
        try:
            while not self._stop.is_set():
                try:
                    batch = self._receive()
                    if batch is None:
                        break
                except TenantClientError as error:
                    failures += 1
                    word = "Failed" if failures == ATTEMPTS else "Retrying"
                    if failures in {1, ATTEMPTS}:
                        self._say(f"{word}: {self._whom[3:]}, {self._where}: {error}")
                    if failures == ATTEMPTS:
                        return Tally(received=received, failed=1)
                    self._stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311
                    delay = min(LONGEST_BACKOFF, delay * 2)
                    continue
                failures, delay = 0, FIRST_BACKOFF
                received += batch
                if batch:
                    self._received(batch)
        finally:
            self._reader.close()
        return Tally(received=received, failed=0)

    def _receive(self) -> int | None:
        """Handle a batch and commit it; give how many messages it had, None at the end."""
        todo, reader = self._assignment, self._reader
        if not reader.is_open:
            reader.close()
            reader.open()
        batch = reader.receive(todo.batch_size, LINGER)
        if batch:
            self._say(f"Received: {len(batch)} message(s) {self._whom}, {self._where}")
            reader.commit()
        elif not todo.follow and reader.at_end():
            return None
        return len(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """How much is read. `consumers` counts per tenant and topic."""

    tenants: int = 3
    consumers: int = 1
    partitions: int = 3
    ensure_access: bool = True
    batch_size: int = 10
    follow: bool = False
    addresses: Addresses = EVERYWHERE
    tls: Tls = SYSTEMS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeResult:
    """What every tenant has received; `isolation` is None if it was not examined."""

    tallies: dict[str, Tally]
    isolation: IsolationReport | None

    @property
    def total(self) -> Tally:
        """All tenants together."""
        return _sum(tuple(self.tallies.values()))

    @property
    def succeeded(self) -> bool:
        """Whether no consumer gave up and no tenant reaches another's."""
        return not self.total.failed and (self.isolation is None or self.isolation.holds)


def consume(
    options: ConsumerOptions,
    api: Api,
    *,
    say: Say,
    stop: threading.Event,
    progress: Callable[[int], None] = lambda _count: None,
) -> ConsumeResult:
    """Run the consumer to its end, telling each step through `say`, from one thread at a time.

    Once `stop` is set it ends after the batches at hand. `progress` is told the numbers of messages
    received. Threads of its own consume and have ended when this returns or raises. Raises
    `ProducerError` where the tenants can't be prepared.
    """
    say(
        f"--- Multi-tenant consumer has started, tenants: {options.tenants}, "
        f"consumers: {options.consumers}, partitions: {options.partitions} ---"
    )
    say("--- Creating root client to manage streams and users ---")
    status, _ = api.send("GET", "/healthz")
    if status >= 500:
        raise ProducerError(f"the daemon is not healthy (status {status})")
    say("--- Creating streams and users with permissions for each tenant ---")
    accesses = [_prepare(options, api, str(number + 1), say) for number in range(options.tenants)]
    say("--- Creating clients for each tenant ---")
    isolation = None
    if options.ensure_access and not stop.is_set():
        say("--- Ensuring access to streams for each tenant ---")
        isolation = verify_isolation(
            accesses,
            [access.topology for access in accesses],
            say=say,
            addresses=options.addresses,
            installation=installation_of(api),
            kind=UserKind.CONSUMER,
            tls=options.tls,
        )
    say(f"--- Starting {options.consumers} consumer(s) for each tenant ---")
    tallies = _receive(options, accesses, say, stop, progress)
    for tenant_id, tally in tallies.items():
        say(f"Tenant: {tenant_id}, {_counts(tally)}")
    result = ConsumeResult(tallies=tallies, isolation=isolation)
    say(f"Total: {_counts(result.total)}")
    return result


def _prepare(options: ConsumerOptions, api: Api, tenant_id: str, say: Say) -> TenantAccess:
    access = ensure_consumers(api, tenant_id, topics=TOPICS, partitions=options.partitions, say=say)
    exchange, user = names.exchange_name(tenant_id), access.credentials.username
    stream, whom = ("Created" if made else "Found" for made in (access.created, access.granted))
    say(f"{stream} stream: {exchange} with ID: {tenant_id}")
    say(f"{whom} user: {user} with ID: {tenant_id}, with permissions for stream: {exchange}")
    return access


def _receive(
    options: ConsumerOptions,
    accesses: Sequence[TenantAccess],
    say: Say,
    stop: threading.Event,
    progress: Callable[[int], None],
) -> dict[str, Tally]:
    lock = threading.Lock()

    def tell(line: str) -> None:
        with lock:
            say(line)

    def count(messages: int) -> None:
        with lock:
            progress(messages)

    try:
        todo = [
            Receiver(one, say=tell, stop=stop, received=count)
            for one in _assignments(options, accesses)
        ]
    except TenantClientError as error:
        raise ProducerError(str(error)) from error
    results: dict[str, list[Tally]] = {access.topology.tenant_id: [] for access in accesses}
    with ThreadPoolExecutor(
        max_workers=min(AT_ONCE, len(todo)), thread_name_prefix="consumer"
    ) as pool:
        running: dict[Future[Tally], str] = {pool.submit(one.run): one.tenant_id for one in todo}
        try:
            for done in as_completed(running):
                results[running[done]].append(done.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {tenant_id: _sum(tallies) for tenant_id, tallies in results.items()}


def _assignments(options: ConsumerOptions, accesses: Sequence[TenantAccess]) -> list[Assignment]:
    """Deal out the work, so that tenants take turns where not all consumers run at once."""
    topics = dict.fromkeys(topic for access in accesses for topic in access.topology.topics)
    turns = {
        (access.topology.tenant_id, topic): Turns(access.topology.partitions_of(topic))
        for access in accesses
        for topic in access.topology.topics
    }
    return [
        Assignment(
            url=options.addresses.at(access.credentials.url),
            tenant_id=access.topology.tenant_id,
            topic=topic,
            consumer=consumer + 1,
            batch_size=options.batch_size,
            follow=options.follow,
            turns=turns[access.topology.tenant_id, topic],
            tls=options.tls,
        )
        for consumer, topic, access in itertools.product(range(options.consumers), topics, accesses)
        if topic in access.topology.topics
    ]


def _sum(tallies: Sequence[Tally]) -> Tally:
    return Tally(
        received=sum(one.received for one in tallies), failed=sum(one.failed for one in tallies)
    )


def _counts(tally: Tally) -> str:
    return f"received: {tally.received}, failed: {tally.failed}"
