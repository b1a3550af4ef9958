"""Records dead letters in the journal: one event each up to a rate, one for many beyond it.

A client can cause thousands of dead letters a second, and the journal keeps its events for ever; an
event is many times as large as the smallest message that becomes a dead letter. The index has every
dead letter, whatever the journal has. The log has as many lines as the journal has events.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID, uuid4

import structlog

from tenantry.domain import names
from tenantry.domain.events import DeadLettersAggregated, MessageDeadLettered
from tenantry.journal.port import ANY, EventStore, Metadata
from tenantry.turns.token_bucket import TokenBucket

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

AT_ONCE: Final = 100
"""The burst: dead letters of a tenant with an event each after a quiet time."""

A_SECOND: Final = 20 / 60
"""The rate: further such events a second, in the long run."""

FLUSH_EVERY: Final = 10.0
"""Seconds between events that sum up the others, if there are any."""

MOST_PARTITIONS: Final = 100
"""The most partitions named in one event."""

QUIET: Final = AT_ONCE / A_SECOND
"""Seconds without dead letters after which a tenant's state is dropped."""

ITSELF: Final = Metadata(actor="daemon")


class Told(NamedTuple):
    """How many events were appended, and how many dead letters were put off."""

    recorded: int
    put_off: int


@dataclass(slots=True)
class _Untold:
    """Dead letters of a tenant that have no events of their own.

    `partitions` are the partitions in order that they belong to, in the order they came.
    """

    first_at: datetime
    last_at: datetime
    reasons: Counter[str] = field(default_factory=Counter)
    ordered: int = 0
    partitions: dict[str, None] = field(default_factory=dict)
    id: UUID = field(default_factory=uuid4)

    def add(self, event: MessageDeadLettered) -> None:
        """Count one dead letter."""
        self.reasons[event.reason] += 1
        if event.ordered:
            self.ordered += 1
            if len(self.partitions) < MOST_PARTITIONS:
                self.partitions[f"{event.topic}.{event.partition}"] = None


class DeadLetterEvents:
    """The events of dead letters, of all tenants of a node. Callable from any thread.

    `totals` gives the number of all dead letters of a tenant, 0 for a deleted tenant.
    """

    def __init__(
        self,
        journal: EventStore,
        totals: Callable[[str], int],
        *,
        now: Callable[[], float] = time.monotonic,
        at_once: int = AT_ONCE,
    ) -> None:
        self._journal = journal
        self._totals = totals
        self._now = now
        self._at_once = at_once
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[TokenBucket, float]] = {}
        self._untold: dict[str, _Untold] = {}
        self._late: list[tuple[str, _Untold]] = []
        """Sums that are being appended, or could not be appended yet."""

    def tell(
        self,
        tenant_id: str,
        events: Sequence[MessageDeadLettered],
        ids: Sequence[UUID],
        metadata: Metadata,
        *,
        fresh: Sequence[bool] | None = None,
    ) -> Told:
        """Append events of dead letters, under the ids given.

        A dead letter that has its event already gets no other. Dead letters beyond the rate are
        summed up later, if they are `fresh`: the others may be in the journal already. Raises
        `JournalUnavailableError`.
        """
        with self._lock:
            admitted = self._admit(tenant_id, len(events))
        recorded = 0
        if admitted:
            recorded = len(
                self._journal.append(
                    names.dead_letter_journal_stream(tenant_id),
                    events[:admitted],
                    expected=ANY,
                    metadata=metadata,
                    ids=ids[:admitted],
                )
            )
        rest = events[admitted:]
        told = [True] * len(rest) if fresh is None else fresh[admitted:]
        self._put_off(tenant_id, [one for one, new in zip(rest, told, strict=True) if new])
        return Told(recorded, len(rest))

    def flush(self) -> None:
        """Append the events that sum up the others. Call again after `JournalUnavailableError`."""
        with self._lock:
            self._late += self._untold.items()
            self._untold = {}
            now = self._now()
            self._buckets = {
                tenant_id: known
                for tenant_id, known in self._buckets.items()
                if now - known[1] < QUIET
            }
        while (first := self._first()) is not None:
            tenant_id, untold = first
            total = self._totals(tenant_id)
            if total:
                self._journal.append(
                    names.dead_letter_journal_stream(tenant_id),
                    [_together(tenant_id, untold, total)],
                    expected=ANY,
                    metadata=ITSELF,
                    ids=[untold.id],
                )
                _log.warning(
                    "messages.dead_lettered",
                    tenant=tenant_id,
                    count=untold.reasons.total(),
                    reasons=dict(sorted(untold.reasons.items())),
                    total=total,
                )
            with self._lock:
                self._late = [one for one in self._late if one is not first]

    def forget(self, tenant_id: str) -> None:
        """Drop the state of a deleted tenant: another one may get its id."""
        with self._lock:
            self._buckets.pop(tenant_id, None)
            self._untold.pop(tenant_id, None)
            self._late = [one for one in self._late if one[0] != tenant_id]

    def _first(self) -> tuple[str, _Untold] | None:
        with self._lock:
            return self._late[0] if self._late else None

    def _admit(self, tenant_id: str, count: int) -> int:
        now = self._now()
        bucket, _ = self._buckets.get(tenant_id, (None, now))
        if bucket is None:
            bucket = TokenBucket(rate=A_SECOND, burst=self._at_once, now=now, full=True)
        self._buckets[tenant_id] = bucket, now
        admitted = min(count, bucket.available(now))
        bucket.take(admitted)
        return admitted

    def _put_off(self, tenant_id: str, events: Sequence[MessageDeadLettered]) -> None:
        if not events:
            return
        at = datetime.now(UTC)
        with self._lock:
            untold = self._untold.setdefault(tenant_id, _Untold(at, at))
            untold.last_at = at
            for event in events:
                untold.add(event)


def _together(tenant_id: str, untold: _Untold, total: int) -> DeadLettersAggregated:
    counted = sorted(untold.reasons.items())
    return DeadLettersAggregated(
        tenant_id=tenant_id,
        count=untold.reasons.total(),
        total=total,
        reasons=tuple(reason for reason, _ in counted),
        counts=tuple(count for _, count in counted),
        first_at=untold.first_at.isoformat(),
        last_at=untold.last_at.isoformat(),
        ordered=untold.ordered,
        partitions=tuple(untold.partitions),
    )
