"""Proves with tenants' own credentials what each can reach on the broker, and what it can't.

What is tried is in `rabbitmq.py` and in `sql.py` (the embedded broker).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

from tenantry.broker.port import TenantTopology
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.isolation import rabbitmq, sql
from tenantry.isolation.port import Check, IsolationReport
from tenantry.tenant_client.access import ProducerError, Say, TenantAccess
from tenantry.tenant_client.amqp import AmqpClient, TenantClientError
from tenantry.tenant_client.connecting import EVERYWHERE, IGGY, Addresses, kind_of
from tenantry.tenant_client.sql import SqlClient

AT_ONCE: Final = 8
"""Tenants examined at the same time."""


def verify_isolation(
    accesses: Sequence[TenantAccess],
    everybody: Sequence[TenantTopology],
    *,
    say: Say,
    addresses: Addresses = EVERYWHERE,
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
            lambda access: _examine(access, everybody, addresses, management, tls), accesses
        )
        checks: list[Check] = []
        for access, mine in zip(accesses, found, strict=True):
            _tell(access.topology, everybody, mine, say)
            checks += mine
    return IsolationReport(checks=tuple(checks))


def _examine(
    access: TenantAccess,
    everybody: Sequence[TenantTopology],
    addresses: Addresses,
    management: str | None,
    tls: Tls,
) -> list[Check]:
    mine = access.topology
    if kind_of(access.credentials.url) == IGGY:
        raise ProducerError("isolation is not proven on Iggy yet")
    others = [one for one in everybody if one.tenant_id != mine.tenant_id]
    name = f"isolation of {mine.tenant_id}"
    try:
        url = addresses.at(access.credentials.url)
        if access.credentials.postgres_url:
            with closing(SqlClient(url, name=name)) as role:
                role.open()
                checks = sql.own(role, mine)
                return checks + [one for other in others for one in sql.foreign(role, mine, other)]
        with closing(AmqpClient(url, name=name, tls=tls)) as user:
            user.open()
            checks = rabbitmq.own(user, mine)
            if management is not None:
                checks += rabbitmq.management(management, access.credentials, mine, tls)
            return checks + [one for other in others for one in rabbitmq.foreign(user, mine, other)]
    except TenantClientError as error:
        raise ProducerError(f"tenant {mine.tenant_id}'s access can't be judged: {error}") from error


def _tell(
    mine: TenantTopology, everybody: Sequence[TenantTopology], checks: Sequence[Check], say: Say
) -> None:
    own = [one for one in checks if one.owner == mine.tenant_id]
    if all(one.holds for one in own):
        say(f"Ensured access to stream: {mine.exchange}")
    for one in own:
        if not one.holds:
            say(f"LEAK: {one}" if one.allowed else f"NO ACCESS: {one}")
    for other in everybody:
        if other.tenant_id == mine.tenant_id:
            continue
        leaks = [one for one in checks if one.owner == other.tenant_id and not one.holds]
        if not leaks:
            say(f"Ensured no access to stream: {other.exchange}")
        for leak in leaks:
            say(f"LEAK: {leak}")
