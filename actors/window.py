"""What a consumer has taken and not settled: which tags may be acknowledged, and how.

Tags rise by one on their channel, so one ack settles everything up to a tag; but it must pass
nothing that is not committed, and nothing that is held for another attempt.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from tenantry.actors.messages import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What to tell the broker: reject some tags, ack some singly, then ack all up to one."""

    rejects: Sequence[int] = ()
    acks: Sequence[int] = ()
    ack_up_to: int | None = None


@dataclass(slots=True)
class _Span:
    """The tags of a batch. `apart` are those it does not ack: rejected, or held at some time."""

    batch: Batch
    unfinished: int
    apart: set[int] = field(default_factory=set)
    rejects: list[int] = field(default_factory=list)


class Window:
    """The unsettled deliveries of one channel.

    A batch is entered when it is cut, in the order of tags, and reported on in parts. Batches are
    settled in that order, each when all of it is finished: while nothing is held, by one ack for
    many batches; beyond a held delivery, one by one. Held deliveries are settled by themselves,
    whenever their time comes.
    """

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque()
        self._by_batch: dict[Batch, _Span] = {}
        self._held: set[int] = set()
        self._lowest: list[int] = []
        self._ready = Settlement()
        self.unsettled = 0
        """Deliveries in the window, held ones among them."""

    @property
    def held(self) -> int:
        """Deliveries that are held."""
        return len(self._held)

    def enter(self, batch: Batch) -> None:
        """Take in a batch whose tags follow those before."""
        span = _Span(batch, len(batch.deliveries))
        self._spans.append(span)
        self._by_batch[batch] = span
        self.unsettled += span.unfinished

    def finished(
        self, batch: Batch, count: int, *, rejects: Collection[int] = (), held: Collection[int] = ()
    ) -> None:
        """Note that `count` more deliveries of a batch are finished, these among them otherwise.

        What is neither rejected nor held is committed.
        """
        span = self._by_batch[batch]
        span.unfinished -= count
        if rejects:
            span.rejects.extend(rejects)
            span.apart.update(rejects)
        if held:
            span.apart.update(held)
            self._held.update(held)
            for tag in held:
                heapq.heappush(self._lowest, tag)

    def free(self, *, acks: Collection[int] = (), rejects: Collection[int] = ()) -> None:
        """Let go of held deliveries: their last attempt is over."""
        self._held.difference_update(acks)
        self._held.difference_update(rejects)
        ready = self._ready
        self._ready = Settlement(rejects=[*ready.rejects, *rejects], acks=[*ready.acks, *acks])

    def settle(self) -> Settlement | None:
        """Give what may be settled by now, once; None if there is nothing."""
        rejects, acks = list(self._ready.rejects), list(self._ready.acks)
        self._ready = Settlement()
        up_to: int | None = None
        count = len(rejects) + len(acks)
        lowest = self._lowest_held()
        while self._spans and not self._spans[0].unfinished:
            span = self._spans.popleft()
            deliveries = span.batch.deliveries
            del self._by_batch[span.batch]
            rejects += span.rejects
            if not span.apart and (lowest is None or deliveries[-1].tag < lowest):
                up_to = deliveries[-1].tag
                count += len(deliveries)
                continue
            tags = [one.tag for one in deliveries if one.tag not in span.apart]
            count += len(tags) + len(span.rejects)
            below = tags if lowest is None else [tag for tag in tags if tag < lowest]
            if below:
                up_to = below[-1]
            acks += tags[len(below) :]
        if not count:
            return None
        self.unsettled -= count
        return Settlement(rejects=tuple(rejects), acks=tuple(acks), ack_up_to=up_to)

    def _lowest_held(self) -> int | None:
        lowest = self._lowest
        while lowest and lowest[0] not in self._held:
            heapq.heappop(lowest)
        return lowest[0] if lowest else None
