"""What a consumer settles: every delivery once, nothing that is held or not committed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenantry.actors.messages import Batch
from tenantry.actors.settlement import Acknowledgement, Window
from tenantry.broker.port import Delivery
from tests.depth import examples
from tests.fakes.messages import incoming

COMMITTED, REJECTED, HELD, LEFT = "committed", "rejected", "held", "left"
fates = st.lists(st.sampled_from([COMMITTED, COMMITTED, COMMITTED, REJECTED, HELD, LEFT]))


class Channel:
    """A broker's side of a channel: it closes on a tag it does not know."""

    def __init__(self) -> None:
        self.unsettled: set[int] = set()
        self.acked: set[int] = set()
        self.rejected: set[int] = set()

    def take(self, settlement: Acknowledgement) -> None:
        for tag in settlement.rejects:
            self.unsettled.remove(tag)
            self.rejected.add(tag)
        for tag in settlement.acks:
            self.unsettled.remove(tag)
            self.acked.add(tag)
        if settlement.ack_up_to is not None:
            assert settlement.ack_up_to in self.unsettled
            below = {tag for tag in self.unsettled if tag <= settlement.ack_up_to}
            self.unsettled -= below
            self.acked |= below


class Settling(RuleBasedStateMachine):
    """Batches go out, come back whole or in parts, and some deliveries are held meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window()
        self.channel = Channel()
        self.next_tag = 1
        self.work: list[tuple[Batch, list[int]]] = []
        self.fate: dict[int, str] = {}
        self.held: list[int] = []
        self.uncut: list[int] = []
        """In no batch yet; others may be in order, and come among them."""
        self.in_order: list[int] = []

    def arrived(self, size: int) -> list[int]:
        tags = list(range(self.next_tag, self.next_tag + size))
        self.next_tag += size
        self.channel.unsettled.update(tags)
        return tags

    @rule(size=st.integers(1, 8))
    def arrive(self, size: int) -> None:
        self.uncut += self.arrived(size)

    @rule(size=st.integers(1, 8))
    def arrive_in_order(self, size: int) -> None:
        tags = self.arrived(size)
        self.window.enter_in_order(tags)
        self.in_order += tags

    @precondition(lambda self: self.in_order)
    @rule(which=st.randoms(use_true_random=False), wanted=fates)
    def finish_in_order(self, which: random.Random, wanted: Sequence[str]) -> None:
        tags = which.sample(self.in_order, min(len(self.in_order), 5))
        for tag, fate in zip(tags, [*wanted, *[COMMITTED] * len(tags)], strict=False):
            self.fate[tag] = REJECTED if fate == REJECTED else COMMITTED
        self.in_order = [tag for tag in self.in_order if tag not in tags]
        self.window.finished_in_order(
            acks=[tag for tag in tags if self.fate[tag] == COMMITTED],
            rejects=[tag for tag in tags if self.fate[tag] == REJECTED],
        )
        self.settle()

    @precondition(lambda self: self.uncut)
    @rule(size=st.integers(1, 8))
    def cut(self, size: int) -> None:
        tags, self.uncut = self.uncut[:size], self.uncut[size:]
        batch = Batch(
            generation=1, deliveries=[Delivery(tag, False, incoming(str(tag))) for tag in tags]
        )
        self.window.enter(batch)
        self.work.append((batch, tags))

    @precondition(lambda self: self.work)
    @rule(which=st.randoms(use_true_random=False), wanted=fates)
    def report(self, which: random.Random, wanted: Sequence[str]) -> None:
        batch, tags = self.work.pop(which.randrange(len(self.work)))
        fate = dict(zip(tags, [*wanted, *[COMMITTED] * len(tags)], strict=False))
        by = {kind: [tag for tag in tags if fate[tag] == kind] for kind in fate.values()}
        left = by.get(LEFT, [])
        if left:
            self.work.append((batch, left))
        self.held += by.get(HELD, [])
        self.fate |= {tag: kind for tag, kind in fate.items() if kind != LEFT}
        self.window.finished(
            batch, len(tags) - len(left), rejects=by.get(REJECTED, []), held=by.get(HELD, [])
        )
        self.settle()

    @precondition(lambda self: self.held)
    @rule(which=st.randoms(use_true_random=False), rejected=st.booleans())
    def retry(self, which: random.Random, rejected: bool) -> None:
        tag = self.held.pop(which.randrange(len(self.held)))
        self.fate[tag] = REJECTED if rejected else COMMITTED
        self.window.release(**{"rejects" if rejected else "acks": [tag]})
        self.settle()

    def settle(self) -> None:
        settlement = self.window.take_ready(self.uncut[0] if self.uncut else None)
        if settlement is not None:
            self.channel.take(settlement)

    @invariant()
    def what_is_settled_has_met_its_fate(self) -> None:
        assert all(self.fate.get(tag) == COMMITTED for tag in self.channel.acked)
        assert all(self.fate.get(tag) == REJECTED for tag in self.channel.rejected)
        assert not self.channel.unsettled & self.channel.acked

    @invariant()
    def the_window_counts_what_is_unsettled(self) -> None:
        assert self.window.unsettled == len(self.channel.unsettled) - len(self.uncut)
        assert self.window.held == len(self.held)

    def teardown(self) -> None:
        while self.uncut:
            self.cut(8)
        while self.in_order:
            self.finish_in_order(random.Random(0), [])
        while self.work:
            self.report(random.Random(0), [])
        while self.held:
            self.retry(random.Random(0), rejected=False)
        assert not self.channel.unsettled
        assert self.window.unsettled == 0
        assert len(self.channel.acked) + len(self.channel.rejected) == self.next_tag - 1


TestSettling = Settling.TestCase
TestSettling.settings = settings(
    max_examples=examples(25, 300), stateful_step_count=40, deadline=None
)


def test_while_nothing_is_held_one_ack_settles_many_batches() -> None:
    window = Window()
    batches = [
        Batch(generation=1, deliveries=[Delivery(tag, False, incoming(str(tag))) for tag in tags])
        for tags in ([1, 2, 3], [4, 5], [6])
    ]
    for batch in batches:
        window.enter(batch)
    window.finished(batches[1], 2)
    assert window.take_ready() is None
    window.finished(batches[2], 1)
    window.finished(batches[0], 3)
    assert window.take_ready() == Acknowledgement(ack_up_to=6)


def test_one_ack_settles_what_is_in_order_as_far_as_all_below_is_finished() -> None:
    window = Window()
    window.enter_in_order([1, 2, 4, 5])
    window.finished_in_order(acks=[2], rejects=[])
    assert window.take_ready(uncut=3) == Acknowledgement(acks=(2,))
    window.finished_in_order(acks=[1, 4], rejects=[5])
    assert window.take_ready(uncut=3) == Acknowledgement(rejects=(5,), acks=(4,), ack_up_to=1)


def test_what_lies_beyond_a_held_delivery_is_acked_singly() -> None:
    window = Window()
    batch = Batch(
        generation=1, deliveries=[Delivery(tag, False, incoming(str(tag))) for tag in range(1, 7)]
    )
    window.enter(batch)
    window.finished(batch, 6, rejects=[5], held=[3])
    assert window.take_ready() == Acknowledgement(rejects=(5,), acks=(4, 6), ack_up_to=2)
    window.release(acks=[3])
    assert window.take_ready() == Acknowledgement(acks=(3,))
