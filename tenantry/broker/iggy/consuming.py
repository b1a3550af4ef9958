"""Deliveries from Iggy: one connection and one event loop read for many tenants.

Iggy is asked for messages and never sends any by itself. So one request tells, some hundred times a
second while messages come, how many there are in each stream, and only where there are more a
partition is asked for them.

A partition is read by its offsets, as a member of the daemon's consumer group: the server gives
messages, and takes an offset, only from the connection that has the partition then. That offset is
a hint where to begin again: what makes a message come into the database once is its id.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg
import structlog

from tenantry.broker import topology as layout
from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.iggy import client as library
from tenantry.broker.iggy import wire
from tenantry.broker.iggy.access import Access
from tenantry.broker.iggy.client import ExistsError, MissingError, RefusedError
from tenantry.broker.iggy.counts import Standing
from tenantry.broker.iggy.headers import pack, told
from tenantry.broker.iggy.partition import Partition
from tenantry.broker.iggy.subscription import IggySubscription, own_id, published
from tenantry.broker.iggy.topology import GROUP, Place, place_of
from tenantry.broker.port import (
    BrokerError,
    DeliverySink,
    QueueSpec,
)
from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.pool import Database
from tenantry.loops import Heartbeat
from tenantry.sql import queries

if TYPE_CHECKING:
    from apache_iggy import IggyClient, ReceiveMessage, TopicDetails

T = TypeVar("T")

log = structlog.get_logger(__name__)

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 3.0
"""Seconds between attempts to connect."""

LOOK_BUSY: Final = 0.004
LOOK_IDLE: Final = 0.025
"""Seconds between looks at how many messages there are: while some come, and while none do."""

LOOK_SHARE: Final = 0.000_05
"""Seconds more for each stream: a look costs as much as there are streams."""

BUSY_FOR: Final = 1.0
"""Seconds after a message in which the next is expected soon."""

LOOK_AT_ALL: Final = 1.0
LOOK_AT_EACH: Final = 0.05
"""Seconds between times at which every partition is asked, whatever was counted; and seconds more
for each of them, so that they take a small part of the time however many they are."""

RENEW_EVERY: Final = 5.0
RENEW_EACH: Final = 0.1
"""Seconds between looks at whether topics are as they were, and the group's partitions ours; and
seconds at least between two subscriptions that are looked at."""

STORE_EVERY: Final = 0.02
"""Seconds between offsets stored for a partition."""

RETRY_EVERY: Final = 0.5
"""Seconds until queues are tried again that could not be had."""

SILENT_AFTER: Final = 5.0
"""Seconds after which queues that can't be had are told of."""

DATABASE_TIMEOUT: Final = 3.0
"""Seconds the database may take to write a dead letter before others go on."""


class IggyConsuming:
    """All subscriptions (`tenantry.broker.port.Consuming`). `run` and `stop` are the owner's."""

    def __init__(
        self,
        access: Access,
        database: Database,
        fence: TermFence = UNFENCED,
        *,
        budget: Budget | None = None,
    ) -> None:
        """Dead letters are written to `database`."""
        self._access = access
        self._fence = fence
        self._budget = budget or Budget()
        self._dead_letters = DeadLetterWriter(database)
        self._jobs: deque[Callable[[], None]] = deque()
        self._guard = threading.Lock()
        self.heartbeat: Final = Heartbeat()
        self._stopping = threading.Event()
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the thread that runs.
        self._wakeup = asyncio.Event()
        self._link: Link | None = None
        self._subscriptions: list[IggySubscription] = []
        self._partitions: dict[str, Partition] = {}
        self._by_stream: dict[str, list[Partition]] = {}
        self._counted: dict[str, tuple[int, int]] = {}
        self._list: bytes | None = None
        self._unstored: dict[Partition, None] = {}
        self._rejects: deque[tuple[Partition, int]] = deque()
        self._connections = 0
        self._failures = 0
        self._brought_at = 0.0
        self._began_waiting: dict[IggySubscription, float] = {}
        self._to_renew: deque[IggySubscription] = deque()

    @property
    def connected(self) -> bool:
        """Whether the server can be read now."""
        return self._link is not None

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it had been lost."""
        return max(0, self._connections - 1)

    def standing(self) -> Mapping[str, Standing]:
        """Tell how far partitions are that are, or were, consumed here, by queue."""
        return {
            name: Standing(one.window.floor, one.window.beyond, one.unsettled if one.seen else 0)
            for name, one in tuple(self._partitions.items())
        }

    def consumed(self) -> frozenset[str]:
        """Name the queues that are consumed now."""
        return frozenset(name for name, one in tuple(self._partitions.items()) if one.seen)

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> IggySubscription:
        """Consume `queues`, now or as soon as they can be had."""
        subscription = IggySubscription(
            self, queues, prefetch=prefetch, sink=sink, budget=self._budget
        )
        self.call(partial(self._subscriptions.append, subscription))
        return subscription

    def run(self) -> None:
        """Serve every subscription until `stop`; belongs on a thread of its own."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Store what is settled and end `run`."""
        self._stopping.set()
        self._wake()

    # For subscriptions.

    def call(self, job: Callable[[], None]) -> None:
        """Do something on the thread; at once, where it has ended."""
        with self._guard:
            if not self._ended:
                self._jobs.append(job)
                self._wake()
                return
        job()

    def forget(self, subscription: IggySubscription) -> None:
        """Leave a subscription out of everything from now on."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        self._began_waiting.pop(subscription, None)

    def reject(self, partition: Partition, offset: int) -> None:
        """Make a message a dead letter; it is settled once it is one."""
        self._rejects.append((partition, offset))

    def settled(self, partition: Partition) -> None:
        """Store a partition's floor, soon."""
        self._unstored[partition] = None

    # The thread.

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            try:
                await self._connected()
            except BrokerError as error:
                self._disconnected(str(error))
            except Exception as error:
                # A mistake of ours with one tenant's queue must not be the end of all: begin anew.
                log.exception("broker.loop_failed")
                self._disconnected(one_line(error))
            await self._wait_away()
        with self._guard:
            self._ended = True
        self._work_off()
        await self._dead_letters.close()

    async def _connected(self) -> None:
        self._fence.check()
        link = Link(await library.connect(self._access), self._access.where)
        self._link = link
        self._connections += 1
        self._failures = 0
        self._counted.clear()
        self._list = None
        log.info("broker.connected", connection="tenantry consuming")
        try:
            await self._serve(link)
        finally:
            self._link = None
            await link.close()

    async def _serve(self, link: Link) -> None:
        look_at = all_at = store_at = 0.0
        renew_at = time.monotonic() + RENEW_EVERY
        while True:
            self.heartbeat.beat()
            self._wakeup.clear()
            self._work_off()
            await self._write_rejects(link)
            stopping = self._stopping.is_set()
            now = time.monotonic()
            if self._unstored and (now >= store_at or stopping):
                await self._store(link)
                store_at = time.monotonic() + STORE_EVERY
            if stopping:
                return
            self._fence.check()
            await self._take_up(link, now)
            if now >= renew_at:
                pause = max(RENEW_EACH, RENEW_EVERY / max(1, len(self._subscriptions)))
                renew_at = now + pause * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
                await self._renew(link)
            if now >= all_at:
                pause = LOOK_AT_ALL + LOOK_AT_EACH * len(self._partitions)
                all_at = now + pause * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
                self._look_at_all()
            if now >= look_at:
                await self._look(link)
                look_at = time.monotonic() + self._pause()
            more = await self._poll(link)
            if not more and not self._jobs:
                until = min(look_at, all_at, renew_at, store_at if self._unstored else look_at)
                await self._wait(until - time.monotonic())

    def _pause(self) -> float:
        """Tell how long nobody looks how many messages there are."""
        if not self._by_stream:
            return LOOK_AT_ALL
        busy = time.monotonic() - self._brought_at < BUSY_FOR
        return (LOOK_BUSY if busy else LOOK_IDLE) + LOOK_SHARE * len(self._counted)

    def _look_at_all(self) -> None:
        for one in self._partitions.values():
            one.hungry = True
        for subscription in self._subscriptions:
            subscription.waits_for_room = -1

    async def _look(self, link: Link) -> None:
        """Find out in which streams there is something new."""
        if not self._by_stream:
            return
        answer = await link.ask(link.client.send_binary_request(wire.GET_STREAMS, b""))
        if answer == self._list:
            return
        self._list, counted = answer, wire.read_streams(answer)
        for name, now in counted.items():
            before = self._counted.get(name)
            if now != before:
                more, size = (now[0] - before[0], now[1] - before[1]) if before else (0, 0)
                for one in self._by_stream.get(name, ()):
                    one.hungry = True
                    if more > 0 and size > 0:
                        # An answer is limited by how many messages are in it alone.
                        one.mean = max(one.mean, size // more)
        self._counted = counted

    async def _poll(self, link: Link) -> bool:
        """Ask once for each partition that may have something; tell whether there may be more."""
        more = False
        for subscription in tuple(self._subscriptions):
            for one in subscription.hungry():
                account = subscription.account
                if account.room <= 0 or subscription.waits_for_room == self._budget.freed:
                    # What is settled next wakes this thread.
                    break
                count = one.ask_for(one.credit(subscription.prefetch), account.room)
                one.next = one.window.skip(one.next)
                try:
                    messages = await link.messages(one.place, one.next, count)
                except MissingError as error:
                    self._lose(subscription, str(error), missing=True)
                    break
                except RefusedError as error:
                    self._lose(subscription, str(error), missing=False)
                    break
                self._work_off()
                if not subscription.consumes or not one.seen:
                    break
                one.hungry = len(messages) >= count
                if messages:
                    self._brought_at = time.monotonic()
                    if not subscription.deliver(one, messages):
                        one.hungry = True
                        subscription.waits_for_room = self._budget.freed
                    more = more or one.hungry
        if self._budget.crowded and self._subscriptions:
            # What room there is goes to another subscription first, the next time.
            self._subscriptions.append(self._subscriptions.pop(0))
        return more and any(
            subscription.hungry() and subscription.waits_for_room != self._budget.freed
            for subscription in self._subscriptions
            if subscription.account.room > 0
        )

    async def _take_up(self, link: Link, now: float) -> None:
        for subscription in tuple(self._subscriptions):
            if not subscription.waits or now < subscription.retry_at:
                continue
            subscription.retry_at = now + RETRY_EVERY
            try:
                partitions = await self._acquire(link, subscription.queues)
            except MissingError as error:
                subscription.absent(str(error))
            except RefusedError as error:
                log.warning("broker.queues_refused", error=str(error))
                subscription.silent([one.name for one in subscription.queues])
            except (DatabaseError, psycopg.Error) as error:
                log.info("broker.database_away", error=one_line(error))
            else:
                self._work_off()
                if partitions is None:
                    began = self._began_waiting.setdefault(subscription, now)
                    if now - began > SILENT_AFTER:
                        subscription.silent([one.name for one in subscription.queues])
                elif subscription.waits:
                    self._began_waiting.pop(subscription, None)
                    self._index(partitions)
                    subscription.opened(partitions)

    def _index(self, partitions: Sequence[Partition]) -> None:
        for one in partitions:
            self._partitions[one.spec.name] = one
        by_stream = defaultdict(list)
        for one in self._partitions.values():
            by_stream[one.place.stream].append(one)
        self._by_stream = dict(by_stream)

    async def _acquire(self, link: Link, queues: Sequence[QueueSpec]) -> list[Partition] | None:
        """Have queues' partitions; None while another member of the group has some of them."""
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
            if not ours.issuperset(place_of(one).partition for one in parts):
                ours = await self._shut_out(link, stream, found)
            if not ours.issuperset(place_of(one).partition for one in parts):
                log.info("broker.partitions_are_anothers", stream=stream, topic=topic)
                return None
            partitions += [
                await self._partition(link, queue, found, fresh=fresh) for queue in parts
            ]
        return partitions

    async def _shut_out(self, link: Link, stream: str, topic: TopicDetails) -> frozenset[int]:
        """Have a topic to ourselves; give the partitions that are ours then.

        Others are members of the group that are no more, but the server does not know of it (it was
        killed itself), or daemons of earlier terms. No member can be sent away, but the group can,
        with what it has stored: so that is put aside before.
        """
        self._fence.check()
        places = [Place(stream, topic.name, one.id) for one in topic.partitions]
        stored = {place: await link.offsets(place) for place in places}
        for place, offsets in stored.items():
            if offsets is not None:
                await link.store(place, offsets.stored, aside=True)
        await link.remake(stream, topic.name, topic.created_at)
        for place, offsets in stored.items():
            if offsets is not None:
                await link.store(place, offsets.stored)
        log.info("broker.shut_out", stream=stream, topic=topic.name)
        return await link.assigned(stream, topic.name)

    async def _partition(
        self, link: Link, queue: QueueSpec, topic: TopicDetails, *, fresh: bool
    ) -> Partition:
        """Give what is known of a partition; where that is nothing, what the server knows."""
        place = place_of(queue)
        counted = next(one for one in topic.partitions if one.id == place.partition)
        end = counted.current_offset + 1 if counted.messages_count else 0
        known = self._partitions.get(queue.name)
        if known is not None and known.made == topic.created_at and known.window.floor <= end:
            return known
        offsets = await link.offsets(place) or await link.offsets(place, aside=True)
        floor = 0 if offsets is None else min(offsets.stored + 1, end)
        made = Partition(
            queue,
            made=topic.created_at,
            floor=floor,
            # Without a group nobody has read them; else it is not known how far they were read.
            redelivered_up_to=0 if fresh else end,
        )
        made.mean = counted.size // counted.messages_count if counted.messages_count else 0
        for offset in await self._dead_letters.beyond(made):
            made.window.settle(offset, offset + 1)
        return made

    async def _renew(self, link: Link) -> None:
        """Look at one subscription: whether its topics are the same, and its partitions ours."""
        if not self._to_renew:
            self._to_renew.extend(self._subscriptions)
        subscription = self._to_renew.popleft() if self._to_renew else None
        if subscription is None or not subscription.partitions:
            return
        by_topic: defaultdict[tuple[str, str], list[Partition]] = defaultdict(list)
        for one in subscription.partitions:
            by_topic[one.place.stream, one.place.topic].append(one)
        for (stream, topic), partitions in by_topic.items():
            try:
                found = await link.topic(stream, topic)
                ours = await link.assigned(stream, topic)
                lost = _lost(partitions, found, ours)
            except MissingError as error:
                self._lose(subscription, str(error), missing=True)
                return
            if lost is not None:
                for one in partitions:
                    self._partitions.pop(one.spec.name, None)
                link.leave(stream, topic)
                self._lose(subscription, lost, missing=False)
                return
        self._work_off()

    async def _write_rejects(self, link: Link) -> None:
        """Keep what was rejected, each before its offset is passed; what fails is tried again."""
        for _ in range(len(self._rejects)):
            partition, offset = self._rejects[0]
            try:
                found = await link.messages(partition.place, offset, 1)
                if found and found[0].offset() == offset:
                    await self._dead_letters.write(partition, found[0])
            except MissingError as error:
                log.info("broker.rejected_message_is_gone", error=str(error))
            except (DatabaseError, psycopg.Error, TimeoutError) as error:
                log.info("broker.dead_letter_waits", error=one_line(error))
                return
            self._rejects.popleft()
            if partition.window.settle(offset, offset + 1):
                self.settled(partition)

    async def _store(self, link: Link) -> None:
        """Store how far partitions are settled."""
        unstored, self._unstored = self._unstored, {}
        for one in unstored:
            floor = one.window.floor
            if floor <= one.stored:
                continue
            try:
                await link.store(one.place, floor - 1)
            except (MissingError, RefusedError) as error:
                log.info("broker.offset_not_stored", queue=one.spec.name, error=str(error))
                continue
            one.stored = floor

    def _lose(self, subscription: IggySubscription, reason: str, *, missing: bool) -> None:
        if missing:
            for queue in subscription.queues:
                self._partitions.pop(queue.name, None)
        if self._link is not None and missing:
            for queue in subscription.queues:
                place = place_of(queue)
                self._link.leave(place.stream, place.topic)
        subscription.lose(reason, missing=missing)
        subscription.retry_at = time.monotonic() + RETRY_EVERY
        self._index(())

    def _work_off(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._wakeup.set)
            except RuntimeError:
                log.debug("broker.loop_has_ended")

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wakeup.wait()
        except TimeoutError:
            return

    async def _wait_away(self) -> None:
        """Wait for the next attempt to connect; what is asked for meanwhile is answered."""
        if self._stopping.is_set():
            return
        ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures, 8))
        until = time.monotonic() + ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures += 1
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            self.heartbeat.beat()
            await self._wait(left)
            self._wakeup.clear()
            self._work_off()

    def _disconnected(self, reason: str) -> None:
        if not self._failures:
            log.warning("broker.connection_lost", connection="tenantry consuming", error=reason)
        for subscription in tuple(self._subscriptions):
            subscription.lose(reason, missing=False)


def _lost(
    partitions: Sequence[Partition], topic: TopicDetails | None, ours: frozenset[int]
) -> str | None:
    """Say why a topic's partitions are to be taken up anew, if they are. Raises `MissingError`."""
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


class Link:
    """The connection that reads, with the topics whose group it has joined."""

    def __init__(self, client: IggyClient, where: str) -> None:
        self.client: Final = client
        self._where = where
        self._joined: dict[tuple[str, str], int] = {}
        iggy = library.library()
        self._consumer = iggy.Consumer.Group(GROUP)
        self._at = iggy.PollingStrategy.Offset

    async def ask(self, answer: Awaitable[T]) -> T:
        """Wait for the answer to a request, so long. Raises `BrokerError`."""
        try:
            async with asyncio.timeout(library.TIMEOUT):
                return await answer
        except (RuntimeError, ValueError, TypeError, OverflowError, TimeoutError) as error:
            raise library.error_of(error, self._where) from error

    async def messages(self, place: Place, offset: int, count: int) -> list[ReceiveMessage]:
        """Ask for messages from an offset on."""
        return await self.ask(
            self.client.poll_messages(
                place.stream,
                place.topic,
                consumer=self._consumer,
                polling_strategy=self._at(offset),
                count=count,
                auto_commit=False,
                partition_id=place.partition,
            )
        )

    async def topic(self, stream: str, topic: str) -> TopicDetails | None:
        """Give a topic as it is now, with its partitions."""
        try:
            return await self.ask(self.client.get_topic(stream, topic))
        except MissingError:
            return None

    async def join(self, stream: str, topic: str, made: int) -> bool:
        """Join the daemon's group of a topic; tell whether there was none."""
        if self._joined.get((stream, topic)) == made:
            return False
        fresh = False
        if await self.ask(self.client.get_consumer_group(stream, topic, GROUP)) is None:
            try:
                await self.ask(self.client.create_consumer_group(stream, topic, GROUP))
                fresh = True
            except ExistsError:
                log.debug("broker.group_made_by_another", stream=stream, topic=topic)
        await self.ask(self.client.join_consumer_group(stream, topic, GROUP))
        self._joined[stream, topic] = made
        return fresh

    def leave(self, stream: str, topic: str) -> None:
        """Join a topic's group again, before it is read the next time."""
        self._joined.pop((stream, topic), None)

    async def assigned(self, stream: str, topic: str) -> frozenset[int]:
        """Tell which partitions of a topic this connection has."""
        request = wire.sync_group(GROUP, stream, topic)
        return wire.read_assignment(
            await self.ask(self.client.send_binary_request(wire.SYNC_GROUP, request))
        )

    async def remake(self, stream: str, topic: str, made: int) -> None:
        """Send all members of the daemon's group away, and what it has stored with them."""
        await self.ask(self.client.delete_consumer_group(stream, topic, GROUP))
        self.leave(stream, topic)
        await self.join(stream, topic, made)

    async def offsets(self, place: Place, *, aside: bool = False) -> wire.Offsets | None:
        """Tell what the group has stored for a partition, or what was put aside of that."""
        request = wire.get_offset(GROUP, place, alone=aside)
        return wire.read_offsets(
            await self.ask(self.client.send_binary_request(wire.GET_OFFSET, request))
        )

    async def store(self, place: Place, offset: int, *, aside: bool = False) -> None:
        """Store the offset of the last message that is done with; or put it aside."""
        request = wire.store_offset(GROUP, place, offset, alone=aside)
        await self.ask(self.client.send_binary_request(wire.STORE_OFFSET, request))

    async def close(self) -> None:
        """Give the connection up."""
        await library.disconnect(self.client)


class DeadLetterWriter:
    """Writes rejected messages to the database, on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("iggy")
        self._connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    async def beyond(self, partition: Partition) -> list[int]:
        """Give the offsets of dead letters that a partition gives once more.

        Those that were worked off and can't come any more are forgotten.
        """
        parameters = self._parameters(partition) | {"floor": partition.window.floor}
        await self._execute("forget_gone", parameters)
        rows = await self._execute("rejected_beyond", parameters)
        return [int(str(row[0])) for row in rows]

    async def write(self, partition: Partition, message: ReceiveMessage) -> None:
        """Keep a message, as it is; harmless twice."""
        place, stamp = partition.place, message.timestamp()
        own = own_id(message, place.topic, place.partition, stamp)
        read = told(message, own, published(message, stamp))
        await self._execute(
            "reject",
            self._parameters(partition)
            | {
                "offset": message.offset(),
                "id": None if read.id is None else read.id.replace("\x00", "\ufffd"),
                "published_at_ms": read.published_at_ms,
                "properties": _properties(message),
                "body": message.payload(),
            },
        )

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _parameters(self, partition: Partition) -> dict[str, object]:
        place = partition.place
        return {
            "tenant": layout.owner_of(place.stream),
            "topic": place.topic,
            "partition": place.partition,
            "made": partition.made,
        }

    async def _execute(
        self, name: str, parameters: Mapping[str, object]
    ) -> list[tuple[object, ...]]:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                if self._connection is None or self._connection.closed:
                    self._connection = await self._database.connect_async()
                cursor = await self._connection.execute(self._sql[name], parameters)
                return await cursor.fetchall() if cursor.description else []
        except BaseException:
            await self.close()
            raise


def _properties(message: ReceiveMessage) -> bytes:
    try:
        return pack(message.id(), message.user_headers())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return pack(message.id(), None)
