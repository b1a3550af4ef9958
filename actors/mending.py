"""How a tenant makes right what has changed outside behind its back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from actors.clock import Clock
from actors.observer import Observer
from actors.provisioning import Provisioner, topology_of
from tenantry.broker.port import BrokerError
from tenantry.broker.survey import Drift, DriftKind
from tenantry.domain.commands import ConfirmRepaired
from tenantry.domain.tenant import TenantState
from tenantry.messages.port import MessageStoreError

log = structlog.get_logger("actors.tenant")

QUIET: Final = 3600.0
"""Seconds in which the same drift is recorded once: whoever undoes the repair each minute shall
not fill the journal. It is logged and counted each time."""

LISTED: Final = 20
"""Findings named one by one; of a broker that lost everything there may be thousands."""

_OBJECTS: Final = {DriftKind.EXCHANGE, DriftKind.QUEUE, DriftKind.BINDING}
_USER: Final = {DriftKind.USER, DriftKind.PASSWORD, DriftKind.PERMISSIONS}


class Mender:
    """Repairs one tenant's drift; remembers what was recorded lately."""

    def __init__(
        self, *, tenant_id: str, provisioner: Provisioner, clock: Clock, observer: Observer
    ) -> None:
        self._id = tenant_id
        self._provisioner = provisioner
        self._clock = clock
        self._observer = observer
        self._recorded: dict[tuple[str, ...], float] = {}

    def mend(
        self, state: TenantState, drift: Iterable[Drift], *, resubscribe: Callable[[], None]
    ) -> tuple[Drift, ...]:
        """Make right what can be; give what was mended. What fails is logged and counted."""
        found = tuple(drift)
        mended: list[Drift] = []
        if not state.exists:
            # Its own words stand in the journal: it is deleted, and this is what was left.
            self._step(found, mended, lambda: self._remove(state))
            return tuple(mended)
        kinds = frozenset(one.kind for one in found)
        provisioner = self._provisioner
        topology = topology_of(state)
        for mine, step in (
            ({DriftKind.PARTITION}, lambda: provisioner.messages.create_partition(self._id)),
            (_OBJECTS, lambda: provisioner.administration.ensure_topology(topology)),
            (_USER, lambda: provisioner.restore_user(self._id)),
            ({DriftKind.CONSUMER}, resubscribe),
        ):
            if kinds & mine:
                self._step([one for one in found if one.kind in mine], mended, step)
        rest = [one for one in found if not one.mendable]
        if rest:
            self._report(rest)
        return tuple(mended)

    def silent(
        self,
        state: TenantState,
        queues: tuple[str, ...],
        *,
        unused: bool,
        resubscribe: Callable[[], None],
    ) -> tuple[Drift, ...]:
        """Make queues anew that do not answer, if the tenant is `unused`; report them otherwise.

        RabbitMQ, killed within a second of declaring a quorum queue, may leave it without a
        leader for good. What is in a queue that does not answer nobody can tell.
        """
        found = [
            Drift(kind=DriftKind.SILENT, found=f"queue {one} did not answer") for one in queues
        ]
        mended: list[Drift] = []
        if not unused:
            self._report(found)
            return ()

        def remake() -> None:
            administration = self._provisioner.administration
            administration.remove_topology(self._id)
            administration.ensure_topology(topology_of(state))
            resubscribe()

        self._step(found, mended, remake)
        return tuple(mended)

    def confirmation(self, mended: Iterable[Drift]) -> ConfirmRepaired | None:
        """Count and log what was mended; give the command that records it, if it is news."""
        drift = tuple(mended)
        if not drift:
            return None
        kinds = tuple(sorted({one.kind.value for one in drift}))
        found = _listed(drift)
        for one in drift:
            self._observer.drifted(one.kind.value, "repaired")
        now = self._clock.now()
        self._recorded = {key: at for key, at in self._recorded.items() if now - at < QUIET}
        again = found in self._recorded
        log.warning("tenant.drift_repaired", kinds=kinds, found=found, again=again)
        if again:
            return None
        self._recorded[found] = now
        return ConfirmRepaired(tenant_id=self._id, kinds=kinds, found=found)

    def _remove(self, state: TenantState) -> None:
        self._provisioner.remove(self._id, retain=state.retained)

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
        """Tell of what could only be made right by losing messages."""
        mine = tuple(drift)
        for one in mine:
            self._observer.drifted(one.kind.value, "reported")
        log.error(
            "tenant.drift_unrepaired",
            found=_listed(mine),
            remedy="take out what is in it, and delete it: it is made again as it should be",
        )


def _listed(drift: tuple[Drift, ...]) -> tuple[str, ...]:
    found = tuple(one.found for one in drift[:LISTED])
    return found if len(drift) <= LISTED else (*found, f"and {len(drift) - LISTED} more")
