"""The partitions consumed here, acquired in a way that this process alone reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from tenantry.broker.adapter import TermFence
from tenantry.broker.iggy.client import MissingError
from tenantry.broker.iggy.dead_letters import DeadLetterWriter
from tenantry.broker.iggy.link import Link
from tenantry.broker.iggy.partition import Partition
from tenantry.broker.iggy.topology import Place, place_of
from tenantry.broker.port import QueueSpec

if TYPE_CHECKING:
    from apache_iggy import TopicDetails

log = structlog.get_logger(__name__)


class Partitions:
    """The known partitions. A queue that is no longer consumed stays known, too."""

    def __init__(
        self, dead_letters: DeadLetterWriter, fence: TermFence, *, alone: bool = True
    ) -> None:
        """`alone`: this process alone may read, and shuts out the group's other members."""
        self.known: Final[dict[str, Partition]] = {}
        """By the names of their queues."""
        self.by_stream: Mapping[str, Sequence[Partition]] = {}
        self._dead_letters = dead_letters
        self._fence = fence
        self._alone = alone

    def add(self, partitions: Iterable[Partition]) -> None:
        """Remember partitions from now on."""
        self.known.update((one.spec.name, one) for one in partitions)
        self._index()

    def forget(self, link: Link, queues: Iterable[QueueSpec]) -> None:
        """Forget queues: they are acquired again as if for the first time."""
        for queue in queues:
            self.known.pop(queue.name, None)
            place = place_of(queue)
            link.leave(place.stream, place.topic)
        self._index()

    async def acquire(self, link: Link, queues: Sequence[QueueSpec]) -> list[Partition] | None:
        """Acquire queues' partitions; None while another member of the group has some of them."""
        wanted: defaultdict[tuple[str, str], list[QueueSpec]] = defaultdict(list)
        for queue in queues:
            place = place_of(queue)
            wanted[place.stream, place.topic].append(queue)
        partitions: list[Partition] = []
        for (stream, topic), parts in wanted.items():
            found = await link.topic(stream, topic)
            if found is None:
                raise MissingError(f"there is no topic {topic!r} in stream {stream!r}")
            numbers = {one.id: one.current_offset for one in found.partitions}
            absent = [one.name for one in parts if place_of(one).partition not in numbers]
            if absent:
                raise MissingError(f"there is no queue {absent[0]!r}: its topic lacks a partition")
            fresh = await link.join(stream, topic, found.created_at)
            ours = await link.assigned(stream, topic)
            if self._alone and not ours.issuperset(place_of(one).partition for one in parts):
                ours = await self._shut_out(link, stream, found)
            if not ours.issuperset(place_of(one).partition for one in parts):
                log.info("broker.partitions_are_anothers", stream=stream, topic=topic)
                return None
            partitions += [
                await self._partition(link, queue, found, fresh=fresh) for queue in parts
            ]
        return partitions

    async def _shut_out(self, link: Link, stream: str, topic: TopicDetails) -> frozenset[int]:
        """Take over all partitions of a topic; return those assigned to this connection then.

        The group's other members have died without the server noticing (as it was killed itself),
        or are daemons of earlier terms. A member can't be removed, but the group can, with its
        stored offsets. So these are saved in the database first, where no tenant can change them.
        """
        self._fence.check()
        places = [Place(stream, topic.name, one.id) for one in topic.partitions]
        stored = {place: await link.offsets(place) for place in places}
        for place, offsets in stored.items():
            if offsets is not None:
                await self._dead_letters.keep_offset(place, topic.created_at, offsets.stored)
        await link.remake(stream, topic.name, topic.created_at)
        for place, offsets in stored.items():
            if offsets is not None:
                await link.store(place, offsets.stored)
        await self._dead_letters.forget_offsets(places[0])
        log.info("broker.shut_out", stream=stream, topic=topic.name)
        return await link.assigned(stream, topic.name)

    async def _partition(
        self, link: Link, queue: QueueSpec, topic: TopicDetails, *, fresh: bool
    ) -> Partition:
        """Return the known state of a partition, or make it from what the server has stored."""
        place = place_of(queue)
        counted = next(one for one in topic.partitions if one.id == place.partition)
        end = counted.current_offset + 1 if counted.messages_count else 0
        known = self.known.get(queue.name)
        if known is not None and known.made == topic.created_at and known.window.floor <= end:
            return known
        offsets = await link.offsets(place)
        if offsets is not None:
            floor = min(offsets.stored + 1, end)
        else:
            kept = await self._dead_letters.kept_offset(place, topic.created_at)
            # A saved offset beyond the end is of the time before the topic was emptied.
            floor = 0 if kept is None or kept >= end else kept + 1
        made = Partition(
            queue,
            made=topic.created_at,
            floor=floor,
            # A new group has read nothing; of an older one it is not known how far it has read.
            redelivered_up_to=0 if fresh else end,
        )
        made.mean = counted.size // counted.messages_count if counted.messages_count else 0
        for offset in await self._dead_letters.beyond(made):
            made.window.settle(offset, offset + 1)
        return made

    async def lost(self, link: Link, held: Sequence[Partition]) -> str | None:
        """Return why partitions must be acquired anew, and forget them; None if they need not.

        Raises `MissingError`.
        """
        by_topic: defaultdict[tuple[str, str], list[Partition]] = defaultdict(list)
        for one in held:
            by_topic[one.place.stream, one.place.topic].append(one)
        for (stream, topic), partitions in by_topic.items():
            found = await link.topic(stream, topic)
            ours = await link.assigned(stream, topic)
            reason = _lost(partitions, found, ours)
            if reason is not None:
                self.forget(link, [one.spec for one in partitions])
                return reason
        return None

    def _index(self) -> None:
        by_stream: defaultdict[str, list[Partition]] = defaultdict(list)
        for one in self.known.values():
            by_stream[one.place.stream].append(one)
        self.by_stream = by_stream


def _lost(
    partitions: Sequence[Partition], topic: TopicDetails | None, ours: frozenset[int]
) -> str | None:
    """Return why a topic's partitions must be acquired anew, or None. Raises `MissingError`."""
    there = {part.id: part for part in topic.partitions} if topic is not None else {}
    for one in partitions:
        name, part = one.spec.name, there.get(one.place.partition)
        if topic is None or part is None:
            raise MissingError(f"queue {name!r} was deleted")
        end = part.current_offset + 1 if part.messages_count else 0
        if topic.created_at != one.made or end < one.window.floor:
            return f"queue {name!r} was emptied, or made anew"
        if part.id not in ours:
            return f"queue {name!r} is read by another now"
    return None
