"""The index of dead letters in memory: for tests, and for trying things out. It forgets."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

from tenantry.dead_letters.matching import Matching, Row
from tenantry.dead_letters.port import (
    EVERYTHING,
    LARGEST_BODY,
    DeadLetter,
    IndexedDeadLetter,
    Intent,
    KnownDeadLetter,
    Preview,
    QueueMessage,
    RejectedMessage,
    Selection,
    Work,
)
from tenantry.messages.encoding import LAST_MS, headers_json
from tenantry.messages.port import Incoming
from tenantry.messages.validation import shown

T = TypeVar("T")


@dataclass(slots=True)
class _Letter:
    """A row, and what it has beside what matching needs. Its intent stays when it is settled."""

    row: Row
    position: int
    message: Incoming
    gone_at: datetime | None = None


@dataclass(slots=True)
class _Tenant:
    letters: list[_Letter] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)


class InMemoryDeadLetterIndex:
    """Dead letters (`DeadLetterIndex`) for as long as the object lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._positions = itertools.count(1)
        self._tenants: dict[str, _Tenant] = {}

    def add(self, tenant_id: str, rejected: Sequence[RejectedMessage]) -> list[IndexedDeadLetter]:
        """See `DeadLetterIndex.add`."""
        with self._lock:
            return self._match(
                tenant_id, None, lambda matching: [matching.add(one) for one in rejected]
            )

    def lookup(
        self, tenant_id: str, found: Sequence[QueueMessage], *, browse: UUID
    ) -> list[KnownDeadLetter]:
        """See `DeadLetterIndex.lookup`."""
        with self._lock:
            return self._match(tenant_id, browse, lambda matching: matching.lookup(found))

    def begin(self, tenant_id: str, ids: Collection[UUID], intent: Intent) -> None:
        """See `DeadLetterIndex.begin`."""
        with self._lock:
            for row in self._listed(tenant_id, ids):
                if row.intent is None:
                    row.intent = intent
                    row.replays += intent.work is Work.REPLAY

    def withdraw(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.withdraw`."""
        with self._lock:
            for row in self._listed(tenant_id, ids):
                if row.intent is not None:
                    row.replays -= row.intent.work is Work.REPLAY and row.failed < row.replays
                    row.intent = None

    def settle(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.settle`."""
        with self._lock:
            for row in self._listed(tenant_id, ids):
                if row.intent is None:
                    continue
                self._tenant(tenant_id).totals[row.intent.work] += 1
                if row.intent.work is Work.REPLAY and row.failed >= row.replays:
                    row.intent = None
                else:
                    row.settled = True

    def intended(self, tenant_id: str, intent: UUID) -> list[UUID]:
        """See `DeadLetterIndex.intended`."""
        with self._lock:
            rows = [one.row for one in self._tenant(tenant_id).letters]
            return sorted(row.id for row in rows if row.intent and row.intent.id == intent)

    def recorded(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.recorded`."""
        with self._lock:
            for row in self._listed(tenant_id, ids):
                row.recorded = True

    def gone(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.gone`."""
        with self._lock:
            for one in self._tenant(tenant_id).letters:
                if one.row.settled and one.row.id in ids and one.gone_at is None:
                    one.gone_at = datetime.now(UTC)

    def forget_missing(self, tenant_id: str, *, browse: UUID, older_than: float) -> int:
        """See `DeadLetterIndex.forget_missing`."""
        before = datetime.now(UTC) - timedelta(seconds=older_than)
        with self._lock:
            tenant = self._tenant(tenant_id)
            missing = []
            for one in tenant.letters:
                if one.row.seen_in == browse:
                    continue
                if one.row.settled:
                    one.gone_at = one.gone_at or datetime.now(UTC)
                elif one.row.dead_lettered_at < before:
                    missing.append(one)
            for one in missing:
                tenant.letters.remove(one)
            return len(missing)

    def sweep(self, *, older_than: float) -> int:
        """See `DeadLetterIndex.sweep`."""
        before = datetime.now(UTC) - timedelta(seconds=older_than)
        swept = 0
        with self._lock:
            for tenant in self._tenants.values():
                kept = [
                    one for one in tenant.letters if one.gone_at is None or one.gone_at >= before
                ]
                swept += len(tenant.letters) - len(kept)
                tenant.letters = kept
        return swept

    def page(
        self, tenant_id: str, *, which: Selection = EVERYTHING, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """See `DeadLetterIndex.page`."""
        with self._lock:
            found = [
                _shown(tenant_id, one)
                for one in self._chosen(tenant_id, which)
                if one.position > after
            ]
        return found[:limit], len(found) > limit

    def preview(self, tenant_id: str, which: Selection, *, most_replays: int) -> Preview:
        """See `DeadLetterIndex.preview`."""
        with self._lock:
            chosen = list(self._chosen(tenant_id, which))
        return Preview(
            as_of=datetime.now(UTC),
            count=len(chosen),
            worn=sum(one.row.replays >= most_replays for one in chosen),
            places=Counter((one.message.topic, one.message.partition) for one in chosen),
        )

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """See `DeadLetterIndex.named`."""
        with self._lock:
            return {
                one.row.id for one in self._chosen(tenant_id, Selection(names=frozenset(names)))
            }

    def counts(self, tenant_ids: Collection[str]) -> Mapping[str, int]:
        """See `DeadLetterIndex.counts`."""
        with self._lock:
            return {one: len(list(self._chosen(one, EVERYTHING))) for one in tenant_ids}

    def unfinished(self) -> set[str]:
        """See `DeadLetterIndex.unfinished`."""
        with self._lock:
            return {
                tenant_id
                for tenant_id, tenant in self._tenants.items()
                for one in tenant.letters
                if not one.row.settled and (one.row.intent is not None or not one.row.recorded)
            }

    def totals(self, tenant_id: str) -> Mapping[str, int]:
        """Give a tenant's totals: `dead_lettered`, `replay`, `discard`."""
        with self._lock:
            return dict(self._tenant(tenant_id).totals)

    def _tenant(self, tenant_id: str) -> _Tenant:
        return self._tenants.setdefault(tenant_id, _Tenant())

    def _listed(self, tenant_id: str, ids: Collection[UUID]) -> Iterator[Row]:
        for one in self._tenant(tenant_id).letters:
            if not one.row.settled and one.row.id in ids:
                yield one.row

    def _chosen(self, tenant_id: str, which: Selection) -> Iterator[_Letter]:
        for one in sorted(self._tenant(tenant_id).letters, key=lambda one: one.position):
            row = one.row
            if row.settled:
                continue
            if which.holds(one.message, row.id, row.reason, row.dead_lettered_at):
                yield one

    def _match(self, tenant_id: str, browse: UUID | None, work: Callable[[Matching], T]) -> T:
        tenant = self._tenant(tenant_id)
        known = {id(one.row): one for one in tenant.letters}
        for one in tenant.letters:
            one.row.was = one.row.id
            one.row.listed_now = False
            one.row.content = None
        matching = Matching(
            (one.row for one in tenant.letters), new_id=uuid4, now=datetime.now(UTC), browse=browse
        )
        done = work(matching)
        for row in matching.changed.values():
            if row.content is not None:
                one = known[id(row)]
                one.position, one.message = next(self._positions), row.content
                one.gone_at = None
        for row in matching.new:
            assert row.content is not None
            tenant.letters.append(_Letter(row, next(self._positions), row.content))
        tenant.totals["dead_lettered"] += matching.fresh
        return done


def _shown(tenant_id: str, one: _Letter) -> DeadLetter:
    row, message = one.row, one.message
    published = message.published_at_ms
    return DeadLetter(
        id=row.id,
        tenant_id=tenant_id,
        position=one.position,
        message_id=shown(message.id),
        topic=message.topic,
        partition=message.partition,
        reason=row.reason,
        error=row.error,
        first_error=row.first_error or row.error,
        attempts=row.attempts,
        replays=row.replays,
        size=len(message.body),
        body=message.body if len(message.body) <= LARGEST_BODY else None,
        content_type=message.content_type,
        headers=headers_json(message.headers).decode() if message.headers else None,
        published_at=(
            None
            if published is None or not 0 <= published <= LAST_MS
            else datetime.fromtimestamp(published / 1000, UTC)
        ),
        dead_lettered_at=row.dead_lettered_at,
    )
