"""The broker's counts, and when they are none."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import pytest

from tenantry.broker import pending
from tenantry.broker.pending import EVERY, SELDOM, PendingCounts
from tenantry.broker.port import BrokerUnavailableError, QueueCounts
from tests.fakes.faults import Faults
from tests.fakes.provisioning import FakeAdministration
from tests.waiting import DEADLINE, eventually


class Counting(FakeAdministration):
    """An administration that counts what it is told, and may be away."""

    def __init__(self) -> None:
        super().__init__(Faults())
        self.away = False
        self.held = threading.Event()
        self.held.set()
        self.asked = 0

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        self.asked += 1
        assert self.held.wait(DEADLINE)
        if self.away:
            raise BrokerUnavailableError("away")
        return super().queue_counts()


@pytest.fixture
def broker() -> Counting:
    return Counting()


@pytest.fixture
def counts(broker: Counting) -> Iterator[PendingCounts]:
    made = PendingCounts(broker, every=0.01)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    broker.held.set()
    made.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_counts_that_take_long_are_asked_for_less_often(
    broker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, took = 0.0, 0.0
    ask = broker.queue_counts

    def counting() -> Mapping[str, QueueCounts]:
        nonlocal now
        now += took
        return ask()

    monkeypatch.setattr(pending.time, "monotonic", lambda: now)
    monkeypatch.setattr(broker, "queue_counts", counting)
    counts = PendingCounts(broker)
    for seconds, pause in ((0.001, EVERY), (0.04, 4.0), (2.0, SELDOM), (0.0, EVERY)):
        took = seconds
        counts._turn()
        assert counts._pause() == pytest.approx(pause)
        now, asked = now + pause, broker.asked
        counts.queue_counts()
        assert broker.asked == asked, "what is known is still new enough"


def test_counts_follow_the_broker_and_are_unknown_while_it_is_away(
    broker: Counting, counts: PendingCounts
) -> None:
    broker.waiting["a"] = 3
    eventually(lambda: counts.counts() == {"a": 3})
    broker.away = True
    eventually(lambda: counts.counts() is None)
    broker.away = False
    broker.waiting["a"] = 4
    eventually(lambda: counts.counts() == {"a": 4})


def test_counts_of_a_broker_that_does_not_answer_grow_stale(
    broker: Counting, counts: PendingCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.waiting["a"] = 3
    eventually(lambda: counts.counts() == {"a": 3})
    broker.held.clear()
    monkeypatch.setattr(pending, "STALE", 0.05)
    eventually(lambda: counts.counts() is None)
    monkeypatch.setattr(pending, "STALE", 60)
    broker.held.set()
    eventually(lambda: counts.counts() == {"a": 3})


def test_the_counts_are_young_enough_for_what_is_promised() -> None:
    brokers_own_age = 5
    assert brokers_own_age + pending.EVERY + 1 < 10


def test_others_are_given_the_same_answer_while_it_is_a_recent_one(broker: Counting) -> None:
    counts = PendingCounts(broker, every=1000)
    broker.waiting["a"] = 3
    assert counts.queue_counts()["a"].ready == 3  # nobody has asked yet
    counts._ask()
    broker.waiting["a"] = 4
    assert counts.queue_counts()["a"].ready == 3
    assert broker.asked == 2
    broker.away = True
    counts._ask()
    with pytest.raises(BrokerUnavailableError):
        counts.queue_counts()
