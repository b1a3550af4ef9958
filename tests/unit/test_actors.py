"""The tree of actors: what it does with commands, deliveries and faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import pytest

from tenantry.actors import backoff, board
from tenantry.actors.board import Board
from tenantry.actors.messages import Drifted, Execute, Ref, Reminder
from tenantry.actors.supervision import tell
from tenantry.broker.port import BrokerError, NotOursError, PasswordHash, TenantTopology
from tenantry.broker.survey import Drift, DriftKind
from tenantry.control.port import (
    CommandFailedError,
    CommandTimeoutError,
    Outcome,
    SystemState,
    UnavailableError,
)
from tenantry.domain import names
from tenantry.domain.commands import (
    AddTopics,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RotateCredentials,
)
from tenantry.domain.errors import InvalidCommandError, TenantExistsError, TenantNotFoundError
from tenantry.domain.events import (
    MessageDeadLettered,
    MessageIdsReused,
    TenantDeleted,
    TenantParked,
)
from tenantry.domain.tenant import Lifecycle
from tenantry.journal.port import JournalError, JournalUnavailableError, Metadata
from tenantry.messages.port import MessageStoreError, StoreUnavailableError, Whose
from tests.fakes.actors import Tree, message, outage, running_tree
from tests.waiting import eventually


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave hardly a pause between restarts, and forget no failure however slow they are."""
    monkeypatch.setattr(backoff, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(backoff, "Intensity", partial(backoff.Intensity, within=3600.0))


@pytest.fixture
def tree() -> Iterator[Tree]:
    with running_tree() as tree:
        yield tree


def test_creation_answers_when_the_tenant_consumes(tree: Tree) -> None:
    outcome = tree.create("a")
    assert outcome.tenant.lifecycle is Lifecycle.ACTIVE
    assert outcome.credentials is not None
    assert outcome.runtime is not None
    assert outcome.runtime.consuming
    assert outcome.runtime.workers_current == 3
    assert tree.events("a") == ["TenantCreated", "TenantProvisioned"]
    assert tree.administration.users["a"] == tree.passwords.hashes["a"]


@pytest.mark.parametrize("step", ["claim", "create_partition", "ensure_topology", "ensure_user"])
def test_a_creation_that_fails_at_a_step_leaves_nothing(tree: Tree, step: str) -> None:
    tree.faults.plan(step, outage())
    with pytest.raises(CommandFailedError, match="undone"):
        tree.create("a")
    assert tree.events("a")[-1] == "ProvisioningAbandoned"
    assert not tree.administration.users
    assert not tree.administration.topologies
    assert not tree.passwords.hashes
    assert "a" not in tree.store.rows
    assert tree.create("a").tenant.lifecycle is Lifecycle.ACTIVE


def test_a_creation_that_could_not_be_undone_is_undone_later(tree: Tree) -> None:
    tree.faults.plan("ensure_user", outage())
    tree.faults.plan("remove_user", outage(), times=2)
    with pytest.raises(CommandFailedError, match="will be undone"):
        tree.create("a")
    eventually(lambda: tree.events("a")[-1] == "ProvisioningAbandoned")
    assert not tree.administration.topologies


@pytest.mark.parametrize("here", [False, True])
def test_a_tenant_whose_user_is_anothers_is_refused_and_nothing_is_made(
    tree: Tree, *, here: bool
) -> None:
    tree.administration.taken["a"] = here
    with pytest.raises(CommandFailedError, match="another's") as caught:
        tree.create("a")
    assert isinstance(caught.value.__cause__, NotOursError)
    assert tree.events("a") == []
    assert not {"claim", "create_partition", "ensure_topology"} & set(tree.faults.steps)


@pytest.mark.parametrize(("here", "topologies"), [(False, set()), (True, {"a"})])
def test_a_creation_that_another_wins_is_undone_but_for_what_may_be_the_others(
    tree: Tree, *, here: bool, topologies: set[str]
) -> None:
    tree.administration.overtaken["a"] = here
    with pytest.raises(CommandFailedError, match="another's") as caught:
        tree.create("a")
    assert isinstance(caught.value.__cause__, NotOursError)
    assert tree.events("a") == ["TenantCreated", "ProvisioningAbandoned"]
    assert set(tree.administration.topologies) == topologies
    assert "a" not in tree.store.rows
    assert not tree.passwords.hashes


def test_a_provisioning_that_broke_off_and_that_another_has_won_is_undone_at_the_next_start(
    tree: Tree,
) -> None:
    tree.faults.plan("ensure_user", outage())
    tree.faults.plan("remove_user", outage(), times=1000)
    with pytest.raises(CommandFailedError, match="will be undone"):
        tree.create("a")
    tree.stop()
    tree.faults.clear()
    tree.administration.taken["a"] = False
    tree.start()
    eventually(lambda: tree.events("a")[-1] == "ProvisioningAbandoned")


def test_a_tenant_whose_user_another_has_taken_goes_on_storing_and_gets_no_password(
    tree: Tree,
) -> None:
    tree.create("a")
    before = tree.administration.users["a"]
    tree.administration.taken["a"] = False
    tree.stop()
    tree.start()
    eventually(lambda: tree.subscription("a").consuming)
    tree.deliver("a", "1")
    eventually(lambda: tree.stored("a") == {"1"})
    with pytest.raises(CommandFailedError, match="another's"):
        tree.execute(RotateCredentials(tenant_id="a"))
    assert "CredentialsRotated" not in tree.events("a")
    assert tree.administration.users["a"] == tree.passwords.hashes["a"] == before
    tree.execute(RequestDeletion(tenant_id="a"))
    assert tree.administration.users["a"] == before
    assert not tree.administration.topologies


def test_what_another_has_made_under_the_id_of_a_deleted_tenant_is_no_leftover(tree: Tree) -> None:
    tree.create("a")
    tree.execute(RequestDeletion(tenant_id="a"))
    topology = TenantTopology(tenant_id="a", topics=(), partitions=1)
    tree.administration.topologies["a"] = topology
    tree.administration.taken["a"] = True
    with pytest.raises(CommandFailedError, match="another's"):
        tree.create("a")
    left = Drift(kind=DriftKind.LEFTOVER, found="queue tenant_a_queue was left")
    tell(
        tree.supervisor,
        Drifted(tenant_id="a", drift=(left,), seen_at=tree.clock.now(), leftover=True),
    )
    eventually(lambda: "a" not in tree.board.tenants)
    assert tree.administration.topologies["a"] == topology


def test_of_two_creations_of_one_id_one_wins(tree: Tree) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(tree.create, "a") for _ in range(8)]
        errors = [future.exception() for future in futures]
    assert sum(error is None for error in errors) == 1
    assert all(isinstance(error, TenantExistsError) for error in errors if error is not None)


def test_a_command_for_nobody_is_refused(tree: Tree) -> None:
    with pytest.raises(TenantNotFoundError):
        tree.execute(PauseTenant(tenant_id="nobody"))


def test_deliveries_are_stored_and_acknowledged(tree: Tree) -> None:
    tree.create("a")
    ids = {str(number) for number in range(100)}
    tree.deliver("a", *ids)
    eventually(lambda: len(tree.subscription("a").acked) == 100)
    assert tree.stored("a") == ids
    assert tree.subscription("a").acks < 100


def test_nothing_is_acknowledged_beyond_what_is_committed(tree: Tree) -> None:
    tree.create("a", workers=2)
    slow = tree.store.gates[b'"slow"'] = threading.Event()
    tree.deliver("a", "first", body=b'"slow"')
    eventually(lambda: tree.store.inside == 1)
    tree.deliver("a", "second")
    eventually(lambda: tree.stored("a") == {"second"})
    assert tree.subscription("a").acked == []
    slow.set()
    eventually(lambda: tree.subscription("a").acked == [1, 2])


def test_an_id_that_is_used_again_is_journalled_once_however_often_it_is(tree: Tree) -> None:
    tree.create("a")
    tree.deliver("a", "1", body=b"1")
    for number in range(20):
        tree.deliver("a", "1", body=b"%d" % (number % 2 + 1))
    eventually(lambda: len(tree.subscription("a").acked) == 21)
    told = [one.event for one in tree.journal.read_stream(names.dead_letter_journal_stream("a"))]
    assert [type(one) for one in told] == [MessageIdsReused]
    assert tree.subscription("a").rejected == []


def test_what_can_t_be_stored_is_rejected_and_its_neighbours_are_not(tree: Tree) -> None:
    tree.create("a")
    bad = message("bad", b"bad")
    tree.subscription("a").deliver([message("1"), bad, message("2"), bad._replace(id="last")])
    eventually(lambda: not tree.subscription("a").unsettled)
    assert tree.stored("a") == {"1", "2"}
    assert [one.id for one in tree.subscription("a").rejected] == ["bad", "last"]
    letters = tree.journal.read_stream(names.dead_letter_journal_stream("a"))
    assert [type(one.event) for one in letters] == [MessageDeadLettered] * 2
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert (runtime.stored, runtime.dead_lettered) == (2, 2)


def test_a_message_that_fails_is_held_and_its_neighbours_go_on(tree: Tree) -> None:
    tree.store.pause = 3600
    tree.create("a")
    subscription = tree.subscription("a")
    subscription.deliver([message("1"), message("2", b"fails1"), message("3")])
    tree.deliver("a", "4", "5")
    eventually(lambda: set(subscription.unsettled) == {2})
    assert tree.stored("a") == {"1", "3", "4", "5"}
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert (runtime.held, runtime.unsettled) == (1, 1)


def test_a_message_that_fails_is_tried_again_until_it_is_stored(tree: Tree) -> None:
    tree.create("a")
    tree.deliver("a", "flaky", body=b"fails4")
    tree.deliver("a", *map(str, range(20)))
    eventually(lambda: not tree.subscription("a").unsettled)
    assert "flaky" in tree.stored("a")
    assert tree.store.deliveries["a", "flaky"] == 5
    assert not tree.subscription("a").rejected


def test_a_message_that_fails_for_the_last_time_is_rejected_with_its_attempts(tree: Tree) -> None:
    tree.create("a")
    tree.deliver("a", *map(str, range(7)))
    tree.deliver("a", "poison", body=b"fails5")
    tree.deliver("a", "after")
    eventually(lambda: not tree.subscription("a").unsettled)
    assert [one.id for one in tree.subscription("a").rejected] == ["poison"]
    (letter,) = tree.journal.read_stream(names.dead_letter_journal_stream("a"))
    assert isinstance(letter.event, MessageDeadLettered)
    assert letter.event.attempts == 5


def test_what_a_worker_leaves_is_shared_out_and_acknowledged_once(tree: Tree) -> None:
    tree.create("a", workers=2)
    tree.deliver("a", *map(str, range(50)), body=b"left")
    eventually(lambda: len(tree.subscription("a").acked) == 50)
    assert sorted(tree.subscription("a").acked) == list(range(1, 51))
    assert len(tree.stored("a")) == 50


def test_a_drain_does_not_wait_for_what_is_held(tree: Tree) -> None:
    tree.store.pause = 3600
    tree.create("a")
    tree.deliver("a", "flaky", body=b"fails1")
    tree.deliver("a", "1")
    eventually(lambda: set(tree.subscription("a").unsettled) == {1})
    tree.execute(PauseTenant(tenant_id="a"))
    eventually(lambda: [one.id for one in tree.subscription("a").requeued] == ["flaky"])


def test_deliveries_held_on_a_lost_channel_come_again_and_are_settled_once(tree: Tree) -> None:
    tree.store.pause = 3600
    tree.create("a")
    subscription = tree.subscription("a")
    tree.deliver("a", "flaky", body=b"fails1")
    eventually(lambda: tree.board.tenant("a").held == 1)
    subscription.lose()
    eventually(lambda: tree.board.tenant("a").held == 0)
    tree.store.pause = 0
    subscription.connect()
    eventually(lambda: tree.stored("a") == {"flaky"} and subscription.acked == [1])


def test_a_queue_whose_prefetch_is_held_is_widened(tree: Tree) -> None:
    tree.store.pause = 3600
    tree.create("a")
    subscription = tree.subscription("a")
    tree.deliver("a", *map(str, range(120)), body=b"fails1")
    eventually(lambda: tree.board.tenant("a").held == 120)
    assert subscription.widened == [(1, subscription.queues[0])] * 2


def test_the_batch_of_a_crashed_worker_is_done_by_another(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("store a", MessageStoreError("a bug"), times=2)
    tree.deliver("a", "1", "2")
    eventually(lambda: len(tree.subscription("a").acked) == 2)
    assert tree.stored("a") == {"1", "2"}


def test_a_worker_that_exits_takes_nobody_with_it(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.faults.plan("store a", SystemExit(3))
    tree.deliver("a", "1")
    tree.deliver("b", "1")
    eventually(lambda: tree.stored("a") == tree.stored("b") == {"1"})
    assert not tree.crashes


@pytest.mark.usefixtures("_hasty")
def test_a_tenant_that_keeps_crashing_is_parked_and_its_neighbours_go_on(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.faults.plan("store a", MessageStoreError("a bug that stays"), times=1000)
    tree.deliver("a", "1")
    state = eventually(
        lambda: next((s for s in [tree.directory.get("a")] if s and s.parked), None), timeout=60
    )
    assert "a bug that stays" in str(state.parked)
    assert state.lifecycle is Lifecycle.PAUSED
    tree.deliver("b", "1")
    eventually(lambda: tree.stored("b") == {"1"})
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert runtime.parked == state.parked
    tree.faults.clear()
    tree.execute(ResumeTenant(tenant_id="a"))
    eventually(lambda: tree.stored("a") == {"1"})
    parked = [
        one.event
        for one in tree.journal.read_stream(names.journal_stream("a"))
        if isinstance(one.event, TenantParked)
    ]
    assert len(parked) == 1


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
        outcome = resize.result(10)
    assert outcome.runtime is not None
    assert outcome.runtime.workers_current == 1
    eventually(lambda: len(tree.subscription("a").acked) == 40)
    eventually(lambda: len(tree.board.tenant("a").workers) == 1)


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
        outcome = pause.result(10)
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


def test_a_tenant_created_again_is_another_and_the_former_is_out_of_its_way_before(
    tree: Tree,
) -> None:
    tree.create("a")
    tree.deliver("a", "1", "2")
    eventually(lambda: tree.store.counts("a").stored == 2)
    tree.execute(RequestDeletion(tenant_id="a", retain=True))
    tree.faults.plan("vacate", outage())
    with pytest.raises(UnavailableError):
        tree.create("a")
    tree.faults.plan("vacate", MessageStoreError("rows of others"))
    with pytest.raises(CommandFailedError, match="stands in its way: rows of others"):
        tree.create("a")
    assert tree.events("a")[-1] == "TenantDeleted"
    again = tree.create("a")
    assert again.tenant.incarnation == 2
    assert again.runtime is not None
    assert (again.runtime.incarnation, again.runtime.stored) == (2, 0)
    assert tree.store.whose["a"] == Whose(2, again.tenant.created_at)
    assert list(tree.store.retained["a", 1]) == ["1", "2"]
    tree.deliver("a", "1")
    eventually(lambda: tree.store.counts("a").stored == 1)


def test_a_refused_creation_moves_nothing_of_the_former(tree: Tree) -> None:
    tree.create("a")
    tree.execute(RequestDeletion(tenant_id="a", retain=True))
    with pytest.raises(InvalidCommandError):
        tree.create("a", workers=0)
    assert "vacate" not in tree.faults.steps


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

    def half(tenant_id: str, password: PasswordHash) -> None:
        """The broker has it, and its answer is lost."""
        monkeypatch.setattr(tree.administration, "ensure_user", set_on_broker)
        set_on_broker(tenant_id, password)
        raise error

    if step == "append":
        monkeypatch.setattr(tree.journal, "append", fail)
    else:
        monkeypatch.setattr(tree.administration, "ensure_user", half)
    with pytest.raises((UnavailableError, CommandFailedError)):
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

    def slow(tenant_id: str, password: PasswordHash) -> None:
        set_on_broker(tenant_id, password)
        monkeypatch.setattr(tree.administration, "ensure_user", set_on_broker)
        entered.set()
        gone.wait(10)

    monkeypatch.setattr(tree.administration, "ensure_user", slow)
    with pytest.raises(CommandTimeoutError):
        tree.execute(RotateCredentials(tenant_id="a"), timeout=0.0)
    entered.wait(10)
    assert tree.administration.users["a"] != shown
    gone.set()
    eventually(lambda: tree.administration.users["a"] == shown)
    assert tree.passwords.hashes["a"] == shown
    assert "CredentialsRotated" not in tree.events("a")


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
    assert reply.result(10).credentials is not None
    assert tree.administration.users["a"] == tree.passwords.hashes["a"]


def test_topics_whose_queues_could_not_be_made_are_made_and_consumed_later(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("ensure_topology", outage(), times=2)
    with pytest.raises(UnavailableError):
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


def test_deliveries_of_a_lost_channel_come_again_and_are_acknowledged_once(tree: Tree) -> None:
    tree.create("a")
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(30)))
    eventually(lambda: tree.store.inside == 3)
    subscription = tree.subscription("a")
    subscription.lose()
    assert len(subscription.requeued) == 30
    subscription.connect()
    tree.store.gate.set()
    eventually(lambda: len(subscription.acked) == 30)
    assert len(tree.stored("a")) == 30
    assert not subscription.requeued


def test_missing_queues_are_made_again(tree: Tree) -> None:
    tree.create("a")
    del tree.administration.topologies["a"]
    tree.subscription("a").lose(missing=True)
    eventually(lambda: tree.subscription("a").resubscribed == 1)
    assert "a" in tree.administration.topologies
    eventually(lambda: not tree.board.not_ready())


def test_nothing_is_acknowledged_while_the_store_is_away(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("store a", StoreUnavailableError("away"), times=4)
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: "the database refuses to store" in tree.board.not_ready())
    assert tree.subscription("a").acked == []
    eventually(lambda: len(tree.subscription("a").acked) == 20)
    eventually(lambda: not tree.board.not_ready())


def test_what_keeps_everything_from_working_makes_it_not_ready_in_its_own_words() -> None:
    board = Board()
    trouble: list[str] = []
    board.troubles = [lambda: trouble[0] if trouble else None]
    before = board.not_ready()
    trouble.append("the database stores nothing: a pooler stands before it")
    assert board.not_ready() == (*before, trouble[0])


def test_a_crashed_consumer_is_replaced_and_loses_nothing(tree: Tree) -> None:
    tree.create("a")
    consumer = tree.board.tenant("a").consumer
    assert consumer is not None
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(10)))
    consumer.tell("not a message of ours")
    eventually(lambda: tree.board.tenant("a").consumer not in {None, consumer})
    tree.store.gate.set()
    eventually(lambda: len(tree.stored("a")) == 10 and not tree.subscription("a").unsettled)
    eventually(lambda: tree.control.status().tree.children[0].children[0].restarts == 1)


def test_a_crash_of_the_supervisor_is_told_to_the_process(tree: Tree) -> None:
    tree.create("a")
    tree.supervisor.tell("not a message of ours")
    (reason,) = eventually(lambda: tree.crashes)
    assert reason == "the supervisor failed: TypeError: the supervisor can't handle str"


def test_a_restart_brings_tenants_and_workers_back(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.execute(ResizeWorkers(tenant_id="a", workers=8))
    tree.execute(PauseTenant(tenant_id="b"))
    hashes = dict(tree.passwords.hashes)
    assert tree.stop() == ()
    tree.administration.users.clear()
    tree.start()
    eventually(lambda: not tree.board.not_ready())
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert runtime.workers_current == 8
    paused = tree.control.runtime("b")
    assert paused is not None
    assert not paused.consuming
    eventually(lambda: tree.administration.users == hashes)


def test_a_start_waits_out_an_outage(tree: Tree) -> None:
    tree.create("a")
    tree.stop()
    tree.faults.plan("ensure_topology", outage(), times=3)
    tree.start()
    eventually(lambda: not tree.board.not_ready())
    assert tree.subscription("a").consuming


def test_a_drain_finishes_what_was_taken_and_refuses_commands(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: tree.store.inside == 3)
    tree.control.drain()
    eventually(lambda: tree.board.state is SystemState.DRAINING)
    with pytest.raises(UnavailableError):
        tree.create("c")
    tree.store.gate.set()
    eventually(lambda: tree.board.state is SystemState.DRAINED)
    assert len(tree.stored("a")) == 20
    assert not tree.subscription("a").requeued
    assert tree.board.not_ready()


def test_a_drain_that_takes_too_long_names_its_orphans(tree: Tree) -> None:
    tree.create("a", workers=2)
    tree.create("b")
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: tree.store.inside == 2)
    gate, tree.store.gate = tree.store.gate, threading.Event()
    orphans = drain(tree, seconds=0.2)
    gate.set()
    assert {one.tenant_id for one in orphans} == {"a"}
    assert sum(one.deliveries for one in orphans) == 20
    assert {one.actor for one in orphans} == {"worker-1", "worker-2", "consumer"}


def drain(tree: Tree, seconds: float):  # type: ignore[no-untyped-def]
    from tenantry.actors.tree import drain_and_stop

    return drain_and_stop(tree.supervisor, seconds=seconds)


@pytest.mark.usefixtures("_hasty")
def test_a_parked_tenant_stays_parked_over_a_restart_until_it_is_resumed(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("store a", MessageStoreError("a bug that stays"), times=1000)
    tree.deliver("a", "1")
    parked = eventually(lambda: (one := tree.control.runtime("a")) and one.parked_at and one)
    tree.stop()
    tree.faults.clear()
    tree.start()
    again = eventually(lambda: (one := tree.control.runtime("a")) and one.parked and one)
    assert (again.parked, again.parked_at) == (parked.parked, parked.parked_at)
    assert not again.consuming
    assert tree.board.not_ready() == ()
    assert tree.execute(ResumeTenant(tenant_id="a")).tenant.parked is None
    eventually(lambda: tree.stored("a") == {"1"})
    assert tree.events("a")[-2:] == ["TenantParked", "TenantResumed"]


@pytest.mark.usefixtures("_hasty")
def test_a_tenant_that_can_t_even_be_parked_stands_still_and_delays_nobody(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.stop()
    read = tree.journal.read_stream
    tree.journal.read_stream = lambda stream, **more: (  # type: ignore[method-assign]
        broken() if stream == names.journal_stream("a") else read(stream, **more)
    )
    tree.start()
    eventually(lambda: (one := tree.control.runtime("a")) and one.parked)
    eventually(lambda: tree.board.not_ready() == ())
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert "a row that can't be read" in str(runtime.parked)
    assert runtime.parked_at is None
    tree.deliver("b", "1")
    eventually(lambda: tree.stored("b") == {"1"})


def broken() -> NoReturn:
    raise JournalError("a row that can't be read")


@pytest.mark.usefixtures("_hasty")
def test_a_deletion_that_keeps_failing_stands_still_and_then_goes_on(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "HOPELESS", 0.1)
    tree.create("a")
    # Two lives of failures: what is being deleted can't be parked.
    tree.faults.plan("remove_topology", ZeroDivisionError("a bug"), times=8)
    with pytest.raises(UnavailableError):
        tree.execute(RequestDeletion(tenant_id="a"))
    eventually(lambda: tree.events("a")[-1] == "TenantDeleted")
    eventually(lambda: tree.control.runtime("a") is None)


def test_one_tenants_own_trouble_makes_nobody_unready_once_others_consume(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "GRACE", 0.0)
    tree.create("a")
    eventually(lambda: not tree.board.not_ready())
    taken = tree.subscription("a")

    def refuse() -> None:
        taken.generation += 1
        taken.sink.lost(taken.generation, "RESOURCE_LOCKED: exclusive", missing=False)

    for _ in range(3):
        refuse()
    eventually(tree.board.not_ready)  # nobody consumes
    tree.create("b")
    eventually(lambda: not tree.board.not_ready(), what="ready: b consumes")
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert not runtime.consuming
    assert runtime.trouble == "its queues are not consumed: RESOURCE_LOCKED: exclusive"
    # What was consuming and is not any more, as in an outage, is waited for.
    lost = tree.subscription("b")
    tree.create("c")
    lost.sink.lost(lost.generation, "connection lost", missing=False)
    eventually(lambda: "not consuming yet: b" in tree.board.not_ready())
