"""Turns that threads wait for: at a bounded number of places, by what each client has had."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Final

from tenantry.turns.fair_queue import FairQueue, Grant
from tenantry.turns.room import Room

LOOK_EVERY: Final = 1.0
"""Seconds between two checks, by waiting threads, whether a long turn's room can be lent."""

EXPECTED_FOR: Final = 0.1
"""Seconds after a turn for which its tenant keeps its place, if it has more."""


class Weights:
    """The weights of tenants, 1 by default. Callable from any thread."""

    def __init__(self) -> None:
        self._weights: dict[str, int] = {}

    def weigh(self, tenant_id: str, weight: int) -> None:
        """Set a tenant's weight."""
        if weight == 1:
            self._weights.pop(tenant_id, None)
        else:
            self._weights[tenant_id] = weight

    def of(self, tenant_id: str) -> int:
        """Give a tenant's weight."""
        return self._weights.get(tenant_id, 1)


class Turn:
    """A turn that a tenant has or waits for; it takes up `room` while it runs.

    With `more`, the tenant will soon ask for another one. At `look_at`, a thread that waits for the
    turn is to see whether others are still expected.
    """

    __slots__ = ("began", "grant", "lent", "look_at", "more", "ready", "room")

    def __init__(self, room: float, *, more: bool = False) -> None:
        self.room = room
        self.more = more
        self.look_at = inf
        self.began = 0.0
        self.grant: Grant[Turn] | None = None
        self.lent = False
        self.ready: threading.Event | None = None


class Turns:
    """Turns of tenants, by their weights. Callable from any thread, which waits in `take`.

    A turn begins at once, whatever its tenant's past use, while the running turns take up less than
    all the room and are fewer than `most`. Room limits competing tenants only: a tenant needs none
    while the others have small turns alone. A tenant has at most `most_of_one` turns at once. The
    room of a turn that has lasted `lent_after` seconds is lent to others. A turn of at most `small`
    needs no room if its tenant has no other turn and has not used up its share.

    A tenant that has more than its turns in hand keeps its place until it asks again: others, if
    they are ahead of it by more than its lead, wait for it during its turn, and `EXPECTED_FOR`
    after. Otherwise whoever asks first would go ahead each time, where what is scarce is not the
    room.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        room: Room,
        most: int,
        most_of_one: int,
        lent_after: float = inf,
        small: float = 0.0,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._weights = weights
        self._room = room
        self._most = most
        self._lent_after = lent_after
        self._small = small
        self._now = now
        self._lock = threading.Lock()
        self._queue: FairQueue[Turn] = FairQueue(most_of_one=most_of_one)
        self._working: dict[Turn, None] = {}
        """Turns whose room is not lent, the oldest first."""
        self.taken_up = 0.0
        """How much room is taken up; read-only for callers."""
        self._count = 0
        self._expected: dict[str, float] = {}
        """Until when tenants keep their places that do not wait."""
        self._large: Counter[str] = Counter()
        """How many turns that are not small, running or waiting, each tenant has."""

    @property
    def waiting(self) -> int:
        """The number of waiting turns."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """The number of running turns."""
        return self._count

    def take(
        self, tenant_id: str, room: float, *, patience: float, more: bool = False
    ) -> Turn | None:
        """Wait for a turn, `patience` seconds at most; None if it has not come."""
        turn = self.ask(tenant_id, room, more=more)
        return turn if turn.grant is not None or self._wait(tenant_id, turn, patience) else None

    def ask(self, tenant_id: str, room: float, *, more: bool = False) -> Turn:
        """Ask for a turn. It has a `grant` once it has begun; the caller must end it.

        If it has not begun yet, its event `ready` is set when it does, or when it is to be looked
        at again. With `more` the tenant will ask again as soon as it can.
        """
        turn = Turn(room, more=more)
        with self._lock:
            now = self._now()
            self._lend(now)
            self._queue.add(tenant_id, self._weights.of(tenant_id), turn)
            if room > self._small:
                self._large[tenant_id] += 1
            self._go_on(now)
            if turn.grant is None and room <= self._small and self._count < self._most:
                grant = self._queue.next_of(tenant_id)
                if grant is not None:
                    self._begin(grant, now)
            if turn.grant is None:
                turn.ready = threading.Event()
        return turn

    def _wait(self, tenant_id: str, turn: Turn, patience: float) -> bool:
        """Wait for a turn that was asked for; tell whether it has come."""
        until = self._now() + patience
        while True:
            with self._lock:
                now = self._now()
                if turn.grant is not None or turn.ready is None:
                    return True
                if now >= until:
                    self._queue.remove(tenant_id, turn)
                    self._forget(tenant_id, turn)
                    self._go_on(now)
                    return False
                seconds = min(until, now + LOOK_EVERY, turn.look_at) - now
                turn.look_at = inf
                turn.ready.clear()
            turn.ready.wait(seconds)
            self.look()

    def look(self) -> None:
        """Lend the room of turns that have lasted for long."""
        with self._lock:
            now = self._now()
            self._lend(now)
            self._go_on(now)

    def ended(self, turn: Turn, taken: Callable[[float], float]) -> None:
        """End a turn; `taken` gives its cost from the seconds that it lasted."""
        with self._lock:
            now = self._now()
            self._count -= 1
            self._room.note(turn.room, now, contended=self._queue.waiting > 0)
            if not turn.lent:
                del self._working[turn]
                self._take_off(turn)
            if turn.grant is not None:
                if turn.more and turn.grant.client in self._expected:
                    self._expected[turn.grant.client] = now + EXPECTED_FOR
                self._queue.ended(turn.grant, taken(now - turn.began))
                self._forget(turn.grant.client, turn)
            self._lend(now)
            self._go_on(now)

    def _forget(self, tenant_id: str, turn: Turn) -> None:
        if turn.room > self._small:
            self._large[tenant_id] -= 1
            if not self._large[tenant_id]:
                del self._large[tenant_id]

    def _go_on(self, now: float) -> None:
        queue, room = self._queue, self._room.size
        for tenant_id in [one for one, until in self._expected.items() if until <= now]:
            self._expect_no_more(tenant_id)
        while (self.taken_up < room or len(self._large) < 2) and self._count < self._most:
            grant = queue.next()
            if grant is not None:
                self._begin(grant, now)
                continue
            if queue.held is not None and queue.held.look_at == inf:
                queue.held.look_at = min(self._expected.values())
                if queue.held.ready is not None:
                    queue.held.ready.set()
            return

    def _expect_no_more(self, tenant_id: str) -> None:
        if self._expected.pop(tenant_id, None) is not None:
            self._queue.expect_no_more(tenant_id)

    def _begin(self, grant: Grant[Turn], now: float) -> None:
        turn = grant.item
        turn.grant, turn.began = grant, now
        self._working[turn] = None
        self.taken_up += turn.room
        self._count += 1
        if turn.more:
            self._queue.expect(grant.client)
            self._expected[grant.client] = now + self._lent_after
        else:
            self._expect_no_more(grant.client)
        if turn.ready is not None:
            turn.ready.set()

    def _lend(self, now: float) -> None:
        while self._working:
            turn = next(iter(self._working))
            if now - turn.began < self._lent_after:
                return
            del self._working[turn]
            turn.lent = True
            self._take_off(turn)

    def _take_off(self, turn: Turn) -> None:
        # Rounding errors of sums must not add up: without turns it is exactly 0.
        self.taken_up = self.taken_up - turn.room if self._working else 0.0
