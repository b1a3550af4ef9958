"""How a tenant makes right what has changed outside behind its back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from tenantry.actors.clock import Clock
from tenantry.actors.life import Life
from tenantry.actors.observer import Observer
from tenantry.actors.provisioning import Provisioner, topology_of
from tenantry.actors.record import Record
from tenantry.broker.port import BrokerError
from tenantry.broker.survey import Drift, DriftKind
from tenantry.domain.commands import ConfirmRepaired
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.port import JournalError, Metadata
from tenantry.messages.port import MessageStoreError, whose

log = structlog.get_logger("actors.tenant")

QUIET: Final = 3600.0
"""Seconds in which the same drift is recorded once: whoever undoes the repair each minute shall
not fill the journal. It is logged and counted each time."""

LISTED: Final = 20
"""Findings named one by one; of a broker that lost everything there may be thousands."""

_OBJECTS: Final = {DriftKind.EXCHANGE, DriftKind.QUEUE, DriftKind.BINDING}
_USER: Final = {DriftKind.USER, DriftKind.PASSWORD, DriftKind.PERMISSIONS}


class Mender:
    """Repairs one tenant's drift, and records that; remembers what was recorded lately.

    `resubscribe` has the tenant's consumer begin again on a new channel, if there is one.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        record: Record,
        life: Life,
        provisioner: Provisioner,
        clock: Clock,
        observer: Observer,
        resubscribe: Callable[[], None],
    ) -> None:
        self._id = tenant_id
        self._record = record
        self._life = life
        self._provisioner = provisioner
        self._clock = clock
        self._observer = observer
        self._resubscribe = resubscribe
        self._recorded: dict[tuple[str, ...], float] = {}
        self._missing: str | None = None

    def mend(self, drift: Iterable[Drift], *, seen_at: float) -> None:
        """Make right what can be. What fails is logged and counted.

        What was seen before the tenant itself last changed something is let be, as is a tenant
        that is being made or deleted: that goes on by itself.
        """
        state = self._record.state
        if state is None or seen_at < self._life.changed_at:
            return
        if state.lifecycle in {Lifecycle.PROVISIONING, Lifecycle.DRAINING}:
            return
        self._life.take_time()
        found = tuple(drift)
        mended: list[Drift] = []
        if not state.exists:
            # Its own words stand in the journal: it is deleted, and this is what was left.
            self._step(found, mended, lambda: self._remove(state))
            self._confirm(mended)
            return
        kinds = frozenset(one.kind for one in found)
        provisioner = self._provisioner
        topology = topology_of(state)
        for mine, step in (
            (
                {DriftKind.PARTITION},
                lambda: provisioner.messages.create_partition(self._id, whose(state)),
            ),
            (_OBJECTS, lambda: provisioner.administration.ensure_topology(topology)),
            (_USER, lambda: provisioner.restore_user(self._id)),
            ({DriftKind.CONSUMER}, self._resubscribe),
        ):
            if kinds & mine:
                self._step([one for one in found if one.kind in mine], mended, step)
        rest = [one for one in found if not one.mendable]
        if rest:
            self._report(rest)
        self._confirm(mended)

    def missing(self, reason: str) -> None:
        """Note that a queue is not there; whoever brings about the state makes it again."""
        log.warning("tenant.topology_missing", reason=reason)
        self._missing = reason

    def made_again(self) -> None:
        """Confirm that what was missing, if anything, is there again."""
        reason, self._missing = self._missing, None
        if reason is not None:
            self._confirm((Drift(kind=DriftKind.QUEUE, found=reason),))

    def silent(self, queues: Iterable[str]) -> None:
        """Make queues anew that do not answer, if nobody can have used them; else report them.

        RabbitMQ, killed within a second of declaring a quorum queue, may leave it without a
        leader for good. What is in a queue that does not answer nobody can tell.
        """
        state = self._record.state
        if state is None or not state.exists:
            return
        self._life.take_time()
        found = [
            Drift(kind=DriftKind.SILENT, found=f"queue {one} did not answer") for one in queues
        ]
        mended: list[Drift] = []
        if not self._life.unused:
            self._report(found)
            return

        def remake() -> None:
            administration = self._provisioner.administration
            administration.remove_topology(self._id)
            administration.ensure_topology(topology_of(state))
            self._resubscribe()

        self._step(found, mended, remake)
        self._confirm(mended)

    def _confirm(self, mended: Iterable[Drift]) -> None:
        """Count and log what was mended; record it, if it is news."""
        drift = tuple(mended)
        if not drift:
            return
        kinds = tuple(sorted({one.kind.value for one in drift}))
        found = _listed(drift)
        for one in drift:
            self._observer.drifted(one.kind.value, "repaired")
        now = self._clock.now()
        self._recorded = {key: at for key, at in self._recorded.items() if now - at < QUIET}
        again = found in self._recorded
        log.warning("tenant.drift_repaired", kinds=kinds, found=found, again=again)
        if again:
            return
        self._recorded[found] = now
        command = ConfirmRepaired(tenant_id=self._id, kinds=kinds, found=found)
        try:
            self._record.add(command, Metadata(actor="reconciler"))
        except JournalError as error:
            # No matter: it is done, and it was logged.
            log.warning("tenant.repair_unrecorded", error=str(error))

    def _remove(self, state: TenantState) -> None:
        self._provisioner.clear(self._id, retain=state.retained)

    def _step(
        self, drift: Iterable[Drift], mended: list[Drift], step: Callable[[], object]
    ) -> None:
        mine = tuple(drift)
        try:
            step()
        except (BrokerError, MessageStoreError) as error:
            for one in mine:
                self._observer.drifted(one.kind.value, "failed")
            log.warning("tenant.drift_remains", found=_listed(mine), error=str(error))
        else:
            mended.extend(mine)

    def _report(self, drift: Iterable[Drift]) -> None:
        """Tell of what could only be made right by losing messages, or by taking another's."""
        mine = tuple(drift)
        for one in mine:
            self._observer.drifted(one.kind.value, "reported")
        for remedy in sorted({one.remedy for one in mine}):
            found = _listed(tuple(one for one in mine if one.remedy == remedy))
            log.error("tenant.drift_unrepaired", found=found, remedy=remedy)


def _listed(drift: tuple[Drift, ...]) -> tuple[str, ...]:
    found = tuple(one.found for one in drift[:LISTED])
    return found if len(drift) <= LISTED else (*found, f"and {len(drift) - LISTED} more")
