"""Calls that were refused are counted once each, also while the database is away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from tenantry.messages.port import StoreUnavailableError
from tenantry.metrics.refusals import Reason, Refusals, RefusalTotals, Refused

RATE = Refused("acme", 1, Reason.RATE)


class Store:
    """Counts in memory; it may be away."""

    def __init__(self) -> None:
        self.counts: Counter[Refused] = Counter()
        self.calls = 0
        self.away = False

    def add(self, counts: Mapping[Refused, int]) -> None:
        self.calls += 1
        if self.away:
            raise StoreUnavailableError("it is away")
        self.counts.update(counts)

    def totals(self) -> Mapping[tuple[str, str], int]:
        return {(of.tenant_id, of.reason.value): count for of, count in self.counts.items()}


def test_what_was_counted_while_the_store_was_away_is_counted_once_when_it_is_back() -> None:
    store, own = Store(), Refusals()
    shown = RefusalTotals(store, own)
    own.note(RATE)
    store.away = True
    with pytest.raises(StoreUnavailableError):
        shown.turn()
    assert shown.totals() == {}
    own.note(RATE)
    own.note(RATE._replace(reason=Reason.BACKLOG))
    store.away = False
    shown.turn()
    shown.turn()
    assert shown.totals() == {("acme", "rate"): 2, ("acme", "backlog"): 1}


def test_where_nothing_was_refused_nothing_is_written() -> None:
    store = Store()
    RefusalTotals(store, Refusals()).turn()
    assert store.calls == 0
