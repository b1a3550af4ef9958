"""Proves with tenants' own credentials what each can reach on the broker, and what it can't.

What is tried is in `isolation_amqp` and `isolation_management` (RabbitMQ) and in `isolation_sql`
(the embedded broker).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.isolation import amqp as isolation_amqp
from tenantry.isolation import management as isolation_management
from tenantry.isolation import sql as isolation_sql
from tenantry.isolation.checks import Check, IsolationReport, Notes
from tenantry.tenant_client.access import ProducerError, Say, TenantAccess, TenantNames
from tenantry.tenant_client.amqp import AmqpClient, TenantClientError, at_address
from tenantry.tenant_client.sql import SqlClient

AT_ONCE: Final = 8
"""Tenants examined at the same time."""


def verify_isolation(
    accesses: Sequence[TenantAccess],
    everybody: Sequence[TenantNames],
    *,
    say: Say,
    amqp_address: str | None = None,
    management: str | None = None,
    tls: Tls = SYSTEMS,
) -> IsolationReport:
    """Try each tenant's credentials on its own objects and on those of all others.

    With `management`, the address of RabbitMQ's management API, that is tried as well. Says a line
    for each pair, in order. Threads of its own examine several tenants at once and
    have ended when this returns. Raises `ProducerError` where the broker gives no verdict.
    """
    with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="isolation") as pool:
        found = pool.map(
            lambda access: _examine(access, everybody, amqp_address, management, tls), accesses
        )
        checks: list[Check] = []
        for access, mine in zip(accesses, found, strict=True):
            _tell(access.names, everybody, mine, say)
            checks += mine
    return IsolationReport(checks=tuple(checks))


def _examine(
    access: TenantAccess,
    everybody: Sequence[TenantNames],
    amqp_address: str | None,
    management: str | None,
    tls: Tls,
) -> list[Check]:
    tenant_id = access.names.tenant_id
    try:
        url = at_address(access.credentials.url, amqp_address)
        if access.credentials.postgres_url:
            return _examine_sql(url, access.names, everybody)
    except TenantClientError as error:
        raise ProducerError(f"tenant {tenant_id}'s access can't be judged: {error}") from error
    link = AmqpClient(url, name=f"isolation of {tenant_id}", tls=tls)
    try:
        link.open()
        checks = isolation_amqp.own(link, access.names)
        if management is not None:
            checks += isolation_management.own(management, access.credentials, access.names, tls)
        for other in everybody:
            if other.tenant_id != tenant_id:
                checks += isolation_amqp.foreign(link, access.names, other)
    except TenantClientError as error:
        raise ProducerError(f"tenant {tenant_id}'s access can't be judged: {error}") from error
    finally:
        link.close()
    return checks


def _examine_sql(url: str, mine: TenantNames, everybody: Sequence[TenantNames]) -> list[Check]:
    checks: list[Check] = []
    link = SqlClient(url, name=f"isolation of {mine.tenant_id}")
    link.open()
    try:
        notes = Notes(mine, mine)
        isolation_sql.own(link, mine, notes.note)
        checks += notes.checks
        for other in everybody:
            if other.tenant_id != mine.tenant_id:
                notes = Notes(mine, other)
                isolation_sql.foreign(link, other, notes.note)
                checks += notes.checks
    finally:
        link.close()
    return checks


def _tell(
    mine: TenantNames, everybody: Sequence[TenantNames], checks: Sequence[Check], say: Say
) -> None:
    own = [one for one in checks if one.owner == mine.tenant_id]
    if all(one.holds for one in own):
        say(f"Ensured access to stream: {mine.stream}")
    for one in own:
        if not one.holds:
            say(f"LEAK: {one}" if one.allowed else f"NO ACCESS: {one}")
    for other in everybody:
        if other.tenant_id == mine.tenant_id:
            continue
        leaks = [one for one in checks if one.owner == other.tenant_id and not one.holds]
        if not leaks:
            say(f"Ensured no access to stream: {other.stream}")
        for leak in leaks:
            say(f"LEAK: {leak}")
