"""A consumer's workers: who is idle, who is busy with what, who is wanted, who may go."""

from __future__ import annotations

from typing import Final

from tenantry.actors.board import TenantBoard
from tenantry.actors.clock import Clock, tell
from tenantry.actors.messages import Batch, LookForIdle, Ref, Work, WorkerReleased, WorkerWanted
from tenantry.actors.supervision import pulse_of

IDLE_SECONDS: Final = 60.0
"""How long a worker without work is kept."""


class Roster:
    """The workers that a consumer has, `limit` at most, and what each has in hand.

    Workers come when they are wanted, by way of the tenant, and go when they are released: after a
    while without work, or when there are more than the limit. Idle ones cost a thread each.
    """

    def __init__(
        self,
        *,
        consumer: Ref,
        tenant: Ref,
        limit: int,
        clock: Clock,
        board: TenantBoard,
    ) -> None:
        self._consumer = consumer
        self._tenant = tenant
        self._clock = clock
        self._board = board
        self._idle: dict[Ref, float] = {}
        self._busy: dict[Ref, Batch] = {}
        self._names: dict[Ref, str] = {}
        self._wanted = False
        self._looking = False
        self._resizing = False
        self.limit = limit

    @property
    def busy(self) -> int:
        """How many have a batch in hand."""
        return len(self._busy)

    @property
    def places(self) -> int:
        """How many more may be busy; below zero while a smaller limit is taking effect."""
        return self.limit - len(self._busy)

    @property
    def has_idle(self) -> bool:
        """Whether somebody waits for work."""
        return bool(self._idle)

    def want(self) -> None:
        """Ask the tenant for one more worker, unless one is on its way."""
        if not self._wanted:
            self._wanted = True
            self._tell_tenant(WorkerWanted())

    def joined(self, worker: Ref, name: str) -> None:
        """Take in a worker that was wanted."""
        self._wanted = False
        self._names[worker] = name
        self._idle[worker] = self._clock.now()

    def give(self, batch: Batch) -> bool:
        """Give a batch to somebody idle; False if that worker has just died, and is idle no more.

        The one that was busy last is taken first, so that the others can be let go.
        """
        worker, _ = self._idle.popitem()
        if not tell(worker, Work(batch=batch)):
            return False  # Its tenant will say so, and send another.
        self._busy[worker] = batch
        self._board.in_hand[self._names[worker]] = len(batch.deliveries)
        return True

    def done(self, worker: Ref) -> bool:
        """Take a worker as idle again, or release it; False if it had nothing in hand."""
        if self._busy.pop(worker, None) is None:
            return False
        self._board.in_hand.pop(self._names[worker], None)
        if len(self._busy) + len(self._idle) >= self.limit:
            self._release(worker)
        else:
            self._idle[worker] = self._clock.now()
            self._look_for_idle()
        return True

    def lost(self, worker: Ref) -> Batch | None:
        """Strike off a worker that failed; give back what it had in hand."""
        self._idle.pop(worker, None)
        name = self._names.pop(worker, None)
        if name is not None:
            self._board.in_hand.pop(name, None)
        # If one was on its way it may be the one that failed: ask again.
        self._wanted = False
        return self._busy.pop(worker, None)

    def resize(self, limit: int) -> None:
        """Have another limit from now on; idle workers beyond it are released at once."""
        self.limit = limit
        self._resizing = True
        while self._idle and len(self._busy) + len(self._idle) > limit:
            worker, _ = self._idle.popitem()
            self._release(worker)

    def is_resized(self) -> bool:
        """Tell, once, that no more are busy than a new limit allows."""
        if not self._resizing or len(self._busy) > self.limit:
            return False
        self._resizing = False
        return True

    def release_idle(self) -> None:
        """Release who has had nothing to do for a while."""
        self._looking = False
        now = self._clock.now()
        for worker, since in list(self._idle.items()):
            if now - since >= IDLE_SECONDS:
                del self._idle[worker]
                self._release(worker)
        if self._idle:
            self._look_for_idle()

    def _release(self, worker: Ref) -> None:
        self._names.pop(worker, None)
        self._tell_tenant(WorkerReleased(worker=worker))

    def _tell_tenant(self, message: object) -> None:
        pulse_of(self._consumer).unless_fenced(lambda: tell(self._tenant, message))

    def _look_for_idle(self) -> None:
        if not self._looking:
            self._looking = True
            self._clock.tell_later(IDLE_SECONDS, self._consumer, LookForIdle())
