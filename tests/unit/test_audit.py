"""What an audit says of figures, however they came about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.audit.auditor import Auditor
from tenantry.audit.balance import Account, Kind, of_books, of_broker
from tenantry.broker.port import BrokerUnavailableError, QueueCounts
from tests.api.fakes import FakeQueues, empty_account

counts = st.integers(min_value=0, max_value=1000)
changes = st.integers(min_value=-1000, max_value=1000)


class Books:
    """Books that are read one after the other, the last one for ever."""

    def __init__(self, *accounts: Account) -> None:
        self._coming = iter(accounts)
        self._now = accounts[0]

    def read(self, tenant_id: str, *, seconds: float | None = None) -> Account | None:
        if tenant_id != self._now.tenant_id:
            return None
        self._now = next(self._coming, self._now)
        return self._now


def auditor(books: Books, queues: FakeQueues, in_flight: int | None = 0) -> Auditor:
    return Auditor(books, queues, lambda _tenant_id: in_flight, still=0.0, patience=0.05, pause=0)


@pytest.fixture
def queues() -> FakeQueues:
    return FakeQueues()


@given(stored=counts, duplicates=counts, removed=counts, change=changes)
def test_whatever_is_missing_or_too_many_is_named_by_its_number(
    stored: int, duplicates: int, removed: int, change: int
) -> None:
    removed = min(removed, stored)
    rows = max(stored - removed + change, 0)
    change = rows - (stored - removed)
    account = empty_account(
        "a", stored=stored, duplicates=duplicates, position=stored + duplicates, removed=removed,
        rows=rows,
    )  # fmt: skip
    found = list(of_books(account))
    assert [one.size for one in found] == ([abs(change)] if change else [])
    if change:
        assert found[0].text.startswith(f"{abs(change)} row")
        assert ("missing" in found[0].text) == (change < 0)


@given(kept=counts, replayed=counts, discarded=counts, missing=counts)
def test_letters_that_are_listed_or_settled_add_up(
    kept: int, replayed: int, discarded: int, missing: int
) -> None:
    total = kept + replayed + discarded + missing
    account = empty_account(
        "a", kept=total, replayed=replayed, discarded=discarded, missing=missing, listed=kept
    )
    assert list(of_books(account)) == []


@pytest.mark.parametrize(
    ("there", "kinds"),
    [(4, []), (6, []), (3, [Kind.DEAD_LETTER_QUEUE]), (7, [Kind.DEAD_LETTER_QUEUE])],
)
def test_a_settled_letter_may_still_be_in_the_queue(there: int, kinds: list[Kind]) -> None:
    account = empty_account("a", kept=4, listed=4, settled=2)
    found = list(of_broker(account, QueueCounts(dead_letters=there), 0))
    assert [one.kind for one in found] == kinds
    assert all(one.size == 1 for one in found)


def test_somebody_else_may_hold_messages_of_the_tenants_queues() -> None:
    account = empty_account("a")
    assert list(of_broker(account, QueueCounts(unsettled=5), 2)) == []
    (found,) = of_broker(account, QueueCounts(unsettled=5), 6)
    assert (found.kind, found.size) == (Kind.IN_FLIGHT, 1)


def test_what_is_only_on_its_way_is_no_difference(queues: FakeQueues) -> None:
    late = empty_account("a", kept=1, listed=1)
    queues.counts = {"a": QueueCounts(dead_letters=2)}
    arrived = empty_account("a", kept=2, listed=2)
    books = Books(late, late, late, arrived)
    patient = Auditor(books, queues, lambda _tenant_id: 0, still=30, patience=30, pause=0)
    (found,) = patient.audit(["a"])
    assert found.balanced
    assert not found.moving


def test_a_letter_that_stays_away_from_the_queue_is_a_difference(queues: FakeQueues) -> None:
    (found,) = auditor(Books(empty_account("a", kept=1, listed=1)), queues).audit(["a"])
    assert [one.text for one in found.differences] == [
        "1 dead letter of tenant a is missing in the queue: 1 are listed, 0 are in the queue"
    ]


def test_of_what_never_stands_still_nothing_is_said(queues: FakeQueues) -> None:
    def growing() -> Iterator[Account]:
        for listed in range(1, 1_000_000):
            yield empty_account("a", kept=listed, listed=listed)

    books = Books(empty_account("a"))
    books._coming = growing()
    restless = Auditor(books, queues, lambda _tenant_id: 0, still=60, patience=0.05, pause=0)
    (found,) = restless.audit(["a"])
    assert found.balanced
    assert found.moving


def test_without_the_broker_the_books_are_audited_all_the_same(queues: FakeQueues) -> None:
    queues.error = BrokerUnavailableError("away")
    (found,) = auditor(Books(empty_account("a", stored=3, position=3)), queues).audit(["a"])
    assert found.queues is None
    assert [one.kind for one in found.differences] == [Kind.ROWS]


def test_accepted_is_what_has_ended_and_what_is_in_flight(queues: FakeQueues) -> None:
    account = empty_account("a", stored=5, rows=5, duplicates=2, position=7, dead_lettered=1)
    queues.counts = {"a": QueueCounts(unsettled=4)}
    (found,) = auditor(Books(account), queues, in_flight=4).audit(["a"])
    assert (found.accepted, found.balanced) == (12, True)


def test_a_tenant_without_books_is_left_out_and_the_outcome_is_remembered(
    queues: FakeQueues,
) -> None:
    made = auditor(Books(empty_account("a", stored=3, position=3)), queues)
    assert [one.tenant_id for one in made.audit(["a", "b"], quick=True)] == ["a"]
    assert made.latest() == {}
    made.audit(["a", "b"])
    assert {name: one.difference for name, one in made.latest().items()} == {"a": 3}
