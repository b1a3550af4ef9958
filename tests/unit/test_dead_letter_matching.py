"""Which dead letter a message is, where there are very many of the same."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from tenantry.dead_letters.matching import Matching, Row
from tenantry.dead_letters.port import Intent, QueueMessage, RejectedMessage, Work, fingerprint
from tenantry.messages.headers import REPLAY_HEADER, REPLAYS_HEADER
from tests.fakes.messages import incoming

NOW = datetime(2026, 1, 31, tzinfo=UTC)
MESSAGE = incoming(None, b"bad")


def a_row(copy: int, seen_in: UUID | None = None, intent: Intent | None = None) -> Row:
    one = uuid4()
    return Row(
        was=one, id=one, fingerprint=fingerprint(MESSAGE), copy=copy, seen_in=seen_in,
        intent=intent, reason="not_json", error="no", first_error=None, attempts=1,
        dead_lettered_at=NOW,
    )  # fmt: skip


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Give the rows that are looked at, from now on."""
    seen: list[Row] = []
    is_original = Matching._is_original

    def noted(row: Row) -> bool:
        seen.append(row)
        return is_original(row)

    monkeypatch.setattr(Matching, "_is_original", staticmethod(noted))
    return seen


def test_of_many_that_are_the_same_each_is_looked_at_a_few_times_and_not_for_each_message(
    looks: list[Row],
) -> None:
    browse = uuid4()
    rows = [a_row(copy, browse if copy < 500 else None) for copy in range(1000)]
    matching = Matching(rows, new_id=uuid4, now=NOW, browse=browse)
    found = [QueueMessage(RejectedMessage(MESSAGE, "rejected", "no", 0), NOW) for _ in range(100)]
    told = matching.lookup(found)
    assert [one.id for one in told] == [row.id for row in rows[500:600]]
    assert len(looks) <= 2 * len(rows)


def test_those_that_are_being_replayed_are_passed_over_once_and_not_for_each_that_comes_again(
    looks: list[Row],
) -> None:
    begun = [a_row(copy, intent=Intent(uuid4(), Work.REPLAY)) for copy in range(500)]
    free = [a_row(copy) for copy in range(500, 600)]
    matching = Matching([*begun, *free], new_id=uuid4, now=NOW, browse=None)
    rejected = RejectedMessage(MESSAGE, "not_json", "no", 1, again=True)
    told = [matching.add(rejected) for _ in range(150)]
    assert [one.id for one in told[:100]] == [row.id for row in free]
    assert [one.fresh for one in told] == [False] * 100 + [True] * 50
    assert len(looks) <= 2 * (len(begun) + len(free))


def test_one_whose_replay_has_failed_meanwhile_is_not_taken_for_an_original() -> None:
    rows = [a_row(0), a_row(1, intent=Intent(uuid4(), Work.REPLAY)), a_row(2)]
    rows[1].replays = 1
    matching = Matching(rows, new_id=uuid4, now=NOW, browse=None)
    lies_there = [QueueMessage(RejectedMessage(MESSAGE, "rejected", "no", 0), NOW)]
    assert matching.lookup(lies_there)[0].id == rows[0].id
    marks: dict[str, object] = {REPLAY_HEADER: str(rows[1].id), REPLAYS_HEADER: 1}
    replayed = incoming(str(rows[1].id), MESSAGE.body, headers=marks)
    assert matching.add(RejectedMessage(replayed, "not_json", "no", 1)).id == rows[1].id
    told = matching.lookup(lies_there * 2)
    assert [one.id for one in told] == [rows[2].id, rows[1].id]
