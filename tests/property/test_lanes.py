"""Laws of lanes: order in each, whatever becomes of batches, and none holds up another."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenantry.actors.lanes import Cut, Key, Lanes, Pause
from tenantry.broker.port import Delivery
from tenantry.messages.port import Incoming, Tried

KEYS: list[Key] = [("a", 0), ("a", 1), ("b", 0)]
UNORDERED: Key = ("c", 0)


@dataclass
class InHand:
    """A batch that a worker has: of which channel, and what of each lane."""

    generation: int
    cut: Cut
    numbers: dict[Key, list[int]] = field(default_factory=dict)


def delivery(key: Key, number: int, tag: int) -> Delivery:
    """A message whose body is its number in its partition."""
    topic, partition = key
    message = Incoming(None, topic, partition, str(number).encode(), None, None, None)
    return Delivery(tag, False, message)


def number_of(one: Delivery) -> int:
    return int(one.message.body)


def key_of(one: Delivery) -> Key:
    return one.message.topic, one.message.partition


class LanesKeepOrder(RuleBasedStateMachine):
    """A queue a lane, on a channel that may be lost; workers that do parts of batches, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(KEYS)
        self.queues: dict[Key, list[int]] = {key: [] for key in KEYS}
        """What is not settled, in order."""
        self.published = dict.fromkeys(KEYS, 0)
        self.given = dict.fromkeys(KEYS, 0)
        """How much of each queue has been delivered on this channel."""
        self.stored: dict[Key, list[int]] = {key: [] for key in KEYS}
        """First occurrences in the store."""
        self.hands: list[InHand] = []
        self.generation = 0
        self.tag = 0
        self.now = 0.0
        self.paused: dict[Key, float] = {}

    def deliver(self, key: Key, count: int) -> None:
        queue = self.queues[key]
        fresh = queue[self.given[key] : self.given[key] + count]
        self.given[key] += len(fresh)
        batch = []
        for number in fresh:
            self.tag += 1
            batch.append(delivery(key, number, self.tag))
        mine, others = self.lanes.take_in(batch)
        assert (mine, others) == (batch, [])

    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 5))
    def publish(self, key: Key, count: int) -> None:
        for _ in range(count):
            self.queues[key].append(self.published[key])
            self.published[key] += 1
        self.deliver(key, count)

    @rule()
    def what_has_no_lane_is_given_back(self) -> None:
        other = delivery(UNORDERED, 0, self.tag + 1)
        assert self.lanes.take_in([other]) == ([], [other])

    def taken(self) -> set[Key]:
        return {key for one in self.hands for key in one.numbers}

    def may_go(self) -> dict[Key, int]:
        """What is delivered and in no hand, of lanes that are neither taken nor paused."""
        return {
            key: self.given[key]
            for key in KEYS
            if self.given[key] and key not in self.taken() and key not in self.paused
        }

    @rule(most=st.integers(1, 6), places=st.integers(1, 4))
    def cut(self, most: int, places: int) -> None:
        may_go = self.may_go()
        assert bool(self.lanes.ready) == bool(may_go)
        if not may_go:
            assert self.lanes.oldest() is None
            return
        oldest = self.lanes.oldest()
        cut = self.lanes.cut(most=most, most_bytes=10**6, places=places)
        assert 1 <= len(cut.deliveries) <= most
        # The one that has waited longest goes first: nobody starves.
        assert cut.deliveries[0].tag == oldest
        hand = InHand(self.generation, cut)
        for one in cut.deliveries:
            hand.numbers.setdefault(key_of(one), []).append(number_of(one))
        assert len(hand.numbers) <= max(1, -(-len(may_go) // places))
        # One batch of a lane at a time, from its first on.
        assert not self.taken() & hand.numbers.keys()
        for key, numbers in hand.numbers.items():
            assert numbers == self.queues[key][: len(numbers)]
        self.hands.append(hand)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        """A worker stores what is before a failure in each lane; the failure pauses, or passes."""
        hand = self.hands.pop(data.draw(st.integers(0, len(self.hands) - 1)))
        kept: dict[int, Pause | None] = {}
        for key, numbers in hand.numbers.items():
            through = data.draw(st.integers(0, len(numbers)))
            pauses = data.draw(st.booleans())
            tags = [one.tag for one in hand.cut.deliveries if key_of(one) == key]
            for number in numbers[:through]:
                if number not in self.stored[key]:
                    self.stored[key].append(number)
            for tag in tags[through:]:
                kept[tag] = None
            if hand.generation != self.generation:
                continue
            if pauses and through < len(numbers):
                until = self.now + data.draw(st.integers(1, 5))
                kept[tags[through]] = Pause(Tried(1, "no"), until)
                self.paused[key] = until
            del self.queues[key][:through]
            self.given[key] -= through
        self.lanes.done(hand.cut.ticket, kept if hand.generation == self.generation else {})

    @rule()
    def the_channel_is_lost(self) -> None:
        """Whatever is not settled comes again, in order; workers still have what they have."""
        self.generation += 1
        self.tag = 0
        self.lanes.clear({one.cut.ticket for one in self.hands})
        self.paused.clear()
        for key in KEYS:
            self.given[key] = 0
            self.deliver(key, len(self.queues[key]))

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.paused = {key: until for key, until in self.paused.items() if until > self.now}
        self.lanes.wake(self.now)

    @invariant()
    def what_is_stored_first_is_in_order(self) -> None:
        for stored in self.stored.values():
            assert stored == list(range(len(stored)))

    @invariant()
    def every_delivery_is_counted(self) -> None:
        in_hand = dict.fromkeys(KEYS, 0)
        for one in self.hands:
            if one.generation == self.generation:
                for key, numbers in one.numbers.items():
                    in_hand[key] += len(numbers)
        lying = {key: self.given[key] - in_hand[key] for key in KEYS}
        assert self.lanes.waiting == sum(lying.values())
        assert self.lanes.held == sum(lying[key] for key in self.paused)
        assert self.lanes.ready == sum(lying[key] for key in self.may_go())
        due = self.lanes.next_due()
        assert due == min(self.paused.values(), default=None)

    def teardown(self) -> None:
        """In the end all of it goes."""
        while self.hands:
            hand = self.hands.pop()
            current = hand.generation == self.generation
            for key, numbers in hand.numbers.items():
                if current:
                    del self.queues[key][: len(numbers)]
            self.lanes.done(hand.cut.ticket, {})
        self.lanes.wake(float("inf"))
        left = sum(map(len, self.queues.values()))
        while self.lanes.ready:
            cut = self.lanes.cut(most=3, most_bytes=10**6, places=2)
            left -= len(cut.deliveries)
            self.lanes.done(cut.ticket, {})
        assert left == 0


TestLanesKeepOrder = LanesKeepOrder.TestCase
TestLanesKeepOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_what_was_left_before_one_that_is_paused_goes_without_it() -> None:
    lanes = Lanes(KEYS)
    lanes.take_in([delivery(("a", 0), number, number + 1) for number in range(4)])
    first = lanes.cut(most=10, most_bytes=10**6, places=1)
    lanes.done(first.ticket, {1: None, 2: None, 3: Pause(Tried(1, "hangs"), 5.0), 4: None})
    second = lanes.cut(most=10, most_bytes=10**6, places=1)
    assert [one.tag for one in second.deliveries] == [1, 2]
    lanes.done(second.ticket, {})
    assert (lanes.ready, lanes.held, lanes.next_due()) == (0, 2, 5.0)
    lanes.wake(5.0)
    third = lanes.cut(most=10, most_bytes=10**6, places=1)
    assert [one.tag for one in third.deliveries] == [3, 4]
    assert third.tried == [Tried(1, "hangs"), None]
