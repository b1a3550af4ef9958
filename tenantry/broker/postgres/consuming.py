"""Deliveries from the embedded broker: one connection and one thread read for many tenants.

Nothing is written when a message is given out: a queue has one reader at a time, who knows by
itself what it has in hand. Who reads is settled by a lease that ends with the reader's session, or
when it was not renewed in time.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import psycopg
import structlog

from tenantry.broker import topology as layout
from tenantry.broker.budget import Budget
from tenantry.broker.polled import PolledConsuming
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.broker.postgres.reader_wakeup import ReaderWakeup
from tenantry.broker.postgres.reading import QueueReading, Stragglers
from tenantry.broker.postgres.session import LEASE, QueueSession
from tenantry.broker.postgres.subscription import Place, PostgresSubscription
from tenantry.database.errors import DatabaseError
from tenantry.database.pool import Database

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 1.0
"""Seconds between looks at queues without a notification, and at those another reader holds."""

ASK_EVERY: Final = 0.1
"""Seconds between looks at which transactions are open, while one is that stays so for long."""

SMALL_CREDIT: Final = 0.02
"""Seconds that pass before a queue is asked for the few messages its prefetch allows just now."""


class PostgresConsuming(PolledConsuming[PostgresSubscription]):
    """All subscriptions (`tenantry.broker.port.Consuming`), by one database connection.

    Where what stores the messages also takes them out of their queues, by their receipts,
    `acks_remove` is false: an ack then needs nothing of the database.
    """

    outages = (DatabaseError, psycopg.Error)

    def __init__(
        self, database: Database, *, acks_remove: bool = True, budget: Budget | None = None
    ) -> None:
        super().__init__(budget)
        self._database = database
        self._acks_remove = acks_remove
        # Of the thread that runs.
        self._session: QueueSession | None = None
        self._by_id: dict[int, QueueReading] = {}
        self._reader_wakeup = ReaderWakeup()
        self._woken: list[int] = []
        self._stragglers = Stragglers()

    @property
    def connected(self) -> bool:
        """Whether the database can be read now."""
        return self._session is not None

    def in_hand(self) -> Mapping[str, int]:
        """Count the deliveries that are unsettled, by tenant."""
        counts: Counter[str] = Counter()
        for subscription in tuple(self._subscriptions):
            for name, unsettled in subscription.counts().items():
                counts[layout.owner(name) or ""] += unsettled
        return counts

    # For subscriptions.

    def give_back(self, readings: Sequence[QueueReading]) -> None:
        """Leave queues to others."""
        for reading in readings:
            self._by_id.pop(reading.id, None)
        self._reader_wakeup.forget(reading.id for reading in readings)
        if self._session is not None and readings:
            self._session.release(readings)

    def acknowledge(self, places: Sequence[Place]) -> None:
        """Remove messages from their queues, unless that has been done."""
        if self._acks_remove and self._session is not None:
            self._session.acknowledge(places)

    def reject(self, places: Sequence[Place]) -> None:
        """Make messages dead letters."""
        if self._session is not None:
            self._session.reject(places)

    # The thread.

    def _subscription(
        self, queues: Sequence[QueueSpec], prefetch: int, sink: DeliverySink
    ) -> PostgresSubscription:
        return PostgresSubscription(self, queues, prefetch=prefetch, sink=sink, budget=self._budget)

    def _serve(self) -> None:
        with self._database.listen_connection() as connection:
            session = QueueSession(connection)
            session.begin()
            self._session = session
            self._note_connected()
            try:
                self._read(session, connection.fileno())
            finally:
                self._session = None
                self._by_id.clear()

    def _read(self, session: QueueSession, descriptor: int) -> None:
        self._reader_wakeup, self._stragglers = ReaderWakeup(), Stragglers()
        renew_at = time.monotonic() + LEASE / 3
        look_at = ask_at = 0.0
        while True:
            self.heartbeat.beat()
            self._wakeup.clear()
            self._work_off()
            if self._stopping.is_set():
                break
            now = time.monotonic()
            told = session.told()
            if told.gone or now >= renew_at:
                self._renew(session)
                renew_at = now + LEASE / 3
            if now >= look_at:
                look_at = now + LOOK_EVERY * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
                self._look_at_all(session)
            elif self._stragglers and (now >= ask_at or told.queues):
                ask_at = now + ASK_EVERY
                self._stragglers.settle(session.open_transactions(), self._by_id.values())
            self._take_up(session, now)
            self._look(session, told.queues, now)
            pause = self._fetch(session)
            if self._woken:
                # After the fetch, for which consumers wait.
                session.no_notify(self._woken)
                self._woken = []
            if pause is None:
                now = time.monotonic()
                until = min(renew_at, look_at, ask_at if self._stragglers else look_at)
                pause = max(0.0, min(until - now, self._reader_wakeup.pause(now)))
            if pause > 0 and not self._jobs:
                self._wakeup.wait(descriptor, pause)
        held = [one for subscription in self._subscriptions for one in subscription.held]
        session.end(held)

    def _look_at_all(self, session: QueueSession) -> None:
        """Look at every queue, told of or not, and at who holds back their floors."""
        readings = tuple(self._by_id.values())
        self._stragglers.note(session.open_transactions(), readings)
        for queue in session.promising(readings):
            self._by_id[queue].hungry = True
        self._all_find_room()

    def _look(self, session: QueueSession, told: Iterable[int], now: float) -> None:
        """Find out which queues are to be fetched from: those told of, and those in motion."""
        self._woken += self._reader_wakeup.stay_awake(
            (one for one in told if one in self._by_id), now
        )
        quiet = self._reader_wakeup.quiet(now)
        wanted = {one for one in self._by_id if self._reader_wakeup.is_awake(one)}
        if quiet:
            self._reader_wakeup.fall_asleep(quiet, session.ask_for_notify(quiet), now)
        if self._reader_wakeup.any_due(now):
            oldest_open = self._stragglers.oldest(session.open_transactions())
            wanted |= self._reader_wakeup.due(oldest_open, now)
        for queue in wanted & self._by_id.keys():
            self._by_id[queue].hungry = True

    def _take_up(self, session: QueueSession, now: float) -> None:
        for subscription in self._waiting(now):
            found = session.acquire(subscription.queues, subscription.prefetch)
            absent = [one.name for one in subscription.queues if one.name not in found.names]
            if absent:
                subscription.absent(f"there is no queue {absent[0]!r}")
            elif not found.readings:
                subscription.retry_at = now + LOOK_EVERY / 2
                log.info("broker.queues_are_read_by_another", queue=subscription.queues[0].name)
            else:
                self._by_id.update({one.id: one for one in found.readings})
                for one in found.readings:
                    self._stragglers.greet(one)
                # Awake at first: who has published before may not have known of a reader.
                self._reader_wakeup.stay_awake((one.id for one in found.readings), now)
                subscription.opened(found.readings)

    def _renew(self, session: QueueSession) -> None:
        """Keep the lease; drop the channels whose queues have gone, or are another's now."""
        held = session.renew()
        for subscription in tuple(self._subscriptions):
            lost = [one for one in subscription.held if one.id not in held]
            if not lost:
                continue
            rest = [one for one in subscription.held if one.id in held]
            there = session.existing(lost)
            for one in subscription.held:
                self._by_id.pop(one.id, None)
            self._reader_wakeup.forget(one.id for one in subscription.held)
            missing = len(there) < len(lost)
            subscription.lose(
                "a queue was deleted" if missing else "another reader has taken a queue over",
                missing=missing,
            )
            session.release(rest)

    def _fetch(self, session: QueueSession) -> float | None:
        """Fetch once for all who have credit; give the seconds until there may be more, if any."""
        pause: float | None = None
        for subscription in tuple(self._subscriptions):
            hungry = subscription.hungry()
            if not hungry:
                continue
            if all(one.credit < one.prefetch // 4 and one.unsettled for one in hungry):
                # Some more acks, and it is worth its round trip.
                waited = time.monotonic() - subscription.fetched_at
                if waited < SMALL_CREDIT:
                    pause = min(SMALL_CREDIT - waited, pause or SMALL_CREDIT)
                    continue
            if not subscription.has_room():
                continue
            subscription.fetched_at = time.monotonic()
            whole = self._budget.crowded
            parts = session.fetch(
                hungry,
                subscription.in_hand(hungry),
                subscription.account.room,
                whole=whole,
                oldest_other=self._stragglers.oldest_other,
            )
            subscription.found_room(found=bool(parts) or not whole)
            if parts:
                subscription.deliver(parts)
                now = time.monotonic()
                self._woken += self._reader_wakeup.stay_awake((one.id for one, _ in parts), now)
            if subscription.has_room() and subscription.hungry():
                pause = 0.0 if pause is None or parts else pause
        self._take_turns()
        return pause
