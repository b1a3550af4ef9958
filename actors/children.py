"""A tenant's consumer and workers: started when wanted, judged when they fail, stopped together.

Used by the tenant, in its own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tenantry.actors.backoff import Restarts
from tenantry.actors.board import TenantBoard
from tenantry.actors.consumer import Consumer
from tenantry.actors.messages import Begin, Drain, Ref, Resubscribe, WorkerJoined, WorkerLost
from tenantry.actors.ports import ActorPorts
from tenantry.actors.provisioner import topology_of
from tenantry.actors.supervision import EscalationError, heartbeat_of, tell
from tenantry.actors.worker import ReusedIds, Worker
from tenantry.broker.port import QueueSpec
from tenantry.domain.tenant import TenantState

CONSUMER: Final = "consumer"
WORKER: Final = "worker"
"""Workers are judged together: they are alike, and a bad batch goes from one to the next."""


class Children:
    """What a tenant owns. One consumer at most; as many workers as the consumer has asked for."""

    def __init__(
        self, *, tenant_id: str, parent: Ref, board: TenantBoard, ports: ActorPorts
    ) -> None:
        self._id = tenant_id
        self._parent = parent
        self._board = board
        self._ports = ports
        self._reused_ids = ReusedIds()
        self._restarts = Restarts()
        self._queues: tuple[QueueSpec, ...] = ()
        self.consumer: Ref | None = None
        self.after_drain: Final[list[Callable[[], None]]] = []
        """What is to be done once the consumer, which has been told to drain, has drained."""

    def outdated(self, state: TenantState) -> bool:
        """Tell whether there is a consumer, and the tenant has other queues by now."""
        return self.consumer is not None and self._queues != topology_of(state).queues()

    def consume(self, state: TenantState) -> None:
        """Start the consumer; if it is there and waits for its queues, have it begin again."""
        board = self._board
        if self.consumer is not None:
            if not board.consuming:
                self.resubscribe()
            return
        self.show_totals()
        board.waiting_since = self._ports.clock.now()
        self._queues = topology_of(state).queues()
        consumer = Consumer.start(
            tenant_id=self._id,
            parent=self._parent,
            queues=self._queues,
            workers=state.workers,
            ports=self._ports,
            board=board,
        )
        self.consumer = board.consumer = consumer
        if not self._orphaned(consumer):
            tell(consumer, Begin())

    def show_totals(self) -> None:
        """Put the tenant's totals on the board as the database has them."""
        counts = self._ports.messages.counts(self._id)
        board = self._board
        board.stored = counts.stored
        board.duplicates = counts.duplicates
        board.dead_lettered = counts.dead_lettered
        board.letters_found = 0

    def resubscribe(self) -> None:
        """Have the consumer begin again on a new channel, if there is one."""
        if self.consumer is not None:
            tell(self.consumer, Resubscribe())

    def start_worker(self) -> None:
        """Give the consumer one more worker."""
        consumer = self.consumer
        if consumer is None:
            return
        workers = self._board.workers
        number = next(n for n in range(1, len(workers) + 2) if f"worker-{n}" not in workers)
        name = f"worker-{number}"
        worker = Worker.start(
            name=name,
            tenant_id=self._id,
            parent=self._parent,
            consumer=consumer,
            board=self._board,
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
            del self._board.workers[name]
            self._board.departures.let_go(worker)

    def failed(self, child: Ref, error: str, *, stuck: bool) -> float | None:
        """Take note of a child that failed, or of one that hangs, which is replaced like it.

        A worker's batch is the consumer's again, which will ask for another worker. After a
        failure of the consumer, whose channel is closed, everything is stopped; gives the seconds
        to wait before it is started anew. None, if there is nothing to do.
        Raises `EscalationError` where that is not worth trying any more.
        """
        board, observer = self._board, self._ports.observer
        name = self._name_of(child)
        if name is None and child != self.consumer:
            return None
        kind = CONSUMER if name is None else WORKER
        if stuck:
            observer.actor_stuck(kind)
            board.departures.replace(child)
        observer.actor_failed(kind)
        board.child_restarts[kind] = board.child_restarts.get(kind, 0) + 1
        restart = self._restarts.failed(kind, self._ports.clock.now())
        if restart.given_up:
            raise EscalationError(f"its {kind} failed too often, the last time with {error}")
        if name is not None:
            del board.workers[name]
            if self.consumer is not None:
                tell(self.consumer, WorkerLost(worker=child))
            return None
        if stuck:
            # It may come back and write to the board: the tenant begins anew, with another.
            raise EscalationError(f"its consumer hangs: {error}")
        self.stop()
        return restart.delay

    def drain(self, then: Callable[[], None]) -> None:
        """Have the consumer finish what it has accepted, let it go, then go on with `then`."""
        if self.consumer is None:
            then()
            return
        self.after_drain.append(then)
        tell(self.consumer, Drain())

    def drained(self) -> None:
        """Stop them all: what was accepted is finished, or never will be. Go on."""
        self.stop()
        after = self.after_drain.copy()
        self.after_drain.clear()
        for then in after:
            then()

    def stop(self) -> None:
        """Stop them all; harmless if there are none."""
        board = self._board
        consumer, self.consumer = self.consumer, None
        board.consumer = None
        for ref in (*board.workers.values(), *([consumer] if consumer else [])):
            board.departures.let_go(ref)
        board.workers.clear()
        board.workers_current = 0
        board.consuming = False
        board.waiting_since = self._ports.clock.now()
        board.store_down = False

    def _name_of(self, worker: Ref) -> str | None:
        return next((name for name, ref in self._board.workers.items() if ref == worker), None)

    def _orphaned(self, child: Ref) -> bool:
        """Let a new child go again if the tenant was replaced before it could be known."""
        if not heartbeat_of(self._parent).is_fenced():
            return False
        self._board.departures.replace(child)
        return True
