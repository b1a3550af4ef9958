"""A tenant's consumer and workers: started when wanted, counted when they fail, stopped together.

Used by the tenant, in its own thread.
"""

from __future__ import annotations

from actors.board import TenantBoard
from actors.clock import Clock, tell
from actors.consumer import Consumer, ConsumerLimits, ConsumerPorts
from actors.messages import Begin, Ref, Resubscribe, WorkerJoined, WorkerLost
from actors.observer import Observer
from actors.provisioning import topology_of
from actors.supervision import EscalationError, RestartIntensity
from actors.worker import Worker, WorkerPorts
from tenantry.domain.tenant import TenantState


class Children:
    """What a tenant owns. One consumer at most; as many workers as the consumer has asked for."""

    def __init__(
        self,
        *,
        tenant_id: str,
        parent: Ref,
        board: TenantBoard,
        clock: Clock,
        observer: Observer,
        limits: ConsumerLimits,
        consumer_ports: ConsumerPorts,
        worker_ports: WorkerPorts,
    ) -> None:
        self._id = tenant_id
        self._parent = parent
        self._board = board
        self._clock = clock
        self._observer = observer
        self._limits = limits
        self._consumer_ports = consumer_ports
        self._worker_ports = worker_ports
        self._intensity = {"consumer": RestartIntensity(), "worker": RestartIntensity()}
        self.consumer: Ref | None = None

    def consume(self, state: TenantState) -> None:
        """Start the consumer; one that is there and waits for its queues begins again."""
        board = self._board
        if self.consumer is not None:
            if not board.consuming:
                tell(self.consumer, Resubscribe())
            return
        board.waiting_since = self._clock.now()
        self.consumer = board.consumer = Consumer.start(
            tenant_id=self._id,
            parent=self._parent,
            queues=topology_of(state).queues(),
            workers=state.workers,
            limits=self._limits,
            ports=self._consumer_ports,
            board=board,
        )
        tell(self.consumer, Begin())

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
            ports=self._worker_ports,
        )
        workers[name] = worker
        tell(consumer, WorkerJoined(worker=worker, name=name))

    def stop_worker(self, worker: Ref) -> None:
        """Stop a worker that the consumer has let go."""
        for name, ref in list(self._board.workers.items()):
            if ref == worker:
                del self._board.workers[name]
                worker.stop(block=False)

    def failed(self, child: Ref, name: str, error: str) -> float | None:
        """Take note of a failure.

        A worker's batch is the consumer's again, which will ask for another worker. After a
        failure of the consumer, whose channel is closed, everything is stopped; gives the seconds
        to wait before it is started anew. None, if there is nothing to do.
        Raises `EscalationError` for a child that fails too often.
        """
        if child == self.consumer:
            kind = "consumer"
        elif self._board.workers.get(name) == child:
            kind = "worker"
        else:
            return None
        self._observer.actor_failed(kind)
        intensity = self._intensity[kind]
        allowed = intensity.allows(self._clock.now())
        self._board.child_restarts[kind] = intensity.total
        if not allowed:
            raise EscalationError(f"its {kind} failed too often, the last time with {error}")
        if kind == "worker":
            del self._board.workers[name]
            if self.consumer is not None:
                tell(self.consumer, WorkerLost(worker=child))
            return None
        self.stop()
        return intensity.backoff()

    def stop(self) -> None:
        """Stop them all; harmless if there are none."""
        board = self._board
        consumer, self.consumer = self.consumer, None
        board.consumer = None
        for ref in (*board.workers.values(), *([consumer] if consumer else [])):
            if ref.is_alive():
                ref.stop(block=False)
        board.workers.clear()
        board.workers_current = 0
        board.consuming = False
        board.waiting_since = self._clock.now()
        board.store_down = False
