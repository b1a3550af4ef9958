"""Many tenants' clients at once: prepared, proven to be isolated, run side by side, and counted."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import reduce
from typing import Final, Generic, Protocol, Self, TypeVar

from tenantry.broker.port import Credentials
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
    installation_of,
    with_credentials,
)
from tenantry.tenant_client.amqp import TenantClientError
from tenantry.tenant_client.connecting import EVERYWHERE, Addresses

AT_ONCE: Final = 128
"""Clients, each with its connection, that run at the same time; more wait their turn."""

ATTEMPTS: Final = 10
FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 5.0
"""Seconds: with ten attempts a client survives half a minute without a broker."""

Progress = Callable[[int], None]
"""Is called with the number of messages just dealt with."""


class Tally(Protocol):
    """The outcome of a client's messages. Tallies can be added."""

    @property
    def failed(self) -> int:
        """The number of failures."""

    @property
    def counts(self) -> Mapping[str, int]:
        """All counts, by name."""

    def __add__(self, other: Self) -> Self: ...


T = TypeVar("T", bound=Tally)
T_co = TypeVar("T_co", bound=Tally, covariant=True)


class Client(Protocol[T_co]):
    """Works as one tenant."""

    @property
    def tenant_id(self) -> str:
        """The tenant."""

    def run(self) -> T_co:
        """Do all its work, on a thread of its own, and count. Never raises a broker's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How much is run, and where. `partitions` applies to topics that are created.

    With `credentials`, by tenant, these users are used as they are; else the tenants are `1`, ...
    """

    tenants: int = 3
    credentials: Mapping[str, Credentials] | None = None
    partitions: int = 3
    ensure_access: bool = True
    batch_size: int = 10
    addresses: Addresses = EVERYWHERE
    tls: Tls = SYSTEMS

    @property
    def tenant_ids(self) -> Sequence[str]:
        """The tenants whose clients are run."""
        if self.credentials is not None:
            return tuple(self.credentials)
        return tuple(str(number + 1) for number in range(self.tenants))


@dataclass(frozen=True, slots=True, kw_only=True)
class Role(Generic[T]):
    """The clients' role: its name, how many clients a tenant and topic, their kind of user.

    `ensure` creates a tenant with these topics where missing, and returns access to it. `clients`
    makes the clients of all tenants, and passes them the functions for their steps and progress.
    Both may raise what `run` raises.
    """

    name: str
    each: int
    user: UserKind
    topics: tuple[str, ...]
    ensure: Callable[..., TenantAccess]
    clients: Callable[[Sequence[TenantAccess], Say, Progress], Sequence[Client[T]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(Generic[T]):
    """The outcome of every tenant's messages; `isolation` is None if it was not examined.

    `began` is when the clients started, by the monotonic clock.
    """

    tallies: Mapping[str, T]
    began: float
    isolation: IsolationReport | None

    @property
    def total(self) -> T:
        """All tenants together."""
        return reduce(operator.add, self.tallies.values())

    @property
    def succeeded(self) -> bool:
        """Whether nothing failed and the proof of isolation, if any, holds."""
        return not self.total.failed and (self.isolation is None or self.isolation.holds)


def run(
    role: Role[T],
    options: RunOptions,
    api: Api,
    *,
    say: Say,
    stop: threading.Event,
    progress: Progress,
) -> RunResult[T]:
    """Run a role's clients to their end, telling each step through `say`, a thread at a time.

    Clients must heed `stop`; it is set where this raises. Threads of its own run the clients, and
    have ended when this returns or raises. Raises `ProducerError` where tenants can't be prepared.
    """
    say(
        f"--- Multi-tenant {role.name} has started, tenants: {len(options.tenant_ids)}, "
        f"{role.name}s: {role.each}, partitions: {options.partitions} ---"
    )
    say("--- Creating root client to manage streams and users ---")
    status, _ = api.send("GET", "/healthz")
    if status >= 500:
        raise ProducerError(f"the daemon is not healthy (status {status})")
    say("--- Creating streams and users with permissions for each tenant ---")
    accesses = [_prepare(role, options, api, tenant_id, say) for tenant_id in options.tenant_ids]
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
            kind=role.user,
            tls=options.tls,
        )
    say(f"--- Starting {role.each} {role.name}(s) for each tenant ---")
    began = time.monotonic()
    tallies = _run_all(role, accesses, say, stop, progress)
    for tenant_id, tally in tallies.items():
        say(f"Tenant: {tenant_id}, {_told(tally)}")
    result = RunResult(tallies=tallies, began=began, isolation=isolation)
    say(f"Total: {_told(result.total)}")
    return result


def _prepare(
    role: Role[T], options: RunOptions, api: Api, tenant_id: str, say: Say
) -> TenantAccess:
    """Ensure a tenant, and report whether its stream and its user were created or found."""
    if options.credentials is None:
        access = role.ensure(
            api, tenant_id, topics=role.topics, partitions=options.partitions, say=say
        )
    else:
        given = options.credentials[tenant_id]
        access = with_credentials(api, tenant_id, given, topics=role.topics, kind=role.user)
    made = access.created if role.user is UserKind.PRODUCER else access.granted
    exchange, user = names.exchange_name(tenant_id), names.username(tenant_id, role.user)
    stream, whom = ("Created" if new else "Found" for new in (access.created, made))
    say(f"{stream} stream: {exchange} with ID: {tenant_id}")
    say(f"{whom} user: {user} with ID: {tenant_id}, with permissions for stream: {exchange}")
    return access


def _run_all(
    role: Role[T],
    accesses: Sequence[TenantAccess],
    say: Say,
    stop: threading.Event,
    progress: Progress,
) -> dict[str, T]:
    lock = threading.Lock()

    def tell(line: str) -> None:
        with lock:
            say(line)

    def count(messages: int) -> None:
        with lock:
            progress(messages)

    try:
        clients = role.clients(accesses, tell, count)
    except TenantClientError as error:
        raise ProducerError(str(error)) from error
    tallies: dict[str, list[T]] = {access.topology.tenant_id: [] for access in accesses}
    with ThreadPoolExecutor(
        max_workers=min(AT_ONCE, len(clients)), thread_name_prefix=role.name
    ) as pool:
        running: dict[Future[T], str] = {pool.submit(one.run): one.tenant_id for one in clients}
        try:
            for done in as_completed(running):
                tallies[running[done]].append(done.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {tenant_id: reduce(operator.add, those) for tenant_id, those in tallies.items()}


def _told(tally: Tally) -> str:
    return ", ".join(f"{name}: {count}" for name, count in tally.counts.items())
