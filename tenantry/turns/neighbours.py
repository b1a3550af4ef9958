"""Quiet neighbours: tenants with a message now and then, beside others that have a backlog.

Full batches, stored beside one another while the next ones come in, keep all processors busy for
tens of milliseconds; meanwhile the quiet tenants' messages wait at each step of their way. So a
backlog beside them goes in portions.
"""

from __future__ import annotations

from math import inf
from typing import Final, TypeAlias

LATELY: Final = 1.0
"""Seconds after a tenant's few messages for which it counts as a quiet neighbour."""

FEW: Final = 25
"""As many messages at most make a tenant a quiet one, if they are all that it has."""

PATIENCE: Final = 0.05
"""Seconds after which a portion goes out although the one before is not stored, or not replaced."""

_Seen: TypeAlias = tuple[str, float]

_NOBODY: Final[_Seen] = ("", -inf)


class Neighbours:
    """Tells a tenant with a backlog whether quiet tenants work beside it. Callable from any thread.

    It remembers the two quiet tenants that were seen last. Of two that are noted in the same
    instant one may be missed, until its next message.
    """

    def __init__(self) -> None:
        self._seen: tuple[_Seen, _Seen] = (_NOBODY, _NOBODY)

    def note(self, tenant_id: str, now: float) -> None:
        """Note that a tenant had few messages, which were given out at once."""
        latest, before = self._seen
        self._seen = ((tenant_id, now), before if latest[0] == tenant_id else latest)

    def forget(self, tenant_id: str) -> None:
        """Note that a tenant is not quiet: few messages were the first of many."""
        latest, before = self._seen
        if latest[0] == tenant_id:
            self._seen = (before, _NOBODY)
        elif before[0] == tenant_id:
            self._seen = (latest, _NOBODY)

    def beside(self, tenant_id: str, now: float) -> bool:
        """Tell whether another tenant was quiet lately."""
        latest, before = self._seen
        _, at = before if latest[0] == tenant_id else latest
        return now - at < LATELY


class Portions:
    """Cuts a tenant's backlog into small portions while quiet tenants work beside it.

    A portion goes out once the one before is stored and the broker has replaced it: one thing after
    the other. Where that takes longer than `PATIENCE` (a handler, a distant database), it is not
    the processors that the time is spent on, and other workers get portions, too. It reads no
    clock, and belongs to one thread.
    """

    def __init__(self, tenant_id: str, neighbours: Neighbours) -> None:
        self._tenant = tenant_id
        self._neighbours = neighbours
        self._at = -inf
        self._owed = 0
        """How many deliveries of the latest batch the broker has not replaced."""
        self._backlog_at = -inf
        self.beside_others = False
        """Whether it had a backlog beside quiet tenants when it was last `allowed` something."""

    def allowed(
        self, waiting: int, *, batch_size: int, portion: int, busy: bool, now: float
    ) -> int:
        """Return how many of the `waiting` deliveries may go in a batch now.

        If 0, more may go in `seconds_left`. `busy` tells whether a batch of the tenant is being
        stored.
        """
        beside = portion < batch_size and self._neighbours.beside(self._tenant, now)
        self.beside_others = beside and self.has_backlog(now)
        if waiting <= portion or not beside:
            return batch_size
        if self.seconds_left(now) <= 0 or not (busy or self._owed > 0):
            return min(portion, batch_size)
        return 0

    def note_backlog(self, now: float) -> None:
        """Note that the tenant has a full batch in hand, waiting and in batches."""
        self._backlog_at = now
        self._neighbours.forget(self._tenant)

    def has_backlog(self, now: float) -> bool:
        """Tell whether it had one lately: a backlog, too, comes in few messages at times."""
        return now - self._backlog_at < LATELY

    def seconds_left(self, now: float) -> float:
        """Return the seconds after which a portion may go in any case."""
        return self._at + PATIENCE - now

    def came(self, count: int) -> None:
        """Note that deliveries have come in."""
        self._owed -= count

    def gone(self, count: int, *, waiting: int, busy: bool, now: float) -> None:
        """Note that so many deliveries were given out, and so many are left."""
        self._at, self._owed = now, count
        if count <= FEW and not (waiting or busy or self.has_backlog(now)):
            self._neighbours.note(self._tenant, now)
