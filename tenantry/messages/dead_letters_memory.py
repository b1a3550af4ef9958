"""The index of dead letters in memory: for tests, and for trying things out. It forgets."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from tenantry.messages.dead_letters import (
    LARGEST_BODY,
    DeadLetter,
    Judged,
    Known,
    Outcome,
    fingerprint,
)
from tenantry.messages.encoding import headers_json


@dataclass(slots=True)
class _Row:
    letter: DeadLetter
    settled: bool = False
    seen_in: UUID | None = None


class InMemoryDeadLetterIndex:
    """Dead letters (`DeadLetterIndex`) for as long as the object lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._positions = itertools.count(1)
        self._tenants: dict[str, dict[bytes, _Row]] = {}

    def keep(self, tenant_id: str, letters: Sequence[Judged]) -> list[UUID]:
        """See `DeadLetterIndex.keep`."""
        with self._lock:
            rows = self._tenants.setdefault(tenant_id, {})
            ids = []
            for judged in letters:
                key = fingerprint(judged.message)
                row = rows.get(key)
                if row is None or row.settled:
                    row = rows[key] = _Row(self._letter(tenant_id, judged))
                ids.append(row.letter.id)
            return ids

    def page(
        self, tenant_id: str, *, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """See `DeadLetterIndex.page`."""
        with self._lock:
            listed = sorted(
                (row.letter for row in self._rows(tenant_id) if not row.settled),
                key=lambda letter: letter.position,
            )
            found = [letter for letter in listed if letter.position > after]
            return found[:limit], len(found) > limit

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """See `DeadLetterIndex.named`."""
        with self._lock:
            return {
                row.letter.id
                for row in self._rows(tenant_id)
                if not row.settled
                and (str(row.letter.id) in names or row.letter.message_id in names)
            }

    def find(
        self, tenant_id: str, fingerprints: Sequence[bytes], *, walk: UUID
    ) -> Mapping[bytes, Known]:
        """See `DeadLetterIndex.find`."""
        with self._lock:
            rows = self._tenants.get(tenant_id, {})
            met = {key: rows[key] for key in fingerprints if key in rows}
            for row in met.values():
                row.seen_in = walk
            return {key: Known(row.letter.id, row.settled) for key, row in met.items()}

    def settle(self, tenant_id: str, ids: Collection[UUID], outcome: Outcome) -> None:  # noqa: ARG002
        """See `DeadLetterIndex.settle`; nothing is counted here."""
        with self._lock:
            for row in self._rows(tenant_id):
                if row.letter.id in ids:
                    row.settled = True

    def forget(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.forget`."""
        with self._lock:
            rows = self._tenants.get(tenant_id, {})
            for key, row in list(rows.items()):
                if row.settled and row.letter.id in ids:
                    del rows[key]

    def forget_missing(self, tenant_id: str, *, walk: UUID, older_than: float) -> int:
        """See `DeadLetterIndex.forget_missing`."""
        before = datetime.now(UTC) - timedelta(seconds=older_than)
        with self._lock:
            rows = self._tenants.get(tenant_id, {})
            missing = [
                key
                for key, row in rows.items()
                if row.seen_in != walk and row.letter.dead_lettered_at < before
            ]
            return sum(not rows.pop(key).settled for key in missing)

    def drop(self, tenant_id: str) -> None:
        """See `DeadLetterIndex.drop`."""
        with self._lock:
            self._tenants.pop(tenant_id, None)

    def _rows(self, tenant_id: str) -> list[_Row]:
        return list(self._tenants.get(tenant_id, {}).values())

    def _letter(self, tenant_id: str, judged: Judged) -> DeadLetter:
        message = judged.message
        published = message.published_at_ms
        return DeadLetter(
            id=uuid4(),
            tenant_id=tenant_id,
            position=next(self._positions),
            message_id=message.id,
            topic=message.topic,
            partition=message.partition,
            reason=judged.reason,
            first_error=judged.first_error or judged.error,
            error=judged.error,
            attempts=judged.attempts,
            size=len(message.body),
            body=message.body if len(message.body) <= LARGEST_BODY else None,
            content_type=message.content_type,
            headers=headers_json(message.headers).decode() if message.headers else None,
            published_at=None
            if published is None
            else datetime.fromtimestamp(published / 1000, UTC),
            dead_lettered_at=datetime.now(UTC),
        )
