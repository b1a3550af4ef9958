"""Which connections are by a former password, by the broker's clock, and how long it is asked."""

from __future__ import annotations

import math
from typing import cast

import pika
import pytest
from pika.exceptions import AMQPError

from tenantry.broker.port import BrokerUnavailableError
from tenantry.broker.rabbitmq import late_connections
from tenantry.broker.rabbitmq.late_connections import (
    REFERENCES,
    BrokerClock,
    Change,
    LateConnections,
)
from tenantry.broker.rabbitmq.management import ListedConnection, ManagementClient


class Clock:
    """A clock that goes on as the test has it: what is tested are milliseconds."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


clock = Clock()


@pytest.fixture(autouse=True)
def by_that_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_connections, "time", clock)


OURS = "daemon"
TENANTS = "tenant_a_producer"


def change(began: float, ended: float, *, closed: bool = True) -> Change:
    return Change(began, ended, "the password was changed", closed)


def test_what_is_old_is_known_as_exactly_as_both_clocks_were_read() -> None:
    # At a moment between 100.000 s and 100.004 s of ours, the broker's showed 5,000 to 5,001 ms.
    clock = BrokerClock.read(5_000, after=100.0, before=100.004)
    # All before 99.000 s is old: at latest the broker showed 4,001 ms then. After 99.050 s, 4,046.
    assert clock.latest_former(change(99.0, 99.05)) == pytest.approx(4_001)
    assert clock.tells(change(99.0, 99.05))
    # Where it is not known that exactly, nothing of the new password is taken to be old.
    assert clock.latest_former(change(99.0, 99.001)) == pytest.approx(3_996)
    assert not clock.tells(change(99.0, 99.001))
    # A user that was deleted, and is not there again, has no new password yet.
    assert clock.latest_former(change(99.0, math.inf)) == pytest.approx(4_001)
    assert clock.tells(change(99.0, math.inf))


def test_a_clock_that_is_read_again_is_known_more_exactly_or_was_set() -> None:
    first = BrokerClock.read(5_000, after=100.0, before=100.1)
    second = BrokerClock.read(6_020, after=101.0, before=101.05)
    assert first.narrowed(second) == pytest.approx((-95_030, -94_999))
    earlier = BrokerClock.read(1_000, after=102.0, before=102.1)
    assert first.narrowed(earlier) == earlier


class Broker:
    """Lists what it is told to, and closes what it is asked to."""

    def __init__(self) -> None:
        self.listed: list[ListedConnection] = []
        self.closed: list[str] = []
        self.asked = 0
        self.made: list[Client] = []
        self.away = False
        self.slow = 0.0
        self.tells_clock = True
        """Whether our connection is listed with the time."""

    def connections(self) -> list[ListedConnection]:
        self.asked += 1
        if self.away:
            raise BrokerUnavailableError("the management API does not answer")
        ours = [
            ListedConnection("ours", OURS, f"tenantry {one.called}, term 1", one.accepted_at)
            for one in self.made
            if self.tells_clock and not one.closed
        ]
        # Whoever calls its connection as we do is somebody else all the same.
        false = [self.accepted("false", TENANTS, 1e6, called=one.called) for one in self.made]
        return [*false, *ours, *self.listed]

    def accepted(
        self, name: str, user: str, seconds: float, *, called: str = ""
    ) -> ListedConnection:
        """Give one that was accepted so many seconds from now, by the broker's clock."""
        return ListedConnection(name, user, called, round((clock.monotonic() + seconds) * 1000))

    def close_connection(self, name: str, reason: str, *, seconds: float) -> None:
        assert reason == "the password was changed"
        assert seconds > 0
        self.closed.append(name)

    def close_connections(self, user: str, reason: str) -> None:
        assert reason == "the password was changed"
        self.closed.append(f"all of {user}")

    def connect(self, called: str) -> pika.BlockingConnection:
        self.made.append(Client(called))
        clock.now += self.slow
        return cast("pika.BlockingConnection", self.made[-1])


class Client:
    def __init__(self, called: str) -> None:
        self.called = called
        self.accepted_at = int(clock.monotonic() * 1000)
        self.closed = False
        self.lost = False

    def process_data_events(self, *, time_limit: float) -> None:
        assert time_limit == 0
        if self.lost:
            raise AMQPError

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def late(broker: Broker) -> LateConnections:
    management = cast("ManagementClient", broker)
    return LateConnections(management, user=OURS, connect=broker.connect)


def changed(late: LateConnections, user: str = TENANTS, *, ago: float = 1.0) -> None:
    now = clock.monotonic() - ago
    late.look_for(user, change(now - 0.1, now))


def test_nothing_is_asked_while_there_is_nothing_to_look_for(
    broker: Broker, late: LateConnections
) -> None:
    late.look()
    assert (broker.asked, broker.made) == (0, [])


def test_what_was_accepted_before_the_change_is_closed_once_and_nothing_else(
    broker: Broker, late: LateConnections
) -> None:
    changed(late)
    broker.listed = [
        broker.accepted("old", TENANTS, -5),
        broker.accepted("new", TENANTS, -0.5),
        broker.accepted("another's", "tenant_b_producer", -5),
        ListedConnection("unknown", TENANTS, "", None),
    ]
    for _ in range(4):
        late.look()
    assert broker.closed == ["old"]
    assert [one.closed for one in broker.made] == [True] * REFERENCES
    # Its name may be a later one's.
    broker.listed.append(broker.accepted("old", TENANTS, -3))
    late.look()
    assert broker.closed == ["old", "old"]


def test_looks_end_some_time_after_the_change_and_not_before_the_broker_has_answered(
    broker: Broker, late: LateConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(late, ago=late_connections.LATE + 1)
    late.look()
    broker.away = True
    for _ in range(3):
        late.look()
    broker.away = False
    broker.listed = [broker.accepted("old", TENANTS, -late_connections.LATE - 2)]
    # No time is left to close anything in this look.
    with monkeypatch.context() as patched:
        patched.setattr(late_connections, "CLOSING", -1.0)
        late.look()
    assert broker.closed == []
    late.look()
    assert broker.closed == ["old"]
    asked = broker.asked
    late.look()
    assert broker.asked == asked


def test_a_connection_of_ours_that_is_lost_before_it_is_listed_is_made_again(
    broker: Broker, late: LateConnections
) -> None:
    changed(late)
    broker.listed = [broker.accepted("old", TENANTS, -5)]
    broker.tells_clock = False
    late.look()
    broker.made[0].lost = True
    late.look()
    broker.tells_clock = True
    late.look()
    late.look()
    assert broker.closed == ["old"]
    assert [one.closed for one in broker.made] == [True] * REFERENCES * 2


def test_a_clock_that_is_not_known_exactly_enough_is_read_again(
    broker: Broker, late: LateConnections
) -> None:
    broker.slow = 0.05
    now = clock.monotonic()
    late.look_for(TENANTS, change(now - 1.02, now - 1.0))
    broker.listed = [broker.accepted("old", TENANTS, -1.03)]
    late.look()
    broker.slow = 0.0
    for _ in range(3):
        late.look()
    assert broker.closed == ["old"]
    assert len(broker.made) >= 2 * REFERENCES


def test_what_a_clock_never_tells_exactly_enough_is_closed_at_last(
    broker: Broker, late: LateConnections
) -> None:
    broker.slow = 0.05
    now = clock.monotonic()
    late.look_for(TENANTS, change(now - 1.02, now - 1.0))
    broker.listed = [broker.accepted("old", TENANTS, -1.03), broker.accepted("new", TENANTS, -0.5)]
    for _ in range(3):
        late.look()
    assert broker.closed == []
    clock.now += late_connections.LATE + 1
    late.look()
    assert broker.closed == ["old"]


def test_a_user_that_is_made_anew_keeps_what_comes_by_its_new_password(
    broker: Broker, late: LateConnections
) -> None:
    now = clock.monotonic()
    late.look_for(TENANTS, change(now - 1.0, math.inf))
    late.is_made_anew(TENANTS)
    late.is_made_anew("another")
    broker.slow = 0.05
    broker.listed = [broker.accepted("new", TENANTS, 0.01), broker.accepted("old", TENANTS, -5)]
    late.look()
    late.look()
    assert broker.closed == ["old"]


@pytest.mark.parametrize("closed", [True, False])
def test_where_the_broker_tells_no_time_all_are_closed_that_could_not_be(
    broker: Broker, late: LateConnections, *, closed: bool
) -> None:
    broker.tells_clock = False
    now = clock.monotonic()
    late.look_for(TENANTS, change(now - 0.1, now, closed=closed))
    late.look()
    late.look()
    assert broker.closed == []
    clock.now += late_connections.LATE + 1
    late.look()
    assert broker.closed == ([] if closed else [f"all of {TENANTS}"])
    asked = broker.asked
    late.look()
    assert broker.asked == asked
    assert [one.closed for one in broker.made] == [True] * REFERENCES


def test_what_is_kept_open_is_given_up_at_the_end(broker: Broker, late: LateConnections) -> None:
    changed(late)
    late.look()
    late.close()
    assert [one.closed for one in broker.made] == [True] * REFERENCES
