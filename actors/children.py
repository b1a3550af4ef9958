"""A tenant's consumer and workers: started when wanted, judged when they fail, stopped together.

Used by the tenant, in its own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tenantry.actors.backoff import Restarts
from tenantry.actors.consumer import Consumer
from tenantry.actors.messages import Begin, Drain, Ref, Resubscribe, WorkerJoined, WorkerLost
from tenantry.actors.pace import prefetch_of
from tenantry.actors.ports import ActorPorts
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.actors.supervision import EscalationError, heartbeat_of, tell
from tenantry.actors.worker import ReusedIds, Worker
from tenantry.broker.port import QueueSpec
from tenantry.broker.topology import topology_of
from tenantry.domain.tenant import TenantState
from tenantry.messages.port import Counts


class Children:
    """A tenant's children: one consumer at most; as many workers as the consumer asked for."""

    def __init__(
        self, *, tenant_id: str, parent: Ref, runtime: TenantRuntimeState, ports: ActorPorts
    ) -> None:
        self._id = tenant_id
        self._parent = parent
        self._runtime = runtime
        self._ports = ports
        self._reused_ids = ReusedIds()
        self._restarts = Restarts()
        self._queues: tuple[QueueSpec, ...] = ()
        self._prefetch = 0
        self.consumer: Ref | None = None
        self.after_drain: Final[list[Callable[[], None]]] = []
        """Steps to take once the draining consumer has drained."""

    def outdated(self, state: TenantState) -> bool:
        """Tell whether the consumer's queues or prefetch differ from the tenant's."""
        return self.consumer is not None and (self._queues, self._prefetch) != self._taken_by(state)

    def consume(self, state: TenantState, totals: Counts | None = None) -> None:
        """Start the consumer; if it exists but does not consume, have it resubscribe.

        The tenant's `totals` are looked up where they are not given.
        """
        runtime = self._runtime
        if self.consumer is not None:
            if not runtime.consuming:
                self.resubscribe()
            return
        self.show_totals(totals)
        runtime.waiting_since = self._ports.clock.now()
        self._queues, self._prefetch = self._taken_by(state)
        consumer = Consumer.start(
            tenant_id=self._id,
            parent=self._parent,
            queues=self._queues,
            workers=state.workers,
            limits=state.limits,
            ports=self._ports,
            runtime=runtime,
        )
        self.consumer = runtime.consumer = consumer
        if not self._orphaned(consumer):
            tell(consumer, Begin())

    def show_totals(self, totals: Counts | None = None) -> None:
        """Show the tenant's totals as the database has them."""
        counts = self._ports.messages.counts(self._id) if totals is None else totals
        runtime = self._runtime
        runtime.stored = counts.stored
        runtime.duplicates = counts.duplicates
        runtime.dead_lettered = counts.dead_lettered
        runtime.letters_found = 0

    def resubscribe(self) -> None:
        """Have the consumer, if there is one, begin again on a new channel."""
        if self.consumer is not None:
            tell(self.consumer, Resubscribe())

    def start_worker(self) -> None:
        """Give the consumer one more worker."""
        consumer = self.consumer
        if consumer is None:
            return
        workers = self._runtime.workers
        number = next(n for n in range(1, len(workers) + 2) if f"worker-{n}" not in workers)
        name = f"worker-{number}"
        worker = Worker.start(
            name=name,
            tenant_id=self._id,
            parent=self._parent,
            consumer=consumer,
            runtime=self._runtime,
            ports=self._ports,
            reused_ids=self._reused_ids,
        )
        workers[name] = worker
        if not self._orphaned(worker):
            tell(consumer, WorkerJoined(worker=worker, name=name))

    def stop_worker(self, worker: Ref) -> None:
        """Stop a worker that the consumer has released."""
        name = self._name_of(worker)
        if name is not None:
            del self._runtime.workers[name]
            self._runtime.departures.let_go(worker)

    def failed(self, child: Ref, error: str, *, stuck: bool) -> float | None:
        """Take note of a child that failed, or that is stuck; both are replaced.

        A worker's batch goes back to the consumer, which will ask for another worker. After a
        failure of the consumer, whose channel is closed, all children are stopped. Returns the
        seconds to wait before the consumer is started again, or None if there is nothing to do.
        Raises `EscalationError` if the restart intensity is exceeded, or the consumer is stuck.
        """
        runtime, observer = self._runtime, self._ports.observer
        name = self._name_of(child)
        if name is None and child != self.consumer:
            return None
        # Workers are judged together: they are alike, and a bad batch moves between them.
        kind = "consumer" if name is None else "worker"
        if stuck:
            observer.actor_stuck(kind)
            runtime.departures.replace(child)
        observer.actor_failed(kind)
        runtime.child_restarts[kind] = runtime.child_restarts.get(kind, 0) + 1
        restart = self._restarts.failed(kind, self._ports.clock.now())
        if restart.given_up:
            raise EscalationError(f"its {kind} failed too often, the last time with {error}")
        if name is not None:
            del runtime.workers[name]
            if self.consumer is not None:
                tell(self.consumer, WorkerLost(worker=child))
            return None
        if stuck:
            # It may wake and write to the runtime state: the tenant restarts, with a new state.
            raise EscalationError(f"its consumer hangs: {error}")
        self.stop()
        return restart.delay

    def drain(self, then: Callable[[], None]) -> None:
        """Have the consumer finish its accepted deliveries and stop, then call `then`."""
        if self.consumer is None:
            then()
            return
        self.after_drain.append(then)
        tell(self.consumer, Drain())

    def drained(self) -> None:
        """Stop all children, whose accepted deliveries are finished or given up; then go on."""
        self.stop()
        after = self.after_drain.copy()
        self.after_drain.clear()
        for then in after:
            then()

    def stop(self) -> None:
        """Stop all children; harmless if there are none."""
        runtime = self._runtime
        consumer, self.consumer = self.consumer, None
        runtime.consumer = None
        for ref in (*runtime.workers.values(), *([consumer] if consumer else [])):
            runtime.departures.let_go(ref)
        runtime.workers.clear()
        runtime.workers_current = 0
        runtime.consuming = False
        runtime.waiting_since = self._ports.clock.now()
        runtime.store_down = False

    def _taken_by(self, state: TenantState) -> tuple[tuple[QueueSpec, ...], int]:
        """Return the queues that a consumer of the tenant reads, and the prefetch of each."""
        queues = topology_of(state).queues()
        prefetch = self._ports.limits().prefetch
        return queues, prefetch_of(state.limits, prefetch, queues=len(queues))

    def _name_of(self, worker: Ref) -> str | None:
        return next((name for name, ref in self._runtime.workers.items() if ref == worker), None)

    def _orphaned(self, child: Ref) -> bool:
        """Drop a new child if the tenant was replaced meanwhile; return whether it was."""
        if not heartbeat_of(self._parent).is_fenced():
            return False
        self._runtime.departures.replace(child)
        return True
