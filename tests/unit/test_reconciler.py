"""What has changed behind the daemon's back is seen, made right, recorded; nothing else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tenantry.actors import reconciler
from tenantry.actors.messages import Drifted, Ref
from tenantry.actors.ports import Observer
from tenantry.actors.supervision import tell
from tenantry.broker.port import BrokerError, PasswordHash
from tenantry.broker.survey import Drift, DriftKind, Survey
from tenantry.domain import names
from tenantry.domain.commands import PauseTenant, RequestDeletion
from tenantry.domain.events import DriftRepaired
from tenantry.messages.port import StoreUnavailableError
from tests.fakes.actors import Tree, running_tree
from tests.fakes.faults import outage
from tests.waiting import DEADLINE, eventually

OFTEN = 0.02


class Watching(Observer):
    def __init__(self) -> None:
        self.drift: Counter[tuple[str, str]] = Counter()

    def drifted(self, kind: str, outcome: str) -> None:
        self.drift[kind, outcome] += 1


@pytest.fixture
def observer() -> Watching:
    return Watching()


@pytest.fixture
def tree(observer: Watching) -> Iterator[Tree]:
    with running_tree(observer=observer, look_every=OFTEN) as tree:
        yield tree


def repairs(tree: Tree, tenant_id: str) -> list[DriftRepaired]:
    recorded = tree.journal.read_stream(names.journal_stream(tenant_id))
    return [one.event for one in recorded if isinstance(one.event, DriftRepaired)]


def look_again(tree: Tree, times: int = 3) -> None:
    """Wait until everything was compared so many times more."""
    before = tree.faults.steps.count("partitions")
    eventually(lambda: tree.faults.steps.count("partitions") >= before + times)


def test_what_is_as_it_should_be_is_left_alone(tree: Tree, observer: Watching) -> None:
    tree.create("a", topics=("events",))
    before = tree.events("a")
    look_again(tree)
    assert tree.events("a") == before
    assert not observer.drift


def test_what_many_have_lost_at_once_is_made_right_some_at_a_time(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant_id in "abcde":
        tree.create(tenant_id)
    monkeypatch.setattr(reconciler, "AT_ONCE", 2)
    monkeypatch.setattr(reconciler, "REPAIRS_PER_SECOND", 20.0)
    later: list[tuple[float, str]] = []
    real = tree.clock.tell_later

    def tell_later(delay: float, ref: Ref, message: object) -> None:
        if isinstance(message, Drifted):
            later.append((round(delay, 2), message.tenant_id))
        real(delay, ref, message)

    monkeypatch.setattr(tree.clock, "tell_later", tell_later)
    tree.administration.users.clear()
    for tenant_id in "abcde":
        assert eventually(lambda tenant_id=tenant_id: repairs(tree, tenant_id))
    assert later[:3] == [(0.0, "c"), (0.05, "d"), (0.1, "e")]


class Counted(dict[str, Mapping[str, object]]):
    """Queues that count how often somebody goes through all of them."""

    rounds = 0

    def __iter__(self) -> Iterator[str]:
        self.rounds += 1
        return super().__iter__()


def test_a_look_at_many_tenants_goes_through_all_queues_as_often_as_at_a_few(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tree.administration.survey
    looks: list[Counted] = []

    def survey() -> Survey:
        seen = real()
        looks.append(Counted(seen.queues))
        return replace(seen, queues=looks[-1])

    monkeypatch.setattr(tree.administration, "survey", survey)
    for tenant_id in "abcdefgh":
        tree.create(tenant_id, topics=("events",))
    look_again(tree)
    assert len(looks[-2]) >= 16
    assert looks[-2].rounds <= 3


def test_a_lost_user_is_made_again_with_its_password(tree: Tree, observer: Watching) -> None:
    tree.create("a")
    password = tree.administration.users.pop("a")
    repaired = eventually(lambda: repairs(tree, "a"))
    assert tree.administration.users["a"] == password
    assert repaired[0].kinds == ("user",)
    assert repaired[0].found == ("user tenant_a_producer was missing",)
    assert observer.drift["user", "repaired"] == 1


def test_what_two_looks_have_seen_is_repaired_once(observer: Watching) -> None:
    with running_tree(observer=observer) as tree:
        tree.create("a")
        tree.administration.users.pop("a")
        lost = Drift(kind=DriftKind.USER, found="user tenant_a_producer was missing")
        seen = Drifted(tenant_id="a", drift=(lost,), seen_at=tree.clock.now())
        tell(tree.supervisor, seen)
        tell(tree.supervisor, seen)
        tree.execute(PauseTenant(tenant_id="a"))
        assert observer.drift == {("user", "repaired"): 1}


def test_a_password_that_somebody_else_has_set_is_set_back_and_nobody_stays_in_by_it(
    tree: Tree,
) -> None:
    tree.create("a")
    password = tree.administration.users["a"]
    tree.administration.users["a"] = PasswordHash(value="another")
    assert eventually(lambda: repairs(tree, "a"))[0].kinds == ("password",)
    assert tree.administration.users["a"] == password
    assert tree.administration.ended == ["a"]


def test_all_that_is_lost_at_once_is_one_event(tree: Tree) -> None:
    tree.create("a", topics=("events",))
    del tree.store.rows["a"]
    del tree.administration.topologies["a"]
    kinds: set[str] = set()
    eventually(lambda: kinds.update(*(one.kinds for one in repairs(tree, "a"))) or len(kinds) == 4)
    assert kinds == {"partition", "exchange", "queue", "binding"}
    assert "a" in tree.store.rows
    assert "a" in tree.administration.topologies


def test_a_paused_tenant_is_kept_whole_too(tree: Tree) -> None:
    tree.create("a")
    tree.execute(PauseTenant(tenant_id="a"))
    del tree.administration.users["a"]
    eventually(lambda: repairs(tree, "a"))
    assert "a" in tree.administration.users


def test_a_repair_that_fails_is_tried_again_and_recorded_once(
    tree: Tree, observer: Watching
) -> None:
    tree.create("a")
    tree.faults.plan("ensure_user", BrokerError("no"), times=3)
    del tree.administration.users["a"]
    eventually(lambda: repairs(tree, "a"))
    assert observer.drift["user", "failed"] == 3
    assert len(repairs(tree, "a")) == 1


def test_a_repair_that_somebody_undoes_again_and_again_is_recorded_once(
    tree: Tree, observer: Watching
) -> None:
    tree.create("a")
    for round_ in range(1, 4):
        del tree.administration.users["a"]
        eventually(lambda done=round_: observer.drift["user", "repaired"] >= done)
    look_again(tree)
    assert len(repairs(tree, "a")) == 1


def test_what_is_left_of_a_deleted_tenant_is_removed(tree: Tree) -> None:
    tree.create("a")
    topology, user = tree.administration.topologies["a"], tree.administration.users["a"]
    tree.execute(RequestDeletion(tenant_id="a"))
    tree.administration.topologies["a"] = topology
    tree.administration.users["a"] = user
    tree.store.rows["a"] = {}
    repaired = eventually(lambda: repairs(tree, "a"))
    assert repaired[0].kinds == ("leftover",)
    assert "user tenant_a_producer was left" in repaired[0].found
    assert not tree.administration.topologies
    assert not tree.administration.users
    assert not tree.store.rows
    eventually(lambda: "a" not in tree.runtime.tenants)
    assert tree.create("a").tenant.exists


def test_what_is_retained_of_a_deleted_tenant_is_no_leftover(
    tree: Tree, observer: Watching
) -> None:
    tree.create("a")
    tree.execute(RequestDeletion(tenant_id="a", retain=True))
    look_again(tree)
    assert "a" in tree.store.rows
    assert not observer.drift


def test_what_belongs_to_a_tenant_the_journal_does_not_know_is_only_reported(
    tree: Tree, observer: Watching
) -> None:
    tree.create("a")
    tree.administration.users["stranger"] = PasswordHash(value="x")
    eventually(lambda: observer.drift["leftover", "reported"])
    look_again(tree)
    assert "stranger" in tree.administration.users
    assert observer.drift == {("leftover", "reported"): 1}


def test_an_outage_while_looking_changes_nothing(tree: Tree, observer: Watching) -> None:
    tree.create("a")
    tree.faults.plan("survey", outage(), times=3)
    tree.faults.plan("partitions", StoreUnavailableError("away"), times=3)
    look_again(tree, times=5)
    assert not observer.drift
    assert tree.events("a") == ["TenantCreated", "TenantProvisioned"]


def test_a_mistake_while_looking_stops_nobody_and_it_looks_again(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("survey", RuntimeError("a mistake"))
    del tree.administration.users["a"]
    eventually(lambda: repairs(tree, "a"))
    assert not tree.crashes


def test_what_was_lost_while_the_daemon_was_down_is_recorded_at_its_start() -> None:
    with running_tree() as tree:
        tree.create("a")
        tree.create("b")
        tree.stop()
        del tree.administration.users["a"]
        tree.start()
        repaired = eventually(lambda: repairs(tree, "a"))
        assert repaired[0].kinds == ("user",)
        assert not repairs(tree, "b")


def test_a_queue_lost_under_its_consumer_is_recorded_when_it_is_there_again(tree: Tree) -> None:
    tree.create("a")
    tree.subscription("a").lose(missing=True)
    assert eventually(lambda: repairs(tree, "a"))[0].kinds == ("queue",)
    eventually(lambda: tree.runtime.tenants["a"].consuming)


def test_a_silent_queue_of_a_tenant_nobody_could_use_yet_is_made_anew() -> None:
    def broker_is_down(tree: Tree) -> None:
        tree.broker.up = False

    with running_tree(broker_is_down) as tree, ThreadPoolExecutor(1) as pool:
        creating = pool.submit(tree.create, "a")
        subscription = eventually(lambda: tree.broker.subscriptions.get("a"))
        subscription.sink.silent(("tenant_a_queue",))
        eventually(lambda: "remove_topology" in tree.faults.steps)
        assert eventually(lambda: repairs(tree, "a"))[0].kinds == ("silent",)
        assert creating.result(DEADLINE).credentials is not None
        assert subscription.resubscribed == 1


def test_a_silent_queue_that_may_hold_messages_is_only_reported(
    tree: Tree, observer: Watching
) -> None:
    tree.create("a")
    tree.subscription("a").sink.silent(("tenant_a_queue",))
    eventually(lambda: observer.drift["silent", "reported"])
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert runtime.trouble == "queues do not answer: tenant_a_queue"
    assert "remove_topology" not in tree.faults.steps
    assert not repairs(tree, "a")
