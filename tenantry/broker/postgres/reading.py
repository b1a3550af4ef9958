"""A queue as its reader sees it: how far it has read, and what is unsettled."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tenantry.broker.port import QueueSpec

MESSAGES: int = 1000
"""Messages of a queue fetched at once."""

BYTES: int = 8 * 1024 * 1024
"""Bytes of a queue's messages fetched at once; one message always is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTransactions:
    """The transactions that were open at a moment, among those numbered in [`oldest`, `newest`).

    All below `oldest` had ended. Nothing is known of those from `newest` on: PostgreSQL's snapshots
    end with the last transaction that has ended, and younger ones may be open.
    """

    oldest: int
    newest: int
    open: frozenset[int]


class Stragglers:
    """Transactions that stay open for long, and the floors that queues must read again from.

    A floor rises past numbers that no open transaction may still use. A transaction of any tenant
    that stays open would hold the floor back, and each fetch would step over all rows removed
    meanwhile. So a transaction seen twice, about a second apart, is a straggler and not waited for:
    once it has ended, queues are searched for messages that it may have put below a floor.
    """

    def __init__(self) -> None:
        self._known: frozenset[int] = frozenset()
        self._met: frozenset[int] = frozenset()
        self.oldest_other = 0
        """Every transaction below this number has ended, except for stragglers."""

    def __bool__(self) -> bool:
        return bool(self._known)

    def greet(self, reading: QueueReading) -> None:
        """Have a newly acquired queue look from its floor when a known straggler ends."""
        reading.owed.update(dict.fromkeys(self._known, reading.floor))

    def note(self, now: OpenTransactions, readings: Collection[QueueReading]) -> bool:
        """Record the transactions open now, about a second after the last call, and `settle`."""
        fresh = (self._met & now.open) - self._known
        if fresh:
            for reading in readings:
                reading.owed.update(dict.fromkeys(fresh, reading.floor))
        self._known |= fresh
        self._met = now.open
        return self.settle(now, readings)

    def settle(self, now: OpenTransactions, readings: Iterable[QueueReading]) -> bool:
        """Have queues look for messages of ended stragglers; return whether any has ended."""
        ended = self._known - now.open
        if ended:
            self._known -= ended
            for reading in readings:
                reading.look_back(ended)
        self.oldest_other = self.oldest(now)
        return bool(ended)

    def oldest(self, now: OpenTransactions) -> int:
        """Return the number below which every transaction has ended, except for stragglers."""
        return min(now.open - self._known, default=now.newest)


@dataclass(slots=True, kw_only=True)
class QueueReading:
    """How far a queue has been read by its present reader.

    Numbers are taken before their transactions commit, so a lower one may turn up after a higher
    one. Everything at or below `floor` is decided: given out already, or never to come. The floor
    rises behind a mark: the highest number given out at some fetch, and the number of a transaction
    that is younger than all that may have been open then. Once all those have ended, a fetch that
    misses nothing below the mark has seen everything below it.

    `owed` maps stragglers to the floor when they were disregarded (see `Stragglers`). When a
    straggler ends, the queue is read once more from that floor; then its floor returns to `ahead`,
    where it was.
    """

    spec: QueueSpec
    id: int
    redelivered_up_to: int
    prefetch: int
    floor: int = 0
    highest: int = 0
    unsettled: int = 0
    excused: int = 0
    hungry: bool = True
    mark: tuple[int, int] | None = None
    owed: dict[int, int] = field(default_factory=dict)
    ahead: int | None = None

    @property
    def credit(self) -> int:
        """How many more deliveries the prefetch allows."""
        return self.prefetch - (self.unsettled - self.excused)

    def fetched(self, last: int, *, exhausted: bool, oldest_open: int, youngest: int) -> None:
        """Record a fetch by its highest number.

        In its snapshot all transactions below `oldest_open` had ended; every transaction with a
        number by then has one below `youngest`.
        """
        complete = exhausted or last >= self.highest
        self.highest = max(self.highest, last)
        self.hungry = not exhausted
        if not complete:
            return
        self.caught_up()
        if self.mark is None:
            self.mark = (self.highest, youngest)
        elif oldest_open >= self.mark[1]:
            self.floor = self.mark[0]
            self.mark = (self.highest, youngest)

    def caught_up(self) -> None:
        """Record that everything beyond the floor has been seen."""
        if self.ahead is not None:
            self.floor, self.ahead = max(self.floor, self.ahead), None

    def look_back(self, ended: Iterable[int]) -> None:
        """Read again from the floors at which stragglers that have `ended` were disregarded."""
        since = [self.owed.pop(one) for one in ended if one in self.owed]
        if since and min(since) < self.floor:
            self.ahead = self.floor if self.ahead is None else self.ahead
            self.floor = min(since)
        self.hungry = self.hungry or bool(since)
