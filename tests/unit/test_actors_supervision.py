"""The tree of actors: failures, restarts, parking, draining."""

from __future__ import annotations

import math
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import pykka
import pytest
from structlog.testing import capture_logs

from tenantry.actors import backoff, runtime_state, tenant
from tenantry.actors.messages import DrainAll, DrainExpired, Ref
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import NoThreadError, SpareThreads, tell
from tenantry.actors.tree import drain_and_stop
from tenantry.control.port import ControlUnavailableError, ElsewhereError, SystemState
from tenantry.domain import names
from tenantry.domain.commands import PauseTenant, RequestDeletion, ResizeWorkers, ResumeTenant
from tenantry.domain.events import TenantParked
from tenantry.domain.tenant import Lifecycle
from tenantry.journal.port import JournalError
from tenantry.messages.port import MessageStoreError
from tests.fakes.actors import Tree, running_actors
from tests.fakes.faults import outage
from tests.waiting import DEADLINE, eventually


def test_the_batch_of_a_crashed_worker_is_done_by_another(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("store a", MessageStoreError("a bug"), times=2)
    tree.deliver("a", "1", "2")
    eventually(lambda: len(tree.subscription("a").acked) == 2)
    assert tree.stored("a") == {"1", "2"}


@pytest.fixture
def threads_run_out(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While this is set, the operating system lets nobody start a thread."""
    run_out = threading.Event()
    start = threading.Thread.start

    def start_if_allowed(thread: threading.Thread) -> None:
        if run_out.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_allowed)
    return run_out


def test_actors_are_not_in_a_list_that_each_end_of_an_actor_would_search(tree: Tree) -> None:
    tree.create("a")
    assert running_actors()
    assert not pykka.ActorRegistry.get_all()


def test_a_tenant_that_no_thread_is_left_for_is_refused_and_the_others_go_on(
    tree: Tree, threads_run_out: threading.Event
) -> None:
    tree.create("a")
    tree.deliver("a", "1")
    eventually(lambda: tree.stored("a") == {"1"})
    actors = len(running_actors())
    threads_run_out.set()
    with pytest.raises(ControlUnavailableError, match="no more threads can be started"):
        tree.create("b")
    assert len(running_actors()) == actors
    tree.deliver("a", "2")
    eventually(lambda: tree.stored("a") == {"1", "2"})
    threads_run_out.clear()
    tree.create("b")
    tree.deliver("b", "1")
    eventually(lambda: tree.stored("b") == {"1"})
    assert not tree.crashes


def test_too_few_spare_threads_are_noticed_and_not_looked_for_at_each_start(
    threads_run_out: threading.Event,
) -> None:
    spare = SpareThreads()
    spare.check(0.0)
    threads_run_out.set()
    for _ in range(SpareThreads.EVERY - 1):
        spare.check(0.0)
    with pytest.raises(NoThreadError):
        spare.check(0.0)
    threads_run_out.clear()
    with pytest.raises(NoThreadError):
        spare.check(SpareThreads.PAUSE / 2)
    spare.check(SpareThreads.PAUSE)
    assert not [one for one in threading.enumerate() if one.name == "spare"]


def test_a_tenant_waits_for_a_thread_and_says_so(
    tree: Tree, threads_run_out: threading.Event
) -> None:
    tree.create("a")
    tree.create("b")
    threads_run_out.set()
    tell(tree.runtime.tenant("a").ref, "not a message of a tenant's")
    runtime = eventually(lambda: (one := tree.control.runtime("a")) and one.parked and one)
    assert "no more threads can be started" in str(runtime.parked)
    assert not tree.crashes
    threads_run_out.clear()
    tree.deliver("b", "1")
    eventually(lambda: tree.stored("b") == {"1"})
    eventually(lambda: tree.runtime.tenant("a").consuming)
    tree.deliver("a", "1")
    eventually(lambda: tree.stored("a") == {"1"})


def test_a_worker_waits_for_a_thread(
    tree: Tree, threads_run_out: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant, "WAIT_FOR_THREADS", 0.01)
    tree.create("a")
    threads_run_out.set()
    with capture_logs() as logged:
        tree.deliver("a", "1")
        eventually(lambda: any(one["event"] == "worker.not_started" for one in logged))
    threads_run_out.clear()
    eventually(lambda: tree.stored("a") == {"1"})
    assert tree.runtime.tenant("a").restarts == 0


def test_a_command_that_comes_too_early_is_told_to_ask_again(tree: Tree) -> None:
    tree.create("a")
    tree.runtime.state = SystemState.STARTING
    with pytest.raises(ElsewhereError, match="is starting"):
        tree.execute(PauseTenant(tenant_id="a"))
    tree.runtime.state = SystemState.RUNNING
    tree.execute(PauseTenant(tenant_id="a"))


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
    state = eventually(lambda: next((s for s in [tree.directory.get("a")] if s and s.parked), None))
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


def test_what_keeps_everything_from_working_makes_it_not_ready_in_its_own_words() -> None:
    runtime = RuntimeState()
    trouble: list[str] = []
    runtime.troubles = [lambda: trouble[0] if trouble else None]
    before = runtime.not_ready()
    trouble.append("the database stores nothing: a pooler stands before it")
    assert runtime.not_ready() == (*before, trouble[0])


def test_only_a_tenant_s_present_actor_has_a_say_in_whether_the_system_is_ready() -> None:
    runtime = RuntimeState()
    runtime.state = SystemState.RUNNING
    for one in "ab":
        runtime.tenant(one).consuming = True
    assert runtime.not_ready() == ()
    former = runtime.tenant("a")
    runtime.renew("a").waiting_since = -math.inf
    assert runtime.not_ready() == ("not consuming yet: a",)
    runtime.tenant("a").consuming = True
    former.consuming = False
    former.store_down = True
    assert runtime.not_ready() == ()
    runtime.tenant("b").store_down = True
    assert runtime.not_ready() == ("the database refuses to store",)
    runtime.forget("b")
    assert runtime.not_ready() == ()


def test_a_tenant_that_is_resumed_has_a_moment_to_consume_before_it_counts(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.create("a")
    tree.execute(PauseTenant(tenant_id="a"))
    assert eventually(lambda: tree.runtime.not_ready() == ())
    tree.runtime.tenant("a").waiting_since = -math.inf
    seen: list[tuple[str, ...]] = []
    real = tree.store.create_partition

    def create_partition(*args: Any) -> None:
        seen.append(tree.runtime.not_ready())
        real(*args)

    monkeypatch.setattr(tree.store, "create_partition", create_partition)
    tree.execute(ResumeTenant(tenant_id="a"))
    assert seen == [()]


def test_a_crashed_consumer_is_replaced_and_loses_nothing(tree: Tree) -> None:
    tree.create("a")
    consumer = tree.runtime.tenant("a").consumer
    assert consumer is not None
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(10)))
    consumer.tell("not a message of ours")
    eventually(lambda: tree.runtime.tenant("a").consumer not in {None, consumer})
    tree.store.gate.set()
    eventually(lambda: len(tree.stored("a")) == 10 and not tree.subscription("a").unsettled)
    eventually(lambda: tree.control.status().tree.children[0].children[0].restarts == 1)


def test_a_resize_is_answered_though_the_consumer_crashes_meanwhile(tree: Tree) -> None:
    tree.create("a", workers=3)
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(15)))
    eventually(lambda: tree.store.inside == 3)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(tree.execute, ResizeWorkers(tenant_id="a", workers=1))
        eventually(lambda: "WorkersResized" in tree.events("a"))
        consumer = tree.runtime.tenant("a").consumer
        assert consumer is not None
        consumer.tell("not a message of ours")
        assert answer.result().tenant.workers == 1
    tree.store.gate.set()


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
    eventually(lambda: not tree.runtime.not_ready())
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
    eventually(lambda: not tree.runtime.not_ready())
    assert tree.subscription("a").consuming


def test_a_drain_finishes_what_was_taken_and_refuses_commands(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: tree.store.inside == 3)
    tree.control.drain()
    eventually(lambda: tree.runtime.state is SystemState.DRAINING)
    with pytest.raises(ControlUnavailableError):
        tree.create("c")
    tree.store.gate.set()
    eventually(lambda: tree.runtime.state is SystemState.DRAINED)
    assert len(tree.stored("a")) == 20
    assert not tree.subscription("a").requeued
    assert tree.runtime.not_ready()


def test_a_drain_that_takes_too_long_names_its_orphans(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[DrainExpired] = []
    tell_later = tree.clock.tell_later

    def put_off(delay: float, ref: Ref, message: object) -> None:
        if isinstance(message, DrainExpired):
            later.append(message)
        else:
            tell_later(delay, ref, message)

    monkeypatch.setattr(tree.clock, "tell_later", put_off)
    tree.create("a", workers=2)
    tree.create("b")
    tree.store.gate.clear()
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: tree.store.inside == 2)
    gate, tree.store.gate = tree.store.gate, threading.Event()
    supervisor = tree.supervisor._actor_weakref()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(drain_and_stop, tree.supervisor, seconds=DEADLINE)
        (expired,) = eventually(lambda: later)
        # The deadline comes once everybody else has been drained.
        eventually(lambda: supervisor._undrained == {"a"})
        tell(tree.supervisor, expired)
        orphans = stopping.result(DEADLINE)
    gate.set()
    assert {one.tenant_id for one in orphans} == {"a"}
    assert sum(one.deliveries for one in orphans) == 20
    assert {one.actor for one in orphans} == {"worker-1", "worker-2", "consumer"}


class Heard(BaseException):
    """What a signal's handler raises."""


def test_a_signal_is_heard_during_a_drain_whichever_thread_it_reaches(tree: Tree) -> None:
    tree.create("a", workers=1)
    tree.store.gate.clear()
    tree.deliver("a", "1")
    eventually(lambda: tree.store.inside == 1)

    def handle(_number: int, _frame: object) -> None:
        tree.store.gate.set()
        raise Heard

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        with ThreadPoolExecutor(1) as pool:

            def interrupt() -> None:
                eventually(lambda: tree.runtime.state is not SystemState.RUNNING)
                signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

            sent = pool.submit(interrupt)
            with pytest.raises(Heard):
                drain_and_stop(tree.supervisor, seconds=3600)
            sent.result()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_deadline_of_a_drain_does_not_end_the_drain_that_took_its_place(tree: Tree) -> None:
    tree.create("a", workers=1)
    tree.store.gate.clear()
    tree.deliver("a", "1")
    eventually(lambda: tree.store.inside == 1)
    first = DrainAll(seconds=3600, stop=False, reply=Future())
    tell(tree.supervisor, first)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(drain_and_stop, tree.supervisor, seconds=DEADLINE)
        assert first.reply.result(DEADLINE) == ()
        # As the clock would, and while the tenant has its batch: the second drain goes on.
        tell(tree.supervisor, DrainExpired(drain=first))
        tree.store.gate.set()
        assert second.result(DEADLINE) == ()


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
    assert tree.runtime.not_ready() == ()
    assert tree.execute(ResumeTenant(tenant_id="a")).tenant.parked is None
    eventually(lambda: tree.stored("a") == {"1"})
    assert tree.events("a")[-2:] == ["TenantParked", "TenantResumed"]


@pytest.mark.usefixtures("_hasty")
def test_a_tenant_that_can_t_even_be_parked_stands_still_and_delays_nobody(tree: Tree) -> None:
    tree.create("a")
    tree.create("b")
    tree.stop()
    del tree.store.rows["a"]  # so that its start is more than going on
    read = tree.journal.read_stream
    tree.journal.read_stream = lambda stream, **more: (  # type: ignore[method-assign]
        broken() if stream == names.journal_stream("a") else read(stream, **more)
    )
    tree.start()
    eventually(lambda: (one := tree.control.runtime("a")) and one.parked)
    eventually(lambda: tree.runtime.not_ready() == ())
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
    with pytest.raises(ControlUnavailableError):
        tree.execute(RequestDeletion(tenant_id="a"))
    eventually(lambda: tree.events("a")[-1] == "TenantDeleted")
    eventually(lambda: tree.control.runtime("a") is None)


def test_one_tenants_own_trouble_makes_nobody_unready_once_others_consume(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_state, "GRACE", 0.0)
    tree.create("a")
    eventually(lambda: not tree.runtime.not_ready())
    taken = tree.subscription("a")

    def refuse() -> None:
        taken.generation += 1
        taken.sink.lost(taken.generation, "RESOURCE_LOCKED: exclusive", missing=False)

    for _ in range(3):
        refuse()
    eventually(tree.runtime.not_ready)  # nobody consumes
    tree.create("b")
    eventually(lambda: not tree.runtime.not_ready(), what="ready: b consumes")
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert not runtime.consuming
    assert runtime.trouble == "its queues are not consumed: RESOURCE_LOCKED: exclusive"
    # What was consuming and is not any more, as in an outage, is waited for.
    lost = tree.subscription("b")
    tree.create("c")
    lost.sink.lost(lost.generation, "connection lost", missing=False)
    eventually(lambda: "not consuming yet: b" in tree.runtime.not_ready())
