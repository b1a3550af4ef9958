"""Which deliveries of partitions in order may go next.

A lane is one partition's deliveries that are not settled, in the order of their tags. At most one
batch has some of them in hand; what comes back of it, unfinished, is in front again, and those
behind it wait for as long as its pause runs. Other lanes go on meanwhile, the one whose first has
waited longest before the others: its tag is the lowest.
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
    """What is known of a delivery that is tried again, and until when it waits for that."""

    tried: Tried
    until: float


class Cut(NamedTuple):
    """Deliveries that go together, and what is known of each; by the `ticket` they are told of."""

    ticket: int
    deliveries: list[Delivery]
    tried: list[Tried | None]


class _Stand(Enum):
    """How it stands with a lane."""

    READY = auto()
    """It may go; where it is empty, as soon as something comes."""
    PAUSED = auto()
    TAKEN = auto()


@dataclass(slots=True)
class _Lane:
    """`known` has what was tried before, by tag, and the end of its pause while that runs."""

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
        """Deliveries in lanes whose first has a pause, itself among them."""
        return self._counts[_Stand.PAUSED]

    @property
    def waiting(self) -> int:
        """Deliveries that no batch has in hand."""
        return sum(self._counts.values())

    def take_in(self, deliveries: Iterable[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Take those that have a lane, in the order of their tags; give them, and the others."""
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
        """Give the lowest tag of what may go now."""
        return self._ready[0][0] if self._ready else None

    def cut(self, *, most: int, most_bytes: int, places: int) -> Cut:
        """Take what may go, of so many lanes that as many remain for each of the other `places`.

        There is something only where there are `ready` ones.
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
        """Note that a batch is over: what is `kept`, by tag, is in front again, and may pause."""
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
        """Tell when the next pause of a lane is over."""
        return self._paused[0][0] if self._paused else None

    def wake(self, now: float) -> None:
        """Let those go whose pause is over by now."""
        while self._paused and self._paused[0][0] <= now:
            _, key = heapq.heappop(self._paused)
            lane = self._lanes[key]
            tag = lane.waiting[0].tag
            tried, _ = lane.known[tag]
            lane.known[tag] = (tried, None)
            self._offer(key, lane)

    def clear(self, in_hand: Collection[int]) -> None:
        """Forget all deliveries; a lane of which a batch is still `in_hand` stays taken until then.

        So what comes again is not given to a second worker while a first one may be storing it.
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
        """See whether a lane that nobody has in hand may go."""
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
    """Make lanes, where there are partitions in order."""
    return Lanes(keys) if keys else None
