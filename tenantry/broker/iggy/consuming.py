"""Deliveries from Iggy: one connection and one event loop read for many tenants.

Iggy must be asked for messages and never sends any by itself. So a single request counts the
messages in each stream, some hundred times a second while messages come, and a partition is polled
only if its stream has more.

A partition is read by its offsets, as a member of the daemon's consumer group: the server gives
messages, and accepts an offset, only from the connection that the partition is assigned to. That
offset is a hint where to begin again: a message is stored in the database once thanks to its id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg
import structlog

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.iggy import client as library
from tenantry.broker.iggy import wire
from tenantry.broker.iggy.administration import Standing
from tenantry.broker.iggy.client import Access, MissingError, RefusedError
from tenantry.broker.iggy.dead_letters import DeadLetterWriter
from tenantry.broker.iggy.link import Link
from tenantry.broker.iggy.partition import Partition
from tenantry.broker.iggy.partitions import Partitions
from tenantry.broker.iggy.subscription import IggySubscription
from tenantry.broker.polled import PolledConsuming
from tenantry.broker.port import BrokerError, DeliverySink, QueueSpec
from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.pool import Database

log = structlog.get_logger(__name__)

LOOK_BUSY: Final = 0.004
LOOK_IDLE: Final = 0.025
"""Seconds between counts of messages: while some arrive, and while none do."""

LOOK_SHARE: Final = 0.000_05
"""Seconds more per stream: the cost of a count grows with the streams."""

BUSY_FOR: Final = 1.0
"""Seconds after a message in which the next is expected soon."""

LOOK_AT_ALL: Final = 1.0
LOOK_AT_EACH: Final = 0.05
"""Seconds between polls of every partition, whatever was counted; and seconds more per partition,
so that these polls take a small part of the time however many partitions there are."""

RENEW_EVERY: Final = 5.0
RENEW_EACH: Final = 0.1
"""Seconds between checks whether topics are the same, and their partitions assigned to us; and the
least seconds between the checks of two subscriptions."""

STORE_EVERY: Final = 0.02
"""Seconds between two stores of a partition's offset."""

RETRY_EVERY: Final = 0.5
"""Seconds until queues that could not be acquired are tried again."""

LAST_WRITES: Final = 5.0
"""Seconds to write dead letters at the end; a message not written is delivered again."""

SILENT_AFTER: Final = 5.0
"""Seconds after which queues that can't be acquired are reported."""


class IggyConsuming(PolledConsuming[IggySubscription]):
    """All subscriptions (`tenantry.broker.port.Consuming`), by one connection to the server."""

    outages = (BrokerError,)

    def __init__(
        self,
        access: Access,
        database: Database,
        fence: TermFence = UNFENCED,
        *,
        budget: Budget | None = None,
        alone: bool = True,
    ) -> None:
        """Dead letters go to `database`. If not `alone`, other readers are waited for."""
        super().__init__(budget)
        self._access = access
        self._fence = fence
        # A second writer for quick statements: writing a large dead letter takes long.
        self._dead_letters, self._known = DeadLetterWriter(database), DeadLetterWriter(database)
        self._partitions = Partitions(self._known, fence, alone=alone)
        # Fields of the thread that runs.
        self._link: Link | None = None
        self._counted: dict[str, tuple[int, int]] = {}
        self._list: bytes | None = None
        self._unstored: dict[Partition, None] = {}
        self._rejects: deque[tuple[Partition, int]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._brought_at = 0.0
        self._began_waiting: dict[IggySubscription, float] = {}
        self._to_renew: deque[IggySubscription] = deque()

    @property
    def connected(self) -> bool:
        """Whether the server can be read now."""
        return self._link is not None

    def standing(self) -> Mapping[str, Standing]:
        """Return the progress of partitions that are, or were, consumed here, by queue."""
        return {
            name: Standing(one.window.floor, one.window.beyond, one.unsettled if one.seen else 0)
            for name, one in tuple(self._partitions.known.items())
        }

    def consumed(self) -> frozenset[str]:
        """Return the queues that are consumed now."""
        return frozenset(name for name, one in tuple(self._partitions.known.items()) if one.seen)

    # For subscriptions.

    def forget(self, subscription: IggySubscription) -> None:
        """Ignore a subscription from now on."""
        super().forget(subscription)
        self._began_waiting.pop(subscription, None)

    def reject(self, partition: Partition, offset: int) -> None:
        """Make a message a dead letter; it is settled once that is written."""
        self._rejects.append((partition, offset))

    def settled(self, partition: Partition) -> None:
        """Have a partition's floor stored soon."""
        self._unstored[partition] = None

    # The thread.

    def _subscription(
        self, queues: Sequence[QueueSpec], prefetch: int, sink: DeliverySink
    ) -> IggySubscription:
        return IggySubscription(self, queues, prefetch=prefetch, sink=sink, budget=self._budget)

    def _serve(self) -> None:
        asyncio.run(self._connect())

    async def _connect(self) -> None:
        self._fence.check()
        link = Link(await library.connect(self._access), self._access.where)
        self._link = link
        self._note_connected()
        self._counted.clear()
        self._list = None
        woken = asyncio.Event()

        def wake() -> None:
            self._wakeup.clear()
            woken.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(self._wakeup, wake)
        try:
            await self._read(link, woken)
        finally:
            self._link = None
            loop.remove_reader(self._wakeup)
            await self._write_no_more()
            await self._dead_letters.close()
            await self._known.close()
            await link.close()

    async def _read(self, link: Link, woken: asyncio.Event) -> None:
        look_at = all_at = store_at = 0.0
        renew_at = time.monotonic() + RENEW_EVERY
        while True:
            self.heartbeat.beat()
            woken.clear()
            self._work_off()
            stopping = self._stopping.is_set()
            self._write_aside(link, woken)
            if stopping and self._writing is not None:
                await asyncio.wait([self._writing], timeout=LAST_WRITES)
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
                pause = LOOK_AT_ALL + LOOK_AT_EACH * len(self._partitions.known)
                all_at = now + pause * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
                self._look_at_all()
            if now >= look_at:
                await self._look(link)
                look_at = time.monotonic() + self._pause()
            more = await self._poll(link)
            if not more and not self._jobs:
                until = min(look_at, all_at, renew_at, store_at if self._unstored else look_at)
                await _wait(woken, until - time.monotonic())

    def _pause(self) -> float:
        """Return the seconds until messages are counted again."""
        if not self._partitions.by_stream:
            return LOOK_AT_ALL
        busy = time.monotonic() - self._brought_at < BUSY_FOR
        return (LOOK_BUSY if busy else LOOK_IDLE) + LOOK_SHARE * len(self._counted)

    def _look_at_all(self) -> None:
        for one in self._partitions.known.values():
            one.hungry = True
        self._all_find_room()

    async def _look(self, link: Link) -> None:
        """Find the streams that have changed, and mark their partitions for a poll."""
        if not self._partitions.by_stream:
            return
        answer = await link.ask(link.client.send_binary_request(wire.GET_STREAMS, b""))
        if answer == self._list:
            return
        self._list, counted = answer, wire.read_streams(answer)
        for name, now in counted.items():
            before = self._counted.get(name)
            if now != before:
                more, size = (now[0] - before[0], now[1] - before[1]) if before else (0, 0)
                for one in self._partitions.by_stream.get(name, ()):
                    one.hungry = True
                    if more > 0 and size > 0:
                        # Only a number of messages limits an answer, so the mean must keep up.
                        one.mean = max(one.mean, size // more)
        self._counted = counted

    async def _poll(self, link: Link) -> bool:
        """Poll each partition that may have messages, once; return whether there may be more."""
        more = False
        for subscription in tuple(self._subscriptions):
            for one in subscription.hungry():
                if not subscription.has_room():
                    break
                count = one.ask_for(subscription.account.room)
                one.next = one.window.skip(one.next)
                try:
                    messages = await link.messages(one.place, one.next, count)
                except MissingError as error:
                    self._lose(link, subscription, str(error), missing=True)
                    break
                except RefusedError as error:
                    self._lose(link, subscription, str(error), missing=False)
                    break
                self._work_off()
                if not subscription.consumes or not one.seen:
                    break
                one.hungry = len(messages) >= count
                if messages:
                    self._brought_at = time.monotonic()
                    if not subscription.deliver(one, messages):
                        one.hungry = True
                        subscription.found_room(found=False)
                    more = more or one.hungry
        self._take_turns()
        return more and any(one.has_room() and one.hungry() for one in self._subscriptions)

    async def _take_up(self, link: Link, now: float) -> None:
        unwritten = {partition.spec.name for partition, _ in self._rejects}
        for subscription in self._waiting(now):
            if not unwritten.isdisjoint(queue.name for queue in subscription.queues):
                continue  # otherwise unwritten dead letters would be delivered and rejected again
            subscription.retry_at = now + RETRY_EVERY
            try:
                partitions = await self._partitions.acquire(link, subscription.queues)
            except MissingError as error:
                subscription.absent(str(error))
            except RefusedError as error:
                log.warning("broker.queues_refused", error=str(error))
                subscription.silent()
            except (DatabaseError, psycopg.Error) as error:
                log.info("broker.database_away", error=one_line(error))
            else:
                self._work_off()
                if partitions is None:
                    began = self._began_waiting.setdefault(subscription, now)
                    if now - began > SILENT_AFTER:
                        subscription.silent()
                elif subscription.waits:
                    self._began_waiting.pop(subscription, None)
                    self._partitions.add(partitions)
                    subscription.opened(partitions)

    async def _renew(self, link: Link) -> None:
        """Check for one subscription whether its topics are the same, and its partitions ours."""
        if not self._to_renew:
            self._to_renew.extend(self._subscriptions)
        subscription = self._to_renew.popleft() if self._to_renew else None
        if subscription is None or not subscription.held:
            return
        try:
            lost = await self._partitions.lost(link, subscription.held)
        except MissingError as error:
            self._lose(link, subscription, str(error), missing=True)
            return
        if lost is not None:
            self._lose(link, subscription, lost, missing=False)
        self._work_off()

    def _write_aside(self, link: Link, woken: asyncio.Event) -> None:
        """Have rejected messages written while reading goes on: one tenant's may be large.

        Raises errors of the last writing, except the database's.
        """
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        if self._rejects and self._writing is None:
            self._writing = asyncio.create_task(self._write_rejects(link, woken))

    async def _write_no_more(self) -> None:
        """Stop writing dead letters: they are written again once the server is back."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
            await asyncio.wait([writing])

    async def _write_rejects(self, link: Link, woken: asyncio.Event) -> None:
        """Write rejected messages, each before its offset is passed; a failed write is retried."""
        while self._rejects:
            partition, offset = self._rejects[0]
            try:
                found = await link.messages(partition.place, offset, 1)
                if found and found[0].offset() == offset:
                    await self._dead_letters.write(partition, found[0])
            except MissingError as error:
                log.info("broker.rejected_message_is_gone", error=str(error))
            except (DatabaseError, psycopg.Error, TimeoutError) as error:
                log.info("broker.dead_letter_waits", error=one_line(error))
                await asyncio.sleep(RETRY_EVERY)
                return
            self._rejects.popleft()
            if partition.window.settle(offset, offset + 1):
                self.settled(partition)
                woken.set()

    async def _store(self, link: Link) -> None:
        """Store the floors of partitions."""
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

    def _lose(
        self, link: Link, subscription: IggySubscription, reason: str, *, missing: bool
    ) -> None:
        if missing:
            self._partitions.forget(link, subscription.queues)
        subscription.lose(reason, missing=missing)
        subscription.retry_at = time.monotonic() + RETRY_EVERY


async def _wait(woken: asyncio.Event, seconds: float) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return
