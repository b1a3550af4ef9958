"""The tree of actors: what becomes of deliveries."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest

from tenantry.domain import names
from tenantry.domain.commands import CreateTenant, PauseTenant
from tenantry.domain.events import MessageDeadLettered, MessageIdsReused
from tenantry.domain.topics import Ordering, Topic
from tenantry.messages.port import NOTHING, Incoming, StoreResult, StoreUnavailableError, Tried
from tests.fakes.actors import Tree
from tests.fakes.consuming import FakeSubscription
from tests.fakes.messages import incoming
from tests.waiting import eventually


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
    bad = incoming("bad", b"bad")
    tree.subscription("a").deliver([incoming("1"), bad, incoming("2"), bad._replace(id="last")])
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
    subscription.deliver([incoming("1"), incoming("2", b"fails1"), incoming("3")])
    tree.deliver("a", "4", "5")
    eventually(lambda: set(subscription.unsettled) == {2})
    assert tree.stored("a") == {"1", "3", "4", "5"}
    eventually(lambda: held_and_unsettled(tree) == (1, 1))


def held_and_unsettled(tree: Tree) -> tuple[int, int]:
    """Give what is shown of a tenant's deliveries: a moment after the broker has been told."""
    runtime = tree.control.runtime("a")
    assert runtime is not None
    return runtime.held, runtime.unsettled


def create_in_order(tree: Tree) -> FakeSubscription:
    orders = Topic(name="orders", ordering=Ordering.PARTITION)
    command = CreateTenant(
        tenant_id="a", name="a", workers=3, topics=(orders, "events"), partitions=2
    )
    tree.execute(command)
    return tree.subscription("a")


def of(topic: str, partition: int, identity: str, body: bytes = b"{}") -> Incoming:
    return incoming(identity, body)._replace(topic=topic, partition=partition)


def test_in_order_a_message_that_is_held_holds_those_behind_it_and_nobody_else(tree: Tree) -> None:
    tree.store.pause = 3600
    subscription = create_in_order(tree)
    batch = [of("orders", number % 2, f"o{number}") for number in range(20)]
    batch[4] = batch[4]._replace(body=b"fails1")
    subscription.deliver([*batch, *(of("events", 0, f"e{number}") for number in range(20))])
    behind = {f"o{number}" for number in range(4, 20, 2)}
    eventually(lambda: {one.id for one in list(subscription.unsettled.values())} == behind)
    assert tree.stored("a").isdisjoint(behind)
    eventually(lambda: held_and_unsettled(tree) == (8, 8))


def test_in_order_a_partition_is_stored_as_it_was_published_through_retries_and_lost_channels(
    tree: Tree,
) -> None:
    subscription = create_in_order(tree)
    for start in range(0, 60, 20):
        subscription.deliver(
            [
                of("orders", number % 2, f"{number:02}", b"fails2" if number % 7 == 0 else b"{}")
                for number in range(start, start + 20)
            ]
        )
        if start == 20:
            subscription.lose()
            subscription.connect()
    eventually(lambda: len(tree.stored("a")) == 60)
    eventually(lambda: not subscription.unsettled)
    stored = [int(one) for one in tree.store.rows["a"]]
    assert [one for one in stored if one % 2] == list(range(1, 60, 2))
    assert [one for one in stored if not one % 2] == list(range(0, 60, 2))


def test_in_order_a_dead_letter_lets_the_next_one_pass_and_says_so(tree: Tree) -> None:
    subscription = create_in_order(tree)
    subscription.deliver(
        [of("orders", 0, "1"), of("orders", 0, "2", b"fails5"), of("orders", 0, "3")]
    )
    eventually(lambda: not subscription.unsettled)
    assert list(tree.store.rows["a"]) == ["1", "3"]
    subscription.deliver([of("events", 0, "4", b"bad")])
    eventually(lambda: not subscription.unsettled)
    letters = tree.journal.read_stream(names.dead_letter_journal_stream("a"))
    told = [(one.event.message_id, one.event.ordered) for one in letters]  # type: ignore[union-attr]
    assert told == [("2", True), ("4", False)]


def test_in_order_a_drain_does_not_wait_for_what_is_held_nor_for_those_behind(tree: Tree) -> None:
    tree.store.pause = 3600
    subscription = create_in_order(tree)
    subscription.deliver([of("orders", 0, "1", b"fails1"), of("orders", 0, "2")])
    eventually(lambda: tree.runtime.tenant("a").held == 2)
    tree.execute(PauseTenant(tenant_id="a"))
    eventually(lambda: [one.id for one in subscription.requeued] == ["1", "2"])


def test_in_order_a_batch_that_a_worker_still_has_is_not_begun_by_another(tree: Tree) -> None:
    subscription = create_in_order(tree)
    slow = tree.store.gates[b'"slow"'] = threading.Event()
    subscription.deliver([of("orders", 0, "1", b'"slow"')])
    eventually(lambda: tree.store.inside == 1)
    subscription.lose()
    subscription.connect()
    subscription.deliver([of("orders", 1, "2")])
    eventually(lambda: tree.stored("a") == {"2"})
    assert tree.store.inside == 1
    eventually(lambda: held_and_unsettled(tree) == (0, 1))
    slow.set()
    eventually(lambda: tree.store.deliveries["a", "1"] == 2 and not subscription.unsettled)


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


def test_a_batch_whose_turn_has_not_come_is_given_out_again_as_it_is(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    mores: list[bool] = []
    store = tree.store.store

    def in_turn(
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,
        *,
        in_order: bool = False,
        more: bool = False,
        beside: bool = False,
    ) -> StoreResult:
        sizes.append(len(batch))
        mores.append(more)
        if len(sizes) == 1:
            return StoreResult(stored=0, duplicates=0, left=tuple(range(len(batch))))
        return store(tenant_id, batch, again, in_order=in_order)

    monkeypatch.setattr(tree.store, "store", in_turn)
    tree.create("a", workers=3)
    tree.deliver("a", *map(str, range(5)))
    eventually(lambda: len(tree.subscription("a").acked) == 5)
    assert sizes == [5, 5]
    assert mores == [True, True]
    assert len(tree.stored("a")) == 5


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
    eventually(lambda: tree.runtime.tenant("a").held == 1)
    subscription.lose()
    eventually(lambda: tree.runtime.tenant("a").held == 0)
    tree.store.pause = 0
    subscription.connect()
    eventually(lambda: tree.stored("a") == {"flaky"} and subscription.acked == [1])


def test_a_queue_whose_prefetch_is_held_is_widened(tree: Tree) -> None:
    tree.store.pause = 3600
    tree.create("a")
    subscription = tree.subscription("a")
    tree.deliver("a", *map(str, range(120)), body=b"fails1")
    eventually(lambda: tree.runtime.tenant("a").held == 120)
    assert subscription.widened == [(1, subscription.queues[0])] * 2


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
    eventually(lambda: not tree.runtime.not_ready())


def test_nothing_is_acknowledged_while_the_store_is_away(tree: Tree) -> None:
    tree.create("a")
    tree.faults.plan("store a", StoreUnavailableError("away"), times=1000)
    tree.deliver("a", *(str(number) for number in range(20)))
    eventually(lambda: "the database refuses to store" in tree.runtime.not_ready())
    assert tree.subscription("a").acked == []
    tree.faults.clear()
    eventually(lambda: len(tree.subscription("a").acked) == 20)
    eventually(lambda: not tree.runtime.not_ready())
