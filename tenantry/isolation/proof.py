"""Proves with tenants' own credentials what each can reach on the broker, and what it can't.

The attempts are in `rabbitmq.py`, in `sql.py` (the embedded broker) and in `iggy.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final, NamedTuple

from tenantry.broker.port import Credentials, TenantTopology
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain.names import UserKind
from tenantry.isolation import iggy, rabbitmq, sql
from tenantry.isolation.port import Check, IsolationReport
from tenantry.tenant_client.access import ProducerError, Say, TenantAccess
from tenantry.tenant_client.amqp import AmqpClient, TenantClientError
from tenantry.tenant_client.connecting import EVERYWHERE, Addresses, Kind, kind_of
from tenantry.tenant_client.iggy import IggyTenantClient
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
    installation: str = "",
    kind: UserKind = UserKind.PRODUCER,
    tls: Tls = SYSTEMS,
) -> IsolationReport:
    """Try each tenant's credentials on its own objects and on those of all others.

    The credentials are those of the tenant's user of a `kind`. With `management`, the address of
    RabbitMQ's management API, that API is tried as well. Iggy's objects bear the name of the
    `installation`. Says a line for each pair, in order. Threads of its own examine several tenants
    at once and have ended when this returns. Raises `ProducerError` where the broker gives no
    verdict.
    """

    def examine(access: TenantAccess) -> list[Check]:
        others = [one for one in everybody if one.tenant_id != access.topology.tenant_id]
        examined = _Examined(access, others, addresses, kind, tls)
        try:
            match kind_of(access.credentials.url):
                case Kind.SQL:
                    return examined.with_sql()
                case Kind.IGGY:
                    return examined.on_iggy(installation)
                case Kind.AMQP:
                    return examined.on_rabbitmq(management)
        except TenantClientError as error:
            whose = f"tenant {access.topology.tenant_id}'s access"
            raise ProducerError(f"{whose} can't be judged: {error}") from error

    with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="isolation") as pool:
        found = pool.map(examine, accesses)
        checks: list[Check] = []
        for access, mine in zip(accesses, found, strict=True):
            _tell(access.topology, everybody, mine, say)
            checks += mine
    return IsolationReport(checks=tuple(checks))


class _Examined(NamedTuple):
    """A tenant with its credentials, and the tenants whose objects it must not reach."""

    access: TenantAccess
    others: Sequence[TenantTopology]
    addresses: Addresses
    kind: UserKind
    tls: Tls

    def with_sql(self) -> list[Check]:
        mine = self.access.topology
        with closing(SqlClient(self._url(), name=self._name())) as role:
            role.open()
            own = sql.own if self.kind is UserKind.PRODUCER else sql.consuming
            checks = own(role, mine)
            return checks + [one for other in self.others for one in sql.foreign(role, mine, other)]

    def on_rabbitmq(self, management: str | None) -> list[Check]:
        """Try the tenant's user of the kind, and its consuming user, if that is known too."""
        mine = self.access.topology
        checks: list[Check] = []
        for credentials, kind in self._users():
            url = self.addresses.at(credentials.url)
            with closing(AmqpClient(url, name=self._name(), tls=self.tls)) as user:
                user.open()
                own = rabbitmq.own if kind is UserKind.PRODUCER else rabbitmq.reading
                checks += own(user, mine)
                if management is not None:
                    checks += rabbitmq.management(management, credentials, mine, self.tls)
                for other in self.others:
                    checks += rabbitmq.foreign(user, mine, other)
        return checks

    def on_iggy(self, installation: str) -> list[Check]:
        """Try the tenant's user of the kind, and its consuming user, if that is known too."""
        mine = self.access.topology
        checks: list[Check] = []
        for credentials, kind in self._users():
            url = self.addresses.at(credentials.url)
            with closing(IggyTenantClient(url, ca_file=self.tls.ca_file)) as user:
                user.open()
                attempts = iggy.sending if kind is UserKind.PRODUCER else iggy.reading
                checks += attempts(user, mine, self.others, installation)
        return checks

    def _users(self) -> Iterator[tuple[Credentials, UserKind]]:
        yield self.access.credentials, self.kind
        if self.access.reader is not None:
            yield self.access.reader, UserKind.CONSUMER

    def _url(self) -> str:
        return self.addresses.at(self.access.credentials.url)

    def _name(self) -> str:
        return f"isolation of {self.access.topology.tenant_id}"


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
        tried = [one for one in checks if one.owner == other.tenant_id]
        leaks = [one for one in tried if not one.holds]
        if not tried:
            say(f"Not there: stream: {other.exchange}")
        elif not leaks:
            say(f"Ensured no access to stream: {other.exchange}")
        for leak in leaks:
            say(f"LEAK: {leak}")
