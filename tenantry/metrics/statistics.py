"""Statistics of each tenant's messages over time: noted once a minute, and shown in points.

A tenant without changes and without a backlog costs nothing. Counts are those of the database, and
none is missed; latencies that a node had not noted when it died are lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from operator import add
from typing import Final, NamedTuple, Protocol

from tenantry.control.port import TenantRuntime
from tenantry.metrics.recorder import LATENCY_MS, Recorder

LOOK_EVERY: Final = 2.0
"""Seconds between looks whether a minute is over."""

NOTED_WITHIN: Final = 5.0
"""Seconds after a minute's end within which the minute is noted, as a rule."""

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
WEEK: Final = timedelta(days=7)

STEPS: Final = (
    (2 * HOUR, MINUTE),
    (6 * HOUR, 5 * MINUTE),
    (DAY, 15 * MINUTE),
    (WEEK, HOUR),
)
"""The distance between points, by the longest window that uses it."""

BUCKETS: Final = len(LATENCY_MS) + 1
NONE: Final = (0,) * BUCKETS

Outcomes = tuple[int, int, int]


class Note(NamedTuple):
    """What is noted of a tenant beside its counts: its backlog, and latencies by bucket."""

    backlog: int
    latencies: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The outcomes of a tenant's messages from `at` on; `backlog` is the most that waited."""

    at: datetime
    stored: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    backlog: int = 0
    latencies: Sequence[int] = NONE

    def plus(self, other: Slot) -> Slot:
        """Return a slot with the sums of both slots' counts, and the larger backlog."""
        return Slot(
            at=self.at,
            stored=self.stored + other.stored,
            duplicates=self.duplicates + other.duplicates,
            dead_lettered=self.dead_lettered + other.dead_lettered,
            backlog=max(self.backlog, other.backlog),
            latencies=tuple(map(add, self.latencies, other.latencies)),
        )

    def latency(self, share: float) -> float | None:
        """Return the milliseconds within which this share of the messages was stored.

        None where there were none. Messages are taken to be spread evenly within a bucket; the last
        bound stands for any longer latency.
        """
        wanted = sum(self.latencies) * share
        if not wanted:
            return None
        below = 0
        for (low, high), count in zip(pairwise((0, *LATENCY_MS)), self.latencies[:-1], strict=True):
            if count and below + count >= wanted:
                return round(low + (high - low) * (wanted - below) / count, 1)
            below += count
        return float(LATENCY_MS[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A tenant's statistics over a window: `points` a `step` apart, and their `total`.

    The statistics are known until `end`, which may lie within the last point.
    """

    step: timedelta
    points: Sequence[Slot]
    total: Slot
    end: datetime

    def seconds(self, point: Slot) -> float:
        """Return how many seconds a point covers."""
        return (min(self.end, point.at + self.step) - point.at).total_seconds()


class StatisticsStore(Protocol):
    """Keeps tenants' statistics, a day by minutes and a week by hours.

    Raises `StoreUnavailableError`.
    """

    def note(self, at: datetime, notes: Mapping[str, Note]) -> None:
        """Note tenants' statistics since the previous note, as of a minute."""

    def read(
        self, tenant_id: str, *, hourly: bool, start: datetime, end: datetime
    ) -> Sequence[Slot]:
        """Return a tenant's slots in a time range; there is none where nothing was done."""


class StatisticsKeeper:
    """Notes this node's tenants' statistics when a minute is over. One thread calls `turn`."""

    def __init__(
        self,
        store: StatisticsStore,
        *,
        tenants: Callable[[], Mapping[str, TenantRuntime]],
        recorder: Recorder,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._recorder = recorder
        self._now = now
        self._minute = int(now() // 60)
        self._outcomes: dict[str, Outcomes] = {}
        self._latencies: dict[str, tuple[int, ...]] = {}
        self._p99: dict[tuple[str, int | None], float | None] = {}

    def latency_p99(self, tenant_id: str, incarnation: int) -> float | None:
        """Return the 99th percentile of latencies, in milliseconds.

        It is that of the last full minute; None if nothing was stored in it. From any thread.
        """
        return self._p99.get((tenant_id, incarnation))

    def turn(self, go_on: Callable[[], None] = lambda: None) -> None:
        """Note the minute that is over, if one is. Raises `StoreUnavailableError`."""
        minute = int(self._now() // 60)
        if minute > self._minute:
            self._note(minute - 1)
            self._minute = minute
            go_on()

    def end(self) -> None:
        """Note the current minute before it is over."""
        self._note(int(self._now() // 60))

    def _note(self, minute: int) -> None:
        tenants = self._tenants()
        notes: dict[str, Note] = {}
        outcomes, latencies = {}, {}
        p99: dict[tuple[str, int | None], float | None] = {}
        at = datetime.fromtimestamp(minute * 60, UTC)
        for tenant_id, one in tenants.items():
            if one.lifecycle is None:
                continue
            outcomes[tenant_id] = one.stored, one.duplicates, one.dead_lettered
            latencies[tenant_id] = counts = self._counts(tenant_id)
            fresh = _since(self._latencies.get(tenant_id), counts)
            if any(fresh):
                p99[tenant_id, one.incarnation] = Slot(at=at, latencies=fresh).latency(0.99)
            changed = outcomes[tenant_id] != self._outcomes.get(tenant_id)
            if changed or any(fresh) or one.pending:
                notes[tenant_id] = Note(one.pending or 0, fresh)
        self._p99 = p99
        if notes:
            self._store.note(at, notes)
        self._outcomes, self._latencies = outcomes, latencies

    def _counts(self, tenant_id: str) -> tuple[int, ...]:
        reading = self._recorder.latency(tenant_id)
        if reading is None:
            return NONE
        return tuple(after - before for before, after in pairwise((0, *reading.counts)))


class Statistics:
    """Gives tenants' statistics in points that are a step apart, including empty points."""

    def __init__(
        self, store: StatisticsStore, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._now = now

    def series(self, tenant_id: str, window: timedelta) -> Series:
        """Return a tenant's statistics in a window up to the last minute. Blocks.

        The window begins where a step does. Raises `StoreUnavailableError`.
        """
        step = next(step for longest, step in STEPS if window <= longest)
        seconds = int(step.total_seconds())
        known = int((self._now().timestamp() - NOTED_WITHIN) // 60) * 60
        count = max(1, round(window / step))
        start = datetime.fromtimestamp(-(-known // seconds) * seconds, UTC) - count * step
        points = [Slot(at=start + number * step) for number in range(count)]
        end = datetime.fromtimestamp(known, UTC)
        # Minutes are in the slots of hours as soon as they are noted.
        found = self._store.read(tenant_id, hourly=step >= HOUR, start=start, end=end)
        total = Slot(at=start)
        for slot in found:
            place = int((slot.at - start) / step)
            points[place] = points[place].plus(slot)
            total = total.plus(slot)
        return Series(step=step, points=points, total=total, end=end)


def _since(before: Sequence[int] | None, counts: Sequence[int]) -> Sequence[int]:
    """Return the counts since `before`; all of them, where the counters were reset."""
    if before is None:
        return counts
    fresh = tuple(map(int.__sub__, counts, before))
    return counts if min(fresh) < 0 else fresh
