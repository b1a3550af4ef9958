"""The steps by which a tenant's outside objects follow its state, from creation to removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog

from tenantry.actors.ports import ActorPorts
from tenantry.actors.tenant_aggregate import TenantAggregate
from tenantry.broker.port import BrokerError, Credentials, KeptLimits, NotOursError
from tenantry.broker.topology import topology_of
from tenantry.control.port import CommandFailedError
from tenantry.domain.commands import (
    AbandonProvisioning,
    AddTopics,
    ChangeLimits,
    ConfirmDeleted,
    ConfirmProvisioned,
    CreateTenant,
    GrantConsumerAccess,
    GrantSqlAccess,
    InvalidCommandError,
    ParkTenant,
    RevokeConsumerAccess,
    RevokeSqlAccess,
    RotateCredentials,
)
from tenantry.domain.limits import OF_THE_BROKER, SHOWN
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import Lifecycle, TenantState, decide
from tenantry.journal.port import JournalError, Metadata
from tenantry.messages.port import MessageStoreError
from tenantry.messages.sql_access import SqlCredentials
from tenantry.unavailable import UnavailableError

log = structlog.get_logger("actors.tenant")

PROVISIONING_SECONDS: Final = 180.0
"""How long a tenant may be silent while its objects are created or removed: several calls, each
with a timeout of its own."""

QUEUE_SECONDS: Final = 0.2
"""Additional seconds for each of the tenant's queues."""

BY_ITSELF: Final = Metadata(actor="tenant")


class ProvisioningSteps:
    """Creates, keeps and removes a tenant's objects on the broker and in the database.

    Every step may be repeated after a fault. Whether the tenant consumes is not decided here.
    Methods raise `UnavailableError` in an outage, and other errors of the ports; `beat` is called
    with the seconds that the actor may be silent.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        aggregate: TenantAggregate,
        ports: ActorPorts,
        beat: Callable[[float], None],
    ) -> None:
        self._id = tenant_id
        self._aggregate = aggregate
        self._provisioner = ports.provisioner
        self._clock = ports.clock
        self._beat = beat
        self._abandoned: str | None = None
        """Why the provisioning must be undone."""
        self.unused = False
        """Whether no message can have been published: the tenant's password was never shown."""
        self.unfinished = False
        """Whether a command recorded or began a change that could not be finished, or undone,
        outside."""
        self.changed_at = 0.0
        """When the tenant itself last changed something outside, or may have."""

    def take_time(self) -> None:
        """Extend the heartbeat before a step outside, which may take long."""
        state = self._aggregate.state
        queues = 0 if state is None else len(topology_of(state).queues())
        self._beat(PROVISIONING_SECONDS + QUEUE_SECONDS * queues)

    # Steps of a command.

    def create(self, command: CreateTenant, metadata: Metadata) -> Credentials:
        """Create a new tenant. Raises `CommandFailedError` where that fails.

        The tenant does not exist then, unless undoing failed as well: `bring_about` goes on with
        the undoing.
        """
        former = self._aggregate.state
        decide(former, command)  # refused before anything is done
        with self._failing():
            self._provisioner.check_owner(self._id)
        if former is not None:
            # Nothing of the former tenant of this id may reach the new one.
            self.take_time()
            left = " could not be made: what is left of the former one stands in its way"
            with self._failing(left):
                self._provisioner.vacate(former)
        state = self._aggregate.execute(command, metadata)
        try:
            self.take_time()
            credentials = self._provisioner.provision(state)
            self._aggregate.execute(ConfirmProvisioned(tenant_id=self._id), metadata)
        except (BrokerError, MessageStoreError, JournalError) as error:
            log.warning("tenant.provisioning_failed", error=str(error))
            self._abandoned = str(error)
            undone = self._abandon(metadata)
            self.unfinished = not undone
            effect = "what was made is undone" if undone else "what was made will be undone"
            raise CommandFailedError(
                f"tenant {self._id!r} could not be provisioned: {error}; {effect}"
            ) from error
        log.info("tenant.created")
        self.unused = True
        return credentials

    def add_topics(self, command: AddTopics, metadata: Metadata) -> bool:
        """Create queues for the tenant's new topics; return whether there was work."""
        before = self._aggregate.known().topics
        state = self._aggregate.execute(command, metadata)
        if state.topics == before and not self.unfinished:
            return False
        self.take_time()
        with self._unfinished_on_error():
            self._provisioner.administration.ensure_topology(topology_of(state))
            if state.limits.has_backlog:  # of which each queue may have its share
                self._provisioner.restore_limits(state)
        self.unfinished = False
        return True

    def change_limits(self, command: ChangeLimits, metadata: Metadata) -> TenantState:
        """Change the tenant's limits, on the broker first: limits it refuses are not recorded.

        Where recording fails, the former limits are restored as soon as the broker is reachable.
        Raises `InvalidCommandError` for a limit that this broker can't enforce.
        """
        decide(self._aggregate.state, command)  # refused before anything is done
        state = self._aggregate.known()
        limits = state.limits.changed(command.changes)
        administration = self._provisioner.administration
        _refuse_unkept(command, administration.kept_limits)
        if limits.of_the_broker != state.limits.of_the_broker or self.unfinished:
            self.take_time()
            with self._failing(" keeps its limits"), self._unfinished_on_error():
                administration.ensure_limits(topology_of(state), limits)
        with self._unfinished_on_error():
            return self._aggregate.execute(command, metadata)

    def rotate_credentials(
        self, command: RotateCredentials, metadata: Metadata, *, claim: Callable[[], None]
    ) -> Credentials:
        """Give the tenant's user a new password, if the command's sender still waits for it.

        `claim` raises if it does not, before anything is final. Where rotation fails, the user gets
        its former password back as soon as the broker is reachable. Raises `CommandFailedError`
        where the user is not Tenantry's.
        """
        decide(self._aggregate.state, command)  # refused before anything is done
        with self._failing():
            self._provisioner.check_owner(self._id)
        self.unused = False
        self.take_time()
        with self._unfinished_on_error():
            credentials = self._provisioner.propose_credentials(self._id)
            claim()
            self._aggregate.execute(command, metadata)
        self._provisioner.end_sessions(self._id)
        return credentials

    def grant_consumer_access(
        self, command: GrantConsumerAccess, metadata: Metadata, *, claim: Callable[[], None]
    ) -> Credentials:
        """Create the queues of the tenant's consumer group and the user that reads them.

        As in `rotate_credentials`, `claim` raises if the command's sender no longer waits. Where a
        step fails, the former password holds, or nothing is left.
        """
        decide(self._aggregate.state, command)  # refused before anything is done
        state = self._aggregate.known()
        self.take_time()
        with self._failing(), self._unfinished_on_error():
            self._provisioner.claim(self._id, UserKind.CONSUMER)
            self._provisioner.administration.ensure_topology(
                topology_of(replace(state, consumer_access=True))
            )
            credentials = self._provisioner.propose_credentials(self._id, UserKind.CONSUMER)
            if state.limits.of_the_broker:
                self._provisioner.restore_limits(replace(state, consumer_access=True))
            claim()
            self._aggregate.execute(command, metadata)
        self._provisioner.end_sessions(self._id, UserKind.CONSUMER)
        return credentials

    def revoke_consumer_access(self, command: RevokeConsumerAccess, metadata: Metadata) -> None:
        """Remove what `grant_consumer_access` created; once recorded, it is done however late."""
        self._aggregate.execute(command, metadata)
        self.take_time()
        with self._failing(), self._unfinished_on_error():
            self._provisioner.withdraw_consumer_access(self._id)

    def change_sql_access(
        self,
        command: GrantSqlAccess | RevokeSqlAccess,
        metadata: Metadata,
        *,
        claim: Callable[[], None],
    ) -> SqlCredentials | None:
        """Grant SQL access, and return the credentials, or revoke it.

        A new password is valid only once the journal has the event, and only if the sender still
        waits. Raises `CommandFailedError` where the database refuses: most likely the daemon's user
        may not create roles, and nothing is wrong with the tenant.
        """
        decide(self._aggregate.state, command)  # refused before anything is done
        access = self._provisioner.sql_access
        self.take_time()
        with self._failing():
            if isinstance(command, GrantSqlAccess):
                with access.granting(self._id) as granted:
                    claim()
                    self._aggregate.execute(command, metadata)
                return granted
            access.revoke(self._id)
        self._aggregate.execute(command, metadata)
        return None

    @contextmanager
    def _unfinished_on_error(self) -> Iterator[None]:
        """Note, where a step fails, that the outside does not match the state yet."""
        try:
            yield
        except Exception:
            self.unfinished = True
            raise

    @contextmanager
    def _failing(self, what: str = "") -> Iterator[None]:
        """Fail the command where broker or database refuse; pass outages through."""
        try:
            yield
        except UnavailableError:
            raise
        except (BrokerError, MessageStoreError) as error:
            raise CommandFailedError(f"tenant {self._id!r}{what}: {error}") from error

    def park(self, reason: str) -> bool:
        """Record that the tenant is parked; return False where it is being created or deleted."""
        lifecycle = self._aggregate.known().lifecycle
        if lifecycle in {Lifecycle.PROVISIONING, Lifecycle.DELETING}:
            return False
        if lifecycle is Lifecycle.ACTIVE:
            command = ParkTenant(tenant_id=self._id, reason=reason)
            self._aggregate.execute(command, Metadata(actor="supervisor"))
            log.error("tenant.parked", reason=reason)
        return True

    # Steps towards what the state says.

    def bring_about(self) -> TenantState:
        """Bring the outside to what the state says; return the state after that.

        Provisioning is completed or undone, missing objects are created, a deletion goes on.
        """
        state = self._aggregate.known()
        match state.lifecycle:
            case Lifecycle.PROVISIONING if self._abandoned is not None:
                self._abandon_or_wait()
            case Lifecycle.PROVISIONING:
                self._complete(state)
            case Lifecycle.ACTIVE:
                self._restore(state)
            case Lifecycle.PAUSED:
                if state.parked is None or self.unfinished:
                    self._restore(state)
            case Lifecycle.DELETING:
                self._remove(state)
            case Lifecycle.DELETED:
                pass
        return self._aggregate.known()

    def _complete(self, state: TenantState) -> None:
        """Finish a broken-off provisioning; undo it where another owner has the user's name."""
        try:
            self._provisioner.claim(self._id)
        except NotOursError as error:
            self._abandoned = str(error)
            self._abandon_or_wait()
            return
        self._restore(state)
        self._aggregate.execute(ConfirmProvisioned(tenant_id=self._id), BY_ITSELF)
        self.unused = True

    def _restore(self, state: TenantState) -> None:
        self.take_time()
        self._provisioner.restore(state)
        if self.unfinished and not state.limits.of_the_broker:
            self._provisioner.restore_limits(state)  # limits may have been set, and must be lifted
        if self.unfinished and not state.consumer_access:
            self._provisioner.withdraw_consumer_access(self._id)
        self.unfinished = False

    def _remove(self, state: TenantState) -> None:
        self.take_time()
        self.changed_at = self._clock.now()
        removed = self._provisioner.remove(self._id, retain=state.retained)
        self._aggregate.execute(
            ConfirmDeleted(tenant_id=self._id, queued=removed.queued, stored=removed.stored),
            BY_ITSELF,
        )
        log.info("tenant.deleted", queued=removed.queued, stored=removed.stored)

    def _abandon_or_wait(self) -> None:
        if not self._abandon(BY_ITSELF):
            raise UnavailableError("what was half-made can't be undone yet")

    def _abandon(self, metadata: Metadata) -> bool:
        """Undo a failed provisioning and record that; return whether it is done."""
        self.take_time()
        if not self._provisioner.undo(self._id):
            return False
        command = AbandonProvisioning(tenant_id=self._id, reason=self._abandoned or "")
        try:
            self._aggregate.execute(command, metadata)
        except JournalError as error:
            log.warning("tenant.undo_failed", error=str(error))
            return False
        self._abandoned, self.unfinished = None, False
        return True


def _refuse_unkept(command: ChangeLimits, kept: KeptLimits) -> None:
    """Raise `InvalidCommandError` if the command sets a limit that the broker can't enforce."""
    for name in OF_THE_BROKER:
        if command.changes.get(name) is not None and name not in kept.names:
            raise InvalidCommandError(
                SHOWN.get(name, name), f"{kept.broker} can't hold a tenant to such a limit"
            )
