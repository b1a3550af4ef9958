"""Proves with tenants' own credentials what each can reach on the broker, and what it can't.

Every attempt is one that changes nothing if it succeeds: messages are published with a key that no
queue is bound by, and a consumer is closed before it keeps anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

from tenantry.domain import names
from tenantry.producer import isolation_sql
from tenantry.producer.access import ProducerError, Say, TenantAccess, TenantNames
from tenantry.producer.link import Link, LinkError, Verdict, at_address
from tenantry.producer.sql_link import SqlLink

AT_ONCE: Final = 8
"""Tenants examined at the same time."""

UNBOUND: Final = "isolation-probe.nowhere"
"""A routing key that no queue can be bound by: a partition's ends in a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One attempt: `tenant_id` tried to `action` what belongs to `owner`."""

    tenant_id: str
    owner: str
    action: Literal["write", "read"]
    target: str
    allowed: bool

    @property
    def holds(self) -> bool:
        """Whether it went as it should: one's own is open, another's is shut."""
        return self.allowed == (self.tenant_id == self.owner)

    def __str__(self) -> str:
        verb = "to write to" if self.action == "write" else "to read from"
        if self.tenant_id == self.owner:
            return f"tenant {self.tenant_id} is refused {verb} its own {self.target}"
        return f"tenant {self.tenant_id} is allowed {verb} {self.target} of tenant {self.owner}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationReport:
    """Every attempt that was made."""

    checks: tuple[Check, ...]

    @property
    def leaks(self) -> tuple[Check, ...]:
        """Attempts on another tenant's objects that succeeded."""
        return tuple(one for one in self.checks if not one.holds and one.tenant_id != one.owner)

    @property
    def denials(self) -> tuple[Check, ...]:
        """Attempts on a tenant's own objects that were refused."""
        return tuple(one for one in self.checks if not one.holds and one.tenant_id == one.owner)

    @property
    def holds(self) -> bool:
        """Whether every tenant reaches its own and nothing else."""
        return all(one.holds for one in self.checks)


def verify_isolation(
    accesses: Sequence[TenantAccess],
    everybody: Sequence[TenantNames],
    *,
    say: Say,
    amqp_address: str | None = None,
) -> IsolationReport:
    """Try each tenant's credentials on its own objects and on those of all others.

    Says a line for each pair, in order. Threads of its own examine several tenants at once and
    have ended when this returns. Raises `ProducerError` where the broker gives no verdict.
    """
    with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="isolation") as pool:
        found = pool.map(lambda access: _examine(access, everybody, amqp_address), accesses)
        checks: list[Check] = []
        for access, mine in zip(accesses, found, strict=True):
            _tell(access.names, everybody, mine, say)
            checks += mine
    return IsolationReport(checks=tuple(checks))


def _examine(
    access: TenantAccess, everybody: Sequence[TenantNames], amqp_address: str | None
) -> list[Check]:
    tenant_id = access.names.tenant_id
    try:
        url = at_address(access.credentials.url, amqp_address)
        if access.credentials.postgres_url:
            return _examine_sql(url, access.names, everybody)
    except LinkError as error:
        raise ProducerError(f"tenant {tenant_id}'s access can't be judged: {error}") from error
    link = Link(url, name=f"isolation of {tenant_id}")
    try:
        link.open()
        checks = _own(link, access.names)
        for other in everybody:
            if other.tenant_id != tenant_id:
                checks += _foreign(link, access.names, other)
    except LinkError as error:
        raise ProducerError(f"tenant {tenant_id}'s access can't be judged: {error}") from error
    finally:
        link.close()
    return checks


def _examine_sql(url: str, mine: TenantNames, everybody: Sequence[TenantNames]) -> list[Check]:
    checks: list[Check] = []

    def note(owner: TenantNames) -> isolation_sql.Told:
        def tell(action: Literal["write", "read"], target: str, verdict: Verdict) -> None:
            make = _write if action == "write" else _read
            checks.append(make(mine, owner, target, verdict))

        return tell

    link = SqlLink(url, name=f"isolation of {mine.tenant_id}")
    link.open()
    try:
        isolation_sql.own(link, mine, note(mine))
        for other in everybody:
            if other.tenant_id != mine.tenant_id:
                isolation_sql.foreign(link, other, note(other))
    finally:
        link.close()
    return checks


def _own(link: Link, mine: TenantNames) -> list[Check]:
    return [
        _write(mine, mine, mine.stream, link.try_to_publish(mine.stream, UNBOUND)),
        _read(mine, mine, mine.queues[0], link.try_to_consume(mine.queues[0])),
    ]


def _foreign(link: Link, mine: TenantNames, other: TenantNames) -> list[Check]:
    # The right to publish is one on the exchange, whatever the key: a key of no queue proves as
    # much, and leaves nothing in a neighbour's queue if it is allowed.
    through_default = f"{other.queues[0]} (through the default exchange)"
    exchange = names.DEAD_LETTER_EXCHANGE
    dead_letters = names.dead_letter_queue_name(other.tenant_id)
    return [
        _write(mine, other, other.stream, link.try_to_publish(other.stream, UNBOUND)),
        _write(mine, other, through_default, link.try_to_publish("", UNBOUND)),
        _write(mine, other, exchange, link.try_to_publish(exchange, UNBOUND)),
        *(
            _read(mine, other, queue, link.try_to_consume(queue))
            for queue in (*other.queues, dead_letters)
        ),
    ]


def _write(mine: TenantNames, owner: TenantNames, target: str, verdict: Verdict) -> Check:
    return Check(
        tenant_id=mine.tenant_id,
        owner=owner.tenant_id,
        action="write",
        target=target,
        allowed=verdict is Verdict.ALLOWED,
    )


def _read(mine: TenantNames, owner: TenantNames, target: str, verdict: Verdict) -> Check:
    return Check(
        tenant_id=mine.tenant_id,
        owner=owner.tenant_id,
        action="read",
        target=target,
        allowed=verdict is Verdict.ALLOWED,
    )


def _tell(
    mine: TenantNames, everybody: Sequence[TenantNames], checks: Sequence[Check], say: Say
) -> None:
    own = [one for one in checks if one.owner == mine.tenant_id]
    if all(one.holds for one in own):
        say(f"Ensured access to stream: {mine.stream}")
    for one in own:
        if not one.holds:
            say(f"NO ACCESS: {one}")
    for other in everybody:
        if other.tenant_id == mine.tenant_id:
            continue
        leaks = [one for one in checks if one.owner == other.tenant_id and not one.holds]
        if not leaks:
            say(f"Ensured no access to stream: {other.stream}")
        for leak in leaks:
            say(f"LEAK: {leak}")
