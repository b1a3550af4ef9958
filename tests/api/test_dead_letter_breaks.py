"""Replays that break off in the middle, and what is away meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from tenantry.broker.port import QueuedDeadLetter
from tenantry.dead_letters import replay as reprocessing_module
from tenantry.dead_letters.port import EVERYTHING, Intent, QueueMessage, RejectedMessage, Work
from tenantry.journal.port import JournalUnavailableError, Metadata
from tenantry.messages.headers import REPLAYS_HEADER
from tenantry.messages.port import StoreUnavailableError
from tests.api.dead_letters import listed, message, reject, replay
from tests.api.fakes import FakeBrowser
from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme", topics=("logs",), partitions=2)
        yield served


TEST = Metadata(actor="test")


class BrokenOffError(Exception):
    """The process has died."""


def settle(world: World, letter: UUID) -> None:
    """Leave a letter as a death between settling and removing does."""
    (one,) = world.dead_letters.queues["acme"]
    judged = RejectedMessage(one.message, "not_json", "no JSON", 1)
    world.letters.lookup("acme", [QueueMessage(judged, one.died_at)], browse=uuid4())
    world.letters.begin("acme", [letter], Intent(uuid4(), Work.REPLAY))
    world.letters.settle("acme", [letter])


STEPS = {
    "lookup": ("letters", "lookup"),
    "begin": ("letters", "begin"),
    "publish": ("publishing", "publish"),
    "journal": ("journal", "append"),
    "settle": ("letters", "settle"),
    "gone": ("letters", "gone"),
}


@pytest.mark.parametrize("step", [*STEPS, "remove"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_replay_that_breaks_off_is_taken_up_and_nothing_is_lost_or_doubled(
    api: Served, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    world = api.world
    ids = reject(world, *[message(str(number)) for number in range(150)])
    owner, name = ("dead_letters", "walk") if step == "remove" else STEPS[step]
    target = getattr(world, owner)
    if step == "remove":
        target, name = FakeBrowser, "remove"
    real = getattr(target, name)

    def breaks(*given: Any, **options: Any) -> Any:
        if after:
            real(*given, **options)
        raise BrokenOffError

    with monkeypatch.context() as broken:
        broken.setattr(target, name, breaks)
        with pytest.raises(BrokenOffError):
            world.reprocessing().replay("acme", EVERYTHING, TEST)
    # Every message is in the queue, or the broker has it again.
    sent = {one.message_id for one in world.publishing.sent}
    there = {one.message.id for one in world.dead_letters.queues["acme"]}
    everything = {str(number) for number in range(150)}
    assert sent | there == everything
    world.reprocessing().replay("acme", EVERYTHING, TEST)
    assert {one.message_id for one in world.publishing.sent} == everything
    # Whatever went out twice did so under the same number, and the journal tells of it once.
    assert {one.headers[REPLAYS_HEADER] for one in world.publishing.sent if one.headers} == {1}
    told = [one.event for one in world.journal.read_stream("dead_letters-acme")]
    assert sorted(letter for one in told for letter in one.ids) == sorted(map(str, ids))  # type: ignore[union-attr]
    assert world.dead_letters.queues["acme"] == []
    assert listed(api) == []


def test_a_settled_message_that_is_still_in_the_queue_is_only_removed(api: Served) -> None:
    world = api.world
    (letter,) = reject(world, message("m"))
    settle(world, letter)
    assert replay(api, {"all": True}) == {"replayed": 0}
    assert world.publishing.sent == []
    assert world.dead_letters.queues["acme"] == []


def test_a_letter_is_remembered_until_its_message_is_known_to_be_gone(api: Served) -> None:
    world = api.world
    reject(world, message("m"))
    kept = list(world.dead_letters.queues["acme"])
    world.dead_letters.gone = False
    assert replay(api, {"all": True}) == {"replayed": 1}
    world.dead_letters.queues["acme"].extend(kept)  # the broker lost the ack
    assert listed(api) == []
    assert replay(api, {"all": True}) == {"replayed": 0}
    assert len(world.publishing.sent) == 1


@pytest.mark.parametrize("complete", [True, False])
def test_a_letter_without_a_message_is_forgotten_only_by_a_complete_walk(
    api: Served, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setattr(reprocessing_module, "GRACE_SECONDS", -60.0)
    real = FakeBrowser.__init__

    def begin(walk: FakeBrowser, queue: list[QueuedDeadLetter]) -> None:
        real(walk, queue)
        walk.complete = complete

    monkeypatch.setattr(FakeBrowser, "__init__", begin)
    reject(api.world, message("there"), message("purged"))
    del api.world.dead_letters.queues["acme"][1]
    assert replay(api, {"all": True}) == {"replayed": 1}
    assert [one["id"] for one in listed(api)] == ([] if complete else ["purged"])


def test_a_call_ends_in_time_and_the_next_goes_on(api: Served) -> None:
    world = api.world
    reject(world, *[message(str(number)) for number in range(150)])
    done = world.reprocessing(seconds=0.0).replay("acme", EVERYTHING, TEST)
    assert (done.count, done.complete) == (0, False)
    done = world.reprocessing().discard("acme", EVERYTHING, TEST)
    assert (done.count, done.complete) == (150, True)


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), JournalUnavailableError("away")])
def test_a_database_that_is_away_is_503_and_leaves_everything(
    api: Served, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    reject(api.world, message("m"))

    def away(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(api.world.letters, "settle", away)
        answer = api.control.post("/tenants/acme/dead-letters/replay", json={"all": True})
        assert answer.status_code == 503
    assert [one["id"] for one in listed(api)] == ["m"]
    assert len(api.world.dead_letters.queues["acme"]) == 1
