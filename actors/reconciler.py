"""The reconciler: compares what the journal asks for with what broker and database have.

The reconciler only looks. It reports drift to the supervisor, which passes it to the tenant: only
the tenant's own actor changes its objects, in the order of its mailbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import structlog

from tenantry.actors.messages import Begin, Drifted, FirstLookDone, Intact, Look, Ref, Reminder
from tenantry.actors.ports import ActorPorts
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import SupervisedActor
from tenantry.broker import drift
from tenantry.broker.port import BrokerError
from tenantry.broker.survey import Drift, DriftKind, Survey
from tenantry.broker.topology import topology_of
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.port import JournalError
from tenantry.messages.port import MessageStoreError, Partitions, whose
from tenantry.projections.port import TenantDirectory

log = structlog.get_logger("actors.reconciler")

PAGE: Final = 500

SETTLED: Final = 10.0
"""Seconds that a tenant consumes before the broker is expected to list its consumer."""

AT_ONCE: Final = 50
REPAIRS_PER_SECOND: Final = 50.0
"""How many tenants are told of their drift at once, and how fast the others follow, so that a loss
common to all tenants is repaired without keeping commands waiting for minutes."""

LONGEST_LOOK: Final = 600.0
"""Seconds after which a look counts as stuck: each of its queries is bounded, and repeated."""

_COMPARED: Final = {Lifecycle.ACTIVE, Lifecycle.PAUSED}
"""Tenants in other lifecycles are being created or removed by their actor."""

_PARTITION: Final = "its partition"


class Reconciler(SupervisedActor):
    """Looks at start, and then periodically; in an outage it waits for the next time."""

    def __init__(self, *, parent: Ref, ports: ActorPorts, runtime: RuntimeState) -> None:
        super().__init__(name="reconciler", parent=parent)
        self._ports = ports
        self._runtime = runtime
        self._unknown: frozenset[str] = frozenset()

    def handle(self, message: object) -> None:
        """Look, at first and whenever the clock reminds it."""
        match message:
            case Begin() | Look():
                intact: dict[str, Intact] = {}
                try:
                    found = self._look(intact)
                finally:
                    self.tell_parent(FirstLookDone(intact=intact))
            case Reminder.LOOK_FOR_DRIFT:
                found = self._look()
            case _:
                raise TypeError(f"the reconciler can't handle {type(message).__name__}")
        for number, one in enumerate(found):
            if number < AT_ONCE:
                self.tell_parent(one)
            elif self.parent is not None:
                delay = (number - AT_ONCE) / REPAIRS_PER_SECOND
                self._ports.clock.tell_later(delay, self.parent, one)
        if message == Look():
            return  # an extra look, outside the schedule
        self._ports.clock.tell_later(
            self._ports.reconcile_every, self.actor_ref, Reminder.LOOK_FOR_DRIFT
        )

    def _look(self, intact: dict[str, Intact] | None = None) -> list[Drifted]:
        """Compare everything once; return no drift if a source can't be queried.

        Tenants that miss nothing are added to `intact`.
        """
        ports = self._ports
        began = ports.clock.now()
        self.beat(LONGEST_LOOK)
        try:
            # The states first: objects of tenants created after them are then not compared yet.
            everybody = list(existing_tenants(ports.directory))
            states = [one for one in everybody if ports.ownership.owns(one.tenant_id)]
            administration = ports.provisioner.administration
            survey = administration.survey()
            partitions = ports.provisioner.messages.partitions()
            hashes = ports.provisioner.passwords.all()
            consumers = ports.provisioner.passwords.all(UserKind.CONSUMER)
            found: list[Drifted] = []
            left = dict(drift.owners(survey))
            groups = drift.group_queues(survey)
            for tenant_id in filter(
                names.is_tenant_id, partitions.whole.keys() | partitions.partial
            ):
                left.setdefault(tenant_id, []).append(_PARTITION)
            for other in everybody:
                left.pop(other.tenant_id, None)
            for state in states:
                differences: tuple[Drift, ...] = ()
                if state.lifecycle in _COMPARED:
                    consuming = self._consumes(state, began)
                    known = hashes.get(state.tenant_id)
                    topology = topology_of(state)
                    reads = consumers.get(state.tenant_id)
                    differences = (
                        *drift.differences(
                            topology,
                            known,
                            survey,
                            consuming=consuming,
                            limits=administration.limits_of(topology, state.limits),
                        ),
                        *drift.group_differences(topology, reads, survey, groups),
                        *_partition(state.tenant_id, partitions),
                    )
                    shown = known is not None and (reads is not None or not state.consumer_access)
                    if intact is not None and not differences and shown:
                        _add_if_intact(intact, state, survey, partitions)
                self._show(state.tenant_id, differences)
                if differences:
                    found.append(
                        Drifted(tenant_id=state.tenant_id, drift=differences, seen_at=began)
                    )
            found += self._leftovers(left, began)
        except (BrokerError, MessageStoreError, JournalError) as error:
            log.info("reconciler.waits", error=str(error))
            return []
        took = ports.clock.now() - began
        log.debug("reconciler.looked", tenants=len(states), drifted=len(found), seconds=took)
        return found

    def _show(self, tenant_id: str, found: Iterable[Drift]) -> None:
        """Show a tenant's unrepairable drift in the runtime state; clear it where there is none."""
        runtime = self._runtime.tenants.get(tenant_id)
        if runtime is not None:
            left = [one for one in found if not one.mendable]
            more = f" (and {len(left) - 1} more like it)" if len(left) > 1 else ""
            runtime.unrepaired = f"{left[0].found}{more}: {left[0].remedy}" if left else None

    def _consumes(self, state: TenantState, now: float) -> bool:
        runtime = self._runtime.tenants.get(state.tenant_id)
        return (
            state.lifecycle is Lifecycle.ACTIVE
            and runtime is not None
            and runtime.consuming
            and now - runtime.consuming_since >= SETTLED
        )

    def _leftovers(self, left: Mapping[str, list[str]], began: float) -> Iterator[Drifted]:
        """Yield leftovers to remove: only those of tenants that the journal says are deleted."""
        unknown = set()
        for tenant_id, things in sorted(left.items()):
            if not self._ports.ownership.looks_after(tenant_id):
                continue
            state = self._ports.directory.get(tenant_id)
            if state is None:
                unknown.add(tenant_id)
                if tenant_id not in self._unknown:
                    self._ports.observer.drifted(DriftKind.LEFTOVER.value, "reported")
                    log.warning(
                        "reconciler.unknown_tenant",
                        tenant=tenant_id,
                        found=things,
                        remedy="no tenant of this id was ever created here: remove it by hand",
                    )
            elif not state.exists:
                # The retained partition of a deleted tenant is not a leftover.
                left_over = [one for one in things if not (state.retained and one == _PARTITION)]
                if left_over:
                    found = tuple(
                        Drift(kind=DriftKind.LEFTOVER, found=f"{one} was left") for one in left_over
                    )
                    yield Drifted(tenant_id=tenant_id, drift=found, seen_at=began, leftover=True)
        self._unknown = frozenset(unknown)


def existing_tenants(directory: TenantDirectory) -> Iterator[TenantState]:
    """Yield every existing tenant, by id, a page at a time. Raises `JournalUnavailableError`."""
    after: str | None = None
    while page := directory.page(after=after, limit=PAGE):
        yield from page
        after = page[-1].tenant_id


def _add_if_intact(
    intact: dict[str, Intact], state: TenantState, survey: Survey, partitions: Partitions
) -> None:
    """Add a tenant without drift, unless it is from before users were marked, or partitions."""
    owner, totals = partitions.whole[state.tenant_id]
    if owner == whose(state) and drift.is_marked(state.tenant_id, survey):
        intact[state.tenant_id] = Intact(state=state, totals=totals)


def _partition(tenant_id: str, partitions: Partitions) -> tuple[Drift, ...]:
    if tenant_id in partitions.whole:
        return ()
    table = names.partition_table_name(tenant_id)
    return (Drift(kind=DriftKind.PARTITION, found=f"partition {table} was missing or detached"),)
