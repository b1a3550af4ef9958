"""Deliveries from the embedded broker: one connection and one thread read for many tenants.

Nothing is written when a message is given out: a queue has one reader at a time, who knows by
itself what it has in hand. Who reads is settled by a lease that ends with the reader's session, or
when it was not renewed in time.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Final

import psycopg
import structlog

from tenantry.broker import topology as layout
from tenantry.broker.budget import Budget
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.broker.postgres.link import LEASE, QueueSession
from tenantry.broker.postgres.naps import Naps
from tenantry.broker.postgres.reading import QueueReading, Stragglers
from tenantry.broker.postgres.subscription import Place, PostgresSubscription
from tenantry.broker.postgres.wakeup import Wakeup
from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.pool import Database
from tenantry.telemetry.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 3.0
"""Seconds between attempts to connect."""

LOOK_EVERY: Final = 1.0
"""Seconds between looks at queues nobody has told of, and at those another reader holds."""

ASK_EVERY: Final = 0.1
"""Seconds between looks at which transactions are open, while one is that stays so for long."""

SMALL_CREDIT: Final = 0.02
"""Seconds that pass before a queue is asked for the few messages its prefetch allows just now."""


class PostgresConsuming:
    """All subscriptions (`tenantry.broker.port.Consuming`). `run` and `stop` are the owner's.

    Where what stores the messages also takes them out of their queues, by their receipts,
    `acks_remove` is false: an ack then needs nothing of the database.
    """

    def __init__(
        self, database: Database, *, acks_remove: bool = True, budget: Budget | None = None
    ) -> None:
        self._database = database
        self._budget = budget or Budget()
        self._acks_remove = acks_remove
        self._wakeup = Wakeup()
        self._jobs: deque[Callable[[], None]] = deque()
        self._guard = threading.Lock()
        self.heartbeat: Final = Heartbeat()
        self._stopping = threading.Event()
        self._ended = False
        # Of the thread that runs.
        self._link: QueueSession | None = None
        self._subscriptions: list[PostgresSubscription] = []
        self._by_id: dict[int, QueueReading] = {}
        self._naps = Naps()
        self._risen: list[int] = []
        self._stragglers = Stragglers()
        self._connections = 0
        self._failures = 0

    @property
    def connected(self) -> bool:
        """Whether the database can be read now."""
        return self._link is not None

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it had been lost."""
        return max(0, self._connections - 1)

    def in_hand(self) -> Mapping[str, int]:
        """Count the deliveries that are unsettled, by tenant."""
        counts: Counter[str] = Counter()
        for subscription in tuple(self._subscriptions):
            for name, unsettled in subscription.counts().items():
                counts[layout.owner(name) or ""] += unsettled
        return counts

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> PostgresSubscription:
        """Consume `queues`, now or as soon as they can be had."""
        subscription = PostgresSubscription(
            self, queues, prefetch=prefetch, sink=sink, budget=self._budget
        )
        self.call(partial(self._subscriptions.append, subscription))
        return subscription

    def run(self) -> None:
        """Serve every subscription until `stop`; belongs on a thread of its own."""
        while not self._stopping.is_set():
            try:
                with self._database.listen_connection() as connection:
                    self._serve(connection)
            except (DatabaseError, psycopg.Error) as error:
                self._disconnected(one_line(error))
            except Exception as error:
                # A mistake of ours with one tenant's queue must not be the end of all: begin anew.
                log.exception("broker.loop_failed")
                self._disconnected(one_line(error))
            self._wait_away()
        with self._guard:
            self._ended = True
        self._work_off()

    def stop(self) -> None:
        """Give every queue back and end `run`."""
        self._stopping.set()
        self._wakeup.set()

    # For subscriptions.

    def call(self, job: Callable[[], None]) -> None:
        """Do something on the thread; at once, where it has ended."""
        with self._guard:
            if not self._ended:
                self._jobs.append(job)
                self._wakeup.set()
                return
        job()

    def open(self, subscription: PostgresSubscription) -> None:
        """Take its queues up with the next turn."""
        subscription.retry_at = 0.0

    def give_back(self, readings: Sequence[QueueReading]) -> None:
        """Leave queues to others."""
        for reading in readings:
            self._by_id.pop(reading.id, None)
        self._naps.forget(reading.id for reading in readings)
        if self._link is not None and readings:
            self._link.release(readings)

    def forget(self, subscription: PostgresSubscription) -> None:
        """Leave a subscription out of everything from now on."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def acknowledge(self, places: Sequence[Place]) -> None:
        """Remove messages from their queues, unless that has been done."""
        if self._acks_remove and self._link is not None:
            self._link.acknowledge(places)

    def reject(self, places: Sequence[Place]) -> None:
        """Make messages dead letters."""
        if self._link is not None:
            self._link.reject(places)

    # The thread.

    def _serve(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        link = QueueSession(connection)
        link.begin()
        self._link = link
        self._connections += 1
        self._failures = 0
        log.info("broker.connected", connection="tenantry consuming")
        self._naps, self._stragglers = Naps(), Stragglers()
        renew_at = time.monotonic() + LEASE / 3
        look_at = ask_at = 0.0
        while True:
            self.heartbeat.beat()
            self._work_off()
            if self._stopping.is_set():
                break
            now = time.monotonic()
            told = link.told()
            if told.gone or now >= renew_at:
                self._renew(link)
                renew_at = now + LEASE / 3
            if now >= look_at:
                look_at = now + LOOK_EVERY * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
                self._look_at_all(link)
            elif self._stragglers and (now >= ask_at or told.queues):
                ask_at = now + ASK_EVERY
                self._stragglers.settle(link.open_transactions(), self._by_id.values())
            self._take_up(link, now)
            self._look(link, told.queues, now)
            pause = self._fetch(link)
            if self._risen:
                # After the fetch, for which somebody waits.
                link.get_up(self._risen)
                self._risen = []
            if pause is None:
                now = time.monotonic()
                until = min(renew_at, look_at, ask_at if self._stragglers else look_at)
                pause = max(0.0, min(until - now, self._naps.pause(now)))
            if pause > 0 and not self._jobs:
                self._wakeup.wait(connection.fileno(), pause)
        held = [one for subscription in self._subscriptions for one in subscription.readings]
        link.end(held)
        self._link = None

    def _look_at_all(self, link: QueueSession) -> None:
        """Look at every queue, told of or not, and at who holds back their floors."""
        readings = tuple(self._by_id.values())
        self._stragglers.note(link.open_transactions(), readings)
        for queue in link.promising(readings):
            self._by_id[queue].hungry = True
        for subscription in self._subscriptions:
            subscription.waits_for_room = -1

    def _look(self, link: QueueSession, told: Iterable[int], now: float) -> None:
        """Find out which queues are to be fetched from: those told of, and those in motion."""
        self._risen += self._naps.stir((one for one in told if one in self._by_id), now)
        tired = self._naps.tired(now)
        wanted = {one for one in self._by_id if self._naps.watches(one)}
        if tired:
            self._naps.lie_down(tired, link.lie_down(tired), now)
        if self._naps.dozing(now):
            oldest_open = self._stragglers.oldest(link.open_transactions())
            wanted |= self._naps.look(oldest_open, now)
        for queue in wanted & self._by_id.keys():
            self._by_id[queue].hungry = True

    def _work_off(self) -> None:
        self._wakeup.clear()
        while self._jobs:
            self._jobs.popleft()()

    def _wait_away(self) -> None:
        """Wait for the next attempt to connect; what is asked for meanwhile is answered."""
        if self._stopping.is_set():
            return
        ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures, 8))
        until = time.monotonic() + ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures += 1
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            self.heartbeat.beat()
            self._wakeup.wait(None, left)
            self._work_off()

    def _disconnected(self, reason: str) -> None:
        if self._link is not None or not self._failures:
            log.warning("broker.connection_lost", connection="tenantry consuming", error=reason)
        self._link = None
        self._by_id.clear()
        for subscription in tuple(self._subscriptions):
            subscription.lose(reason, missing=False)

    def _take_up(self, link: QueueSession, now: float) -> None:
        for subscription in tuple(self._subscriptions):
            if not subscription.waits or now < subscription.retry_at:
                continue
            found = link.acquire(subscription.queues, subscription.prefetch)
            absent = [one.name for one in subscription.queues if one.name not in found.names]
            if absent:
                subscription.absent(absent[0])
            elif not found.readings:
                subscription.retry_at = now + LOOK_EVERY / 2
                log.info("broker.queues_are_read_by_another", queue=subscription.queues[0].name)
            else:
                self._by_id.update({one.id: one for one in found.readings})
                for one in found.readings:
                    self._stragglers.greet(one)
                # Awake at first: who has published before may not have known of a reader.
                self._naps.stir((one.id for one in found.readings), now)
                subscription.opened(found.readings)

    def _renew(self, link: QueueSession) -> None:
        """Keep the lease; drop the channels whose queues have gone, or are another's now."""
        held = link.renew()
        for subscription in tuple(self._subscriptions):
            lost = [one for one in subscription.readings if one.id not in held]
            if not lost:
                continue
            rest = [one for one in subscription.readings if one.id in held]
            there = link.existing(lost)
            for one in subscription.readings:
                self._by_id.pop(one.id, None)
            self._naps.forget(one.id for one in subscription.readings)
            missing = len(there) < len(lost)
            subscription.lose(
                "a queue was deleted" if missing else "another reader has taken a queue over",
                missing=missing,
            )
            link.release(rest)

    def _fetch(self, link: QueueSession) -> float | None:
        """Fetch once for all who have credit; give the seconds until there may be more, if any."""
        pause: float | None = None
        for subscription in tuple(self._subscriptions):
            hungry = list(subscription.hungry)
            if not hungry:
                continue
            if all(one.credit < one.prefetch // 4 and one.unsettled for one in hungry):
                # Some more acks, and it is worth its round trip.
                waited = time.monotonic() - subscription.fetched_at
                if waited < SMALL_CREDIT:
                    pause = min(SMALL_CREDIT - waited, pause or SMALL_CREDIT)
                    continue
            account = subscription.account
            if account.room <= 0 or subscription.waits_for_room == self._budget.freed:
                # What is settled next wakes this thread.
                continue
            # Those of which least is in hand come first: the room may not do for all.
            hungry.sort(key=attrgetter("unsettled"))
            subscription.fetched_at = time.monotonic()
            whole = self._budget.crowded
            parts = link.fetch(
                hungry,
                subscription.in_hand(hungry),
                account.room,
                whole=whole,
                oldest_other=self._stragglers.oldest_other,
            )
            subscription.waits_for_room = self._budget.freed if whole and not parts else -1
            if parts:
                subscription.deliver(parts)
                now = time.monotonic()
                self._risen += self._naps.stir((one.id for one, _ in parts), now)
            if any(True for _ in subscription.hungry) and account.room > 0:
                pause = 0.0 if pause is None or parts else pause
        if self._budget.crowded and self._subscriptions:
            # What room there is goes to somebody else first, the next time.
            self._subscriptions.append(self._subscriptions.pop(0))
        return pause
