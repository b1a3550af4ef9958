"""A message store in memory; what it does with a message is said by its body."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tenantry.domain.tenant import TenantState
from tenantry.messages.port import (
    FIRST,
    NOTHING,
    Counts,
    Held,
    Incoming,
    Partitions,
    StoreResult,
    Tried,
    Unstorable,
    Whose,
)
from tests.fakes.faults import Faults
from tests.waiting import DEADLINE


class FakeStore:
    """A message store. A body of `bad` is unstorable; `gate` holds batches back while cleared.

    `fails3` fails three times, `left` is left over behind the second place of a batch.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._lock = threading.Lock()
        self.rows: dict[str, dict[str, bytes]] = {}
        self.retained: dict[tuple[str, int], dict[str, bytes]] = {}
        self.whose: dict[str, Whose] = {}
        self.deliveries: Counter[tuple[str, str | None]] = Counter()
        self.totals: dict[str, Counter[str]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.gates: dict[bytes, threading.Event] = {}
        self.pause = 0.0
        self.attempts = 5
        self.inside = 0
        self.most_inside = 0
        self.more: dict[str, bool] = {}
        """Whether a tenant had more with its latest batch."""
        self.beside: dict[str, bool] = {}

    def vacate(self, former: TenantState) -> None:
        self._faults.reach("vacate")
        rows = self.rows.pop(former.tenant_id, None)
        if rows is not None:
            self.retained[former.tenant_id, former.incarnation] = rows
        self.totals.pop(former.tenant_id, None)

    def create_partition(self, tenant_id: str, whose: Whose = FIRST) -> None:
        self._faults.reach("create_partition")
        self.whose[tenant_id] = whose
        self.rows.setdefault(tenant_id, {})
        self.totals.setdefault(tenant_id, Counter())

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        self._faults.reach("drop_partition")
        return 0 if retain else len(self.rows.pop(tenant_id, {}))

    def partitions(self) -> Partitions:
        self._faults.reach("partitions")
        whole = {one: (self.whose.get(one, FIRST), self.counts(one)) for one in self.rows}
        return Partitions(whole=whole, partial=frozenset())

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,
        *,
        in_order: bool = False,
        more: bool = False,
        beside: bool = False,
    ) -> StoreResult:
        self._faults.reach(f"store {tenant_id}")
        self.more[tenant_id] = more
        self.beside[tenant_id] = beside
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            assert self.gate.wait(DEADLINE)
            for message in batch:
                gate = self.gates.get(message.body)
                assert gate is None or gate.wait(DEADLINE)
        finally:
            with self._lock:
                self.inside -= 1
        with self._lock:
            rows = self.rows[tenant_id]
            stored = duplicates = 0
            unstorable, held, left, reused = [], [], [], []
            blocked: set[tuple[str, int]] = set()
            for index, message in enumerate(batch):
                lane = (message.topic, message.partition)
                if lane in blocked:
                    left.append(index)
                    continue
                identity = message.id or f"generated-{len(rows)}"
                self.deliveries[tenant_id, identity] += 1
                tried = again.get(index) or Tried(0, "")
                attempts = tried.attempts + 1
                if message.body.startswith(b"left") and index >= 2:
                    left.append(index)
                elif message.body.startswith(b"fails") and attempts <= int(message.body[5:]):
                    if attempts == self.attempts:
                        unstorable.append(
                            Unstorable(index=index, reason="no", error="no", attempts=attempts)
                        )
                    else:
                        now = Tried(attempts, "no")
                        held.append(Held(index=index, seconds=self.pause, tried=now))
                        if in_order:
                            blocked.add(lane)
                elif message.body == b"bad":
                    unstorable.append(Unstorable(index=index, reason="not_json", error="bad"))
                elif identity in rows:
                    duplicates += 1
                    if rows[identity] != message.body:
                        reused.append(index)
                else:
                    rows[identity] = message.body
                    stored += 1
            totals = self.totals[tenant_id]
            totals.update(stored=stored, duplicates=duplicates, dead_lettered=len(unstorable))
        return StoreResult(
            stored=stored,
            duplicates=duplicates,
            unstorable=tuple(unstorable),
            held=tuple(held),
            left=tuple(left),
            reused=tuple(reused),
            failures=tuple(one.tried.reason for one in held),
        )

    def page(self, tenant_id: str, **_: Any) -> list[Any]:
        raise NotImplementedError

    def counts(self, tenant_id: str) -> Counts:
        totals = self.totals.get(tenant_id, Counter())
        return Counts(
            stored=totals["stored"],
            duplicates=totals["duplicates"],
            dead_lettered=totals["dead_lettered"],
        )
