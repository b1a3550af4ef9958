"""How the journal is told of dead letters: one by one up to a rate, and then together."""

from __future__ import annotations

from typing import NoReturn
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.dead_letters.telling import A_SECOND, MOST_PARTITIONS, DeadLetterEvents
from tenantry.domain import names
from tenantry.domain.events import DeadLettersAggregated, Event, MessageDeadLettered
from tenantry.journal.port import JournalUnavailableError, Metadata
from tests.fakes.stores import InMemoryEventStore

ME = Metadata(actor="acme/worker-1")


def dead(
    reason: str = "not_json", partition: int = 0, *, ordered: bool = False
) -> MessageDeadLettered:
    return MessageDeadLettered(
        tenant_id="acme", message_id="1", topic="logs", partition=partition, reason=reason,
        error="no", first_error="no", attempts=1, size=1, ordered=ordered,
    )  # fmt: skip


class Told:
    """A journal that is told, and a clock that a test moves."""

    def __init__(self, at_once: int = 3) -> None:
        self.journal = InMemoryEventStore()
        self.time = 0.0
        self.total = 0
        self.telling = DeadLetterEvents(
            self.journal, lambda _: self.total, now=lambda: self.time, at_once=at_once
        )

    def tell(self, *reasons: str, fresh: list[bool] | None = None) -> None:
        self.tell_of([dead(one) for one in reasons], fresh=fresh)

    def tell_of(self, events: list[MessageDeadLettered], fresh: list[bool] | None = None) -> None:
        self.total += len(events)
        self.telling.tell("acme", events, [uuid4() for _ in events], ME, fresh=fresh)

    def events(self) -> list[Event]:
        stream = names.dead_letter_journal_stream("acme")
        return [one.event for one in self.journal.read_stream(stream)]

    def together(self) -> list[tuple[int, int]]:
        return [
            (one.count, one.total)
            for one in self.events()
            if isinstance(one, DeadLettersAggregated)
        ]


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_few_are_told_of_one_by_one_and_many_together(told: Told) -> None:
    told.tell("not_json", "not_json")
    told.telling.flush()
    assert [type(one) for one in told.events()] == [MessageDeadLettered] * 2
    told.tell("too_large", "not_json", "too_large", "not_json", "not_json")
    told.telling.flush()
    assert len(told.events()) == 4
    last = told.events()[-1]
    assert isinstance(last, DeadLettersAggregated)
    assert (last.count, last.total) == (4, 7)
    assert dict(zip(last.reasons, last.counts, strict=True)) == {"not_json": 3, "too_large": 1}
    told.telling.flush()
    assert len(told.events()) == 4


def test_of_many_it_is_told_how_many_came_out_of_an_order_and_where_it_is_broken() -> None:
    told = Told(at_once=1)
    told.tell_of([dead(), *(dead(partition=one, ordered=one > 1) for one in (0, 1, 2, 7, 2))])
    told.telling.flush()
    last = told.events()[-1]
    assert isinstance(last, DeadLettersAggregated)
    assert (last.count, last.ordered, last.partitions) == (5, 3, ("logs.2", "logs.7"))


def test_no_more_partitions_are_named_than_an_event_has_room_for() -> None:
    told = Told(at_once=1)
    told.tell_of(
        [dead(), *(dead(partition=one, ordered=True) for one in range(MOST_PARTITIONS + 9))]
    )
    told.telling.flush()
    last = told.events()[-1]
    assert isinstance(last, DeadLettersAggregated)
    assert (last.ordered, len(last.partitions)) == (MOST_PARTITIONS + 9, MOST_PARTITIONS)


def test_after_a_quiet_time_they_are_told_of_one_by_one_again(told: Told) -> None:
    told.tell(*["not_json"] * 5)
    told.time += 3 / A_SECOND + 1
    told.telling.flush()
    told.tell(*["not_json"] * 4)
    told.telling.flush()
    kinds = [type(one).__name__[0] for one in told.events()]
    assert "".join(kinds) == "MMMDMMMD"


def test_what_may_have_been_told_before_is_not_counted_again(told: Told) -> None:
    told.tell(*["not_json"] * 6, fresh=[True, True, True, False, True, False])
    told.telling.flush()
    assert told.together() == [(1, 6)]


def test_a_tenant_that_is_no_more_is_not_told_of_and_others_are(told: Told) -> None:
    told.tell(*["not_json"] * 5)
    told.total = 0
    told.telling.flush()
    assert told.together() == []


def test_nothing_of_a_former_tenant_is_told_of_the_next_one_which_begins_anew(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.tell(*["not_json"] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(told.journal, "append", away)
        with pytest.raises(JournalUnavailableError):
            told.telling.flush()
    told.telling.forget("acme")
    told.tell("too_large")
    told.telling.forget("acme")
    told.tell(*["not_json"] * 3)
    told.telling.flush()
    kinds = [type(one) for one in told.events()]
    assert kinds == [MessageDeadLettered] * 7


def away(*_: object, **__: object) -> NoReturn:
    raise JournalUnavailableError("it is away")


def test_what_the_journal_could_not_take_it_is_told_once_when_it_can(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.tell(*["not_json"] * 5)
    append = told.journal.append

    def taken_and_lost(*arguments: object, **named: object) -> object:
        append(*arguments, **named)  # type: ignore[arg-type]
        raise JournalUnavailableError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(told.journal, "append", taken_and_lost)
        with pytest.raises(JournalUnavailableError):
            told.telling.flush()
    told.tell("not_json")
    told.telling.flush()
    assert [count for count, _ in told.together()] == [2, 1]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 600)), max_size=20), st.integers(1, 100)
)
def test_every_dead_letter_is_told_of_once_and_events_are_few(
    batches: list[tuple[int, float]], at_once: int
) -> None:
    told = Told(at_once)
    for count, pause in batches:
        told.tell(*["not_json"] * count)
        told.telling.flush()
        told.time += pause
    together = sum(count for count, _ in told.together())
    alone = len(told.events()) - len(told.together())
    assert together + alone == told.total
    assert alone <= at_once + told.time * A_SECOND + 1
    assert len(told.together()) <= len(batches)
