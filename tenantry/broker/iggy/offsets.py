"""The settled messages of a partition; its stored offset passes no unsettled one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


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
        if offset < self.floor:
            return True
        at = bisect_left(self._ends, offset + 1)
        return at < len(self._starts) and self._starts[at] <= offset

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
