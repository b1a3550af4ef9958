"""Which deliveries of partitions in order may go next.

A lane is one partition's unsettled deliveries, in the order of their tags. At most one batch at a
time has some of them in hand. Its unfinished deliveries return to the front of the lane, and those
behind them wait while their pause runs. Other lanes go on meanwhile; the lane whose first delivery
has waited longest, and so has the lowest tag, goes first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from tenantry.broker.port import Delivery
from tenantry.messages.port import Tried

Key: TypeAlias = tuple[str, int]
"""A topic and a partition of it."""


class Pause(NamedTuple):
    """What was tried before of a delivery to be tried again, and when its pause ends."""

    tried: Tried
    until: float


class Cut(NamedTuple):
    """Deliveries that make a batch, with earlier tries of each; `ticket` identifies the batch."""

    ticket: int
    deliveries: list[Delivery]
    tried: list[Tried | None]


class _Stand(Enum):
    """The state of a lane."""

    READY = auto()
    """The lane may go; an empty lane, as soon as a delivery comes."""
    PAUSED = auto()
    TAKEN = auto()


@dataclass(slots=True)
class _Lane:
    """`known` has, by tag, what was tried before, and the end of the pause while it runs."""

    stand: _Stand = _Stand.READY
    waiting: deque[Delivery] = field(default_factory=deque)
    taken: list[Delivery] = field(default_factory=list)
    known: dict[int, tuple[Tried, float | None]] = field(default_factory=dict)
    ticket: int = 0


class Lanes:
    """The lanes of a consumer's partitions in order."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._lanes: Final = {key: _Lane() for key in keys}
        self._ready: list[tuple[int, Key]] = []
        self._paused: list[tuple[float, Key]] = []
        self._taken: dict[int, list[Key]] = {}
        self._counts: Final = dict.fromkeys(_Stand, 0)
        self._tickets = itertools.count(1)

    @property
    def ready(self) -> int:
        """Deliveries in lanes that may go now."""
        return self._counts[_Stand.READY]

    @property
    def held(self) -> int:
        """Deliveries in lanes whose first delivery is paused, that one included."""
        return self._counts[_Stand.PAUSED]

    @property
    def waiting(self) -> int:
        """Deliveries that no batch has in hand."""
        return sum(self._counts.values())

    def take_in(self, deliveries: Iterable[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Take in deliveries that have a lane, in tag order; return them, and the others."""
        mine: list[Delivery] = []
        others: list[Delivery] = []
        for one in deliveries:
            key = (one.message.topic, one.message.partition)
            lane = self._lanes.get(key)
            if lane is None:
                others.append(one)
                continue
            mine.append(one)
            lane.waiting.append(one)
            self._counts[lane.stand] += 1
            if lane.stand is _Stand.READY and len(lane.waiting) == 1:
                heapq.heappush(self._ready, (one.tag, key))
        return mine, others

    def oldest(self) -> int | None:
        """Return the lowest tag of the deliveries that may go now."""
        return self._ready[0][0] if self._ready else None

    def cut(self, *, most: int, most_bytes: int, places: int) -> Cut:
        """Take deliveries that may go, from an equal share of the ready lanes for each of `places`.

        The cut is empty where no delivery is `ready`.
        """
        cut = Cut(next(self._tickets), [], [])
        keys = self._taken[cut.ticket] = []
        share = -(-len(self._ready) // max(1, places))
        size = 0
        while (
            self._ready and len(keys) < share and len(cut.deliveries) < most and size < most_bytes
        ):
            _, key = heapq.heappop(self._ready)
            lane = self._lanes[key]
            lane.ticket = cut.ticket
            keys.append(key)
            while lane.waiting and len(cut.deliveries) < most and size < most_bytes:
                one = lane.waiting[0]
                tried, until = lane.known.get(one.tag, (None, None))
                if until is not None:
                    break
                self._counts[lane.stand] -= 1
                lane.taken.append(lane.waiting.popleft())
                cut.deliveries.append(one)
                cut.tried.append(tried)
                size += len(one.message.body)
            self._stands(lane, _Stand.TAKEN)
        return cut

    def done(self, ticket: int, kept: Mapping[int, Pause | None]) -> None:
        """Note that a batch is over; those `kept`, by tag, return to the front, and may pause."""
        for key in self._taken.pop(ticket, ()):
            lane = self._lanes[key]
            taken, lane.taken = lane.taken, []
            back = [one for one in taken if one.tag in kept]
            for one in taken:
                pause = kept.get(one.tag)
                if pause is not None:
                    lane.known[one.tag] = pause
                elif one.tag not in kept:
                    lane.known.pop(one.tag, None)
            lane.waiting.extendleft(reversed(back))
            self._counts[lane.stand] += len(back)
            self._offer(key, lane)

    def next_due(self) -> float | None:
        """Return when the next pause of a lane is over."""
        return self._paused[0][0] if self._paused else None

    def wake(self, now: float) -> None:
        """Release the lanes whose pause is over by now."""
        while self._paused and self._paused[0][0] <= now:
            _, key = heapq.heappop(self._paused)
            lane = self._lanes[key]
            tag = lane.waiting[0].tag
            tried, _ = lane.known[tag]
            lane.known[tag] = (tried, None)
            self._offer(key, lane)

    def clear(self, in_hand: Collection[int]) -> None:
        """Forget all deliveries; a lane whose batch is still `in_hand` stays taken until then.

        So a redelivered message is not given to a second worker while a first may be storing it.
        """
        self._ready.clear()
        self._paused.clear()
        self._taken = {one: keys for one, keys in self._taken.items() if one in in_hand}
        for lane in self._lanes.values():
            lane.waiting.clear()
            lane.taken = []
            lane.known.clear()
            lane.stand = _Stand.TAKEN if lane.ticket in self._taken else _Stand.READY
        self._counts.update(dict.fromkeys(_Stand, 0))

    def _offer(self, key: Key, lane: _Lane) -> None:
        """Update the state of a lane that no batch has in hand."""
        lane.ticket = 0
        if not lane.waiting:
            self._stands(lane, _Stand.READY)
            return
        tag = lane.waiting[0].tag
        _, until = lane.known.get(tag, (None, None))
        if until is None:
            self._stands(lane, _Stand.READY)
            heapq.heappush(self._ready, (tag, key))
        else:
            self._stands(lane, _Stand.PAUSED)
            heapq.heappush(self._paused, (until, key))

    def _stands(self, lane: _Lane, stand: _Stand) -> None:
        self._counts[lane.stand] -= len(lane.waiting)
        self._counts[stand] += len(lane.waiting)
        lane.stand = stand


def lanes_of(keys: Sequence[Key]) -> Lanes | None:
    """Make lanes, if there are partitions in order."""
    return Lanes(keys) if keys else None
