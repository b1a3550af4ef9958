"""A consumer's workers: which are idle, which are busy with which batch, when to add one."""

from __future__ import annotations

from typing import Final

from tenantry.actors.clock import Clock
from tenantry.actors.messages import (
    Batch,
    Ref,
    Reminder,
    Resized,
    Work,
    WorkerReleased,
    WorkerWanted,
)
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.actors.supervision import heartbeat_of, tell

IDLE_SECONDS: Final = 60.0
"""How long a worker without work is kept."""


class WorkerPool:
    """The workers of a consumer, `limit` at most, and what each has in hand.

    The tenant starts a worker when one is wanted. A worker is released after a while without work,
    since an idle worker costs a thread, or when there are more than the limit. After a `resize` the
    tenant is told `Resized` once no more workers are busy than the new limit allows.
    """

    def __init__(
        self, *, consumer: Ref, tenant: Ref, limit: int, clock: Clock, runtime: TenantRuntimeState
    ) -> None:
        self._consumer = consumer
        self._tenant = tenant
        self._clock = clock
        self._runtime = runtime
        self._idle: dict[Ref, float] = {}
        self._names: dict[Ref, str] = {}
        self._wanted = False
        self._looking = False
        self._resizing = False
        self.limit = limit
        self.busy: Final[dict[Ref, Batch]] = {}
        """The busy workers, each with its batch; only the pool writes this."""
        self._busy_changed()

    def can_give(self) -> bool:
        """Tell whether a batch can be given to an idle worker now.

        Where none is idle and the limit allows one more, the tenant is asked to start it.
        """
        if len(self.busy) >= self.limit:
            return False
        if self._idle:
            return True
        if not self._wanted:
            self._wanted = True
            self._tell_tenant(WorkerWanted())
        return False

    def joined(self, worker: Ref, name: str) -> None:
        """Add a worker that the tenant has started."""
        self._wanted = False
        self._names[worker] = name
        self._idle[worker] = self._clock.now()

    def give(self, batch: Batch) -> bool:
        """Give a batch to an idle worker; False if that worker has just died.

        The worker that was busy last is taken first, so that the others can be released.
        """
        worker, _ = self._idle.popitem()
        if not tell(worker, Work(batch=batch)):
            return False  # The tenant will report it as lost, and send another worker.
        self.busy[worker] = batch
        self._runtime.in_hand[self._names[worker]] = len(batch.deliveries)
        self._busy_changed()
        return True

    def done(self, worker: Ref) -> int | None:
        """Mark a worker idle again, or release it; return how many more may be busy.

        None if the worker had no batch.
        """
        if self.busy.pop(worker, None) is None:
            return None
        self._runtime.in_hand.pop(self._names[worker], None)
        if len(self.busy) + len(self._idle) >= self.limit:
            self._release(worker)
        else:
            self._idle[worker] = self._clock.now()
            self._look_for_idle()
        self._busy_changed()
        return self.limit - len(self.busy)

    def lost(self, worker: Ref) -> Batch | None:
        """Remove a failed worker; return its batch, if it had one."""
        self._idle.pop(worker, None)
        name = self._names.pop(worker, None)
        if name is not None:
            self._runtime.in_hand.pop(name, None)
        # A worker that was on its way may be the failed one: ask again.
        self._wanted = False
        batch = self.busy.pop(worker, None)
        self._busy_changed()
        return batch

    def resize(self, limit: int) -> None:
        """Set another limit; release idle workers beyond it at once."""
        self.limit = limit
        self._resizing = True
        while self._idle and len(self.busy) + len(self._idle) > limit:
            worker, _ = self._idle.popitem()
            self._release(worker)
        self._busy_changed()

    def release_idle(self) -> None:
        """Release the workers that have had nothing to do for a while."""
        self._looking = False
        now = self._clock.now()
        for worker, since in list(self._idle.items()):
            if now - since >= IDLE_SECONDS:
                del self._idle[worker]
                self._release(worker)
        if self._idle:
            self._look_for_idle()

    def _busy_changed(self) -> None:
        busy = len(self.busy)
        self._runtime.busy.change(busy, self._clock.now())
        self._runtime.workers_current = max(self.limit, busy)
        if self._resizing and busy <= self.limit:
            self._resizing = False
            self._tell_tenant(Resized())

    def _release(self, worker: Ref) -> None:
        self._names.pop(worker, None)
        self._tell_tenant(WorkerReleased(worker=worker))

    def _tell_tenant(self, message: object) -> None:
        heartbeat_of(self._consumer).unless_fenced(lambda: tell(self._tenant, message))

    def _look_for_idle(self) -> None:
        if not self._looking:
            self._looking = True
            self._clock.tell_later(IDLE_SECONDS, self._consumer, Reminder.LOOK_FOR_IDLE_WORKERS)
