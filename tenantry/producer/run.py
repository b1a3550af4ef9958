"""The multi-tenant producer: prepares tenants, proves their isolation, sends, and counts."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.isolation.port import IsolationReport
from tenantry.isolation.proof import verify_isolation
from tenantry.tenant_client.access import (
    Api,
    ProducerError,
    Say,
    TenantAccess,
    ensure_tenant,
    installation_of,
)
from tenantry.tenant_client.amqp import TenantClientError, TenantMessage
from tenantry.tenant_client.connecting import EVERYWHERE, Addresses, client_for

KINDS: Final = {"events": "event", "logs": "log", "notifications": "notification"}
"""The topics every tenant gets, and what a message of each calls itself."""

AT_ONCE: Final = 128
"""Producers, each with its connection, that run at the same time; more wait their turn."""

ATTEMPTS: Final = 10
FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 5.0
"""Seconds: with ten attempts a batch outlives half a minute without a broker."""

FAILED_BATCHES: Final = 2
"""Batches that fail for good, one after the other, before the rest is given up."""

CLOSED_IDLE: Final = 20.0
"""Intervals from this many seconds on are waited out without a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a producer's messages: confirmed + failed = sent."""

    sent: int
    confirmed: int

    @property
    def failed(self) -> int:
        """Messages that the broker never confirmed."""
        return self.sent - self.confirmed


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
        """`sent` is told how many messages each finished batch had, confirmed or not."""
        self._assignment = assignment
        self._say = say
        self._stop = stop
        self._sent = sent
        name = f"producer {assignment.producer} of {assignment.topic}"
        self._link = client_for(assignment.url, name=name, tls=assignment.tls)

    def run(self) -> Tally:
        """Send everything and count. Never raises for what the broker does."""
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
        """Send one batch, what was not confirmed again and again; give how many were."""
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
        """Publish once; give what was not confirmed, and why."""
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
class ProducerOptions:
    """How much is sent. `producers` counts per tenant and topic; `interval` is in seconds."""

    tenants: int = 3
    producers: int = 3
    partitions: int = 3
    ensure_access: bool = True
    batches: int = 10
    batch_size: int = 10
    interval: float = 0.001
    addresses: Addresses = EVERYWHERE
    tls: Tls = SYSTEMS

    @property
    def messages(self) -> int:
        """How many messages all producers send together."""
        return self.tenants * len(KINDS) * self.producers * self.batches * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceResult:
    """What became of every tenant's messages; `isolation` is None if it was not examined.

    `began` is when sending began, by the monotonic clock.
    """

    tallies: dict[str, Tally]
    began: float
    isolation: IsolationReport | None

    @property
    def total(self) -> Tally:
        """All tenants together."""
        return _sum(tuple(self.tallies.values()))

    @property
    def succeeded(self) -> bool:
        """Whether every message was confirmed and no tenant reaches another's."""
        return not self.total.failed and (self.isolation is None or self.isolation.holds)


def produce(
    options: ProducerOptions,
    api: Api,
    *,
    say: Say,
    progress: Callable[[int], None] = lambda _count: None,
) -> ProduceResult:
    """Run the producer to its end, telling each step through `say`, from one thread at a time.

    `progress` is told the numbers of messages dealt with. Threads of its own send and have ended
    when this returns or raises; interrupted, they stop after the batch at hand.
    Raises `ProducerError` where the tenants can't be prepared.
    """
    say(
        f"--- Multi-tenant producer has started, tenants: {options.tenants}, "
        f"producers: {options.producers}, partitions: {options.partitions} ---"
    )
    say("--- Creating root client to manage streams and users ---")
    status, _ = api.send("GET", "/healthz")
    if status >= 500:
        raise ProducerError(f"the daemon is not healthy (status {status})")
    say("--- Creating streams and users with permissions for each tenant ---")
    accesses = [_prepare(options, api, str(number + 1), say) for number in range(options.tenants)]
    say("--- Creating clients for each tenant ---")
    isolation = None
    if options.ensure_access:
        say("--- Ensuring access to streams for each tenant ---")
        isolation = verify_isolation(
            accesses,
            [access.topology for access in accesses],
            say=say,
            addresses=options.addresses,
            installation=installation_of(api),
            tls=options.tls,
        )
    say(f"--- Starting {options.producers} producer(s) for each tenant ---")
    began = time.monotonic()
    tallies = _send(options, accesses, say, progress)
    for tenant_id, tally in tallies.items():
        say(f"Tenant: {tenant_id}, {_counts(tally)}")
    result = ProduceResult(tallies=tallies, began=began, isolation=isolation)
    say(f"Total: {_counts(result.total)}")
    return result


def _prepare(options: ProducerOptions, api: Api, tenant_id: str, say: Say) -> TenantAccess:
    access = ensure_tenant(
        api, tenant_id, topics=tuple(KINDS), partitions=options.partitions, say=say
    )
    exchange, user = names.exchange_name(tenant_id), names.username(tenant_id)
    if access.created:
        say(f"Created stream: {exchange} with ID: {tenant_id}")
        say(f"Created user: {user} with ID: {tenant_id}, with permissions for stream: {exchange}")
    else:
        say(f"Found stream: {exchange} with ID: {tenant_id}")
        say(f"Found user: {user} with ID: {tenant_id}, with permissions for stream: {exchange}")
    return access


def _send(
    options: ProducerOptions,
    accesses: Sequence[TenantAccess],
    say: Say,
    progress: Callable[[int], None],
) -> dict[str, Tally]:
    stop = threading.Event()
    lock = threading.Lock()

    def tell(line: str) -> None:
        with lock:
            say(line)

    def count(messages: int) -> None:
        with lock:
            progress(messages)

    try:
        todo = _assignments(options, accesses)
    except TenantClientError as error:
        raise ProducerError(str(error)) from error
    results: dict[str, list[Tally]] = {access.topology.tenant_id: [] for access in accesses}
    with ThreadPoolExecutor(
        max_workers=min(AT_ONCE, len(todo)), thread_name_prefix="producer"
    ) as pool:
        running: dict[Future[Tally], str] = {
            pool.submit(Sender(one, say=tell, stop=stop, sent=count).run): one.tenant_id
            for one in todo
        }
        try:
            for done in as_completed(running):
                results[running[done]].append(done.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {tenant_id: _sum(tallies) for tenant_id, tallies in results.items()}


def _assignments(options: ProducerOptions, accesses: Sequence[TenantAccess]) -> list[Assignment]:
    """Deal out the work, so that tenants take turns where not all producers run at once."""
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


def _sum(tallies: Sequence[Tally]) -> Tally:
    return Tally(
        sent=sum(one.sent for one in tallies), confirmed=sum(one.confirmed for one in tallies)
    )


def _counts(tally: Tally) -> str:
    return f"sent: {tally.sent}, confirmed: {tally.confirmed}, failed: {tally.failed}"
