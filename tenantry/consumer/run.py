"""The multi-tenant consumer: prepares tenants, proves their isolation, receives, and counts."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.tenant_client.access import Api, Say, TenantAccess, ensure_consumers
from tenantry.tenant_client.amqp import TenantClientError
from tenantry.tenant_client.connecting import Reading, reader_for
from tenantry.tenant_client.iggy import Turns
from tenantry.tenant_runs import (
    ATTEMPTS,
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    Progress,
    Role,
    RunOptions,
    RunResult,
    run,
)

TOPICS: Final = ("events", "logs", "notifications")
"""The topics every tenant gets; its other topics are read as well."""

LINGER: Final = 0.25
"""Seconds that a batch may take to fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What consumers have received and committed, and how many of them gave up."""

    received: int
    failed: int

    @property
    def counts(self) -> Mapping[str, int]:
        """See `tenant_runs.Tally.counts`."""
        return {"received": self.received, "failed": self.failed}

    def __add__(self, other: Tally) -> Tally:
        return Tally(received=self.received + other.received, failed=self.failed + other.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one consumer reads; it ends when nothing is left, or with `follow` when stopped."""

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
        """`received` is called with the size of each committed batch."""
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
        self.tenant_id: Final = assignment.tenant_id
        self._whom = f"by tenant: {assignment.tenant_id}, consumer: {assignment.consumer}"
        exchange = names.exchange_name(assignment.tenant_id)
        self._where = f"from: {exchange} -> {assignment.topic}"

    def run(self) -> Tally:
        """Receive to the end and count. Never raises for failures of the broker.

        A lost connection is opened again, a limited number of times in a row, with backoff;
        uncommitted messages are delivered again.
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
        """Receive a batch and commit it; return how many messages it had, None at the end."""
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
class ConsumerOptions(RunOptions):
    """How much is read. `consumers` counts per tenant and topic."""

    consumers: int = 1
    follow: bool = False


def consume(
    options: ConsumerOptions,
    api: Api,
    *,
    say: Say,
    stop: threading.Event,
    progress: Progress = lambda _count: None,
) -> RunResult[Tally]:
    """Run the consumer to its end, reporting each step through `say`, from one thread at a time.

    Once `stop` is set it ends after the current batches. `progress` is called with numbers of
    messages received. Threads of its own consume and have ended when this returns or raises. Raises
    `ProducerError` if the tenants can't be prepared.
    """

    def receivers(accesses: Sequence[TenantAccess], tell: Say, got: Progress) -> list[Receiver]:
        todo = _assignments(options, accesses)
        return [Receiver(one, say=tell, stop=stop, received=got) for one in todo]

    role = Role(
        name="consumer",
        each=options.consumers,
        user=UserKind.CONSUMER,
        topics=TOPICS,
        ensure=ensure_consumers,
        clients=receivers,
    )
    return run(role, options, api, say=say, stop=stop, progress=progress)


def _assignments(options: ConsumerOptions, accesses: Sequence[TenantAccess]) -> list[Assignment]:
    """Distribute the work, so that tenants take turns if not all consumers run at once."""
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
