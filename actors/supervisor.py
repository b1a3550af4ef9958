"""The supervisor: one tenant actor for each tenant, watched, restarted, parked, drained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final

import structlog

from tenantry.actors.autoscaling import LOOK_SECONDS, Autoscaling
from tenantry.actors.backoff import LONGEST_OUTAGE_BACKOFF, Restarts, backoff
from tenantry.actors.messages import (
    Acquired,
    Begin,
    ChildFailed,
    Drain,
    DrainAll,
    Drained,
    DrainExpired,
    Drifted,
    Execute,
    FirstLookDone,
    Intact,
    Leave,
    Look,
    Orphan,
    Parked,
    Ref,
    Release,
    ReleaseExpired,
    Reminder,
    RestartChild,
    TenantGone,
)
from tenantry.actors.ports import ActorPorts
from tenantry.actors.reconciler import Reconciler, existing_tenants
from tenantry.actors.runtime_state import RuntimeState, TenantRuntimeState
from tenantry.actors.supervision import NoThreadError, SpareThreads, SupervisedActor, refuse, tell
from tenantry.actors.tenant import Tenant
from tenantry.control.port import ControlUnavailableError, ElsewhereError, SystemState
from tenantry.domain import names
from tenantry.domain.commands import CreateTenant, InvalidCommandError, TenantNotFoundError
from tenantry.journal.port import Metadata
from tenantry.unavailable import UnavailableError

log = structlog.get_logger("actors.supervisor")

RELEASE_SECONDS: Final = 10.0
"""Seconds a tenant may take to finish its deliveries before its hand-over to another node."""

AUTOSCALER: Final = Metadata(actor="autoscaler")

LONGEST_WAIT_FOR_THREADS: Final = 30.0
"""Seconds between attempts to start a tenant when no more threads can be started."""

STOP_TIMEOUT: Final = 3.0
"""Seconds that all tenants together have to stop, once they are drained."""


class Supervisor(SupervisedActor):
    """The root of the tree. It never waits for a tenant, so a slow tenant delays no other."""

    def __init__(
        self, *, ports: ActorPorts, runtime: RuntimeState, on_crash: Callable[[str], None]
    ) -> None:
        super().__init__(name="supervisor", parent=None)
        self._ports = ports
        self._clock = ports.clock
        self._runtime = runtime
        self._on_crash = on_crash
        self._tenants: dict[str, Ref] = {}
        self._restarts = Restarts()
        self._restarting: dict[str, str | None] = {}
        self._failures = 0
        self._spare_threads = SpareThreads()
        self._without_thread: Counter[str] = Counter()
        """By tenant, the failed attempts in a row to start it for want of threads."""
        self._drain: DrainAll | None = None
        self._undrained: set[str] = set()
        self._leaving: set[str] = set()
        self._unseen: set[str] = set()
        self._autoscaling = Autoscaling()

    def handle(self, message: object) -> None:
        """Handle a command, or a message from a child or the clock."""
        match message:
            case Execute():
                self._route(message)
            case TenantGone(tenant_id=tenant_id, ref=ref):
                self._let_go(tenant_id, ref)
            case ChildFailed(child=child, error=error, stuck=stuck):
                self._child_failed(child, error, stuck=stuck)
            case Parked(tenant_id=tenant_id):
                self._restarts.forget(tenant_id)
            case RestartChild(name=tenant_id):
                self._restart(tenant_id)
            case DrainAll():
                self._drain_all(message)
            case Drained(name=tenant_id):
                self._undrained.discard(tenant_id)
                self._released(tenant_id)
                self._drained_if_done()
            case DrainExpired(drain=drain):
                self._drain_expired(drain)
            case Drifted():
                self._drifted(message)
            case Begin() | Reminder.START_RECONCILER:
                # At start, too, so that drift is seen before the tenants repair it.
                self._start_reconciler()
            case Acquired(tenant_ids=tenant_ids, in_order=in_order):
                self._acquired(tenant_ids, in_order=in_order)
            case Release(tenant_id=tenant_id):
                self._release(tenant_id)
            case ReleaseExpired(tenant_id=tenant_id, ref=ref):
                self._release_expired(tenant_id, ref)
            case FirstLookDone(intact=intact) if self._runtime.state is not SystemState.STARTING:
                self._start_acquired(intact)
            case FirstLookDone(intact=intact):
                self._start_tenants(intact)
            case Reminder.TRY_AGAIN:
                self._start_tenants({})
            case Reminder.LOOK_AT_LOAD:
                self._look_at_load()
            case _:
                raise TypeError(f"the supervisor can't handle {type(message).__name__}")

    def crashed(self) -> None:
        """Report that the process can't go on, and has to be restarted."""
        self._on_crash(f"the supervisor failed: {self.failure}")
        self.stopped()

    def stopped(self) -> None:
        """Stop all tenants at once, then wait for each, for a bounded time together."""
        if self._runtime.reconciler is not None:
            # Not waited for: the reconciler only looks, and its queries are bounded.
            self._runtime.departures.let_go(self._runtime.reconciler)
            self._runtime.reconciler = None
        until = self._clock.now() + STOP_TIMEOUT
        stopping = [ref.stop(block=False) for ref in self._tenants.values() if ref.is_alive()]
        for future in stopping:
            try:
                future.get(timeout=max(0.0, until - self._clock.now()))
            except Exception as error:  # noqa: BLE001 - a tenant that won't stop must not stop us
                log.warning("tenant.does_not_stop", error=repr(error))
        self._tenants.clear()

    def _start_tenants(self, intact: Mapping[str, Intact]) -> None:
        if self._drain is not None:
            return
        try:
            for state in existing_tenants(self._ports.directory):
                owned = self._ports.ownership.owns(state.tenant_id)
                if owned and state.tenant_id not in self._tenants:
                    # Known at once, so that the system is not taken for ready before they consume.
                    found = intact.get(state.tenant_id)
                    # If another writer has recorded events since the look, reconcile the tenant.
                    known = None if found is None or found.state != state else found
                    self._try_to_start(state.tenant_id, intact=known)
                self.beat()
        except UnavailableError as error:
            self._failures += 1
            delay = backoff(self._failures, LONGEST_OUTAGE_BACKOFF)
            log.warning("supervisor.waits_for_journal", error=str(error))
            self._clock.tell_later(delay, self.actor_ref, Reminder.TRY_AGAIN)
            return
        log.info("supervisor.started", tenants=len(self._tenants), intact=len(intact))
        self._runtime.state = SystemState.RUNNING
        self._clock.tell_later(LOOK_SECONDS, self.actor_ref, Reminder.LOOK_AT_LOAD)

    def _start_reconciler(self) -> None:
        if self._drain is None:
            try:
                reconciler = Reconciler.start(
                    parent=self.actor_ref, ports=self._ports, runtime=self._runtime
                )
            except NoThreadError as error:
                self._restart_reconciler(str(error))
                self._look_done_without_reconciler()
                return
            self._runtime.reconciler = reconciler
            tell(reconciler, Begin())

    def _drifted(self, message: Drifted) -> None:
        tenant_id = message.tenant_id
        ref = self._tenants.get(tenant_id)
        idle = self._runtime.state is SystemState.RUNNING and tenant_id not in self._restarting
        if ref is None and message.leftover and idle:
            # An actor for a deleted tenant, for as long as it takes to remove its leftovers.
            try:
                ref = self._start(tenant_id, fresh=True)
            except NoThreadError:  # the next look finds the leftovers again
                self._runtime.forget(tenant_id)
        if ref is not None:
            tell(ref, message)

    def _start(
        self,
        tenant_id: str,
        *,
        park: str | None = None,
        intact: Intact | None = None,
        in_order: bool = False,
        fresh: bool = False,
    ) -> Ref:
        """Start a tenant's actor. Raises `NoThreadError`."""
        self._spare_threads.check(self._clock.now())
        # A new state each time: a replaced actor can only write to its old one.
        runtime = self._runtime.renew(tenant_id)
        runtime.stands_still = park
        ref = Tenant.start(
            tenant_id=tenant_id,
            parent=self.actor_ref,
            ports=self._ports,
            runtime=runtime,
            fresh=fresh,
        )
        runtime.ref = ref
        self._tenants[tenant_id] = ref
        tell(ref, Begin(park=park, intact=intact, in_order=in_order))
        return ref

    def _try_to_start(
        self,
        tenant_id: str,
        *,
        park: str | None = None,
        intact: Intact | None = None,
        in_order: bool = False,
    ) -> None:
        """Start the actor of an existing tenant; for want of threads, try again later."""
        try:
            self._start(tenant_id, park=park, intact=intact, in_order=in_order)
        except NoThreadError as error:
            self._without_thread[tenant_id] += 1
            delay = backoff(self._without_thread[tenant_id], LONGEST_WAIT_FOR_THREADS)
            log.warning("tenant.not_started", tenant=tenant_id, error=str(error))
            self._runtime.renew(tenant_id).stands_still = str(error)
            self._restarting[tenant_id] = park
            self._clock.tell_later(delay, self.actor_ref, RestartChild(name=tenant_id))
        else:
            self._without_thread.pop(tenant_id, None)

    def _route(self, message: Execute) -> None:
        tenant_id = message.command.tenant_id
        if self._runtime.state is SystemState.STARTING:
            refuse(message, ElsewhereError("the daemon is starting"))
            return
        if self._runtime.state is not SystemState.RUNNING:
            refuse(message, ControlUnavailableError(f"the daemon is {self._runtime.state.value}"))
            return
        restarting = ControlUnavailableError(f"tenant {tenant_id!r} is being restarted")
        ref = self._tenants.get(tenant_id)
        if tenant_id in self._leaving:
            refuse(message, ElsewhereError(f"tenant {tenant_id!r} is at work on another node"))
            return
        if ref is None:
            if tenant_id in self._restarting:
                refuse(message, restarting)
                return
            if not isinstance(message.command, CreateTenant):
                # This node may just have acquired the tenant, and be about to start its actor.
                expected = self._ports.ownership.expects(tenant_id)
                begins = ElsewhereError(f"tenant {tenant_id!r} has just come to this node")
                refuse(message, begins if expected else TenantNotFoundError(tenant_id))
                return
            if not names.is_tenant_id(tenant_id):
                problem = "must be 1 to 40 of a-z, 0-9 and hyphens, with no hyphen at either end"
                refuse(message, InvalidCommandError("id", problem))
                return
            try:
                ref = self._start(tenant_id, fresh=True)
            except NoThreadError as error:
                self._runtime.forget(tenant_id)
                refuse(message, ControlUnavailableError(str(error)))
                return
        if not tell(ref, message):
            refuse(message, restarting)

    def _let_go(self, tenant_id: str, ref: Ref) -> None:
        """Stop the actor of a tenant that exists no more."""
        if self._tenants.get(tenant_id) == ref:
            del self._tenants[tenant_id]
            self._restarts.forget(tenant_id)
            self._ports.weights.weigh(tenant_id, 1)
            self._ports.observer.tenant_gone(tenant_id)
            self._ports.dead_letter_events.forget(tenant_id)
            self._ports.ownership.gone(tenant_id)
            # Last: whoever sees that the tenant is gone finds nothing else of it.
            self._runtime.forget(tenant_id)
        self._runtime.departures.let_go(ref)
        self._undrained.discard(tenant_id)
        self._drained_if_done()

    def _look_at_load(self) -> None:
        """Resize the autoscaled tenants by their load; a tenant may refuse."""
        if self._drain is not None:
            return
        for command in self._autoscaling.look(self._clock.now(), self._runtime.tenants.values()):
            log.info(
                "tenant.autoscaled",
                tenant=command.tenant_id,
                workers=command.workers,
                reason=command.reason,
            )
            self._route(Execute(command=command, metadata=AUTOSCALER, reply=Future()))
        self._clock.tell_later(LOOK_SECONDS, self.actor_ref, Reminder.LOOK_AT_LOAD)

    # Supervision.

    def _child_failed(self, child: Ref, error: str, *, stuck: bool) -> None:
        if child == self._runtime.reconciler:
            self._reconciler_failed(child, error, stuck=stuck)
            return
        tenant_id = next((one for one, ref in self._tenants.items() if ref == child), None)
        if tenant_id is None:
            return
        del self._tenants[tenant_id]
        runtime = self._runtime.tenant(tenant_id)
        if stuck:
            self._replace(runtime)
        self._ports.observer.actor_failed("tenant")
        runtime.restarts += 1
        if tenant_id in self._leaving:
            self._release_now(tenant_id)
            return
        if self._drain is not None:
            # Its channel is closed, the broker requeues its deliveries: nothing is left to drain.
            self._undrained.discard(tenant_id)
            self._drained_if_done()
            return
        restart = self._restarts.failed(tenant_id, self._clock.now())
        park = None
        if restart.given_up:
            park = f"its actors failed too often, the last time with {error}"
        self._restarting[tenant_id] = park
        log.warning(
            "tenant.restarts",
            tenant=tenant_id,
            error=error,
            delay=round(restart.delay, 2),
            park=park,
        )
        self._clock.tell_later(restart.delay, self.actor_ref, RestartChild(name=tenant_id))

    def _replace(self, runtime: TenantRuntimeState) -> None:
        """Replace a hanging tenant, and with it the children that it can't stop itself."""
        self._ports.observer.actor_stuck("tenant")
        # The tenant first: a child that it starts after its fence, it drops by itself.
        for ref in (runtime.ref, runtime.consumer, *runtime.workers.copy().values()):
            if ref is not None:
                runtime.departures.replace(ref)
        runtime.consuming = False
        runtime.ref = runtime.consumer = None
        runtime.workers = {}

    def _reconciler_failed(self, child: Ref, error: str, *, stuck: bool) -> None:
        """Schedule the reconciler's restart at its next usual time; the rest goes on without it."""
        observer = self._ports.observer
        observer.actor_failed("reconciler")
        if stuck:
            observer.actor_stuck("reconciler")
            self._runtime.departures.replace(child)
            self._look_done_without_reconciler()
        self._runtime.reconciler = None
        self._restart_reconciler(error)

    def _look_done_without_reconciler(self) -> None:
        """Let the start go on, which waits for the reconciler's first look."""
        if self._runtime.state is SystemState.STARTING:
            tell(self.actor_ref, FirstLookDone(intact={}))

    def _restart_reconciler(self, error: str) -> None:
        self._runtime.reconciler_restarts += 1
        delay = self._ports.reconcile_every
        log.error("reconciler.restarts", error=error, delay=delay)
        self._clock.tell_later(delay, self.actor_ref, Reminder.START_RECONCILER)

    def _restart(self, tenant_id: str) -> None:
        park = self._restarting.pop(tenant_id, None)
        owned = self._ports.ownership.owns(tenant_id) and tenant_id not in self._leaving
        if self._drain is None and owned and tenant_id not in self._tenants:
            self._try_to_start(tenant_id, park=park)
        else:
            self._without_thread.pop(tenant_id, None)

    # Between nodes.

    def _acquired(self, tenant_ids: Sequence[str], *, in_order: bool) -> None:
        """Start acquired tenants; those not handed over in order are looked at first."""
        if self._drain is not None or self._runtime.state is not SystemState.RUNNING:
            return  # They start with all others, or other nodes take them.
        self._leaving.difference_update(tenant_ids)
        if in_order:
            for tenant_id in tenant_ids:
                if tenant_id not in self._tenants:
                    self._try_to_start(tenant_id, in_order=True)
            return
        self._unseen.update(tenant_ids)
        reconciler = self._runtime.reconciler
        if reconciler is None or not tell(reconciler, Look()):
            self._start_acquired({})

    def _start_acquired(self, intact: Mapping[str, Intact]) -> None:
        unseen, self._unseen = self._unseen, set()
        for tenant_id in sorted(unseen):
            owned = self._ports.ownership.owns(tenant_id)
            if owned and tenant_id not in self._tenants and self._drain is None:
                self._try_to_start(tenant_id, intact=intact.get(tenant_id))
            self.beat()

    def _release(self, tenant_id: str) -> None:
        if self._drain is not None:
            return
        self._leaving.add(tenant_id)
        ref = self._tenants.get(tenant_id)
        if ref is None or not tell(ref, Leave()):
            self._release_now(tenant_id)
        else:
            self._clock.tell_later(
                RELEASE_SECONDS, self.actor_ref, ReleaseExpired(tenant_id=tenant_id, ref=ref)
            )

    def _released(self, tenant_id: str) -> None:
        if tenant_id in self._leaving:
            self._release_now(tenant_id)

    def _release_expired(self, tenant_id: str, ref: Ref) -> None:
        """Release a tenant that can't finish: its deliveries are redelivered to the other node."""
        if tenant_id not in self._leaving or self._tenants.get(tenant_id) != ref:
            return
        runtime = self._runtime.tenant(tenant_id)
        held = sum(one.deliveries for one in runtime.orphans())
        log.warning("tenant.released_unfinished", tenant=tenant_id, deliveries=held)
        self._replace(runtime)
        self._release_now(tenant_id)

    def _release_now(self, tenant_id: str) -> None:
        """Let a tenant go, and report it as released: from here on another node may start it."""
        self._restarting.pop(tenant_id, None)
        self._restarts.forget(tenant_id)
        ref = self._tenants.pop(tenant_id, None)
        if ref is not None:
            self._runtime.departures.let_go(ref)
        self._ports.weights.weigh(tenant_id, 1)
        self._ports.observer.tenant_gone(tenant_id)
        self._runtime.forget(tenant_id)
        self._ports.ownership.released(tenant_id)

    # Draining.

    def _drain_all(self, message: DrainAll) -> None:
        if message.stop:
            self._runtime.state = SystemState.STOPPING
        elif self._runtime.state is SystemState.RUNNING:
            self._runtime.state = SystemState.DRAINING
        previous, self._drain = self._drain, message
        if previous is not None and not previous.reply.done():
            previous.reply.set_result(())
        self._undrained = {
            tenant_id for tenant_id, ref in self._tenants.items() if tell(ref, Drain())
        }
        log.info("drain.started", tenants=len(self._undrained), seconds=message.seconds)
        self._clock.tell_later(message.seconds, self.actor_ref, DrainExpired(drain=message))
        self._drained_if_done()

    def _drained_if_done(self) -> None:
        drain = self._drain
        if drain is None or self._undrained or drain.reply.done():
            return
        if not drain.stop:
            self._runtime.state = SystemState.DRAINED
        log.info("drain.done")
        drain.reply.set_result(())

    def _drain_expired(self, drain: DrainAll) -> None:
        if drain.reply.done():
            return  # This drain is done, or another has replaced it.
        orphans: list[Orphan] = []
        for tenant_id in sorted(self._undrained):
            held = self._runtime.tenant(tenant_id).orphans()
            orphans.extend(held or [Orphan(tenant_id=tenant_id, actor="tenant", deliveries=0)])
        drain.reply.set_result(tuple(orphans))
