"""A queue's reader gives out each committed message once, whoever stays open for how long."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenantry.broker.port import QueueSpec
from tenantry.broker.postgres.reading import OpenTransactions, QueueReading, Stragglers
from tests.depth import examples


@dataclass
class Publisher:
    number: int
    seqs: list[int] = field(default_factory=list)


def a_reading() -> QueueReading:
    spec = QueueSpec(name="q", topic="t", partition=0)
    return QueueReading(spec=spec, id=1, redelivered_up_to=0, prefetch=100)


class Reading(RuleBasedStateMachine):
    """A queue, transactions that publish to it, and its reader."""

    def __init__(self) -> None:
        super().__init__()
        self.transaction = self.ended = self.seq = 0
        self.open: dict[int, Publisher] = {}
        self.lying: set[int] = set()
        self.in_hand: set[int] = set()
        self.committed: set[int] = set()
        self.given: list[int] = []
        self.told = False
        """Whether something was committed since the last fetch: the reader hears of it."""
        self.reading = a_reading()
        self.stragglers = Stragglers()

    def now(self) -> OpenTransactions:
        """Give a snapshot as PostgreSQL takes it.

        It ends with the last transaction that has ended: of what began after that one it tells
        nothing, though it may be open.
        """
        newest = self.ended + 1
        known = frozenset(one for one in self.open if one < newest)
        return OpenTransactions(oldest=min(known, default=newest), newest=newest, open=known)

    @rule(messages=st.integers(0, 3))
    def begin(self, messages: int) -> None:
        self.transaction += 1
        publisher = Publisher(self.transaction)
        self.open[publisher.number] = publisher
        self.put(publisher, messages)

    def put(self, publisher: Publisher, messages: int) -> None:
        for _ in range(messages):
            self.seq += 1
            publisher.seqs.append(self.seq)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), messages=st.integers(1, 3))
    def publish_more(self, data: st.DataObject, messages: int) -> None:
        self.put(self.open[data.draw(st.sampled_from(sorted(self.open)))], messages)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), good=st.booleans())
    def end(self, data: st.DataObject, good: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        if good:
            self.commit(number)
        else:
            self.leave(number)

    def leave(self, number: int) -> Publisher:
        self.ended = max(self.ended, number)
        return self.open.pop(number)

    def commit(self, number: int) -> None:
        publisher = self.leave(number)
        self.lying.update(publisher.seqs)
        self.committed.update(publisher.seqs)
        self.told = True

    @rule(messages=st.integers(1, 2), busy=st.booleans())
    def an_elder_overtakes_who_stays_open(self, messages: int, busy: bool) -> None:
        self.begin(0)
        elder = self.open[self.transaction]
        self.begin(messages)
        self.put(elder, 1)
        self.commit(elder.number)
        self.fetch(5)
        if busy:
            self.pass_by()

    @rule()
    def another_takes_over(self) -> None:
        # What was in hand lies in the queue again, and is delivered again.
        self.given = [seq for seq in self.given if seq not in self.in_hand]
        self.in_hand.clear()
        self.reading = a_reading()
        self.stragglers.greet(self.reading)

    @rule()
    def a_second_passes(self) -> None:
        self.stragglers.note(self.now(), [self.reading])

    @rule()
    def ask_who_is_open(self) -> None:
        self.stragglers.settle(self.now(), [self.reading])

    @rule()
    def others_are_busy_for_seconds(self) -> None:
        for _ in range(4):
            self.pass_by()
            self.lying -= self.in_hand
            self.in_hand.clear()
            self.a_second_passes()

    def pass_by(self) -> None:
        """Publish a message and commit it, while the others stay open; and fetch."""
        self.begin(1)
        self.commit(self.transaction)
        self.fetch(5)

    @rule(most=st.integers(1, 5))
    def fetch(self, most: int) -> None:
        self.told = False
        found = sorted(
            seq for seq in self.lying if seq > self.reading.floor and seq not in self.in_hand
        )[:most]
        self.given += found
        self.in_hand.update(found)
        if not found:
            self.reading.hungry = False
            self.reading.caught_up()
            return
        now = self.now()
        self.transaction += 1  # the fetch's own
        self.reading.fetched(
            found[-1],
            exhausted=len(found) < most,
            oldest_open=max(now.oldest, self.stragglers.oldest_other),
            youngest=self.transaction,
        )
        self.ended = self.transaction

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        done = data.draw(st.sets(st.sampled_from(sorted(self.in_hand))))
        self.in_hand -= done
        self.lying -= done

    @invariant()
    def nothing_is_given_twice_or_before_it_is_there(self) -> None:
        assert len(self.given) == len(set(self.given))
        assert set(self.given) <= self.committed

    def teardown(self) -> None:
        for number in sorted(self.open):
            self.commit(number)
            # A fetch may come between the commit and the look at who is open.
            self.fetch(5)
        self.ask_who_is_open()
        while self.reading.hungry or self.told:
            self.fetch(5)
        assert set(self.given) == self.committed
        # And nothing is left over that would be passed over, or kept, for ever.
        before = self.seq
        for _ in range(3):
            self.pass_by()
        assert self.reading.floor >= before
        assert not self.reading.owed
        assert not self.stragglers


TestReading = Reading.TestCase
TestReading.settings = settings(max_examples=examples(25, 200), stateful_step_count=40)


def test_the_floor_rises_past_a_transaction_that_stays_open_and_looks_back_when_it_ends() -> None:
    reading, stragglers = a_reading(), Stragglers()
    elders = frozenset({7})
    for newest in (20, 30):
        now = OpenTransactions(oldest=7, newest=newest, open=elders)
        stragglers.note(now, [reading])
        reading.fetched(newest, exhausted=True, oldest_open=7, youngest=newest)
    assert reading.floor == 0
    reading.fetched(40, exhausted=True, oldest_open=stragglers.oldest_other, youngest=40)
    assert reading.floor == 20
    ended = OpenTransactions(oldest=50, newest=50, open=frozenset())
    stragglers.settle(ended, [reading])
    assert reading.floor == 0
    assert reading.hungry
    reading.fetched(45, exhausted=True, oldest_open=50, youngest=50)
    assert reading.floor >= 20
    assert not stragglers


def test_who_takes_a_queue_over_looks_back_for_those_that_were_met_before() -> None:
    stragglers = Stragglers()
    for newest in (20, 30):
        now = OpenTransactions(oldest=7, newest=newest, open=frozenset({7}))
        stragglers.note(now, [a_reading()])
    reading = a_reading()
    stragglers.greet(reading)
    for last in (40, 50):
        oldest = stragglers.oldest_other
        reading.fetched(last, exhausted=True, oldest_open=max(oldest, last), youngest=last)
    assert reading.floor == 40
    reading.hungry = False
    stragglers.settle(OpenTransactions(oldest=60, newest=60, open=frozenset()), [reading])
    assert (reading.floor, reading.hungry) == (0, True)
