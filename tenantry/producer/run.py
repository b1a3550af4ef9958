"""The multi-tenant producer: prepares tenants, proves their isolation, sends, and counts."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.isolation.checks import IsolationReport
from tenantry.isolation.proof import verify_isolation
from tenantry.producer.sender import Assignment, Sender, Tally
from tenantry.tenant_client.access import Api, ProducerError, Say, TenantAccess, ensure_tenant
from tenantry.tenant_client.amqp import TenantClientError, at_address

KINDS: Final = {"events": "event", "logs": "log", "notifications": "notification"}
"""The topics every tenant gets, and what a message of each calls itself."""

AT_ONCE: Final = 128
"""Producers, each with its connection, that run at the same time; more wait their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerOptions:
    """How much is sent by whom. `producers` counts per tenant and topic; `interval` is seconds."""

    tenants: int = 3
    producers: int = 3
    partitions: int = 3
    ensure_access: bool = True
    batches: int = 10
    batch_size: int = 10
    interval: float = 0.001
    amqp_address: str | None = None
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
            [access.names for access in accesses],
            say=say,
            amqp_address=options.amqp_address,
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
    stream, user = names.stream_name(tenant_id), names.username(tenant_id)
    if access.created:
        say(f"Created stream: {stream} with ID: {tenant_id}")
        say(f"Created user: {user} with ID: {tenant_id}, with permissions for stream: {stream}")
    else:
        say(f"Found stream: {stream} with ID: {tenant_id}")
        say(f"Found user: {user} with ID: {tenant_id}, with permissions for stream: {stream}")
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
    results: dict[str, list[Tally]] = {access.names.tenant_id: [] for access in accesses}
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
            url=at_address(access.credentials.url, options.amqp_address),
            tenant_id=access.names.tenant_id,
            topic=topic,
            kind=kind,
            producer=producer + 1,
            partitions=access.names.partitions,
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
