"""The comparison of the confirmed messages with those that exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import psycopg

from tests.ledger.entries import Sent
from tests.ledger.places import Queued, Row, queued, queued_in_sql, rejected_in_sql, rows

Key: TypeAlias = tuple[str, str]
"""A tenant's id, and the key of one of its messages."""

SHOWN = 3


@dataclass(slots=True, kw_only=True)
class Findings:
    """The faults found; every list is empty if all is well."""

    missing: list[object] = field(default_factory=list)
    """Messages confirmed, and neither stored nor dead-lettered nor in a queue."""
    doubled: list[object] = field(default_factory=list)
    """Messages with two rows, or with a row and a dead letter."""
    unexpected: list[object] = field(default_factory=list)
    """Messages that this tenant never sent; `foreign` if another tenant sent them."""
    foreign: list[object] = field(default_factory=list)
    altered: list[object] = field(default_factory=list)
    """Messages with another content, type or place than they were sent with."""
    misjudged: list[object] = field(default_factory=list)
    """Messages stored that should be dead letters, or the other way round."""

    disordered: list[object] = field(default_factory=list)
    """Messages stored after later ones of the same sender, in the same ordered partition."""

    @property
    def clean(self) -> bool:
        return not any(getattr(self, one.name) for one in fields(self))

    def __str__(self) -> str:
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        parts = [f"{len(of)} {name}: {of[:SHOWN]}" for name, of in found.items() if of]
        return "; ".join(parts) or "clean"

    def counts(self) -> dict[str, int]:
        return {one.name: len(getattr(self, one.name)) for one in fields(self)}


class Audit:
    """Follows every tenant's rows, and looks into its queues on request.

    The audit remembers the rows it has seen, so that another look costs only the new ones.
    Without a broker's URL the queues are those of the embedded broker. The partitions of topics
    in `ordered` must be in the order of publishing.
    """

    def __init__(
        self,
        database_url: str,
        broker_url: str | None = None,
        ordered: AbstractSet[str] = frozenset(),
    ) -> None:
        self._database_url = database_url
        self._broker_url = broker_url
        self._ordered = ordered
        self._numbers: dict[tuple[str, str, int, str], int] = {}
        self._positions: Counter[str] = Counter()
        self._owners: dict[str, str] = {}
        self._rows: dict[Key, Row] = {}
        self._dead: dict[Key, list[Queued]] = {}
        self._waiting: set[Key] = set()
        self._read: Counter[str] = Counter()
        self._findings = Findings()

    @property
    def stored(self) -> int:
        return len(self._rows)

    @property
    def dead_lettered(self) -> int:
        return len(self._dead)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def follow(self, sent: Sent) -> int:
        """Read the new rows; return the number of all rows."""
        with psycopg.connect(self._database_url) as connection:
            for tenant_id in sent.tenants:
                for row in rows(connection, tenant_id, self._positions[tenant_id]):
                    self._positions[tenant_id] = row.position
                    self._take(tenant_id, row, sent)
        return len(self._rows)

    def look_into_queues(self, tenants: Sequence[str], queues: Mapping[str, Sequence[str]]) -> None:
        """List anew the messages in dead-letter queues, and in the tenants' given queues."""
        self._dead.clear()
        self._waiting.clear()
        with psycopg.connect(self._database_url) as connection:
            for tenant_id in tenants:
                for one in self._dead_letters(connection, tenant_id):
                    self._dead.setdefault((tenant_id, one.key), []).append(one)
                for queue in queues.get(tenant_id, ()):
                    found = self._queued(connection, queue)
                    self._waiting |= {(tenant_id, one.key) for one in found}

    def _dead_letters(self, connection: psycopg.Connection, tenant_id: str) -> list[Queued]:
        if self._broker_url is None:
            return rejected_in_sql(connection, tenant_id)
        return queued(self._broker_url, f"tenant_{tenant_id}_dead_letters")

    def _queued(self, connection: psycopg.Connection, queue: str) -> list[Queued]:
        if self._broker_url is None:
            return queued_in_sql(connection, queue)
        return queued(self._broker_url, queue)

    @property
    def so_far(self) -> Findings:
        """The faults found so far in the rows that were followed."""
        return self._findings

    def missing(self, confirmed: AbstractSet[Key]) -> set[Key]:
        """Return the confirmed messages that are in none of the places looked into."""
        return confirmed - self._rows.keys() - self._dead.keys() - self._waiting

    def judge(self, sent: Sent, confirmed: AbstractSet[Key]) -> Findings:
        """Compare everything seen so far with what was sent and confirmed."""
        found = Findings(
            **{one.name: list(getattr(self._findings, one.name)) for one in fields(Findings)}
        )
        found.missing += sorted(self.missing(confirmed))
        self._judge_dead_letters(sent, found)
        self._count(sent, found)
        return found

    def _count(self, sent: Sent, found: Findings) -> None:
        """Check that no row has gone, and that none was added at a position already read."""
        with psycopg.connect(self._database_url) as connection:
            tenants = connection.execute(
                "SELECT DISTINCT tenant_id FROM public.messages"
            ).fetchall()
            found.unexpected += [(one, "rows") for (one,) in tenants if one not in sent.tenants]
            for tenant_id in sent.tenants:
                row = connection.execute(
                    "SELECT count(*) FROM public.messages WHERE tenant_id = %s AND position <= %s",
                    [tenant_id, self._positions[tenant_id]],
                ).fetchone()
                if row != (self._read[tenant_id],):
                    found.unexpected.append((tenant_id, row, "rows, met", self._read[tenant_id]))

    def _take(self, tenant_id: str, row: Row, sent: Sent) -> None:
        self._read[tenant_id] += 1
        key = (tenant_id, row.key)
        entry = sent.find(*key)
        if entry is None:
            foreign = sent.by_another(row.key)
            (self._findings.foreign if foreign else self._findings.unexpected).append(key)
            return
        if key in self._rows:
            self._findings.doubled.append(key)
        self._rows[key] = row
        if self._owners.setdefault(row.table, tenant_id) != tenant_id:
            self._findings.foreign.append((*key, row.table))
        if (row.topic, row.partition) != (entry.target.topic, entry.target.partition):
            self._findings.altered.append((*key, row.topic, row.partition))
        if row.content_type != entry.content_type and not entry.opaque:
            self._findings.altered.append((*key, row.content_type))
        is_same = row.meaning == entry.meaning if row.sha256 is None else row.sha256 == entry.sha256
        if not is_same:
            self._findings.altered.append(key)
        if entry.fate == "dead_lettered":
            self._findings.misjudged.append((*key, "stored"))
        if row.topic in self._ordered and entry.sender:
            place = (tenant_id, row.topic, row.partition, entry.sender)
            if entry.number < self._numbers.get(place, 0):
                self._findings.disordered.append((*key, entry.number, self._numbers[place]))
            else:
                self._numbers[place] = entry.number

    def _judge_dead_letters(self, sent: Sent, found: Findings) -> None:
        for key, letters in self._dead.items():
            entry = sent.find(*key)
            if entry is None:
                foreign = sent.by_another(key[1])
                (found.foreign if foreign else found.unexpected).append((*key, "dead letter"))
                continue
            if key in self._rows:
                found.doubled.append((*key, "stored and dead-lettered"))
            if entry.fate == "stored":
                found.misjudged.append((*key, "dead-lettered"))
            for one in letters:
                if one.sha256 != entry.sha256:
                    found.altered.append((*key, "dead letter"))
                if one.content_type != entry.content_type and not entry.opaque:
                    found.altered.append((*key, "dead letter", one.content_type))
