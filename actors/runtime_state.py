"""What the actors are doing, readable without waiting for an actor.

Each field has one writer, the actor it describes; readers may be a moment behind and never block
it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from tenantry.actors.messages import Orphan, Ref
from tenantry.actors.supervision import ActorHeartbeat, heartbeat_of, mailbox_depth
from tenantry.control.port import ActorStatus, SystemState, TenantRuntime
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.turns.token_bucket import TokenBucket

_WINDOW: Final = 10

GRACE: Final = 2.0
"""Seconds without consuming after which a tenant makes a running system not ready."""

REFUSALS: Final = 2
"""Channels lost in a row before they consumed, from which on the trouble is the tenant's own: an
outage of the broker takes a channel that has consumed."""


class RateMeter:
    """Counts things a second over the last ten whole seconds. One writer, any reader."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds = [0] * (_WINDOW + 1)
        self._counts = [0] * (_WINDOW + 1)

    def add(self, count: int) -> None:
        """Count `count` things now."""
        second = int(self._now())
        slot = second % (_WINDOW + 1)
        if self._seconds[slot] != second:
            self._seconds[slot] = second
            self._counts[slot] = 0
        self._counts[slot] += count

    def rate(self) -> float:
        """Return the things a second over the last ten seconds, without the current second."""
        second = int(self._now())
        total = sum(
            count
            for at, count in zip(self._seconds, self._counts, strict=True)
            if second - _WINDOW <= at < second
        )
        return total / _WINDOW


class BusyMeter:
    """Adds up how long workers are busy. One writer, any reader."""

    def __init__(self) -> None:
        self._so_far = (0.0, 0, 0.0)
        """Busy seconds until the last change, busy workers since, and the time of the change."""

    def change(self, busy: int, now: float) -> None:
        """Note that so many workers are busy from now on."""
        self._so_far = self.seconds(now), busy, now

    def seconds(self, now: float) -> float:
        """Return the seconds that all workers together have been busy until now."""
        seconds, busy, since = self._so_far
        return seconds + busy * (now - since)


class Departures:
    """The actors that parents have let go, until their threads have ended.

    Parents add actors, from their threads; only the watch removes them.
    """

    def __init__(self) -> None:
        self._leaving: deque[ActorHeartbeat] = deque()
        self.abandoned: tuple[ActorHeartbeat, ...] = ()
        """Actors whose threads hang: Python can't end a thread that does not end by itself."""

    def let_go(self, ref: Ref) -> None:
        """Tell an actor to stop, after what its mailbox holds."""
        self._leaving.append(heartbeat_of(ref))
        if ref.is_alive():
            ref.stop(block=False)

    def replace(self, ref: Ref) -> None:
        """Fence an actor that hangs, or whose owner hangs, and let it go."""
        heartbeat_of(ref).fence()
        self.let_go(ref)

    def look(self, now: float, *, patience: float, not_before: float) -> None:
        """Forget the threads that have ended, and fence those that hang."""
        abandoned: dict[int, ActorHeartbeat] = {}
        for _ in range(len(self._leaving)):
            heartbeat = self._leaving.popleft()
            if heartbeat.ended:
                continue
            self._leaving.append(heartbeat)
            silent = heartbeat.overdue(now, patience=patience, not_before=not_before)
            if heartbeat.is_fenced() or silent is not None:
                heartbeat.fence()
                abandoned[id(heartbeat)] = heartbeat  # an actor may have been let go twice
        self.abandoned = tuple(abandoned.values())


class Standouts:
    """The tenants that may make the system not ready: mostly few of thousands.

    Tenants are added and removed as their state changes, on the thread that changes it; so
    readiness is known without asking every tenant.
    """

    def __init__(self) -> None:
        self.not_consuming: set[TenantRuntimeState] = set()
        self.store_down: set[TenantRuntimeState] = set()

    def forget(self, runtime: TenantRuntimeState) -> None:
        """Remove a tenant's state: the tenant is gone, or has a new state."""
        self.not_consuming.discard(runtime)
        self.store_down.discard(runtime)


class TenantRuntimeState:
    """What one tenant's actors are doing."""

    def __init__(
        self,
        tenant_id: str,
        pending: Callable[[], int | None] = lambda: None,
        departures: Departures | None = None,
        standouts: Standouts | None = None,
        latency: Callable[[int], float | None] = lambda _: None,
    ) -> None:
        self.tenant_id = tenant_id
        self.pending = pending
        self.latency = latency
        """Returns the last minute's latency of an incarnation of the tenant."""
        self.departures = departures or Departures()
        self.standouts = standouts or Standouts()
        self.state: TenantState | None = None
        self.ref: Ref | None = None
        self.consumer: Ref | None = None
        self.workers: dict[str, Ref] = {}
        self.workers_current = 0
        self._consuming = False
        self.refused = 0
        """How often in a row its queues could not be consumed: in other use, gone or silent."""
        self.refusal: str | None = None
        """Why its queues are not consumed although they should be."""
        self.unrepaired: str | None = None
        """The drift of its objects that can't be repaired, with the remedy."""
        self.consuming_since = time.monotonic()
        self.waiting_since = time.monotonic()
        self.in_hand: dict[str, int] = {}
        self.in_flight = 0
        self.held = 0
        self.buffered = 0
        self.stored = 0
        self.duplicates = 0
        self.dead_lettered = 0
        self.letters_found = 0
        self.restarts = 0
        self.child_restarts: dict[str, int] = {}
        self._store_down = False
        self.stands_still: str | None = None
        """Why the tenant's actor stands still although it can't be recorded as parked."""
        self.meter = RateMeter()
        self.busy = BusyMeter()
        self.bucket: TokenBucket | None = None
        """The tokens of the tenant's rate limit; None without one. Written by its consumer."""
        self.standouts.not_consuming.add(self)

    def renewed(self) -> TenantRuntimeState:
        """Make a state for the replacing actor: with these totals, and nothing running."""
        runtime = TenantRuntimeState(
            self.tenant_id, self.pending, self.departures, self.standouts, self.latency
        )
        runtime.state = self.state
        runtime.stored = self.stored
        runtime.duplicates = self.duplicates
        runtime.dead_lettered = self.dead_lettered
        runtime.restarts = self.restarts
        runtime.bucket = self.bucket
        runtime.refusal = self.refusal
        runtime.unrepaired = self.unrepaired
        runtime.child_restarts = dict(self.child_restarts)
        return runtime

    @property
    def consuming(self) -> bool:
        """Whether every queue is being consumed."""
        return self._consuming

    @consuming.setter
    def consuming(self, consuming: bool) -> None:
        if consuming:
            self.refused = 0
            self.refusal = None
            self.consuming_since = time.monotonic()
            self.standouts.not_consuming.discard(self)
        else:
            self.standouts.not_consuming.add(self)
        self._consuming = consuming

    @property
    def store_down(self) -> bool:
        """Whether the database refuses to store the tenant's messages."""
        return self._store_down

    @store_down.setter
    def store_down(self, down: bool) -> None:
        if down is not self._store_down:
            self._store_down = down
            (self.standouts.store_down.add if down else self.standouts.store_down.discard)(self)

    @property
    def unsettled(self) -> int:
        """Deliveries taken from the broker and not yet acknowledged."""
        return self.buffered + self.in_flight + self.held

    def snapshot(self) -> TenantRuntime:
        """Return the state as the API shows it."""
        state = self.state
        return TenantRuntime(
            tenant_id=self.tenant_id,
            workers_current=self.workers_current,
            consuming=self.consuming,
            unsettled=self.unsettled,
            held=self.held,
            rate=self.meter.rate(),
            pending=self.pending(),
            stored=self.stored,
            duplicates=self.duplicates,
            dead_lettered=self.dead_lettered + self.letters_found,
            parked=self.parked,
            trouble=self.trouble,
            parked_at=None if state is None else state.parked_at,
            lifecycle=None if state is None else state.lifecycle,
            incarnation=None if state is None else state.incarnation,
            latency_p99_ms=None if state is None else self.latency(state.incarnation),
            rate_limit=None if state is None else state.limits.rate,
            backlog_limit=None if state is None else state.limits.backlog_messages,
        )

    @property
    def parked(self) -> str | None:
        """Why the tenant is parked, or None."""
        state = self.state
        return self.stands_still or (None if state is None else state.parked)

    @property
    def trouble(self) -> str | None:
        """The tenant's own trouble, in a sentence or two, or None."""
        said = [one for one in (self.refusal, self.unrepaired) if one is not None]
        return "; ".join(said) or None

    def orphans(self) -> list[Orphan]:
        """Name the actors that hold deliveries, and how many."""
        held = [
            Orphan(tenant_id=self.tenant_id, actor=name, deliveries=count)
            for name, count in dict(self.in_hand).items()
        ]
        if self.buffered:
            held.append(
                Orphan(tenant_id=self.tenant_id, actor="consumer", deliveries=self.buffered)
            )
        return held

    def status(self) -> ActorStatus:
        """Return the tenant's part of the tree of actors."""
        children = []
        if self.consumer is not None:
            state = "consuming" if self.consuming else "waiting"
            restarts = self.child_restarts.get("consumer", 0)
            children.append(
                _status("consumer", "Consumer", self.consumer, state, restarts=restarts)
            )
        restarts = self.child_restarts.get("worker", 0)
        for name, ref in sorted(self.workers.copy().items()):
            state = "busy" if name in self.in_hand else "idle"
            children.append(_status(name, "Worker", ref, state, restarts=restarts))
        if self.state is None:
            state = "starting"
        else:
            state = "parked" if self.parked else self.state.lifecycle.value
        return _status(
            self.tenant_id, "Tenant", self.ref, state, restarts=self.restarts, children=children
        )

    def waits(self, now: float, *, settled_in: bool) -> bool:
        """Tell whether the tenant should consume and does not.

        Once the system has settled in, a tenant has some seconds to come back, and is not waited
        for during provisioning. Before, a tenant in provisioning is one whose provisioning was cut
        short, and is waited for.
        """
        if self.consuming or (settled_in and now - self.waiting_since < GRACE):
            return False
        state = self.state
        if self.stands_still is not None:
            return False
        if state is None or state.lifecycle is Lifecycle.ACTIVE:
            return True
        return state.lifecycle is Lifecycle.PROVISIONING and not settled_in


class RuntimeState:
    """What the system as a whole is doing. The supervisor writes it, any thread may read it."""

    def __init__(self) -> None:
        self.state = SystemState.STARTING
        self.started_at = datetime.now(UTC)
        self.supervisor: Ref | None = None
        self.reconciler: Ref | None = None
        self.reconciler_restarts = 0
        self.tenants: dict[str, TenantRuntimeState] = {}
        self.settled_in = False
        self.departures = Departures()
        self.standouts = Standouts()
        self.probes: dict[str, Callable[[], bool]] = {}
        self.troubles: Sequence[Callable[[], str | None]] = ()
        """Each returns why nothing can work, while that lasts."""
        self.pending: Callable[[], Mapping[str, int] | None] = lambda: None
        self.latency: Callable[[str, int], float | None] = lambda _tenant_id, _incarnation: None

    def dead_letters_found(self, tenant_id: str, count: int) -> None:
        """Count dead letters that no worker has listed: those that the broker itself made."""
        runtime = self.tenants.get(tenant_id)
        if runtime is not None:
            runtime.letters_found += count

    def tenant(self, tenant_id: str) -> TenantRuntimeState:
        """Return a tenant's runtime state; create it where missing."""
        runtime = self.tenants.get(tenant_id)
        if runtime is None:
            runtime = self.tenants[tenant_id] = TenantRuntimeState(
                tenant_id,
                lambda: self._pending(tenant_id),
                self.departures,
                self.standouts,
                lambda incarnation: self.latency(tenant_id, incarnation),
            )
        return runtime

    def renew(self, tenant_id: str) -> TenantRuntimeState:
        """Give a tenant a new state for a new actor; the old state is no longer read."""
        former = self.tenant(tenant_id)
        runtime = self.tenants[tenant_id] = former.renewed()
        self.standouts.forget(former)
        return runtime

    def forget(self, tenant_id: str) -> None:
        """Remove a tenant that exists no more."""
        runtime = self.tenants.pop(tenant_id, None)
        if runtime is not None:
            self.standouts.forget(runtime)

    def snapshot(self, tenant_id: str) -> TenantRuntime | None:
        """Return what a tenant's actors are doing; None if it has none."""
        runtime = self.tenants.get(tenant_id)
        return None if runtime is None else runtime.snapshot()

    def snapshots(self) -> dict[str, TenantRuntime]:
        """Return what every tenant's actors are doing, by id."""
        return {
            tenant_id: runtime.snapshot()
            for tenant_id, runtime in sorted(self.tenants.copy().items())
        }

    def in_flight(self, tenant_id: str) -> int | None:
        """Count a tenant's unsettled deliveries; None if it has no actor."""
        runtime = self.tenants.get(tenant_id)
        return None if runtime is None else runtime.unsettled

    def rate(self) -> float:
        """Return the messages settled a second, of all tenants together."""
        return sum(runtime.meter.rate() for runtime in self.tenants.copy().values())

    def _pending(self, tenant_id: str) -> int | None:
        """Return the broker's count of pending messages; 0 for a tenant not counted yet."""
        counts = self.pending()
        return None if counts is None else counts.get(tenant_id, 0)

    def tree(self) -> ActorStatus:
        """Return the tree of actors."""
        children = [runtime.status() for _, runtime in sorted(self.tenants.copy().items())]
        if (ref := self.reconciler) is not None:
            restarts = self.reconciler_restarts
            children.append(_status("reconciler", "Reconciler", ref, "watching", restarts=restarts))
        ref = self.supervisor
        status = _status(
            "supervisor", "Supervisor", ref, self.state.value, restarts=0, children=children
        )
        return status if ref is None or ref.is_alive() else replace(status, state="dead")

    def not_ready(self) -> tuple[str, ...]:
        """Return why the system is not ready; empty if it is."""
        reasons = []
        if self.state is not SystemState.RUNNING:
            reasons.append(f"the daemon is {self.state.value}")
        reasons.extend(f"{name} is away" for name, probe in self.probes.items() if not probe())
        reasons.extend(text for trouble in self.troubles if (text := trouble()))
        now = time.monotonic()
        settled_in = self.settled_in
        idle = self._present(self.standouts.not_consuming)
        others = len(idle) < len(self.tenants)
        waits = [one for one in idle if one.waits(now, settled_in=settled_in)]
        # Once other tenants consume, one tenant's own trouble does not make the system unready.
        waiting = [one.tenant_id for one in waits if not (others and one.refused >= REFUSALS)]
        if waiting:
            more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
            reasons.append(f"not consuming yet: {', '.join(sorted(waiting)[:5])}{more}")
        if self._present(self.standouts.store_down):
            reasons.append("the database refuses to store")
        if not reasons:
            self.settled_in = True
        return tuple(dict.fromkeys(reasons))

    def _present(self, those: set[TenantRuntimeState]) -> list[TenantRuntimeState]:
        """Return the current states: a replaced actor may still write to its old state."""
        return [one for one in those.copy() if self.tenants.get(one.tenant_id) is one]


def _status(
    name: str,
    kind: str,
    ref: Ref | None,
    state: str,
    *,
    restarts: int,
    children: Sequence[ActorStatus] = (),
) -> ActorStatus:
    """Return an actor's status; a hanging actor is `stuck`, whatever it was doing."""
    return ActorStatus(
        name=name,
        kind=kind,
        state="stuck" if ref is not None and heartbeat_of(ref).stuck else state,
        mailbox=0 if ref is None else mailbox_depth(ref),
        restarts=restarts,
        children=tuple(children),
    )
