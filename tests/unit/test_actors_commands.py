"""The tree of actors: what commands bring about, and in faults, too."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from tenantry.actors.messages import Execute, Ref, Reminder
from tenantry.actors.supervision import tell
from tenantry.broker.port import BrokerError, PasswordHash
from tenantry.control.port import (
    CommandFailedError,
    CommandTimeoutError,
    ControlUnavailableError,
    Outcome,
)
from tenantry.domain import names
from tenantry.domain.commands import (
    AddTopics,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RotateCredentials,
    TenantNotFoundError,
)
from tenantry.domain.events import MessageDeadLettered, TenantDeleted
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import Lifecycle
from tenantry.journal.port import JournalUnavailableError, Metadata
from tests.fakes.actors import Tree
from tests.fakes.faults import outage
from tests.fakes.messages import incoming
from tests.waiting import DEADLINE, eventually


def test_more_workers_are_in_force_when_the_resize_returns(tree: Tree) -> None:
    tree.create("a", workers=1)
    tree.store.gate.clear()
    for number in range(8):
        tree.deliver("a", *(f"{number}-{one}" for one in range(5)))
    eventually(lambda: tree.store.inside == 1)
    outcome = tree.execute(ResizeWorkers(tenant_id="a", workers=4))
    assert outcome.runtime is not None
    assert outcome.runtime.workers_current == 4
    eventually(lambda: tree.store.inside == 4)
    tree.store.gate.set()
    eventually(lambda: len(tree.subscription("a").acked) == 40)
    assert tree.store.most_inside == 4


def test_fewer_workers_are_in_force_when_the_resize_returns(tree: Tree) -> None:
    tree.create("a", workers=4)
    tree.store.gate.clear()
    for number in range(8):
        tree.deliver("a", *(f"{number}-{one}" for one in range(5)))
    eventually(lambda: tree.store.inside == 4)
    with ThreadPoolExecutor(1) as pool:
        resize = pool.submit(tree.execute, ResizeWorkers(tenant_id="a", workers=1))
        eventually(lambda: tree.events("a")[-1] == "WorkersResized")
        assert not resize.done()
        tree.store.gate.set()
        outcome = resize.result(DEADLINE)
    assert outcome.runtime is not None
    assert outcome.runtime.workers_current == 1
    eventually(lambda: len(tree.subscription("a").acked) == 40)
    eventually(lambda: len(tree.runtime.tenant("a").workers) == 1)


def test_a_pause_finishes_what_was_taken_and_takes_nothing_more(tree: Tree) -> None:
    tree.create("a")
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(30)))
    eventually(lambda: tree.store.inside == 3)
    with ThreadPoolExecutor(1) as pool:
        pause = pool.submit(tree.execute, PauseTenant(tenant_id="a"))
        eventually(lambda: not tree.subscription("a").consuming)
        assert not pause.done()
        tree.store.gate.set()
        outcome = pause.result(DEADLINE)
    assert outcome.tenant.lifecycle is Lifecycle.PAUSED
    assert len(tree.stored("a")) == 30
    assert not tree.subscription("a").requeued
    tree.deliver("a", "later")
    assert tree.execute(ResumeTenant(tenant_id="a")).tenant.lifecycle is Lifecycle.ACTIVE
    eventually(lambda: "later" in tree.stored("a"))


def test_a_deletion_finishes_what_is_in_flight_and_removes_everything(tree: Tree) -> None:
    tree.create("a")
    tree.administration.waiting["a"] = 7
    tree.deliver("a", "1", "2")
    tree.execute(RequestDeletion(tenant_id="a"))
    event = tree.journal.read_stream(names.journal_stream("a"))[-1].event
    assert event == TenantDeleted(tenant_id="a", queued=7, stored=2)
    assert not tree.administration.users
    assert not tree.administration.topologies
    assert not tree.passwords.hashes
    assert "a" not in tree.store.rows
    with pytest.raises(TenantNotFoundError):
        tree.execute(PauseTenant(tenant_id="a"))
    eventually(lambda: tree.control.runtime("a") is None)


def test_the_id_of_a_deleted_tenant_may_be_used_again(tree: Tree) -> None:
    for _ in range(3):
        tree.create("a")
        tree.execute(RequestDeletion(tenant_id="a"))
    assert tree.create("a").tenant.lifecycle is Lifecycle.ACTIVE
    tree.deliver("a", "1")
    eventually(lambda: tree.stored("a") == {"1"})


def test_the_next_tenant_of_an_id_is_told_nothing_of_the_formers_dead_letters(tree: Tree) -> None:
    stream = names.dead_letter_journal_stream("a")
    for number in range(1, 3):
        tree.create("a")
        tree.subscription("a").deliver([incoming(f"{number}{one}", b"bad") for one in "123"])
        eventually(lambda: len(tree.subscription("a").rejected) == 3)
        told = [type(one.event) for one in tree.journal.read_stream(stream)]
        assert told == [MessageDeadLettered] * 2 * number
        tree.execute(RequestDeletion(tenant_id="a"))
        eventually(lambda: tree.control.runtime("a") is None)
        tree.dead_letter_events.flush()
    assert len(tree.journal.read_stream(stream)) == len(told)


def test_a_deletion_goes_on_after_an_outage(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("remove_topology", outage(), times=2)
    tree.execute(RequestDeletion(tenant_id="a"))
    assert tree.events("a")[-1] == "TenantDeleted"


@pytest.mark.usefixtures("_hasty")
def test_a_deletion_is_tried_ever_less_often_during_an_outage(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = []
    tell_later = tree.clock.tell_later

    def spy(delay: float, ref: Ref, message: object) -> None:
        if message is Reminder.TRY_AGAIN:
            delays.append(delay)
        tell_later(delay, ref, message)

    monkeypatch.setattr(tree.clock, "tell_later", spy)
    tree.create("a")
    tree.faults.plan("remove_topology", outage(), times=5)
    tree.execute(RequestDeletion(tenant_id="a"))
    assert len(delays) == 5
    assert delays[4] > 4 * delays[0]


def test_rotation_gives_another_password(tree: Tree) -> None:
    first = tree.create("a").credentials
    second = tree.execute(RotateCredentials(tenant_id="a")).credentials
    assert first is not None
    assert second is not None
    assert first.password != second.password
    assert tree.administration.users["a"] == tree.passwords.hashes["a"]
    # Nothing is left that goes by the first one.
    assert tree.administration.ended == ["a"]
    tree.stop()
    tree.start()
    eventually(lambda: tree.subscription("a").consuming)
    assert tree.administration.ended == ["a"]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("ensure_user", outage()),
        ("ensure_user", BrokerError("refused")),
        ("append", JournalUnavailableError("away")),
    ],
    ids=["the broker goes away", "the broker refuses", "the journal goes away"],
)
def test_a_password_that_nobody_was_shown_is_taken_back(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    tree.create("a")
    shown = tree.administration.users["a"]
    append = tree.journal.append
    set_on_broker = tree.administration.ensure_user

    def fail(*arguments: Any, **named: Any) -> NoReturn:
        raise error

    def half(tenant_id: str, password: PasswordHash, kind: UserKind) -> None:
        """The broker has it, and its answer is lost."""
        monkeypatch.setattr(tree.administration, "ensure_user", set_on_broker)
        set_on_broker(tenant_id, password, kind)
        raise error

    if step == "append":
        monkeypatch.setattr(tree.journal, "append", fail)
    else:
        monkeypatch.setattr(tree.administration, "ensure_user", half)
    with pytest.raises((ControlUnavailableError, CommandFailedError)):
        tree.execute(RotateCredentials(tenant_id="a"))
    monkeypatch.setattr(tree.journal, "append", append)
    eventually(lambda: tree.administration.users["a"] == shown)
    assert tree.passwords.hashes["a"] == shown
    assert "CredentialsRotated" not in tree.events("a")


def test_a_password_nobody_waits_for_any_more_is_taken_back(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.create("a")
    shown = tree.administration.users["a"]
    entered, gone = threading.Event(), threading.Event()
    set_on_broker = tree.administration.ensure_user

    def slow(tenant_id: str, password: PasswordHash, kind: UserKind) -> None:
        set_on_broker(tenant_id, password, kind)
        monkeypatch.setattr(tree.administration, "ensure_user", set_on_broker)
        entered.set()
        gone.wait(DEADLINE)

    monkeypatch.setattr(tree.administration, "ensure_user", slow)
    with pytest.raises(CommandTimeoutError):
        tree.execute(RotateCredentials(tenant_id="a"), timeout=0.0)
    entered.wait(DEADLINE)
    assert tree.administration.users["a"] != shown
    gone.set()
    eventually(lambda: tree.administration.users["a"] == shown)
    assert tree.passwords.hashes["a"] == shown
    assert "CredentialsRotated" not in tree.events("a")


@pytest.mark.parametrize("command", [PauseTenant, RequestDeletion])
def test_who_waits_for_a_tenant_to_consume_is_answered_when_it_will_not(
    tree: Tree, command: type[PauseTenant | RequestDeletion]
) -> None:
    tree.broker.up = False
    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(tree.create, "a")
        eventually(lambda: "a" in tree.broker.subscriptions)
        tree.execute(command(tenant_id="a"))
        outcome = creating.result(DEADLINE)
    assert outcome.credentials is not None
    assert outcome.tenant.lifecycle is not Lifecycle.ACTIVE


def test_a_command_whose_last_step_is_being_taken_is_waited_for(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.create("a")
    append = tree.journal.append
    reply: Future[Outcome] = Future()

    def late(*arguments: Any, **named: Any) -> Any:
        assert not reply.cancel()
        return append(*arguments, **named)

    monkeypatch.setattr(tree.journal, "append", late)
    command, by = RotateCredentials(tenant_id="a"), Metadata(actor="test")
    tell(tree.supervisor, Execute(command=command, metadata=by, reply=reply))
    assert reply.result(DEADLINE).credentials is not None
    assert tree.administration.users["a"] == tree.passwords.hashes["a"]


def test_topics_whose_queues_could_not_be_made_are_made_and_consumed_later(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("ensure_topology", outage(), times=2)
    with pytest.raises(ControlUnavailableError):
        tree.execute(AddTopics(tenant_id="a", topics=("logs",)))
    eventually(lambda: {one.topic for one in tree.subscription("a").queues} == {"default", "logs"})
    assert tree.administration.topologies["a"].topics == ("logs",)


def test_new_topics_are_consumed_when_the_command_returns(tree: Tree) -> None:
    tree.create("a", topics=("events",))
    outcome = tree.execute(AddTopics(tenant_id="a", topics=("logs", "events")))
    assert outcome.tenant.topics == ("events", "logs")
    assert {queue.topic for queue in tree.subscription("a").queues} == {
        "default",
        "events",
        "logs",
    }
    assert tree.subscription("a").consuming
