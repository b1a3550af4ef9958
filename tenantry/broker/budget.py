"""How many bytes of deliveries may be in hand: a tenant's, and all tenants' together.

Prefetch counts messages, and prefetch times the largest message is more than any machine has. So
what is delivered and not settled is counted in bytes, too, by whoever takes deliveries in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from tenantry.settings import Settings


OVERHEAD: Final = 256
"""Bytes that a delivery takes beside its body and headers."""

OWN: Final = 256 * 1024
"""Bytes that a tenant may have in hand though all together are over their limit: so neighbours of
those who hold much go on."""

EACH: Final = 32 * 1024 * 1024
TOTAL: Final = 256 * 1024 * 1024


class Budget:
    """What all tenants may have in hand: `total` together, `each` one alone, in bytes.

    A delivery is taken as long as there is room for one byte of it, so either is passed by one
    message at most. It belongs to the one thread that takes deliveries in.
    """

    __slots__ = ("each", "freed", "in_hand", "own", "total")

    def __init__(self, *, each: int = EACH, total: int = TOTAL) -> None:
        self.each = each
        self.own = min(OWN, each)
        self.total = max(each, total)
        self.in_hand = 0
        self.freed = 0
        """How often something was settled: what found no room may find some now."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Give what the settings allow."""
        consumer = settings.consumer
        return cls(each=consumer.prefetch_bytes, total=consumer.prefetch_bytes_total)

    @property
    def crowded(self) -> bool:
        """Whether all together have no room: then no message may pass what is a tenant's own."""
        return self.in_hand >= self.total


class Account:
    """The unsettled deliveries of one channel, by their tags, which rise by one from 1."""

    __slots__ = ("_budget", "first", "in_hand", "sizes")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.sizes: deque[int] = deque()
        self.first = 1
        """The lowest tag that may be unsettled."""
        self.in_hand = 0

    @property
    def last(self) -> int:
        """The highest tag there was."""
        return self.first + len(self.sizes) - 1

    @property
    def room(self) -> int:
        """Bytes that may still come; 0 or less for none."""
        budget = self._budget
        return max(
            budget.own - self.in_hand,
            min(budget.each - self.in_hand, budget.total - budget.in_hand),
        )

    def take(self, size: int) -> bool:
        """Count the next delivery, of so many bytes, if there is room for it; tell whether."""
        budget, mine = self._budget, self.in_hand
        full = mine >= budget.each or budget.in_hand >= budget.total
        if full and mine + size > budget.own:
            return False
        self.in_hand = mine + size
        budget.in_hand += size
        self.sizes.append(size)
        return True

    def skip(self) -> None:
        """Note that the next delivery is given back: its tag is used, and nothing is in hand."""
        self.sizes.append(0)

    def add(self, size: int) -> None:
        """Count the next delivery, for which there was room."""
        self.sizes.append(size)
        self.in_hand += size
        self._budget.in_hand += size

    def settle(
        self, rejects: Iterable[int] = (), acks: Iterable[int] = (), up_to: int | None = None
    ) -> None:
        """Take deliveries off, some by their tags, and all up to one."""
        sizes, first = self.sizes, self.first
        freed = 0
        for tags in (rejects, acks):
            for tag in tags:
                at = tag - first
                if 0 <= at < len(sizes):
                    freed += sizes[at]
                    sizes[at] = 0
        if up_to is not None:
            count = min(up_to - first + 1, len(sizes))
            for _ in range(count):
                freed += sizes.popleft()
            first += max(0, count)
        while sizes and not sizes[0]:
            sizes.popleft()
            first += 1
        self.first = first
        self._off(freed)

    def clear(self) -> None:
        """Begin anew: the channel is gone, and everything on it."""
        self.sizes.clear()
        self.first = 1
        self._off(self.in_hand)

    def _off(self, freed: int) -> None:
        if freed:
            self.in_hand -= freed
            self._budget.in_hand -= freed
            self._budget.freed += 1
