"""Deliveries that wait for another attempt: kept unsettled, so that the broker has them too."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tenantry.broker.port import Delivery, QueueSpec
from tenantry.messages.port import Tried

MOST_HELD: Final = 10_000
"""Deliveries of a tenant that may be held before its queues are widened no more."""

MOST_HELD_BYTES: Final = 64 * 1024 * 1024


@dataclass(slots=True)
class _Entry:
    """A held delivery. `waiting` while its pause runs; `window` is its queue's at that time."""

    delivery: Delivery
    tried: Tried
    due: float
    window: int
    waiting: bool = True


class Holding:
    """What a consumer holds, by tag, and which queue it crowds.

    Held deliveries take up their queue's prefetch. When they have taken half of it the queue is
    crowded, and its prefetch is to be renewed (`Subscription.renew_prefetch`); but not when too
    much is held already: then the queue comes to a stand, and what waits in it is the broker's.
    """

    def __init__(self, queues: Sequence[QueueSpec], *, prefetch: int) -> None:
        self._queues = {(one.topic, one.partition): one for one in queues}
        self._crowd = max(1, prefetch // 2)
        self.clear()

    def clear(self) -> None:
        """Forget everything: the channel is gone."""
        self._entries: dict[int, _Entry] = {}
        self._due: list[tuple[float, int]] = []
        self._bytes = 0
        self._windows = dict.fromkeys(self._queues, 0)
        self._taken = dict.fromkeys(self._queues, 0)

    def __len__(self) -> int:
        return len(self._entries)

    def hold(self, delivery: Delivery, tried: Tried, due: float) -> None:
        """Hold a delivery, or hold it on, until `due`."""
        entry = self._entries.get(delivery.tag)
        if entry is None:
            place = _place(delivery)
            entry = _Entry(delivery, tried, due, self._windows[place])
            self._entries[delivery.tag] = entry
            self._bytes += len(delivery.message.body)
            self._taken[place] += 1
        entry.tried, entry.due, entry.waiting = tried, due, True
        heapq.heappush(self._due, (due, delivery.tag))

    def next_due(self) -> float | None:
        """Tell when the next pause is over; None if none runs."""
        while self._due and not self._is_due(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> list[tuple[Delivery, Tried]]:
        """Give what is to be tried by now; it stays held until it is freed."""
        found = []
        while (due := self.next_due()) is not None and due <= now:
            _, tag = heapq.heappop(self._due)
            entry = self._entries[tag]
            entry.waiting = False
            found.append((entry.delivery, entry.tried))
        return found

    def free(self, deliveries: Iterable[Delivery]) -> None:
        """Hold deliveries no longer."""
        for delivery in deliveries:
            entry = self._entries.pop(delivery.tag)
            self._bytes -= len(delivery.message.body)
            place = _place(delivery)
            if entry.window == self._windows[place]:
                self._taken[place] -= 1

    def crowded(self, window: int) -> list[QueueSpec]:
        """Give the queues that are to be widened now, each once.

        `window` is how many deliveries of a queue may be unsettled just now.
        """
        if len(self._entries) >= MOST_HELD or self._bytes >= MOST_HELD_BYTES:
            return []
        crowd = max(1, min(self._crowd, window // 2))
        places = [place for place, taken in self._taken.items() if taken >= crowd]
        for place in places:
            self._windows[place] += 1
            self._taken[place] = 0
        return [self._queues[place] for place in places]

    def _is_due(self, due: float, tag: int) -> bool:
        entry = self._entries.get(tag)
        return entry is not None and entry.waiting and entry.due == due


def _place(delivery: Delivery) -> tuple[str, int]:
    return delivery.message.topic, delivery.message.partition
