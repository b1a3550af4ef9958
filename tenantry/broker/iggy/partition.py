"""A consumed partition: how far it was read, given out and settled.

Its stored offset passes no unsettled message.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from tenantry.broker.budget import OVERHEAD
from tenantry.broker.iggy.topology import Place, place_of
from tenantry.broker.port import QueueSpec

FIRST_POLL: Final = 32
"""Messages fetched before their size is known."""

MOST: Final = 1000
"""The most messages fetched at once."""

POLL_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of an answer, if messages are as large as those before."""


class OffsetWindow:
    """The settled offsets of one partition: all below `floor`, and some ranges beyond it.

    A server stores one number per group and partition. So of messages settled out of order, only
    those below the first unsettled one are passed for good; the others are remembered here, for as
    long as this process runs.
    """

    __slots__ = ("_ends", "_starts", "floor")

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        """The offset of the first message that is not settled."""
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def beyond(self) -> int:
        """How many messages beyond an unsettled one are settled."""
        return sum(self._ends) - sum(self._starts)

    def settle(self, start: int, end: int) -> bool:
        """Record that the messages from `start` up to, not including, `end` are settled.

        Returns whether the floor has risen. Settling twice is harmless.
        """
        start = max(start, self.floor)
        if start >= end:
            return False
        starts, ends = self._starts, self._ends
        if start == self.floor:
            passed = 0
            while passed < len(starts) and starts[passed] <= end:
                end = max(end, ends[passed])
                passed += 1
            del starts[:passed], ends[:passed]
            self.floor = end
            return True
        # The first range that ends at or after this one's start, and the first that begins later.
        first = bisect_left(ends, start)
        last = first
        while last < len(starts) and starts[last] <= end:
            start = min(start, starts[last])
            end = max(end, ends[last])
            last += 1
        starts[first:last] = [start]
        ends[first:last] = [end]
        return False

    def is_settled(self, offset: int) -> bool:
        """Return whether a message is settled."""
        return self.skip(offset) != offset

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the settled ranges beyond the floor, in order."""
        return zip(self._starts, self._ends, strict=True)

    def skip(self, offset: int) -> int:
        """Return the first unsettled offset from `offset` on."""
        offset = max(offset, self.floor)
        at = bisect_left(self._ends, offset + 1)
        if at < len(self._starts) and self._starts[at] <= offset:
            return self._ends[at]
        return offset


class Partition:
    """What this process knows of a partition, for as long as its topic is the same.

    It belongs to the thread that reads. It outlives a subscription: settled messages stay settled
    for the next one.
    """

    __slots__ = (
        "excused",
        "hungry",
        "made",
        "mean",
        "next",
        "place",
        "prefetch",
        "redelivered_up_to",
        "seen",
        "spec",
        "stored",
        "unsettled",
        "window",
    )

    def __init__(self, spec: QueueSpec, *, made: int, floor: int, redelivered_up_to: int) -> None:
        self.spec = spec
        self.place: Final[Place] = place_of(spec)
        self.made = made
        """When the topic was made, in microseconds; it tells topics of the same name apart."""
        self.window = OffsetWindow(floor)
        self.stored = floor
        """The floor that the server has stored."""
        self.next = floor
        """The offset to be read next."""
        self.redelivered_up_to = redelivered_up_to
        """Messages below this offset may have been given out before."""
        self.hungry = True
        self.prefetch = 0
        self.unsettled = 0
        self.excused = 0
        """How many unsettled messages do not count against the prefetch."""
        self.mean = 0
        self.seen = False
        """Whether a subscription reads this partition now."""

    def begin(self, prefetch: int) -> None:
        """Begin on a new channel, which gives out again what is not settled."""
        self.redelivered_up_to = max(self.redelivered_up_to, self.next)
        self.next = self.window.floor
        self.prefetch = prefetch
        self.unsettled = self.excused = 0
        self.hungry = True
        self.seen = True

    @property
    def credit(self) -> int:
        """How many more deliveries the prefetch allows."""
        return self.prefetch - self.unsettled + self.excused

    def ask_for(self, room: int) -> int:
        """Return how many messages to fetch, so that they fit."""
        if not self.mean:
            return min(self.credit, FIRST_POLL)
        return max(1, min(self.credit, MOST, min(room, POLL_BYTES) // (self.mean + OVERHEAD)))

    def note_sizes(self, count: int, size: int) -> None:
        """Update the mean size of messages; at once if they become larger."""
        mean = size // count
        self.mean = max(1, mean, (3 * self.mean + mean) // 4)
