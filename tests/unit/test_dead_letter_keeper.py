"""Who looks after dead letters: when it walks, and when it does not."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tenantry.broker.port import (
    BacklogFullError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    MessagesRefusedError,
    QueuedDeadLetter,
)
from tenantry.dead_letters import keeper
from tenantry.dead_letters.keeper import DeadLetterKeeper
from tenantry.dead_letters.port import Intent, QueueMessage, RejectedMessage, Work
from tenantry.domain.events import DeadLettersReplayed
from tenantry.messages.port import Incoming
from tests.api.serving import World

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Watched:
    """A keeper, and how often it walks along a queue."""

    def __init__(self) -> None:
        self.world = World()
        self.found: list[tuple[str, int]] = []
        reprocessing = self.world.reprocessing(on_listed=lambda *one: self.found.append(one))
        self.keeper = DeadLetterKeeper(
            reprocessing=reprocessing,
            index=self.world.letters,
            queues=self.world.dead_letters,
            every=0.0,
        )
        self.walks = 0
        real = self.world.dead_letters.browse

        def browse(tenant_id: str, **options: Any) -> Any:
            self.walks += 1
            return real(tenant_id, **options)

        self.world.dead_letters.browse = browse  # type: ignore[method-assign]

    def queue(self, *ids: str, reason: str = "expired") -> list[QueuedDeadLetter]:
        queued = [
            QueuedDeadLetter(Incoming(one, "logs", 0, b"x", None, None, None), reason, NOON, b"")
            for one in ids
        ]
        self.world.dead_letters.queues.setdefault("acme", []).extend(queued)
        return queued

    def listed(self) -> list[str | None]:
        return [one.message_id for one in self.world.letters.page("acme")[0]]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_what_the_broker_has_dead_lettered_is_listed_and_recorded(watched: Watched) -> None:
    watched.queue("a", "b")
    watched.keeper.look()
    assert watched.walks == 0  # the counts may be of different moments
    watched.keeper.look()
    assert watched.listed() == ["a", "b"]
    assert watched.found == [("acme", 2)]
    events = watched.world.journal.read_stream("dead_letters-acme")
    assert [one.event.reason for one in events] == ["expired", "expired"]  # type: ignore[union-attr]
    for _ in range(3):
        watched.keeper.look()
    assert watched.walks == 1
    assert len(watched.world.journal.read_stream("dead_letters-acme")) == 2


def test_a_queue_that_grows_on_and_on_is_walked_along_too(watched: Watched) -> None:
    for number in range(3):
        watched.queue(f"m-{number}")
        watched.keeper.look()
    assert len(watched.listed()) >= 2


def test_a_queue_and_an_index_that_agree_are_left_alone(watched: Watched) -> None:
    (queued,) = watched.queue("a", reason="rejected")
    watched.world.letters.add("acme", [RejectedMessage(queued.message, "not_json", "no JSON", 1)])
    for _ in range(3):
        watched.keeper.look()
    assert watched.walks == 0


def test_work_that_was_begun_is_finished_first(watched: Watched) -> None:
    (queued,) = watched.queue("a", reason="rejected")
    judged = RejectedMessage(queued.message, "not_json", "no JSON", 1)
    (kept,) = watched.world.letters.add("acme", [judged])
    watched.world.letters.lookup("acme", [QueueMessage(judged, NOON)], browse=uuid4())
    intent = Intent(uuid4(), Work.REPLAY)
    watched.world.letters.begin("acme", [kept.id], intent)
    watched.keeper.look()
    assert [one.message_id for one in watched.world.publishing.sent] == ["a"]
    assert watched.world.dead_letters.queues["acme"] == []
    (event,) = watched.world.journal.read_stream("dead_letters-acme")
    assert event.id == intent.id
    assert event.event == DeadLettersReplayed(tenant_id="acme", count=1, ids=(str(kept.id),))
    watched.keeper.look()
    assert len(watched.world.publishing.sent) == 1


@pytest.mark.parametrize("error", [DeadLettersBusyError("busy"), BrokerUnavailableError("away")])
def test_a_queue_that_can_not_be_walked_along_now_is_tried_again(
    watched: Watched, error: Exception
) -> None:
    watched.queue("a")
    watched.keeper.look()
    watched.world.dead_letters.error = error
    with suppress(BrokerUnavailableError):
        watched.keeper.look()
    assert watched.listed() == []
    watched.world.dead_letters.error = None
    watched.keeper.look()
    assert watched.listed() == ["a"]


@pytest.mark.parametrize("error", [BacklogFullError("full"), MessagesRefusedError("refused")])
def test_a_replay_into_a_full_backlog_waits_and_keeps_no_other_tenant_waiting(
    watched: Watched, error: Exception
) -> None:
    (queued,) = watched.queue("a", reason="rejected")
    judged = RejectedMessage(queued.message, "not_json", "no JSON", 1)
    (kept,) = watched.world.letters.add("acme", [judged])
    watched.world.letters.begin("acme", [kept.id], Intent(uuid4(), Work.REPLAY))
    others = watched.world.dead_letters.queues
    others["beta"] = [queued]
    watched.world.publishing.error = error
    for _ in range(2):
        watched.keeper.look()
    assert [one.message_id for one in watched.world.letters.page("beta")[0]] == ["a"]
    assert len(others["acme"]) == 1
    watched.world.publishing.error = None
    watched.keeper.look()
    assert [one.message_id for one in watched.world.publishing.sent] == ["a"]


def test_who_takes_long_to_walk_along_comes_last_and_is_then_left_alone_for_longer(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: now))
    queues = watched.world.dead_letters.queues
    real = watched.world.dead_letters.browse
    walks: list[str] = []

    def browse(tenant_id: str, **options: Any) -> Any:
        nonlocal now
        walks.append(tenant_id)
        now += 30.0 if tenant_id == "acme" else 0.1
        return real(tenant_id, **options)

    watched.world.dead_letters.browse = browse  # type: ignore[method-assign]

    def expire(tenant_id: str, number: int) -> None:
        message = Incoming(f"{tenant_id}-{number}", "logs", 0, b"x", None, None, None)
        queued = QueuedDeadLetter(message, "expired", NOON, b"")
        queues.setdefault(tenant_id, []).append(queued)

    for number in range(200):
        expire("acme", number)
        expire("beta", number)
        watched.keeper.look()
        now += 5.0
    # A flood of expired messages costs a tenth of the time, and no neighbour its turn.
    assert walks[:2] == ["acme", "beta"]
    assert now / 360 <= walks.count("acme") <= now / 240
    assert walks.count("beta") >= 50


def test_it_ends_when_it_is_told_to(watched: Watched) -> None:
    watched.keeper.stop()
    watched.keeper.run()
    assert watched.walks == 0


def test_a_tenant_whose_letters_can_not_be_walked_along_stops_nobody_elses(
    watched: Watched,
) -> None:
    watched.queue("a")
    watched.world.dead_letters.queues["aaa"] = list(watched.world.dead_letters.queues["acme"])
    real = watched.world.dead_letters.browse
    tried: list[str] = []

    def browse(tenant_id: str, **options: Any) -> Any:
        tried.append(tenant_id)
        if tenant_id == "aaa":
            raise ValueError("nobody thought of this")
        return real(tenant_id, **options)

    watched.world.dead_letters.browse = browse  # type: ignore[method-assign]
    watched.keeper.look()
    watched.keeper.look()
    assert tried == ["aaa", "acme"]
    assert watched.listed() == ["a"]
