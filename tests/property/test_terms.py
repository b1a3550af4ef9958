"""The laws of terms, under whatever order of renewals, freezes, outages and deaths."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tenantry.terms.keeper import Candidate
from tenantry.terms.lease import LEASE, MARGIN, Term
from tenantry.terms.port import Holder, Standing
from tenantry.unavailable import UnavailableError
from tests.depth import examples
from tests.fakes.stores import InMemoryTerms

DRIFT = 0.05
"""How much faster or slower than it should a daemon's clock may run."""

NAMES = ("a", "b", "c")

SPANS = st.sampled_from((0.1, 0.5, 1.5, LEASE - MARGIN, LEASE - 0.6, LEASE, LEASE + 0.5, 3 * LEASE))
"""Seconds: those around a lease, where the laws are decided."""


class Reachable:
    """The terms as one daemon reaches them, or not; an answer may get lost after its effect."""

    def __init__(self, terms: InMemoryTerms) -> None:
        self._terms = terms
        self.away = False
        self.loses_answers = False

    def _through(self) -> None:
        if self.away:
            raise UnavailableError("away")

    def look(self) -> Standing:
        self._through()
        return self._terms.look()

    def take(self, seen: Standing, by: Holder) -> Standing | None:
        self._through()
        taken = self._terms.take(seen, by)
        if self.loses_answers:
            raise UnavailableError("no answer")
        return taken

    def renew(self, number: int) -> bool:
        self._through()
        return self._terms.renew(number)

    def release(self, number: int) -> None:
        self._through()
        self._terms.release(number)


@dataclass
class Daemon:
    """One daemon, whose clock runs at its own speed and shows its own time."""

    name: str
    rate: float
    offset: float
    way: Reachable
    world: Terms
    life: int = 0
    frozen: bool = False
    candidate: Candidate = field(init=False)
    term: Term | None = None
    asked_at: float | None = None

    def __post_init__(self) -> None:
        self.start()

    def clock(self) -> float:
        return self.offset + self.world.time * self.rate

    def start(self) -> None:
        self.life += 1
        self.frozen = False
        self.term = None
        self.asked_at = None
        me = Holder(instance=self.name, host=self.name, pid=self.life)
        self.candidate = Candidate(self.way, me, now=self.clock, boot_time=self.clock)

    @property
    def leads(self) -> bool:
        """Whether it would write now, were it not frozen."""
        return self.term is not None and self.term.valid()


class Terms(RuleBasedStateMachine):
    """Three daemons and a world in which anything may happen to them."""

    @initialize(
        rates=st.tuples(*[st.floats(1 - DRIFT, 1 + DRIFT)] * 3),
        offsets=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    )
    def begin(self, rates: tuple[float, ...], offsets: tuple[float, ...]) -> None:
        self.time = 0.0
        self.terms = InMemoryTerms()
        self.daemons = {
            name: Daemon(name, rate, offset, Reachable(self.terms), self)
            for name, rate, offset in zip(NAMES, rates, offsets, strict=True)
        }

    @rule(seconds=SPANS)
    def time_passes(self, seconds: float) -> None:
        self.time += seconds

    @rule(name=st.sampled_from(NAMES))
    def freezes_or_wakes(self, name: str) -> None:
        self.daemons[name].frozen = not self.daemons[name].frozen

    @rule(name=st.sampled_from(NAMES), away=st.booleans(), loses_answers=st.booleans())
    def network_changes(self, name: str, away: bool, loses_answers: bool) -> None:
        way = self.daemons[name].way
        way.away, way.loses_answers = away, loses_answers

    @rule(name=st.sampled_from(NAMES))
    def dies_and_starts_again(self, name: str) -> None:
        self.daemons[name].start()

    @rule(name=st.sampled_from(NAMES))
    def looks(self, name: str) -> None:
        daemon = self.daemons[name]
        if not daemon.frozen and daemon.term is None:
            daemon.term = daemon.candidate.try_to_lead()

    @rule(seconds=SPANS)
    def time_passes_and_all_look(self, seconds: float) -> None:
        self.time += seconds
        for name in NAMES:
            self.looks(name)

    @rule(name=st.sampled_from(NAMES))
    def begins_to_renew(self, name: str) -> None:
        """Take the time of asking; whatever happens before the call goes through may happen."""
        daemon = self.daemons[name]
        if not daemon.frozen and daemon.term is not None:
            daemon.asked_at = daemon.clock()

    @rule(name=st.sampled_from(NAMES))
    def renews(self, name: str) -> None:
        daemon = self.daemons[name]
        if daemon.frozen or daemon.term is None or daemon.asked_at is None:
            return
        try:
            mine = daemon.way.renew(daemon.term.number)
        except UnavailableError:
            return
        if mine:
            daemon.term.renewed(daemon.asked_at)
        else:
            daemon.start()  # whoever has lost the term ends, and is started again

    @rule(name=st.sampled_from(NAMES))
    def stops_in_order(self, name: str) -> None:
        daemon = self.daemons[name]
        if daemon.frozen or daemon.term is None or daemon.way.away:
            return
        daemon.term.end()
        daemon.way.release(daemon.term.number)
        daemon.start()

    @precondition(lambda self: hasattr(self, "daemons"))
    @invariant()
    def at_most_one_holds_a_valid_term(self) -> None:
        leading = [one.name for one in self.daemons.values() if one.leads]
        assert len(leading) <= 1, leading

    @precondition(lambda self: hasattr(self, "daemons"))
    @invariant()
    def no_two_hold_the_same_number(self) -> None:
        numbers = [one.term.number for one in self.daemons.values() if one.term is not None]
        assert len(set(numbers)) == len(numbers)

    def teardown(self) -> None:
        """In the end, when all is well again, somebody leads."""
        if not hasattr(self, "daemons"):
            return
        for daemon in self.daemons.values():
            daemon.way.away = daemon.way.loses_answers = False
            daemon.start()
        until = self.time + 3 * LEASE
        while self.time < until and not any(one.leads for one in self.daemons.values()):
            self.time += 0.5
            for name in NAMES:
                self.looks(name)
        assert any(one.leads for one in self.daemons.values())


Terms.TestCase.settings = settings(
    max_examples=examples(25, 300), stateful_step_count=60, deadline=None
)
TestTerms = Terms.TestCase


def test_the_margin_covers_the_clocks_drift() -> None:
    assert (LEASE - MARGIN) / (1 - DRIFT) < LEASE / (1 + DRIFT)
