"""Turns at storing: whose batch goes to the database now, where tenants have more than fits."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from tenantry.turns.backlogs import Backlogs
from tenantry.turns.rests import Rests
from tenantry.turns.room import Room
from tenantry.turns.turns import Turn, Turns, Weights

PATIENCE: Final = 5.0
"""Seconds a batch waits for its turn before it is given back, to wait anew: so no worker hangs."""

LENT_AFTER: Final = 1.0
"""Seconds after which the room of a batch is lent to others: what it waits for, a lock or a disk,
is not what they would use."""

SMALL: Final = 0.1
"""Full batches: what is no larger does not wait for larger ones."""

TRANSACTION: Final = 0.02
"""What a batch takes beside its messages, in full batches."""

FULL: Final = 1000
FULL_BYTES: Final = 8 * 1024 * 1024
"""Messages, or bytes, that are a full batch."""

SLOW: Final = 8.0
"""How many times as long as others' work one's may take before its time counts instead."""

_KEPT_FREE: Final = 4
"""Of so many connections one is not for a tenant that has all the others."""


class StoringTurns:
    """Turns of tenants' batches at the database, by their weights.

    What is shared is work, in full batches: messages, bytes, and the transaction. While tenants
    compete as many full batches are in hand as there is `room` for: few enough that tenants wait
    here, where it is known whose turn it is, and not in the database for one another. There are no
    more batches in hand than there are `connections` for.

    Work that takes much longer than others' counts by its time: what looks small and is not (rows
    that are refused one by one, say) has no more than its share either.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        room: Room,
        connections: int,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.turns = Turns(
            weights,
            room=room,
            most=connections,
            most_of_one=max(1, connections - connections // _KEPT_FREE),
            lent_after=LENT_AFTER,
            small=SMALL,
            now=now,
        )
        self.rests: Final = Rests(weights)
        """Rests of backlogs beside quiet tenants."""
        self.backlogs: Final = Backlogs(weights, now=now)
        """Tenants with backlogs, which may be held for the sake of those of other nodes."""
        self._pace: float | None = None
        """Seconds that a full batch takes, mostly."""

    @property
    def waiting(self) -> int:
        """How many batches wait for their turn."""
        return self.turns.waiting

    def take(
        self,
        tenant_id: str,
        messages: int,
        size: int = 0,
        *,
        more: bool = False,
        beside: bool = False,
    ) -> Turn | None:
        """Wait for the turn of a batch of so many bytes; None if it has not come in time.

        It is to be `ended`. With `more` the tenant has a backlog: others do not go ahead of it, and
        it waits before as long as the node is held. If that is `beside` quiet tenants it rests.
        """
        room = self.room(messages, size)
        if more:
            self.backlogs.begun(tenant_id)
            if not self.backlogs.rest(tenant_id, room):
                self.backlogs.ended(tenant_id)
                return None
        turn = None
        if not beside or self.rests.rest(tenant_id):
            turn = self.turns.take(tenant_id, room, patience=PATIENCE, more=more)
        if turn is None and more:
            self.backlogs.ended(tenant_id, beyond=-room)
        return turn

    def room(self, messages: int, size: int = 0) -> float:
        """Tell how much room a batch takes up, in full batches."""
        return messages / FULL + size / FULL_BYTES + TRANSACTION

    def ended(self, turn: Turn, beside: int = 0, *, stored: bool = True) -> None:
        """Note that a batch is `stored`, or is not; `beside` are bytes that were not known."""
        work = turn.room + beside / FULL_BYTES

        def taken(seconds: float) -> float:
            took = self._taken(work, seconds)
            if turn.more and turn.grant is not None:
                beyond = took - turn.room
                self.backlogs.ended(turn.grant.client, took if stored else 0.0, beyond=beyond)
            return took

        self.turns.ended(turn, taken)

    def _taken(self, work: float, seconds: float) -> float:
        seconds = min(seconds, LENT_AFTER)
        if work > SMALL:
            sample = seconds / work
            pace = sample if self._pace is None else self._pace
            # Closer to the fast values: a slow one must not become the norm.
            self._pace = pace + (sample - pace) * (0.3 if sample < pace else 0.01)
        return max(work, seconds / (SLOW * self._pace)) if self._pace else work
