"""The store with handlers of ordered partitions, on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenantry.actors.lanes import Lanes, Pause
from tenantry.broker.port import Delivery
from tenantry.dead_letters.port import fingerprint
from tenantry.handlers.attempts import Attempts, Note
from tenantry.handlers.message import Message
from tenantry.handlers.store import HandlingStore
from tenantry.messages.port import Incoming, StoreResult
from tests.fakes.handling import TENANT, World, fails, incoming
from tests.waiting import DEADLINE


def of(partition: int, identity: str | None, **more: Any) -> Incoming:
    return incoming(identity, {}, **more)._replace(partition=partition)


def seen(world: World) -> list[str]:
    return [one.id for one in world.seen]


def stored_in_order(world: World) -> list[str]:
    return [row.id for row in world.plain.page(TENANT, limit=1000)]


def indexes(result: StoreResult) -> tuple[list[int], list[int]]:
    """Return the indexes of the held messages, and of those left."""
    return [one.index for one in result.held], list(result.left)


@pytest.mark.parametrize("bare", [True, False], ids=["before its work", "after its work"])
def test_what_stands_behind_a_failure_in_its_partition_is_left_and_nothing_else(
    world: World, bare: bool
) -> None:
    store = world.store(fails("a2"), bare=bare)
    batch = [of(partition, f"{'ab'[partition]}{n}") for n in range(1, 5) for partition in (0, 1)]
    result = store.store(TENANT, batch, in_order=True)
    assert indexes(result) == ([2], [4, 6])
    assert stored_in_order(world) == ["a1", "b1", "b2", "b3", "b4"]
    if not bare:
        assert {"a3", "a4"}.isdisjoint(seen(world))
        assert [one for one, _ in world.effects()] == ["a1", "b1", "b2", "b3", "b4"]


def test_what_stands_before_one_that_hangs_is_left_with_it_and_goes_first_the_next_time(
    world: World,
) -> None:
    wake = threading.Event()

    def hang(message: Message, cursor: object) -> None:
        if message.id == "a2":
            wake.wait(DEADLINE)

    # Long enough for a handler that returns at once, however busy the machine.
    store = world.store(hang, timeout=1.0)
    batch = [of(0, "a1"), of(0, "a2"), of(0, "a3")]
    try:
        result = store.store(TENANT, batch, in_order=True)
        assert indexes(result) == ([1], [0, 2])
        assert stored_in_order(world) == []
        result = store.store(TENANT, [batch[0]], in_order=True)
        assert result.stored == 1
    finally:
        wake.set()


def test_the_second_of_two_with_one_id_stops_its_partition_until_it_is_a_duplicate(
    world: World,
) -> None:
    store = world.store()
    batch = [of(0, "a1"), of(0, "a1"), of(0, "a2"), of(1, "b1")]
    result = store.store(TENANT, batch, in_order=True)
    assert indexes(result) == ([], [1, 2])
    result = store.store(TENANT, batch[1:3], in_order=True)
    assert (result.stored, result.duplicates) == (1, 1)
    assert stored_in_order(world) == ["a1", "b1", "a2"]


def test_what_comes_again_is_tried_in_its_place(world: World) -> None:
    store = world.store()
    batch = [of(0, str(n)) for n in range(20)]
    result = store.store(TENANT, batch, dict.fromkeys(range(12)), in_order=True)
    assert result.stored == 20
    assert stored_in_order(world) == seen(world) == [str(n) for n in range(20)]


def test_those_behind_a_failure_in_a_group_that_comes_again_are_no_suspects_for_it(
    world: World,
) -> None:
    store = world.store(fails("5"))
    batch = [of(0, str(n)) for n in range(12)]
    result = store.store(TENANT, batch, dict.fromkeys(range(12)), in_order=True)
    assert indexes(result) == ([5], list(range(6, 12)))
    assert [(row["attempts"], row["reason"]) for row in world.attempts()] == [(1, "handler_failed")]


def test_one_that_comes_again_before_its_pause_is_over_holds_those_behind_it(
    world: World,
) -> None:
    store = world.store()
    batch = [of(0, "a1"), of(0, "a2"), of(0, "a3"), of(1, "b1")]
    with world.database.connection() as connection:
        note = Note(fingerprint(batch[1]), 1, "handler_failed", "e", 60.0)
        Attempts().note(connection, TENANT, [note])
    result = store.store(TENANT, batch, {0: None, 1: None}, in_order=True)
    assert indexes(result) == ([1], [2])
    assert stored_in_order(world) == ["a1", "b1"]


def test_a_flaw_and_a_row_that_is_refused_let_the_next_one_pass(world: World) -> None:
    store = world.store()
    flawed = of(0, "a2")._replace(body=b"no json", content_type="application/json")
    refused = of(0, "a3")._replace(body=b"1e-20000")
    result = store.store(TENANT, [of(0, "a1"), flawed, refused, of(0, "a4")], in_order=True)
    assert [one.index for one in result.unstorable] == [1, 2]
    assert stored_in_order(world) == ["a1", "a4"]


FATES = st.sampled_from(["well", "well", "well", "before", "after"])


Plan = Sequence[tuple[int, str, int]]


def test_each_partition_is_handled_and_stored_as_it_was_published_whatever_fails(
    world: World,
) -> None:
    fate: dict[str, tuple[str, int]] = {}

    def act(message: Message, cursor: Any) -> None:
        kind, times = fate[message.id]
        if kind == "before" and message.attempt <= times:
            raise ValueError
        cursor.execute("INSERT INTO effects VALUES (%s, %s)", [message.id, message.attempt])
        if kind == "after" and message.attempt <= times:
            raise ValueError

    store = world.store(act, bare=True)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), FATES, st.integers(1, 4)), max_size=14))
    def law(plan: Plan) -> None:
        world.renew()
        fate.clear()
        fate.update({str(n): (kind, times) for n, (_, kind, times) in enumerate(plan)})
        dead = work_off(store, plan)
        assert dead == {one for one, (kind, times) in fate.items() if kind != "well" and times >= 3}
        rows = world.plain.page(TENANT, limit=1000)
        for partition in range(3):
            published = [str(n) for n, (of_it, _, _) in enumerate(plan) if of_it == partition]
            expected = [one for one in published if one not in dead]
            assert [row.id for row in rows if row.partition == partition] == expected
        assert world.handled() == [row.id for row in rows]

    law()


def work_off(store: HandlingStore, plan: Plan) -> set[str]:
    """Store all that the lanes give out; retry failures at once; return what can't be stored."""
    lanes = Lanes([("events", partition) for partition in range(3)])
    lanes.take_in(
        Delivery(number + 1, False, of(partition, str(number)))
        for number, (partition, _, _) in enumerate(plan)
    )
    dead: set[str] = set()
    while lanes.ready:
        cut = lanes.cut(most=6, most_bytes=10**6, places=2)
        again = {index: one for index, one in enumerate(cut.tried) if one is not None}
        messages = [one.message for one in cut.deliveries]
        result = store.store(TENANT, messages, again, in_order=True)
        kept: dict[int, Pause | None] = {cut.deliveries[index].tag: None for index in result.left}
        for one in result.held:
            kept[cut.deliveries[one.index].tag] = Pause(one.tried, 0.0)
        dead |= {str(messages[one.index].id) for one in result.unstorable}
        lanes.done(cut.ticket, kept)
        lanes.wake(0.0)
    return dead
