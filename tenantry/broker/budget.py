"""How many bytes of deliveries may be unsettled: per tenant, and for all tenants together.

Prefetch counts messages, and prefetch times the largest message is more than any machine has. So
the adapter that takes deliveries in counts the unsettled ones in bytes, too.
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
"""Bytes that a tenant may have in hand even if all together are over their limit, so that the
neighbours of tenants with much in hand go on."""

SMALL_TABLE: Final = 1024
"""Bytes of headers on the wire up to which they count as ordinary ones."""

EACH: Final = 32 * 1024 * 1024
TOTAL: Final = 256 * 1024 * 1024


class Budget:
    """The bytes that tenants may have in hand: `total` together, `each` one alone.

    A delivery is taken as long as there is room for one byte of it, so one message at most exceeds
    either limit. A budget belongs to the one thread that takes deliveries in.
    """

    __slots__ = ("each", "freed", "in_hand", "own", "total")

    def __init__(self, *, each: int = EACH, total: int = TOTAL) -> None:
        self.each = each
        self.own = min(OWN, each)
        self.total = max(each, total)
        self.in_hand = 0
        self.freed = 0
        """How often bytes were freed: a message that found no room may find some now."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the budget that the settings allow."""
        consumer = settings.consumer
        return cls(each=consumer.prefetch_bytes, total=consumer.prefetch_bytes_total)

    @property
    def crowded(self) -> bool:
        """Whether the total is used up: then no message may take a tenant beyond `own` bytes."""
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
        """The highest tag counted."""
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
        """Count the next delivery, of `size` bytes, if there is room for it; return whether."""
        budget, mine = self._budget, self.in_hand
        full = mine >= budget.each or budget.in_hand >= budget.total
        if full and mine + size > budget.own:
            return False
        self.in_hand = mine + size
        budget.in_hand += size
        self.sizes.append(size)
        return True

    def skip(self) -> None:
        """Count the next delivery as given back: its tag is used, and it takes no bytes."""
        self.sizes.append(0)

    def add(self, size: int) -> None:
        """Count the next delivery, for which there was room."""
        self.sizes.append(size)
        self.in_hand += size
        self._budget.in_hand += size

    def settle(
        self, rejects: Iterable[int] = (), acks: Iterable[int] = (), up_to: int | None = None
    ) -> None:
        """Remove settled deliveries: some by their tags, and all up to one."""
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
        """Start over: the channel is gone, with all its deliveries."""
        self.sizes.clear()
        self.first = 1
        self._off(self.in_hand)

    def _off(self, freed: int) -> None:
        if freed:
            self.in_hand -= freed
            self._budget.in_hand -= freed
            self._budget.freed += 1


def weight(body: int, table: int) -> int:
    """Return the bytes that a delivery takes in memory: its body, and its decoded headers.

    Usually headers take hardly more than on the wire. But an empty table in a table takes five
    bytes there, and a hundred and twenty here.
    """
    return body + OVERHEAD + table * (4 if table <= SMALL_TABLE else 24)


class Admission:
    """What one channel takes and gives back on RabbitMQ, whose prefetch counts messages only.

    The prefetch limits unsettled deliveries, however large they are. So deliveries beyond the
    budget are read off the wire, dropped, and given back to their queue. Then the queues are
    consumed anew, with a prefetch in which messages of that size fit. Once messages are smaller
    again, the prefetch grows back, each time by a new consumer. A quorum queue then delivers again
    what was in flight to the old consumer, and not always in order; so nothing is changed while
    messages fit. An admission belongs to the loop's thread.

    `window` is how many deliveries of one queue may be unsettled just now. From the first delivery
    that does not fit on, none is taken until `resume`, so that the last ones are those given back.
    """

    __slots__ = (
        "_budget",
        "_grown_at",
        "_mean",
        "_prefetch",
        "_queues",
        "account",
        "shed",
        "shedding",
        "window",
    )

    def __init__(self, budget: Budget, *, prefetch: int, queues: int) -> None:
        self.account = Account(budget)
        self.window = prefetch
        self.shedding = False
        self.shed: list[int] = []
        self._budget = budget
        self._prefetch = prefetch
        self._queues = queues
        self._grown_at = 0
        self._mean = 0

    def admit(self, body: int, table: int) -> bool:
        """Count the next delivery, by its bytes of body and headers; return whether it is taken.

        Same as `weight` and `Account.take`, inlined because it runs for every message.
        """
        account, budget = self.account, self._budget
        size = body + table * 4 + OVERHEAD if table <= SMALL_TABLE else weight(body, table)
        if not self.shedding and (
            (account.in_hand < budget.each and budget.in_hand < budget.total)
            or account.in_hand + size <= budget.own
        ):
            account.in_hand += size
            budget.in_hand += size
            account.sizes.append(size)
            return True
        account.skip()
        if not self.shedding:
            self._mean = max(self._mean_now(), size)
        self.shedding = True
        return False

    def grows(self) -> bool:
        """Enlarge the window if messages would fit; return whether it was enlarged."""
        window = self.window
        if window >= self._prefetch or self.shedding:
            return False
        brought = self.account.last - self._grown_at
        if brought < window // 2 or not self.account.in_hand:
            return False
        # The estimate has been wrong before: grow step by step.
        fits = min(self._prefetch, self._fitting(self._mean_now()), 4 * window)
        if fits < 2 * window and fits < self._prefetch:
            return False
        self.window, self._grown_at = max(window, fits), self.account.last
        return self.window > window

    def has_room(self) -> bool:
        """Return whether there is room again after a delivery that did not fit."""
        account, budget = self.account, self._budget
        if budget.crowded:
            return account.in_hand + self._mean <= budget.own
        return account.in_hand <= budget.each // 2

    def resume(self) -> None:
        """Take deliveries again, with a window in which they fit."""
        fits = self._fitting(self._mean)
        if self._budget.crowded:
            fits = min(fits, self._budget.own // max(1, self._mean))
        self.window = max(1, min(fits, self.window // 2))
        self._grown_at = self.account.last
        self.shedding = False

    def begin(self) -> None:
        """Start over on a new channel."""
        self.account.clear()
        self.shedding = False
        self.shed = []
        self._grown_at = 0

    def _mean_now(self) -> int:
        waiting = self.account.last - self.account.first + 1
        return self.account.in_hand // waiting if waiting > 0 else self._mean

    def _fitting(self, mean: int) -> int:
        return self._budget.each // (2 * max(1, mean) * self._queues)
