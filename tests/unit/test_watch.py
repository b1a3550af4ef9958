"""What hangs is noticed, replaced, and heard no more; what can't be replaced ends the process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tenantry.actors.reconciler import LONGEST_LOOK
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import ActorHeartbeat, heartbeat_of
from tenantry.actors.watch import LONGEST_ROUND, MOST_ABANDONED, Watch
from tenantry.domain.commands import PauseTenant, RequestDeletion, ResizeWorkers
from tenantry.domain.tenant import Lifecycle
from tenantry.loops import Heartbeat
from tenantry.messages.port import Partitions
from tenantry.metrics.recorder import Recorder
from tests.fakes.actors import Tree, running_tree
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def tree(recorder: Recorder) -> Iterator[Tree]:
    with running_tree(observer=recorder) as tree:
        yield tree


def hold(tree: Tree, body: bytes) -> threading.Event:
    """Have the store hang at a body, for whoever stores it first, and for nobody after."""
    gate = tree.store.gates[body] = threading.Event()
    return gate


def test_a_worker_that_hangs_is_replaced_and_what_it_says_later_does_not_count(
    tree: Tree, recorder: Recorder
) -> None:
    tree.create("a", workers=2)
    gate = hold(tree, b'"slow"')
    tree.deliver("a", "1", body=b'"slow"')
    eventually(lambda: tree.busy() == {"a/worker-1"})
    old = tree.runtime.tenant("a").workers["worker-1"]
    del tree.store.gates[b'"slow"']
    tree.pass_time(61)
    eventually(lambda: tree.subscription("a").acked == [1])
    eventually(lambda: not tree.runtime.tenant("a").in_flight)
    assert tree.runtime.tenant("a").workers["worker-1"] is not old
    assert +Counter(recorder.stuck()) == {"worker": 1}
    assert recorder.failures()["worker"] == 1
    tree.watch.look()
    assert [heartbeat.name for heartbeat in tree.runtime.departures.abandoned] == ["a/worker-1"]
    assert "wait" in heartbeat_of(old).where()
    before = tree.runtime.tenant("a")
    counted = before.stored, before.duplicates, before.in_flight
    gate.set()
    eventually(lambda: heartbeat_of(old).ended)
    tree.watch.look()
    assert not tree.runtime.departures.abandoned
    after = tree.runtime.tenant("a")
    assert (after.stored, after.duplicates, after.in_flight) == counted
    assert tree.subscription("a").acked == [1]
    assert tree.store.deliveries["a", "1"] == 2


def test_a_worker_within_its_own_time_is_left_alone(tree: Tree, recorder: Recorder) -> None:
    tree.create("a")
    gate = hold(tree, b'"slow"')
    tree.deliver("a", "1", body=b'"slow"')
    eventually(lambda: tree.busy() == {"a/worker-1"})
    worker = tree.runtime.tenant("a").workers["worker-1"]
    heartbeat_of(worker).beat(300)
    tree.pass_time(200)
    assert recorder.stuck()["worker"] == 0
    gate.set()
    eventually(lambda: tree.subscription("a").acked == [1])


def test_a_process_that_was_frozen_replaces_nobody(tree: Tree, recorder: Recorder) -> None:
    tree.create("a")
    gate = hold(tree, b'"slow"')
    tree.deliver("a", "1", body=b'"slow"')
    eventually(lambda: tree.busy() == {"a/worker-1"})
    tree.now += 3600
    assert tree.watch.liveness() == ()
    tree.watch.look()
    tree.pass_time(59)
    assert recorder.stuck()["worker"] == 0
    tree.pass_time(1 + LONGEST_ROUND)
    eventually(lambda: recorder.stuck()["worker"] == 1)
    gate.set()


def test_a_consumer_that_hangs_loses_its_channel_and_another_takes_over(
    tree: Tree, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.create("a")
    tree.create("b")
    first = tree.subscription("a")
    entered, gate = threading.Event(), threading.Event()

    def settle(*_: object, **__: object) -> None:
        entered.set()
        assert gate.wait(DEADLINE)
        real(*_, **__)  # type: ignore[arg-type]

    real = first.settle
    monkeypatch.setattr(first, "settle", settle)
    old = tree.runtime.tenant("a").consumer
    assert old is not None
    tree.deliver("a", "1", "2")
    assert entered.wait(DEADLINE)
    eventually(lambda: tree.busy() == {"a/consumer"})
    tree.pass_time(61)
    second = eventually(lambda: (now := tree.subscription("a")) is not first and now)
    eventually(lambda: len(second.acked) == 2)
    assert not first.open
    gate.set()
    eventually(lambda: heartbeat_of(old).ended)
    assert first.acked == []
    runtime = tree.control.runtime("a")
    assert runtime is not None
    assert (runtime.stored, runtime.duplicates, runtime.consuming) == (2, 2, True)
    assert +Counter(recorder.stuck()) == {"consumer": 1}
    assert tree.runtime.tenant("b").restarts == 0


def test_a_tenant_that_hangs_is_replaced_with_everything_below_it(
    tree: Tree, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.create("a")
    tree.deliver("a", "1")
    eventually(lambda: tree.subscription("a").acked == [1])
    first, runtime = tree.subscription("a"), tree.runtime.tenant("a")
    old = [runtime.ref, runtime.consumer, *runtime.workers.values()]
    entered, gate = threading.Event(), threading.Event()
    real = tree.journal.append

    def append(*arguments: Any, **more: Any) -> Any:
        if not entered.is_set():
            entered.set()
            assert gate.wait(DEADLINE)
        return real(*arguments, **more)

    monkeypatch.setattr(tree.journal, "append", append)
    refused: list[BaseException] = []

    def resize() -> None:
        try:
            tree.execute(ResizeWorkers(tenant_id="a", workers=7), timeout=DEADLINE)
        except Exception as error:  # noqa: BLE001
            refused.append(error)

    asking = threading.Thread(target=resize)
    asking.start()
    assert entered.wait(DEADLINE)
    eventually(lambda: tree.busy() == {"a/tenant"})
    tree.pass_time(61)
    eventually(lambda: tree.subscription("a") is not first and tree.runtime.tenant("a").consuming)
    assert not first.open
    tree.deliver("a", "2")
    eventually(lambda: tree.stored("a") == {"1", "2"})
    assert tree.execute(PauseTenant(tenant_id="a")).tenant.lifecycle is Lifecycle.PAUSED
    gate.set()
    asking.join(DEADLINE)
    assert refused, "the one who asked is answered"
    eventually(lambda: all(ref is not None and heartbeat_of(ref).ended for ref in old))
    assert tree.events("a")[-1] == "TenantPaused"  # the other's append came too late
    assert recorder.stuck()["tenant"] == 1


def test_a_reconciler_that_hangs_is_replaced_and_counted(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_tree(observer=recorder, look_every=0.02) as tree:
        entered, gate = threading.Event(), threading.Event()
        real = tree.store.partitions

        def partitions() -> Partitions:
            if not entered.is_set():
                entered.set()
                assert gate.wait(DEADLINE)
            return real()

        monkeypatch.setattr(tree.store, "partitions", partitions)
        assert entered.wait(DEADLINE)
        old = tree.runtime.reconciler
        tree.pass_time(LONGEST_LOOK + 1)
        eventually(lambda: tree.runtime.reconciler not in {None, old})
        gate.set()
        assert +Counter(recorder.stuck()) == {"reconciler": 1}
        assert recorder.failures()["reconciler"] == 1


def test_a_loop_that_ends_or_hangs_is_named() -> None:
    runtime, later = RuntimeState(), [0.0]
    watch = Watch(runtime, now=lambda: later[0])
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    release = threading.Event()
    waiting = threading.Thread(target=release.wait, daemon=True)
    waiting.start()
    heartbeat = Heartbeat()
    watch.add("one", waiting, heartbeat)
    assert watch.liveness() == ()
    heartbeat._latest = 0.0, None
    for later[0] in range(0, 60, 4):
        watch.look()
    assert watch.liveness() == ()
    later[0] = 61
    assert watch.liveness() == ("the thread one has hung for 61 s",)
    heartbeat.rest()
    watch.add("two", ended)
    assert watch.liveness() == ("the thread two has ended",)
    release.set()
    waiting.join()


def test_too_many_threads_that_can_t_be_ended_end_the_process() -> None:
    runtime = RuntimeState()
    watch = Watch(runtime)
    runtime.departures.abandoned = tuple(
        ActorHeartbeat(f"t/worker-{n}") for n in range(MOST_ABANDONED)
    )
    assert watch.liveness() == ()
    runtime.departures.abandoned += (ActorHeartbeat("t/worker-99"),)
    assert watch.liveness() == ("17 threads of replaced actors hang",)


def test_what_is_held_is_given_back_at_a_fence_whichever_comes_first() -> None:
    given_back: list[str] = []
    heartbeat = ActorHeartbeat("a/consumer")
    heartbeat.on_fence(lambda: given_back.append("before"))
    heartbeat.fence()
    heartbeat.fence()
    heartbeat.on_fence(lambda: given_back.append("after"))
    heartbeat.unless_fenced(lambda: given_back.append("a word"))
    assert given_back == ["before", "after"]


def test_an_actor_that_has_ended_is_held_by_nobody(tree: Tree) -> None:
    tree.create("a")
    ref = tree.runtime.tenant("a").consumer
    assert ref is not None
    actor = ref._actor_weakref
    assert actor() is not None
    tree.execute(PauseTenant(tenant_id="a"))
    eventually(lambda: heartbeat_of(ref).ended)
    tree.watch.look()
    eventually(lambda: actor() is None)
    ref = tree.runtime.tenant("a").ref
    assert ref is not None
    actor = ref._actor_weakref
    tree.execute(RequestDeletion(tenant_id="a"))
    eventually(lambda: heartbeat_of(ref).ended)
    tree.watch.look()
    eventually(lambda: actor() is None)
