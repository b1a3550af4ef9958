"""The multi-tenant producer: prepares tenants, proves their isolation, sends, and counts."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.tenant_client.access import Api, Say, TenantAccess, ensure_tenant
from tenantry.tenant_client.amqp import TenantClientError, TenantMessage
from tenantry.tenant_client.connecting import client_for
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

KINDS: Final = {"events": "event", "logs": "log", "notifications": "notification"}
"""The topics every tenant gets, and the word that begins each topic's messages."""

FAILED_BATCHES: Final = 2
"""Consecutive batches that fail for good before the rest is given up."""

CLOSED_IDLE: Final = 20.0
"""Intervals of this many seconds or more are waited out without a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a producer's messages: confirmed + failed = sent."""

    sent: int
    confirmed: int

    @property
    def failed(self) -> int:
        """Messages that the broker never confirmed."""
        return self.sent - self.confirmed

    @property
    def counts(self) -> Mapping[str, int]:
        """See `tenant_runs.Tally.counts`."""
        return {"sent": self.sent, "confirmed": self.confirmed, "failed": self.failed}

    def __add__(self, other: Tally) -> Tally:
        return Tally(sent=self.sent + other.sent, confirmed=self.confirmed + other.confirmed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one producer sends. `run` makes its message ids its own; `interval` is in seconds."""

    run: str
    url: str
    tenant_id: str
    topic: str
    kind: str
    producer: int
    partitions: int
    batches: int
    batch_size: int
    interval: float
    tls: Tls = SYSTEMS


class Sender:
    """Sends an assignment's batches in order. `run` belongs on a thread of its own."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        say: Say,
        stop: threading.Event,
        sent: Callable[[int], None],
    ) -> None:
        """`sent` is called with the size of each finished batch, confirmed or not."""
        self._assignment = assignment
        self.tenant_id: Final = assignment.tenant_id
        self._say = say
        self._stop = stop
        self._sent = sent
        name = f"producer {assignment.producer} of {assignment.topic}"
        self._link = client_for(assignment.url, name=name, tls=assignment.tls)

    def run(self) -> Tally:
        """Send everything and count. Never raises for failures of the broker."""
        todo = self._assignment
        confirmed = failures = 0
        try:
            for number in range(todo.batches):
                if self._stop.is_set() or failures >= FAILED_BATCHES:
                    break
                if number:
                    self._pause()
                taken = self._send(number)
                confirmed += taken
                failures = 0 if taken == todo.batch_size else failures + 1
                self._sent(todo.batch_size)
        finally:
            self._link.close()
        return Tally(sent=todo.batches * todo.batch_size, confirmed=confirmed)

    def _send(self, number: int) -> int:
        """Send one batch, repeating unconfirmed messages; return how many were confirmed."""
        todo = self._assignment
        left = self._batch(number)
        whom = f"by tenant: {todo.tenant_id}, producer: {todo.producer}"
        where = f"to: {names.exchange_name(todo.tenant_id)} -> {todo.topic}"
        delay = FIRST_BACKOFF
        for attempt in range(1, ATTEMPTS + 1):
            left, reason = self._try(left)
            if not left:
                break
            if attempt == ATTEMPTS or self._stop.is_set():
                self._say(f"Failed: {len(left)} message(s) {whom}, {where}: {reason}")
                break
            if attempt == 1:
                self._say(f"Retrying: {len(left)} message(s) {whom}, {where}: {reason}")
            self._stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311
            delay = min(LONGEST_BACKOFF, delay * 2)
        taken = todo.batch_size - len(left)
        if taken:
            self._say(f"Sent: {taken} message(s) {whom}, {where}")
        return taken

    def _try(self, batch: list[TenantMessage]) -> tuple[list[TenantMessage], str | None]:
        """Publish once; return the unconfirmed messages, and the reason."""
        try:
            if not self._link.is_open:
                self._link.close()
                self._link.open()
        except TenantClientError as error:
            return batch, str(error)
        outcome = self._link.publish(names.exchange_name(self._assignment.tenant_id), batch)
        left = [mail for index, mail in enumerate(batch) if index not in outcome.confirmed]
        return left, outcome.reason

    def _batch(self, number: int) -> list[TenantMessage]:
        todo = self._assignment
        now = time.time_ns() // 1_000_000
        first = number * todo.batch_size + 1
        return [
            TenantMessage(
                # Producers begin at different partitions, so that few messages spread evenly too.
                routing_key=f"{todo.topic}.{(todo.producer + message) % todo.partitions}",
                body=f"{todo.kind}-{todo.producer}-{message}".encode(),
                # The same for every attempt: a batch sent twice is stored once.
                message_id=f"{todo.run}-{todo.kind}-{todo.producer}-{message}",
                published_at_ms=now,
            )
            for message in range(first, first + todo.batch_size)
        ]

    def _pause(self) -> None:
        interval = self._assignment.interval
        if interval >= CLOSED_IDLE:
            self._link.close()
        end = time.monotonic() + interval
        while (left := end - time.monotonic()) > 0 and not self._stop.is_set():
            if self._link.is_open:
                with suppress(TenantClientError):  # lost: the next batch connects again
                    self._link.idle(min(left, 1.0))
            else:
                self._stop.wait(left)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerOptions(RunOptions):
    """How much is sent. `producers` counts per tenant and topic; `interval` is in seconds."""

    producers: int = 3
    batches: int = 10
    interval: float = 0.001

    @property
    def messages(self) -> int:
        """The number of messages that all producers send together."""
        return len(self.tenant_ids) * len(KINDS) * self.producers * self.batches * self.batch_size


def produce(
    options: ProducerOptions, api: Api, *, say: Say, progress: Progress = lambda _count: None
) -> RunResult[Tally]:
    """Run the producer to its end, reporting each step through `say`, from one thread at a time.

    `progress` is called with numbers of messages dealt with. Threads of its own send and have ended
    when this returns or raises; interrupted, they stop after the current batch. Raises
    `ProducerError` if the tenants can't be prepared.
    """
    stop = threading.Event()

    def senders(accesses: Sequence[TenantAccess], tell: Say, sent: Progress) -> list[Sender]:
        todo = _assignments(options, accesses)
        return [Sender(one, say=tell, stop=stop, sent=sent) for one in todo]

    role = Role(
        name="producer",
        each=options.producers,
        user=UserKind.PRODUCER,
        topics=tuple(KINDS),
        ensure=ensure_tenant,
        clients=senders,
    )
    return run(role, options, api, say=say, stop=stop, progress=progress)


def _assignments(options: ProducerOptions, accesses: Sequence[TenantAccess]) -> list[Assignment]:
    """Distribute the work, so that tenants take turns if not all producers run at once."""
    run = uuid.uuid4().hex
    return [
        Assignment(
            run=run,
            url=options.addresses.at(access.credentials.url),
            tenant_id=access.topology.tenant_id,
            topic=topic,
            kind=kind,
            producer=producer + 1,
            partitions=access.topology.partitions_of(topic),
            batches=options.batches,
            batch_size=options.batch_size,
            interval=options.interval,
            tls=options.tls,
        )
        for producer, (topic, kind), access in itertools.product(
            range(options.producers), KINDS.items(), accesses
        )
    ]
