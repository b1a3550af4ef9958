"""A backlog beside quiet tenants goes in portions, one thing after the other."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.domain.commands import ChangeLimits
from tenantry.messages.port import Incoming, StoreResult
from tenantry.turns.neighbours import FEW, LATELY, PATIENCE, Neighbours, Portions
from tests.fakes.actors import Tree
from tests.waiting import DEADLINE, eventually

BATCH, PORTION, BACKLOG = 1000, 250, 4000


class Backlog:
    """A tenant with a backlog; `allowed` is what may go of it now."""

    def __init__(self) -> None:
        self.now = 0.0
        self.neighbours = Neighbours()
        self.portions = Portions("flood", self.neighbours)

    def allowed(self, *, busy: bool = False, waiting: int = BACKLOG) -> int:
        return self.portions.allowed(
            waiting, batch_size=BATCH, portion=PORTION, busy=busy, now=self.now
        )

    def gone(self, count: int) -> None:
        self.portions.gone(count, waiting=BACKLOG, busy=False, now=self.now)

    def wait_for_portion(self) -> None:
        left = self.portions.seconds_left(self.now)
        assert left > 0
        self.now += left + 1e-9


@pytest.fixture
def backlog() -> Backlog:
    return Backlog()


def test_alone_or_beside_other_backlogs_it_goes_in_full_batches(backlog: Backlog) -> None:
    backlog.gone(BATCH)
    assert backlog.allowed() == backlog.allowed(busy=True) == BATCH


def test_beside_a_quiet_tenant_one_portion_goes_after_the_other(backlog: Backlog) -> None:
    backlog.neighbours.note("quiet", backlog.now)
    assert backlog.allowed() == PORTION
    backlog.gone(PORTION)
    assert backlog.allowed(busy=True) == 0, "the one before is being stored"
    assert backlog.allowed() == 0, "the broker has not replaced it"
    backlog.portions.came(PORTION - 1)
    assert backlog.allowed() == 0
    backlog.portions.came(1)
    assert backlog.allowed() == PORTION
    assert backlog.allowed(busy=True) == 0


def test_what_takes_long_holds_up_no_other_worker(backlog: Backlog) -> None:
    backlog.neighbours.note("quiet", backlog.now)
    backlog.gone(PORTION)
    assert backlog.allowed(busy=True) == 0
    assert backlog.portions.seconds_left(backlog.now) == PATIENCE
    backlog.wait_for_portion()
    assert backlog.allowed(busy=True) == PORTION


def test_it_ends_soon_after_the_quiet_tenant_falls_silent(backlog: Backlog) -> None:
    backlog.neighbours.note("quiet", backlog.now)
    backlog.gone(PORTION)
    backlog.now = LATELY
    assert backlog.allowed() == BATCH


def test_what_is_no_more_than_a_portion_goes_at_once(backlog: Backlog) -> None:
    backlog.neighbours.note("quiet", backlog.now)
    backlog.gone(PORTION)
    assert backlog.allowed(waiting=PORTION) == BATCH


@pytest.mark.parametrize(
    ("count", "waiting", "busy", "is_quiet"),
    [
        (1, 0, False, True),
        (FEW, 0, False, True),
        (FEW + 1, 0, False, False),
        (1, 1, False, False),
        (1, 0, True, False),
    ],
)
def test_quiet_is_who_has_few_messages_and_no_others(
    backlog: Backlog, count: int, waiting: int, busy: bool, is_quiet: bool
) -> None:
    other = Portions("other", backlog.neighbours)
    other.gone(count, waiting=waiting, busy=busy, now=0.0)
    assert backlog.neighbours.beside("flood", 0.0) is is_quiet
    assert not backlog.neighbours.beside("other", 0.0), "nobody is their own neighbour"


def test_a_backlog_that_comes_in_few_messages_is_no_quiet_tenant(backlog: Backlog) -> None:
    assert not backlog.portions.has_backlog(0.0)
    backlog.portions.note_backlog(0.0)
    for at, is_backlog in ((LATELY / 2, True), (LATELY, False)):
        assert backlog.portions.has_backlog(at) is is_backlog
        backlog.portions.gone(1, waiting=0, busy=False, now=at)
        assert backlog.neighbours.beside("other", at) is not is_backlog


def test_a_quiet_tenant_is_seen_past_ones_own_few_messages(backlog: Backlog) -> None:
    backlog.neighbours.note("quiet", 0.0)
    for _ in range(3):
        backlog.neighbours.note("flood", 0.1)
    assert backlog.neighbours.beside("flood", 0.2)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("others", [0, 1])
def test_a_backlog_whose_first_messages_were_few_is_no_quiet_tenant(
    backlog: Backlog, before: bool, others: int
) -> None:
    starts = Portions("starts", backlog.neighbours)
    if before and others:
        backlog.neighbours.note("quiet", 0.0)
    starts.gone(1, waiting=0, busy=False, now=0.0)
    if others and not before:
        backlog.neighbours.note("quiet", 0.0)
    assert backlog.allowed() == PORTION
    starts.note_backlog(0.0)
    assert backlog.allowed() == (PORTION if others else BATCH), "what else was seen is still known"


steps = st.one_of(
    st.tuples(st.just("quiet"), st.just(0.0)),
    st.tuples(st.just("came"), st.integers(0, 2000)),
    st.tuples(st.just("time"), st.floats(0, 2)),
    st.tuples(st.just("stored"), st.just(0.0)),
)


@given(st.lists(steps, max_size=40))
def test_a_backlog_never_waits_for_good(taken: list[tuple[str, float]]) -> None:
    backlog, busy = Backlog(), False
    for what, amount in taken:
        if what == "quiet":
            backlog.neighbours.note("quiet", backlog.now)
        elif what == "came":
            backlog.portions.came(int(amount))
        elif what == "time":
            backlog.now += amount
        else:
            busy = False
        if allowed := backlog.allowed(busy=busy):
            backlog.gone(allowed)
            busy = True
            continue
        backlog.wait_for_portion()
        assert backlog.allowed(busy=busy)


@pytest.fixture
def in_portions_of_two(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    monkeypatch.setattr("tenantry.turns.neighbours.LATELY", math.inf)
    tree.limits = tree.limits.model_copy(update={"batch_size_beside_others": 2})
    yield tree
    tree.store.gate.set()


@pytest.mark.parametrize("limits", [{}, {"rate": 1000}], ids=["without a rate", "with a rate"])
def test_beside_a_quiet_tenant_each_worker_has_a_portion(
    in_portions_of_two: Tree, limits: dict[str, int | None]
) -> None:
    tree = in_portions_of_two
    tree.create("flood", workers=3)
    tree.create("quiet")
    tree.execute(ChangeLimits(tenant_id="quiet", changes=limits))
    if limits:
        tree.subscription("quiet").window = 2
    tree.deliver("quiet", "1")
    eventually(lambda: tree.stored("quiet") == {"1"})
    tree.store.gate.clear()
    expected = {str(number) for number in range(30)}
    tree.deliver("flood", *sorted(expected))
    # The store takes longer than a portion's patience.
    in_hand = tree.runtime.tenants["flood"].in_hand
    eventually(lambda: list(in_hand.values()) == [2, 2, 2])
    tree.store.gate.set()
    eventually(lambda: tree.stored("flood") == expected)
    eventually(lambda: not tree.subscription("flood").unsettled)


@pytest.mark.parametrize(
    ("others", "limits"),
    [(2, {}), (5, {}), (2, {"rate": 100_000, "burst": 100_000})],
    ids=["in portions", "in full batches", "with a rate"],
)
def test_storing_is_told_of_a_backlog_beside_quiet_tenants_where_they_are_considered(
    in_portions_of_two: Tree, others: int, limits: dict[str, int | None]
) -> None:
    tree = in_portions_of_two
    tree.limits = tree.limits.model_copy(
        update={"batch_size": 5, "batch_size_beside_others": others}
    )
    for tenant in ("flood", "quiet"):
        tree.create(tenant)
    tree.execute(ChangeLimits(tenant_id="flood", changes=limits))
    tree.deliver("flood", *(f"first {number}" for number in range(30)))
    eventually(lambda: len(tree.stored("flood")) == 30)
    assert tree.store.beside["flood"] is False, "nobody is quiet beside it so far"
    tree.deliver("quiet", "1")
    eventually(lambda: tree.stored("quiet") == {"1"})
    assert tree.store.beside["quiet"] is False
    tree.deliver("flood", *(f"then {number}" for number in range(30)))
    eventually(lambda: len(tree.stored("flood")) == 60)
    assert tree.store.beside["flood"] is (others == 2)


@pytest.mark.parametrize("why", ["beside", "more"], ids=["quiet tenants", "other nodes"])
def test_what_is_given_back_as_it_rests_is_given_out_again_and_in_a_drain_without_a_rest(
    in_portions_of_two: Tree, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    tree, rested = in_portions_of_two, list[int]()
    tree.create("flood", workers=1)
    tree.create("quiet")
    tree.deliver("quiet", "1")
    eventually(lambda: tree.stored("quiet") == {"1"})
    store = tree.store.store

    def never_while_it_rests(
        tenant_id: str, batch: Sequence[Incoming], *again: Any, **keywords: Any
    ) -> StoreResult:
        if not keywords[why]:
            return store(tenant_id, batch, *again, **keywords)
        rested.append(len(batch))
        return StoreResult(stored=0, duplicates=0, left=tuple(range(len(batch))))

    monkeypatch.setattr(tree.store, "store", never_while_it_rests)
    tree.deliver("flood", *(str(number) for number in range(30)))
    eventually(lambda: len(rested) > 3)
    assert tree.stored("flood") == set()
    flood = tree.subscription("flood")
    tree.stop()
    assert len(tree.stored("flood")) == 30
    assert not flood.unsettled
    assert set(rested) == {2}


def test_a_drain_takes_no_notice_of_quiet_tenants(in_portions_of_two: Tree) -> None:
    tree = in_portions_of_two
    tree.create("flood", workers=1)
    tree.create("quiet")
    tree.deliver("quiet", "1")
    eventually(lambda: tree.stored("quiet") == {"1"})
    tree.store.gate.clear()
    tree.deliver("flood", *(str(number) for number in range(30)))
    eventually(lambda: tree.store.beside.get("flood", False))
    stopped = threading.Thread(target=tree.stop)
    stopped.start()
    stopped.join(DEADLINE)
    assert len(tree.stored("flood")) == 30
    assert tree.store.beside["flood"] is False


@pytest.mark.parametrize(
    ("count", "window", "limits", "more"),
    [
        (5, 4000, {}, True),
        (4, 4000, {}, False),
        # No more may be in hand of large ones.
        (3, 6, {}, True),
        (5, 4000, {"rate": 1000, "burst": 1000}, True),
        # It has as much as its rate allows, whatever others do.
        (5, 4000, {"rate": 1000, "burst": 1}, False),
    ],
)
def test_storing_is_told_whether_a_tenant_has_a_backlog(
    tree: Tree, count: int, window: int, limits: dict[str, int | None], more: bool
) -> None:
    tree.create("acme", workers=1)
    tree.subscription("acme").window = window
    tree.execute(ChangeLimits(tenant_id="acme", changes=limits))
    tree.deliver("acme", *(str(number) for number in range(count)))
    eventually(lambda: len(tree.stored("acme")) == count)
    assert tree.store.more["acme"] is more
