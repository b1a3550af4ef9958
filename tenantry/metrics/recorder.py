"""The counters that the actors' work updates, read only at a scrape.

Counting costs next to nothing: a batch takes one lock and a few additions, whatever its size; a
message's latency takes one comparison in C, and no call.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from tenantry.actors.ports import Followed, Observer
from tenantry.broker.port import Delivery
from tenantry.broker.survey import DriftKind

LATENCY_MS: Final = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000,
)  # fmt: skip
OLDEST_MS: Final = 365 * 24 * 3600 * 1000
BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

KINDS: Final = ("tenant", "consumer", "worker", "reconciler")
"""The kinds of actors that are restarted."""

LOOP: Final = "loop"
"""The kind of a thread that works beside the actors, and is not restarted."""


class Example(NamedTuple):
    """A counted value, the trace it was measured in, and the time, in seconds."""

    trace_id: str
    value: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A distribution at a moment.

    `counts` are the numbers of values at or under each bound, the last one that of all values.
    `examples` holds each slot's latest traced value; it is empty where no value was traced.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    examples: tuple[Example | None, ...] = ()


class Distribution:
    """How values are spread over bounds, and their sum. Callable from any thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._examples: dict[int, Example] = {}
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count one value."""
        slot = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[slot] += 1
            self._total += value

    def keep(self, value: float, example: Example) -> None:
        """Keep an example of a counted value, replacing the previous one in its slot."""
        slot = bisect_left(self._bounds, value)
        with self._lock:
            self._examples[slot] = example

    def add_many(self, counts: Sequence[int], total: float) -> None:
        """Count values that are sorted into slots already, one more slot than bounds."""
        with self._lock:
            self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]
            self._total += total

    def read(self) -> Reading:
        """Return everything counted so far."""
        with self._lock:
            counts, total, known = self._counts.copy(), self._total, self._examples.copy()
        examples = tuple(known.get(slot) for slot in range(len(counts))) if known else ()
        return Reading(
            bounds=self._bounds,
            counts=tuple(accumulate(counts)),
            total=total,
            examples=examples,
        )


def latencies(published_ms: list[int], now_ms: int) -> tuple[list[int], float]:
    """Sort a batch's times of publishing into slots of `LATENCY_MS`; their sum in seconds.

    Sorts the list in place. A message published in the future, by another clock, took no time; one
    published more than a year ago is not believed, and not counted.
    """
    published_ms.sort()  # Nearly sorted already: hardly more than one comparison each.
    del published_ms[: bisect_left(published_ms, now_ms - OLDEST_MS)]
    size = len(published_ms)
    at_most = [size - bisect_left(published_ms, now_ms - bound) for bound in LATENCY_MS]
    past = bisect_left(published_ms, now_ms)
    total = past * now_ms - sum(published_ms[:past])
    return [after - before for before, after in pairwise((0, *at_most, size))], total / 1000


class Recorder(Observer):
    """Counts what the actors report, as their observer. Callable from any thread."""

    def __init__(self) -> None:
        self.batch_sizes = Distribution(BATCH_SIZES)
        self.store_seconds = Distribution(SECONDS)
        self.append_seconds = Distribution(SECONDS)
        self._latencies: dict[str, Distribution] = {}
        self._handlers: dict[str, Distribution] = {}
        self._failed_attempts: dict[str, Counter[str]] = {}
        self._failures = dict.fromkeys(KINDS, 0)
        self._stuck = dict.fromkeys((*KINDS, LOOP), 0)
        self._drift = Counter({(kind.value, "repaired"): 0 for kind in DriftKind})
        self._reused: Counter[str] = Counter()
        self._delays = 0
        self._events = 0
        self._lock = threading.Lock()

    def batch_stored(
        self,
        tenant_id: str,
        batch: Sequence[Delivery],
        seconds: float,
        followed: Sequence[Followed] = (),
    ) -> None:
        """Count a batch that has just been committed."""
        now_ms = time.time_ns() // 1_000_000
        self.batch_sizes.add(len(batch))
        self.store_seconds.add(seconds)
        published = [
            at for delivery in batch if (at := delivery.message.published_at_ms) is not None
        ]
        if not published:
            return
        counts, total = latencies(published, now_ms)
        known = self._latencies.get(tenant_id)
        if known is None:
            known = self._latencies.setdefault(tenant_id, Distribution(LATENCY_MS))
        known.add_many(counts, total)
        for one in followed:
            at = one.published_at_ms
            if at is not None and at >= now_ms - OLDEST_MS:
                took = max(0, now_ms - at)
                known.keep(took, Example(one.trace_id, took / 1000, now_ms / 1000))

    def handled(self, topic: str, seconds: float, trace_id: str | None) -> None:
        """Count a run of a topic's handler, with its trace, if it was traced."""
        known = self._handlers.get(topic)
        if known is None:
            known = self._handlers.setdefault(topic, Distribution(SECONDS))
        known.add(seconds)
        if trace_id is not None:
            known.keep(seconds, Example(trace_id, seconds, time.time()))

    def attempts_failed(self, tenant_id: str, reasons: Sequence[str]) -> None:
        """Count messages on which a handler has failed."""
        with self._lock:
            counts = self._failed_attempts.setdefault(tenant_id, Counter())
            counts.update(reasons)

    def ids_reused(self, tenant_id: str, count: int) -> None:
        """Count messages whose id is that of another stored message."""
        with self._lock:
            self._reused[tenant_id] += count

    def batch_delayed(self, tenant_id: str) -> None:  # noqa: ARG002 - counted for all together
        """Count an attempt that failed because the database could not be reached."""
        with self._lock:
            self._delays += 1

    def journal_appended(self, events: int, seconds: float) -> None:
        """Count an append to the journal."""
        self.append_seconds.add(seconds)
        with self._lock:
            self._events += events

    def actor_failed(self, kind: str) -> None:
        """Count an actor's failure."""
        with self._lock:
            self._failures[kind] += 1

    def actor_stuck(self, kind: str) -> None:
        """Count an actor that hangs."""
        with self._lock:
            self._stuck[kind] += 1

    def drifted(self, kind: str, outcome: str) -> None:
        """Count an outside object that was changed behind the daemon's back."""
        with self._lock:
            self._drift[kind, outcome] += 1

    def tenant_gone(self, tenant_id: str) -> None:
        """Forget a tenant; another one may take its id."""
        self._latencies.pop(tenant_id, None)
        with self._lock:
            self._failed_attempts.pop(tenant_id, None)
            self._reused.pop(tenant_id, None)

    @property
    def delays(self) -> int:
        """Attempts at a batch that failed because the database could not be reached."""
        return self._delays

    @property
    def events(self) -> int:
        """Events the journal has taken from the actors."""
        return self._events

    def failures(self) -> dict[str, int]:
        """Count the failures of each kind of actor."""
        with self._lock:
            return self._failures.copy()

    def stuck(self) -> dict[str, int]:
        """Count the actors of each kind that hung and were replaced."""
        with self._lock:
            return self._stuck.copy()

    def drift(self) -> dict[tuple[str, str], int]:
        """Count drifted objects, by kind and outcome."""
        with self._lock:
            return dict(self._drift)

    def failed_attempts(self, tenant_id: str) -> dict[str, int]:
        """Count a tenant's attempts that a handler has failed, by reason."""
        with self._lock:
            return dict(self._failed_attempts.get(tenant_id, {}))

    def reused_ids(self, tenant_id: str) -> int:
        """Count a tenant's messages whose id another stored message has."""
        with self._lock:
            return self._reused.get(tenant_id, 0)

    def handlers(self) -> dict[str, Reading]:
        """Return the times that runs of each topic's handler took."""
        return {topic: known.read() for topic, known in list(self._handlers.items())}

    def latency(self, tenant_id: str) -> Reading | None:
        """Return a tenant's latencies in milliseconds (their sum in seconds); None before any."""
        known = self._latencies.get(tenant_id)
        return None if known is None else known.read()
