"""Who has messages removed when: in turns, a little at a time, whatever becomes of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tenantry.messages.retention import (
    AT_LEAST_EVERY,
    FORGET_EVERY,
    LONGEST_TURN,
    Limited,
    Removal,
    Retention,
)


class Removals:
    """Messages to be removed, by tenant: how many batches there are, and when the next is due."""

    def __init__(self) -> None:
        self.time = 0.0
        self.batches: Counter[str] = Counter()
        self.due: dict[str, float] = {}
        self.limits: dict[str, tuple[int | None, int | None]] = {}
        self.asked: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.forgotten = 0

    def limited(self) -> Mapping[str, Limited]:
        return {one: Limited(limits, 0, 0, 0) for one, limits in self.limits.items()}

    def remove(self, tenant_id: str, most: int) -> Removal:
        self.asked.append(tenant_id)
        self.time += 1
        if tenant_id in self.failing:
            raise self.failing[tenant_id]
        if not self.batches[tenant_id]:
            return Removal(0, 0, more=False, due=self.due.get(tenant_id))
        self.batches[tenant_id] -= 1
        return Removal(most, 0, more=self.batches[tenant_id] > 0, due=0.0)

    def forget(self, mine: Callable[[str], bool]) -> None:
        self.forgotten += mine("a")


@pytest.fixture
def removals() -> Removals:
    found = Removals()
    found.limits = {"a": (60, None), "b": (60, None), "c": (60, None)}
    return found


def retention(removals: Removals, *, mine: Callable[[str], bool] = lambda _: True) -> Retention:
    return Retention(removals, mine=mine, batch=10, rest=0.0, now=lambda: removals.time)


def test_tenants_have_a_batch_removed_in_turns(removals: Removals) -> None:
    removals.batches.update(a=3, b=1)
    kept = retention(removals)
    kept.turn()
    assert removals.asked == ["a", "b", "c", "a", "a"]
    assert kept.removed() == {
        ("a", "age"): 30, ("a", "rows"): 0, ("b", "age"): 10, ("b", "rows"): 0, ("c", "age"): 0,
        ("c", "rows"): 0,
    }  # fmt: skip


def test_who_has_very_much_to_remove_is_not_in_the_way_of_who_has_something_later(
    removals: Removals,
) -> None:
    removals.batches.update(a=10_000)
    removals.limits = {"a": (60, None)}
    kept = retention(removals)
    kept.turn()
    assert len(removals.asked) == LONGEST_TURN
    removals.limits["b"] = (60, None)
    kept.turn()
    assert removals.asked[int(LONGEST_TURN) :][:3] == ["a", "b", "a"]


def test_who_has_nothing_due_is_left_alone_until_it_has_or_has_other_limits(
    removals: Removals,
) -> None:
    # The third has no messages at all, which can't be too old before a minute is over.
    removals.due = {"a": 30.0, "b": 3000.0}
    kept = retention(removals)
    kept.turn()
    removals.asked.clear()
    kept.turn()
    assert removals.asked == []
    removals.time += 30
    kept.turn()
    assert removals.asked == ["a"]
    removals.limits["c"] = (None, 5)
    kept.turn()
    assert removals.asked == ["a", "c"]
    removals.limits["c"] = (60, None)
    kept.turn()
    removals.asked.clear()
    removals.time += 60
    kept.turn()
    assert removals.asked == ["a", "c"]
    removals.time += AT_LEAST_EVERY
    kept.turn()
    assert set(removals.asked[2:]) == {"a", "b", "c"}


def test_only_what_is_this_nodes_is_removed(removals: Removals) -> None:
    retention(removals, mine=lambda tenant_id: tenant_id == "b").turn()
    assert removals.asked == ["b"]


def test_what_fails_with_one_tenant_does_not_keep_others_from_their_turns(
    removals: Removals,
) -> None:
    removals.failing["a"] = MessageStoreError("something of its own")
    retention(removals).turn()
    assert removals.asked == ["a", "b", "c"]
    removals.failing["a"] = StoreUnavailableError("away")
    with pytest.raises(StoreUnavailableError):
        retention(removals).turn()


def test_a_turn_ends_when_it_is_to(removals: Removals) -> None:
    removals.batches.update(a=10)
    kept = retention(removals)
    kept.turn(lambda: kept.stop() if len(removals.asked) == 4 else None)
    assert len(removals.asked) == 4


def test_what_is_remembered_of_nobody_any_more_is_looked_for_now_and_then(
    removals: Removals,
) -> None:
    kept = retention(removals)
    kept.turn()
    kept.turn()
    assert removals.forgotten == 1
    removals.time += FORGET_EVERY
    kept.turn()
    assert removals.forgotten == 2
