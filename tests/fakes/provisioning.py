"""Tenants' objects, passwords and SQL access in memory: what a provisioner makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from tenantry.broker import topology as layout
from tenantry.broker.port import (
    Credentials,
    KeptLimits,
    NotOursError,
    PasswordHash,
    QueueCounts,
    TenantTopology,
)
from tenantry.broker.survey import Survey, User
from tenantry.domain import names
from tenantry.domain.limits import OF_THE_BROKER, Limits
from tenantry.domain.names import UserKind
from tenantry.journal.port import RecordedEvent
from tenantry.messages.sql_access import SqlCredentials
from tenantry.projections.tenants import PasswordChange, password_change
from tests.fakes.faults import Faults


class FakeAdministration:
    """Objects as sets of names."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.topologies: dict[str, TenantTopology] = {}
        self.users: dict[str, PasswordHash] = {}
        self.consumers: dict[str, PasswordHash] = {}
        self.taken: dict[str, bool] = {}
        """Tenants whose users are another's, and whether that one has rights here."""
        self.overtaken: dict[str, bool] = {}
        """Those that another takes once they have their topology."""
        self.ended: list[str] = []
        self.waiting: Counter[str] = Counter()
        self.limits: dict[str, dict[str, object]] = {}
        """What holds tenants to limits, as `limits_of` says it."""
        self.kept = frozenset(OF_THE_BROKER)

    def check_owner(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        if kind is UserKind.PRODUCER and tenant_id in self.taken:
            raise NotOursError(f"user of {tenant_id} is another's", here=self.taken[tenant_id])

    def claim(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        self._faults.reach("claim")
        if kind is UserKind.CONSUMER:
            self.consumers.setdefault(tenant_id, PasswordHash(value=""))
            return
        self.check_owner(tenant_id, known, kind)
        self.users.setdefault(tenant_id, PasswordHash(value=""))

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        self.ended.append(
            names.username(tenant_id, kind) if kind is UserKind.CONSUMER else tenant_id
        )

    def ensure_topology(self, topology: TenantTopology) -> None:
        self._faults.reach("ensure_topology")
        self.topologies[topology.tenant_id] = topology
        self.taken |= self.overtaken

    def remove_topology(self, tenant_id: str) -> int:
        self._faults.reach("remove_topology")
        self.topologies.pop(tenant_id, None)
        self.limits.pop(tenant_id, None)
        return self.waiting.pop(tenant_id, 0)

    def remove_group(self, tenant_id: str) -> None:
        self._faults.reach("remove_group")
        if tenant_id in self.topologies:
            there = self.topologies[tenant_id]
            self.topologies[tenant_id] = replace(there, consumer_access=False)

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        if kind is UserKind.CONSUMER:
            self._faults.reach("ensure_consumer")
            self.consumers[tenant_id] = password
            return
        self._faults.reach("ensure_user")
        self.check_owner(tenant_id)
        self.users[tenant_id] = password

    def remove_user(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        if kind is UserKind.CONSUMER:
            self._faults.reach("remove_consumer")
            self.consumers.pop(tenant_id, None)
            return
        self._faults.reach("remove_user")
        if tenant_id not in self.taken:
            self.users.pop(tenant_id, None)

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        number = len(self._faults.steps)
        credentials = Credentials(
            username=names.username(tenant_id, kind),
            password=f"secret-{number}",
            amqp_url="amqp://",
        )
        return credentials, PasswordHash(value=f"hash-{number}")

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        return {tenant_id: QueueCounts(ready=count) for tenant_id, count in self.waiting.items()}

    @property
    def kept_limits(self) -> KeptLimits:
        return KeptLimits(broker="the fake", names=self.kept)

    def limits_of(self, topology: TenantTopology, limits: Limits) -> dict[str, object]:
        found: dict[str, object] = {}
        if limits.has_backlog:
            found["policy"] = limits.backlog_messages, len(topology.queues())
        if limits.connections is not None:
            found["user"] = limits.connections
            if topology.consumer_access:
                found["consumer"] = limits.connections
        return found

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        self._faults.reach("ensure_limits")
        wanted = self.limits_of(topology, limits)
        self.limits.pop(topology.tenant_id, None)
        if wanted:
            self.limits[topology.tenant_id] = wanted

    def survey(self) -> Survey:
        self._faults.reach("survey")
        plans = [layout.plan(one, "quorum") for one in self.topologies.values()]
        return Survey(
            exchanges={name: "direct" for plan in plans for name in plan.exchanges},
            queues={one.name: one.arguments for plan in plans for one in plan.queues},
            bindings=frozenset(
                (one.exchange, one.queue, one.routing_key)
                for plan in plans
                for one in plan.bindings
            ),
            users={
                names.username(tenant_id, kind): User(
                    password_hash=password.value, permissions=layout.permissions(tenant_id, kind)
                )
                for kind, users in (
                    (UserKind.PRODUCER, self.users),
                    (UserKind.CONSUMER, self.consumers),
                )
                for tenant_id, password in users.items()
            },
            consumed=frozenset(one.name for plan in plans for one in plan.queues),
            copies=True,
            limits={tenant_id: dict(found) for tenant_id, found in self.limits.items()},
        )

    def check(self) -> None:
        pass


class FakePasswords:
    """Hashes in dictionaries."""

    def __init__(self) -> None:
        self.hashes: dict[str, PasswordHash] = {}
        self.pending: dict[str, PasswordHash] = {}
        self.consumers: dict[str, PasswordHash] = {}
        self.pending_consumers: dict[str, PasswordHash] = {}

    def propose(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        self._of(kind)[1][tenant_id] = password

    def confirm(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        hashes, pending = self._of(kind)
        if (password := pending.pop(tenant_id, None)) is not None:
            hashes[tenant_id] = password

    def apply(self, recorded: Sequence[RecordedEvent]) -> None:
        """Confirm and forget in step with the journal, as the database does."""
        for one in recorded:
            match password_change(one):
                case PasswordChange(verb="confirm", kind=kind):
                    self.confirm(one.event.tenant_id, kind)
                case PasswordChange(kind=kind):
                    self._forget(one.event.tenant_id, kind)

    def load(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> PasswordHash | None:
        return self._of(kind)[0].get(tenant_id)

    def remove(self, tenant_id: str) -> None:
        for kind in UserKind:
            self._forget(tenant_id, kind)

    def all(self, kind: UserKind = UserKind.PRODUCER) -> Mapping[str, PasswordHash]:
        return dict(self._of(kind)[0])

    def _forget(self, tenant_id: str, kind: UserKind) -> None:
        for hashes in self._of(kind):
            hashes.pop(tenant_id, None)

    def _of(self, kind: UserKind) -> tuple[dict[str, PasswordHash], dict[str, PasswordHash]]:
        if kind is UserKind.CONSUMER:
            return self.consumers, self.pending_consumers
        return self.hashes, self.pending


class NoSqlAccess:
    """For a store that is no SQL database."""

    def granting(self, tenant_id: str) -> AbstractContextManager[SqlCredentials]:
        raise NotImplementedError(f"tenant {tenant_id!r} can't read this store with SQL")

    def revoke(self, tenant_id: str) -> bool:
        return False
