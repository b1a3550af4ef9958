"""How a tenant repairs drift: changes that others made to its objects outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from tenantry.actors.ports import ActorPorts
from tenantry.actors.provisioning_steps import ProvisioningSteps
from tenantry.actors.tenant_aggregate import TenantAggregate
from tenantry.broker.port import BrokerError
from tenantry.broker.survey import Drift, DriftKind
from tenantry.broker.topology import topology_of
from tenantry.domain.commands import ConfirmRepaired
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.port import JournalError, Metadata
from tenantry.messages.port import MessageStoreError, whose

log = structlog.get_logger("actors.tenant")

QUIET: Final = 3600.0
"""Seconds in which the same drift is recorded once, so that a script that undoes the repair each
minute does not fill the journal. Drift is logged and counted each time."""

LISTED: Final = 20
"""Most findings named one by one; after the loss of a broker there may be thousands."""

_OBJECTS: Final = {DriftKind.EXCHANGE, DriftKind.QUEUE, DriftKind.BINDING}
_USER: Final = {DriftKind.USER, DriftKind.PASSWORD, DriftKind.PERMISSIONS}


class DriftRepair:
    """Repairs one tenant's drift, and records that; remembers recent records.

    `resubscribe` has the tenant's consumer, if there is one, begin again on a new channel.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        aggregate: TenantAggregate,
        steps: ProvisioningSteps,
        ports: ActorPorts,
        resubscribe: Callable[[], None],
    ) -> None:
        self._id = tenant_id
        self._aggregate = aggregate
        self._steps = steps
        self._provisioner = ports.provisioner
        self._ports = ports
        self._resubscribe = resubscribe
        self._recorded: dict[tuple[str, ...], float] = {}
        self._missing: str | None = None

    def repair(self, drift: Iterable[Drift], *, seen_at: float) -> None:
        """Repair the drift that can be repaired; log and count failures.

        Drift seen before the tenant's own last change is ignored, and so is that of a tenant being
        created or deleted, whose own steps go on.
        """
        state = self._aggregate.state
        if state is None or seen_at < self._steps.changed_at:
            return
        if state.lifecycle in {Lifecycle.PROVISIONING, Lifecycle.DELETING}:
            return
        self._steps.take_time()
        found = tuple(drift)
        provisioner = self._provisioner
        if not state.exists:
            # The journal says that the tenant is deleted; the drift is leftovers of it.
            self._confirm(
                self._try(found, lambda: provisioner.clear(self._id, retain=state.retained))
            )
            return
        repairs: tuple[tuple[set[DriftKind], Callable[[], object]], ...] = (
            (
                {DriftKind.PARTITION},
                lambda: provisioner.messages.create_partition(self._id, whose(state)),
            ),
            (_OBJECTS, lambda: provisioner.administration.ensure_topology(topology_of(state))),
            (_USER, lambda: self._restore_users(state, found)),
            (
                {DriftKind.LIMITS},
                lambda: provisioner.administration.ensure_limits(topology_of(state), state.limits),
            ),
            ({DriftKind.CONSUMER}, self._resubscribe),
            ({DriftKind.LEFTOVER}, lambda: provisioner.withdraw_consumer_access(self._id)),
        )
        repaired: list[Drift] = []
        for kinds, repair in repairs:
            mine = tuple(one for one in found if one.kind in kinds)
            if mine:
                repaired += self._try(mine, repair)
        if repaired:
            # A look that began before this repair may have seen the same drift.
            self._steps.changed_at = self._ports.clock.now()
        self._report(tuple(one for one in found if not one.mendable))
        self._confirm(repaired)

    def _restore_users(self, state: TenantState, found: Iterable[Drift]) -> None:
        """Restore the users, and end all their sessions where a password was changed.

        The tenant's own clients reconnect by themselves.
        """
        self._provisioner.restore_users(state)
        if any(one.kind is DriftKind.PASSWORD for one in found):
            self._provisioner.end_sessions(self._id)
            if state.consumer_access:
                self._provisioner.end_sessions(self._id, UserKind.CONSUMER)

    def missing(self, reason: str) -> None:
        """Note that a queue is missing; `bring_about` creates it again."""
        log.warning("tenant.topology_missing", reason=reason)
        self._missing = reason

    def made_again(self) -> None:
        """Confirm that the missing queue, if any, exists again."""
        reason, self._missing = self._missing, None
        if reason is not None:
            self._confirm((Drift(kind=DriftKind.QUEUE, found=reason),))

    def silent(self, queues: Iterable[str]) -> None:
        """Recreate queues that do not answer, if no message can be in them; else report them.

        RabbitMQ, killed within a second of declaring a quorum queue, may leave it without a
        leader for good. The contents of a queue that does not answer are unknown.
        """
        state = self._aggregate.state
        if state is None or not state.exists:
            return
        self._steps.take_time()
        found = tuple(
            Drift(kind=DriftKind.SILENT, found=f"queue {one} did not answer") for one in queues
        )
        if not self._steps.unused:
            self._report(found)
            return

        def remake() -> None:
            administration = self._provisioner.administration
            administration.remove_topology(self._id)
            administration.ensure_topology(topology_of(state))
            self._resubscribe()

        self._confirm(self._try(found, remake))

    def _try(self, drift: tuple[Drift, ...], repair: Callable[[], object]) -> tuple[Drift, ...]:
        """Repair, and return the repaired drift: all of it, or none where that fails."""
        try:
            repair()
        except (BrokerError, MessageStoreError) as error:
            self._count(drift, "failed")
            log.warning("tenant.drift_remains", found=_listed(drift), error=str(error))
            return ()
        return drift

    def _confirm(self, repaired: Sequence[Drift]) -> None:
        """Count and log repaired drift; record it, unless the same was recorded lately."""
        if not repaired:
            return
        kinds = tuple(sorted({one.kind.value for one in repaired}))
        found = _listed(repaired)
        self._count(repaired, "repaired")
        now = self._ports.clock.now()
        self._recorded = {key: at for key, at in self._recorded.items() if now - at < QUIET}
        again = found in self._recorded
        log.warning("tenant.drift_repaired", kinds=kinds, found=found, again=again)
        if again:
            return
        self._recorded[found] = now
        command = ConfirmRepaired(tenant_id=self._id, kinds=kinds, found=found)
        try:
            self._aggregate.execute(command, Metadata(actor="reconciler"))
        except JournalError as error:
            # Harmless: the repair is done, and was logged.
            log.warning("tenant.repair_unrecorded", error=str(error))

    def _report(self, drift: Sequence[Drift]) -> None:
        """Report drift whose repair would lose messages, or take another owner's user."""
        self._count(drift, "reported")
        for remedy in sorted({one.remedy for one in drift}):
            found = _listed([one for one in drift if one.remedy == remedy])
            log.error("tenant.drift_unrepaired", found=found, remedy=remedy)

    def _count(self, drift: Iterable[Drift], outcome: str) -> None:
        for one in drift:
            self._ports.observer.drifted(one.kind.value, outcome)


def _listed(drift: Sequence[Drift]) -> tuple[str, ...]:
    found = tuple(one.found for one in drift[:LISTED])
    return found if len(drift) <= LISTED else (*found, f"and {len(drift) - LISTED} more")
