"""How many lines the log gets of what a tenant sends, who decides how many messages there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from tenantry.broker.port import BrokerError, Outgoing, QueuedDeadLetter
from tenantry.dead_letters.port import EVERYTHING
from tenantry.journal.port import Metadata
from tenantry.messages.port import Incoming
from tenantry.telemetry.logging import LINES, WINDOW, Sparing
from tests.api.serving import World
from tests.fakes.actors import Tree
from tests.fakes.messages import incoming
from tests.waiting import eventually

MANY = 500
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def tree() -> Iterator[Tree]:
    running = Tree()
    yield running
    running.stop()


def test_of_a_minute_some_lines_are_written_and_then_how_many_were_left_out() -> None:
    time = 0.0
    sparing = Sparing(3, now=lambda: time)
    assert [sparing.left_out("acme") for _ in range(5)] == [0, 0, 0, None, None]
    assert sparing.left_out("other") == 0
    time = WINDOW
    assert [sparing.left_out("acme") for _ in range(4)] == [2, 0, 0, None]


def test_what_is_known_of_tenants_without_a_line_of_late_is_forgotten() -> None:
    time = 0.0
    sparing = Sparing(1, now=lambda: time)
    for number in range(5000):
        time += WINDOW / 10
        assert sparing.left_out(str(number)) == 0
    assert len(sparing._known) <= 1001


def test_dead_letters_have_as_many_lines_as_events_and_the_rest_one_together(tree: Tree) -> None:
    tree.create("a")
    with capture_logs() as logs:
        tree.subscription("a").deliver([incoming(str(n), b"bad") for n in range(MANY)])
        eventually(lambda: len(tree.subscription("a").rejected) == MANY)
        tree.dead_letter_events.flush()
    counted = Counter(one["event"] for one in logs)
    assert (counted["message.dead_lettered"], counted["messages.dead_lettered"]) == (2, 1)
    (together,) = [one for one in logs if one["event"] == "messages.dead_lettered"]
    assert (together["tenant"], together["count"]) == ("a", MANY - 2)


def buried(world: World, count: int) -> None:
    world.dead_letters.queues["acme"] = [
        QueuedDeadLetter(Incoming(str(n), "logs", 0, b"x", None, None, None), "expired", NOON, b"")
        for n in range(count)
    ]


def test_what_a_browse_finds_is_one_line_however_much_it_is() -> None:
    world = World()
    buried(world, MANY)
    with capture_logs() as logs:
        world.reprocessing().look("acme")
    found = [one for one in logs if one["event"] == "dead_letters.found"]
    assert [(one["count"], one["reasons"]) for one in found] == [(MANY, {"expired": MANY})]


def test_dead_letters_that_can_not_be_replayed_fill_no_log() -> None:
    world = World()
    buried(world, MANY)
    reprocessing = world.reprocessing()

    def refuse(_messages: list[Outgoing], *, timeout: float) -> None:
        raise BrokerError(f"its headers take too many bytes ({timeout})")

    refused: Callable[..., None] = refuse
    world.publishing.publish = refused  # type: ignore[method-assign]
    with capture_logs() as logs:
        done = reprocessing.replay("acme", EVERYTHING, Metadata(actor="test"))
    assert done.refused == MANY
    assert sum(one["event"] == "dead_letter.not_replayed" for one in logs) <= LINES
