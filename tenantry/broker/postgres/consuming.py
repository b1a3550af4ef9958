"""Deliveries from the embedded broker: one connection and one thread read for many tenants.

Nothing is written when a message is delivered: a queue has one reader at a time, which keeps track
of its unsettled deliveries. A lease decides which reader that is; it ends with the reader's
session, or if it is not renewed in time.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import psycopg
import structlog

from tenantry.broker import topology as layout
from tenantry.broker.budget import OWN, Budget
from tenantry.broker.polled import PolledConsuming, move_first_to_end
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.broker.postgres.reader_wakeup import QUIET, ReaderWakeup
from tenantry.broker.postgres.reading import MESSAGES, QueueReading, Stragglers
from tenantry.broker.postgres.session import LEASE, QueueSession
from tenantry.broker.postgres.subscription import Part, Place, PostgresSubscription
from tenantry.database.errors import DatabaseError
from tenantry.database.pool import Database

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 1.0
"""Seconds between polls of queues without a notification, and of those another reader holds."""

ASK_EVERY: Final = 0.1
"""Seconds between checks of open transactions, while one of them lasts long."""

BUSY_FOR: Final = 300.0
"""Seconds after a queue's last message in which fetches begin at its floor: removed rows may still
be in the index, and a fetch from the beginning would step over all of them."""

AT_ONCE: Final = 100
"""Subscriptions whose queues are acquired in one go, before the others are served again."""

FEW: Final = 8
"""Up to so many queues are fetched from directly; for more, one query first finds messages."""

TOGETHER: Final = 100
"""Subscriptions with few messages that are fetched for at once."""

FEW_EACH: Final = 100
FEW_BYTES: Final = OWN
"""Messages of each of their queues, and bytes of all, that such a fetch brings at most."""

SMALL_CREDIT: Final = 0.01
"""Seconds to wait before a fetch of the few messages that a queue's prefetch allows."""

_Due: TypeAlias = tuple[PostgresSubscription, list[QueueReading]]
"""A subscription to fetch for, and its queues that may have messages."""


class PostgresConsuming(PolledConsuming[PostgresSubscription]):
    """All subscriptions (`tenantry.broker.port.Consuming`), by one database connection.

    `acks_remove` is false where the store removes messages from their queues as it stores them, by
    their receipts: an ack then needs no statement.
    """

    outages = (DatabaseError, psycopg.Error)

    def __init__(
        self, database: Database, *, acks_remove: bool = True, budget: Budget | None = None
    ) -> None:
        super().__init__(budget)
        self._database = database
        self._acks_remove = acks_remove
        # Fields of the thread that runs.
        self._session: QueueSession | None = None
        self._by_id: dict[int, QueueReading] = {}
        self._whose: dict[int, PostgresSubscription] = {}
        self._hungry: dict[PostgresSubscription, None] = {}
        """Subscriptions with a queue that may have messages: few of thousands. Each round of the
        loop serves these alone."""
        self._busy: dict[int, float] = {}
        """Queues that had messages lately, and until when that counts."""
        self._given_back: list[QueueReading] = []
        """Queues to release after the jobs at hand, all with one statement: a drain closes
        thousands of subscriptions at once."""
        self._reader_wakeup = ReaderWakeup()
        self._woken: list[int] = []
        self._stragglers = Stragglers()

    @property
    def connected(self) -> bool:
        """Whether the database can be read now."""
        return self._session is not None

    def in_hand(self) -> Mapping[str, int]:
        """Count the unsettled deliveries, by tenant."""
        counts: Counter[str] = Counter()
        for subscription in tuple(self._subscriptions):
            for name, unsettled in subscription.counts().items():
                counts[layout.owner(name) or ""] += unsettled
        return counts

    # For subscriptions.

    def give_back(self, readings: Sequence[QueueReading]) -> None:
        """Release queues to other readers."""
        self._drop(readings)
        if self._session is not None:
            self._given_back += readings

    def acknowledge(self, places: Sequence[Place]) -> None:
        """Remove messages from their queues, unless the store has removed them."""
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
                self._given_back = []
                self._by_id.clear()
                self._whose.clear()
                self._hungry.clear()
                self._busy.clear()

    def _work_off(self) -> None:
        super()._work_off()
        given_back, self._given_back = self._given_back, []
        if given_back and self._session is not None:
            self._session.release(given_back)

    def _read(self, session: QueueSession, descriptor: int) -> None:
        self._reader_wakeup, self._stragglers = ReaderWakeup(), Stragglers()
        self._woken = []
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
                self._settle_stragglers(session)
            more = self._take_up(session, now)
            self._look(session, told.queues, now)
            pause = self._fetch(session)
            if self._woken:
                # After the fetch, as consumers wait for that.
                session.no_notify(self._woken)
                self._woken = []
            if pause is None:
                now = time.monotonic()
                until = min(renew_at, look_at, ask_at if self._stragglers else look_at)
                pause = max(0.0, min(until - now, self._reader_wakeup.pause(now)))
            if pause > 0 and not self._jobs and not more and not session.has_been_told:
                self._wakeup.wait(descriptor, pause)
        held = [one for subscription in self._subscriptions for one in subscription.held]
        session.end(held)

    def _look_at_all(self, session: QueueSession) -> None:
        """Check every queue, notified or not, and the transactions that hold back their floors.

        Queues that have been empty for long are not named in the query: there may be thousands.
        """
        readings, now = self._by_id.values(), time.monotonic()
        ended = self._stragglers.note(session.open_transactions(), readings)
        looking_back = self._looking_back() if ended else ()
        self._find_promising(session, now)
        for one in looking_back:
            if not one.hungry:
                one.caught_up()
        for subscription in self._hungry:
            subscription.found_room()

    def _find_promising(self, session: QueueSession, now: float) -> None:
        """Find the queues with messages, by one query for all."""
        self._busy = {queue: until for queue, until in self._busy.items() if until > now}
        floors = {one: self._by_id[one].floor for one in self._busy if one in self._by_id}
        for queue, last in session.promising(floors, self._busy):
            reading = self._by_id.get(queue)
            if reading is None:
                self._busy[queue] = now + BUSY_FOR  # held by another reader, or not read at all
            elif last > reading.floor:
                self._rouse([queue])

    def _settle_stragglers(self, session: QueueSession) -> None:
        """Check whether a long transaction has ended, and find the messages that it committed.

        Every queue then has to look back to its floor. Most have nothing there, and fetching from
        all of them would delay every tenant whenever a transaction lasts for two seconds.
        """
        if not self._stragglers.settle(session.open_transactions(), self._by_id.values()):
            return
        looking_back = self._looking_back()
        if len(looking_back) > FEW:
            self._find_promising(session, time.monotonic())
            for one in looking_back:
                if not one.hungry:
                    one.caught_up()
        else:
            self._rouse(one.id for one in looking_back)

    def _looking_back(self) -> Sequence[QueueReading]:
        """Return the queues to check again, without those that are fetched from anyway.

        They are no longer marked for a fetch: the caller finds out whether they have messages.
        """
        found = [
            one
            for one in self._by_id.values()
            if one.hungry and self._whose[one.id] not in self._hungry
        ]
        for one in found:
            one.hungry = False
        return found

    def _rouse(self, queues: Iterable[int]) -> None:
        """Mark queues that may have messages for a fetch."""
        for queue in queues:
            self._by_id[queue].hungry = True
            self._hungry[self._whose[queue]] = None

    def _drop(self, readings: Iterable[QueueReading]) -> None:
        """Forget queues that are no longer read here."""
        gone = [one.id for one in readings]
        for queue in gone:
            self._by_id.pop(queue, None)
            self._whose.pop(queue, None)
        self._reader_wakeup.forget(gone)

    def _look(self, session: QueueSession, told: Iterable[int], now: float) -> None:
        """Find the queues to fetch from: those with notifications, and those in use lately."""
        told = self._by_id.keys() & told
        self._woken += self._reader_wakeup.told(told, now)
        quiet = self._reader_wakeup.quiet(now)
        wanted = set(self._reader_wakeup.awake()).difference(quiet) | told
        if quiet:
            # They are fetched from at once, as is all that wakes the reader.
            self._reader_wakeup.fall_asleep(quiet, session.ask_for_notify(quiet), now)
        if self._reader_wakeup.any_due(now):
            oldest_open = self._stragglers.oldest(session.open_transactions())
            due = self._reader_wakeup.due(oldest_open, now)
            if len(due) > FEW:
                self._find_promising(session, now)
            else:
                wanted |= due
        self._rouse(wanted & self._by_id.keys())

    def _take_up(self, session: QueueSession, now: float) -> bool:
        """Acquire queues for waiting subscriptions, some at a time; return whether more wait."""
        taken: list[int] = []
        more = False
        for number, subscription in enumerate(self._waiting(now)):
            if number == AT_ONCE:
                more = True
                break
            found = session.acquire(subscription.queues, subscription.prefetch)
            absent = [one.name for one in subscription.queues if one.name not in found.names]
            if absent:
                subscription.absent(f"there is no queue {absent[0]!r}")
            elif not found.readings:
                subscription.retry_at = now + LOOK_EVERY / 2
                log.info("broker.queues_are_read_by_another", queue=subscription.queues[0].name)
            else:
                for one in found.readings:
                    self._by_id[one.id] = one
                    self._whose[one.id] = subscription
                    self._stragglers.greet(one)
                    one.hungry = False
                    taken.append(one.id)
                subscription.opened(found.readings)
        if taken:
            self._find_promising(session, now)
            # About to sleep: earlier publishers may not have seen a reader to notify.
            self._reader_wakeup.watch(taken, now - QUIET)
        return more

    def _renew(self, session: QueueSession) -> None:
        """Renew the lease; close channels whose queues are gone, or held by another reader."""
        held = session.renew()
        if held >= self._by_id.keys():
            return
        for subscription in tuple(self._subscriptions):
            lost = [one for one in subscription.held if one.id not in held]
            if not lost:
                continue
            rest = [one for one in subscription.held if one.id in held]
            there = session.existing(lost)
            self._drop(subscription.held)
            missing = len(there) < len(lost)
            subscription.lose(
                "a queue was deleted" if missing else "another reader has taken a queue over",
                missing=missing,
            )
            session.release(rest)

    def _fetch(self, session: QueueSession) -> float | None:
        """Fetch once for all subscriptions with credit; give the seconds until the next, if any.

        Those with few messages come first, and together: a fetch each would take them longer than
        the messages' way otherwise does, and behind a large one they would wait for it.
        """
        due, pause = self._due()
        few = [] if self._budget.crowded else [one for one in due if one[0].has_few]
        for start in range(0, len(few), TOGETHER):
            self._fetch_from(session, few[start : start + TOGETHER], room=FEW_BYTES, most=FEW_EACH)
        fetched = {subscription for subscription, _ in few}
        for one in due:
            subscription, _ = one
            if subscription not in fetched and subscription.has_room():
                self._fetch_from(session, [one], room=subscription.account.room)
            if subscription.has_room() and subscription.hungry():
                pause = 0.0 if pause is None or subscription.brought else pause
        if self._budget.crowded and self._hungry:
            # Next time the scarce room goes to another subscription first.
            move_first_to_end(self._hungry)
        return pause

    def _due(self) -> tuple[list[_Due], float | None]:
        """Find the subscriptions to fetch for; give the seconds until others are, if any."""
        due: list[_Due] = []
        pause: float | None = None
        for subscription in tuple(self._hungry):
            if not any(one.hungry for one in subscription.held):
                del self._hungry[subscription]
                continue
            hungry = subscription.hungry()
            if not hungry:
                continue
            if all(one.credit < one.prefetch // 4 and one.unsettled for one in hungry):
                # After some more acks a fetch is worth its round trip.
                waited = time.monotonic() - subscription.fetched_at
                if waited < SMALL_CREDIT:
                    pause = min(SMALL_CREDIT - waited, pause or SMALL_CREDIT)
                    continue
            if subscription.has_room():
                due.append((subscription, hungry))
        return due, pause

    def _fetch_from(
        self, session: QueueSession, due: Sequence[_Due], *, room: int, most: int = MESSAGES
    ) -> None:
        """Fetch for some subscriptions at once: `most` messages of each queue, `room` bytes."""
        whole = self._budget.crowded
        asked: list[QueueReading] = []
        in_hand: list[int] = []
        for subscription, hungry in due:
            subscription.fetched_at = time.monotonic()
            asked += hungry
            in_hand += subscription.in_hand(hungry)
        parts = session.fetch(
            asked,
            in_hand,
            room,
            most=most,
            whole=whole,
            oldest_other=self._stragglers.oldest_other,
        )
        now = time.monotonic()
        brought = {reading.id: len(rows) for reading, rows in parts}
        self._woken += self._reader_wakeup.fetched([one.id for one in asked], brought, now)
        self._busy.update(dict.fromkeys(brought, now + BUSY_FOR))
        found: dict[PostgresSubscription, list[Part]] = {}
        for part in parts:
            found.setdefault(self._whose[part[0].id], []).append(part)
        for subscription, _ in due:
            mine = found.get(subscription, [])
            subscription.found_room(found=bool(mine) or not whole)
            subscription.deliver(mine)
