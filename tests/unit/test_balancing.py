"""A node tells the others how far its backlogs have come, and holds these for the others' sake."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from tenantry.nodes.balancing import HOLD_FOR, Balancing
from tenantry.nodes.membership import Membership, Watchers
from tenantry.turns.backlogs import NOTHING_YET, Backlogs
from tenantry.turns.turns import Weights
from tests.fakes.nodes import Behind, NodesInMemory

LOOK = 0.5
RATE = 20.0
"""Full batches a second that the nodes store together."""

BATCHES = 5
"""How many batches a node stores between two looks."""


class Node:
    """A node and its backlog, of one tenant."""

    def __init__(self, together: Together, name: str, weight: int) -> None:
        self.database: Any = Behind(together.shared, name, together.shared.join(name))
        self.membership = Membership(
            self.database,
            name,
            Watchers(together.shared.nodes[name].standing.holder),
            acquire=lambda *_: None,
            release=lambda _: None,
            active=lambda: True,
            now=lambda: together.now,
        )
        weights = Weights()
        weights.weigh("a", weight)
        self.backlogs = Backlogs(weights, now=lambda: together.now)
        self.balancing = Balancing(
            self.database, self.membership, self.backlogs, now=lambda: together.now
        )
        self.stores = True

    def turn(self) -> None:
        self.membership.turn()
        self.balancing.turn()


class Together:
    """Two nodes that share a database: what one is held from, the other one stores."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shared = NodesInMemory()
        self.light, self.heavy = (Node(self, name, weight) for name, weight in WEIGHTS.items())

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            storing = [one for one in (self.light, self.heavy) if one.stores]
            for one in storing:
                for _ in range(BATCHES):
                    one.backlogs.begun("a")
                while one.backlogs.held_to and not one.backlogs.claim("a", 1.0, self.now):
                    pass
            self.now += LOOK
            left = RATE * LOOK
            for count, one in enumerate(storing):
                held = one.backlogs.held_to * WEIGHTS[one.membership.name] * LOOK or left
                work = min(held, left / (len(storing) - count))
                left -= work
                for _ in range(BATCHES):
                    one.backlogs.ended("a", work / BATCHES)
            for one in (self.light, self.heavy):
                self.shared.renew(one.membership.name)
                one.turn()


WEIGHTS = {"light": 1, "heavy": 4}


def test_the_lighter_backlog_is_held_as_long_as_the_heavier_is_there_and_it_is_logged() -> None:
    together = Together()
    with structlog.testing.capture_logs() as logs:
        together.run(10)
        assert together.heavy.backlogs.held_to == 0
        assert together.light.backlogs.held_to == pytest.approx(RATE / 5, rel=0.2)
        together.heavy.stores = False
        together.run(5)
    assert together.light.backlogs.held_to == 0
    held, released = (one for one in logs if one["event"].startswith("backlogs."))
    assert (held["event"], held["node"]) == ("backlogs.held", "light")
    assert (released["event"], released["node"]) == ("backlogs.released", "light")


def test_a_node_tells_while_it_has_a_backlog_and_once_more() -> None:
    together = Together()
    together.light.stores = together.heavy.stores = False
    together.run(5)
    assert together.shared.nodes["light"].progress == NOTHING_YET
    together.light.stores = True
    together.run(5)
    told = together.shared.nodes["light"].progress
    assert (told.seconds, told.weight) == (pytest.approx(10), pytest.approx(5))
    together.light.stores = False
    together.run(5)
    last = together.shared.nodes["light"].progress
    assert (last.seconds, last.weight) == (pytest.approx(10 + LOOK), pytest.approx(5))


def test_a_node_that_can_tell_nothing_goes_on_and_holds_what_it_was_to_hold() -> None:
    together = Together()
    together.run(10)
    assert together.light.backlogs.held_to > 0
    together.light.database.cut = True
    together.light.balancing.turn()
    assert together.light.backlogs.held_to > 0


def test_a_node_that_looks_no_more_holds_nothing_for_ever() -> None:
    together = Together()
    together.run(10)
    together.now += HOLD_FOR - 0.1
    assert together.light.backlogs.held_to > 0
    together.now += 0.2
    assert together.light.backlogs.held_to == 0


def test_a_node_that_is_lost_or_alone_holds_up_nobody_and_is_told_nothing() -> None:
    together = Together()
    together.run(10)
    del together.shared.nodes["heavy"]
    together.light.turn()
    assert together.light.backlogs.held_to == 0
    told = together.shared.nodes["light"].progress
    together.light.backlogs.begun("a")
    together.now += LOOK
    together.light.turn()
    assert together.shared.nodes["light"].progress == told
