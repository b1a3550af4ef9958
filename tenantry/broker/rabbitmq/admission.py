"""How many bytes a channel may bring, where the broker counts messages only.

RabbitMQ's prefetch says how many deliveries may be unsettled, however large they are. So what is
beyond the budget is read off the wire and dropped, and given back to its queue; then the queues are
consumed anew, with a prefetch in which messages fit that are as large as those. Once they are
smaller again, it grows back, by another consumer each time. A quorum queue gives what was on its
way to the consumer before once more, and not always in its order: so nothing is done for as long as
messages fit.
"""

from __future__ import annotations

from typing import Final

from tenantry.broker.budget import OVERHEAD, Account, Budget

SMALL_TABLE: Final = 1024


def weight(body: int, table: int) -> int:
    """Give the bytes a delivery takes in memory: its body, and what becomes of its headers.

    Hardly more than they have on the wire, usually; but an empty table in a table is five bytes
    there, and a hundred and twenty here.
    """
    return body + OVERHEAD + table * (4 if table <= SMALL_TABLE else 24)


class Admission:
    """What one channel takes, and what it gives back. It belongs to the loop's thread.

    `window` is how many deliveries of one queue may be unsettled just now. From the first delivery
    that does not fit on, none is taken until `resume`: so what is given back is the last there is.
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
        """Count the next delivery, by the bytes of its body and its headers; tell if it is taken.

        As `weight` and `Account.take`, written out: it is asked for every message.
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
        """Tell whether the window may be larger by now, and make it so."""
        window = self.window
        if window >= self._prefetch or self.shedding:
            return False
        brought = self.account.last - self._grown_at
        if brought < window // 2 or not self.account.in_hand:
            return False
        # It has been wrong before: step by step.
        fits = min(self._prefetch, self._fitting(self._mean_now()), 4 * window)
        if fits < 2 * window and fits < self._prefetch:
            return False
        self.window, self._grown_at = max(window, fits), self.account.last
        return self.window > window

    def has_room(self) -> bool:
        """Tell whether deliveries may come again that did not fit."""
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
        """Begin anew: the channel is another."""
        self.account.clear()
        self.shedding = False
        self.shed = []
        self._grown_at = 0

    def _mean_now(self) -> int:
        waiting = self.account.last - self.account.first + 1
        return self.account.in_hand // waiting if waiting > 0 else self._mean

    def _fitting(self, mean: int) -> int:
        return self._budget.each // (2 * max(1, mean) * self._queues)
