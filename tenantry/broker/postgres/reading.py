"""A queue as one reader sees it: how far it has read, and what it has in hand."""

from __future__ import annotations

from dataclasses import dataclass

from tenantry.broker.port import QueueSpec

MESSAGES: int = 1000
"""Messages of a queue that are fetched at once."""

BYTES: int = 8 * 1024 * 1024
"""Bytes of a queue's messages that are fetched at once; one message always is."""


@dataclass(slots=True, kw_only=True)
class QueueReading:
    """How far a queue has been read by its present reader.

    Numbers are taken before their transactions commit, so a lower one may turn up after a higher
    one. Everything at or below `floor` is decided: given out already, or never to come. The floor
    rises behind a mark: the highest number given out at some fetch, and the transactions that may
    have been open then. Once all those have ended, a fetch that misses nothing below the mark has
    seen everything below it.
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

    @property
    def credit(self) -> int:
        """How many more deliveries the prefetch allows."""
        return self.prefetch - (self.unsettled - self.excused)

    def fetched(self, last: int, *, exhausted: bool, oldest_open: int, newest: int) -> None:
        """Note a fetch by its highest number, and its snapshot: [`oldest_open`, `newest`)."""
        complete = exhausted or last >= self.highest
        self.highest = max(self.highest, last)
        self.hungry = not exhausted
        if not complete:
            return
        if self.mark is None:
            self.mark = (self.highest, newest)
        elif oldest_open >= self.mark[1]:
            self.floor = self.mark[0]
            self.mark = (self.highest, newest)
