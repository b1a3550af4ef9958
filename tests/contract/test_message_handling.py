"""The store with handlers, on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from tenantry.dead_letters.port import RejectedMessage, fingerprint
from tenantry.handlers.message import Message
from tenantry.messages.port import Incoming, StoreResult, StoreUnavailableError, Tried
from tenantry.telemetry.logging import LINES
from tests.fakes.handling import TENANT, World, fails, incoming, tried
from tests.waiting import DEADLINE


def test_a_handler_sees_the_message_and_its_work_is_stored_with_it(world: World) -> None:
    store = world.store()
    result = store.store(
        TENANT,
        [
            incoming("1", {"n": 12345678901234567890123}, headers={"a": 1}),
            incoming("2", b"\xff\x00", content_type="image/png"),
            incoming(None, []),
            incoming("3", {}, topic="default"),
        ],
    )
    assert (result.stored, result.held, result.left) == (4, (), ())
    first, second, third = world.seen
    assert (first.id, first.tenant_id, first.topic, first.partition) == ("1", TENANT, "events", 0)
    assert (first.payload, first.body, first.headers) == (
        {"n": 12345678901234567890123},
        None,
        {"a": 1},
    )
    assert (second.payload, second.body, second.content_type) == (None, b"\xff\x00", "image/png")
    assert {one.attempt for one in world.seen} == {1}
    assert world.stored() == {"1", "2", "3", third.id}
    assert {identity for identity, _ in world.effects()} == {"1", "2", third.id}


def test_a_failing_handler_undoes_its_own_work_only_and_is_held(world: World) -> None:
    store = world.store(fails("4", "7"))
    result = store.store(TENANT, [incoming(str(n)) for n in range(10)])
    assert result.stored == 8
    assert [(one.index, one.tried) for one in result.held] == [
        (4, Tried(1, "handler_failed")),
        (7, Tried(1, "handler_failed")),
    ]
    assert all(1000 <= one.seconds <= 1200 for one in result.held)
    assert result.failures == ("handler_failed",) * 2
    others = {str(n) for n in range(10)} - {"4", "7"}
    assert world.stored() == others
    assert world.effects() == sorted((one, 1) for one in others)
    assert [(row["attempts"], row["reason"]) for row in world.attempts()] == [
        (1, "handler_failed")
    ] * 2
    assert "ValueError: no 4 at 1 (handling.py:" in world.attempts()[0]["last_error"]


def test_the_log_has_some_lines_of_failing_handlers_however_many_messages_fail(
    world: World,
) -> None:
    def act(message: Message, cursor: object) -> None:
        raise ValueError

    store = world.store(act)
    with capture_logs() as logs:
        result = store.store(TENANT, [incoming(str(n)) for n in range(LINES + 20)])
    assert len(result.held) == LINES + 20
    assert sum(one["event"] == "handler.failed" for one in logs) == LINES


def test_a_message_that_comes_right_in_the_end_leaves_no_trace_of_its_attempts(
    world: World,
) -> None:
    def act(message: Message, cursor: object) -> None:
        if message.attempt < 3:
            raise ValueError

    store = world.store(act)
    result = store.store(TENANT, [incoming("1")])
    result = store.store(TENANT, [incoming("1")], tried(result))
    assert result.held[0].tried == Tried(2, "handler_failed")
    assert 2000 <= result.held[0].seconds <= 2400
    result = store.store(TENANT, [incoming("1")], tried(result))
    assert (result.stored, result.held) == (1, ())
    assert [one.attempt for one in world.seen] == [1, 2, 3]
    assert world.effects() == [("1", 3)]
    assert world.attempts() == []


def test_after_the_last_attempt_a_message_is_unstorable_with_its_first_and_last_error(
    world: World,
) -> None:
    store = world.store(fails("1"))
    result = store.store(TENANT, [incoming("1"), incoming("2")])
    for _ in range(2):
        result = store.store(TENANT, [incoming("1")], tried(result))
    (verdict,) = result.unstorable
    assert (verdict.index, verdict.reason, verdict.attempts) == (0, "handler_failed", 3)
    assert "no 1 at 3" in verdict.error
    assert "no 1 at 1" in str(verdict.first_error)
    assert world.stored() == {"2"}
    # The row of attempts exists until the dead letter does.
    assert len(world.attempts()) == 1
    world.letters.add(TENANT, [RejectedMessage(incoming("1"), "handler_failed", "e", 3, "f")])
    assert world.attempts() == []
    ((letter,), _) = world.letters.page(TENANT)
    assert (letter.error, letter.first_error, letter.attempts) == ("e", "f", 3)


def test_what_was_judged_and_comes_again_is_not_handled_again(world: World) -> None:
    store = world.store()
    world.letters.add(TENANT, [RejectedMessage(incoming("1"), "handler_failed", "e", 3, "f")])
    result = store.store(TENANT, [incoming("1")], {0: None})
    (verdict,) = result.unstorable
    assert (verdict.attempts, verdict.error, verdict.first_error) == (3, "e", "f")
    assert world.seen == []


def test_duplicates_are_not_handled(world: World) -> None:
    store = world.store()
    store.store(TENANT, [incoming("1")])
    result = store.store(TENANT, [incoming("1"), incoming("2")])
    assert (result.stored, result.duplicates) == (1, 1)
    result = store.store(TENANT, [incoming("2")], {0: None})
    assert (result.stored, result.duplicates) == (0, 1)
    assert world.effects() == [("1", 1), ("2", 1)]


def test_another_content_under_a_used_id_is_told_of_and_not_handled(world: World) -> None:
    store = world.store()
    store.store(TENANT, [incoming("1")])
    result = store.store(TENANT, [incoming("2"), incoming("1", b"[7]")])
    assert (result.stored, result.duplicates, result.reused) == (1, 1, (1,))
    assert world.effects() == [("1", 1), ("2", 1)]


def test_of_two_with_one_id_in_a_batch_the_second_is_left(world: World) -> None:
    store = world.store()
    result = store.store(TENANT, [incoming("1"), incoming("1"), incoming("2")])
    assert (result.stored, result.left) == (2, (1,))
    assert world.effects() == [("1", 1), ("2", 1)]


def test_what_can_t_be_stored_is_not_handled(world: World) -> None:
    store = world.store()
    result = store.store(TENANT, [incoming("1"), incoming("2", b"{"), incoming("3")])
    assert [(one.index, one.reason) for one in result.unstorable] == [(1, "not_json")]
    assert [one.id for one in world.seen] == ["1", "3"]


def test_a_row_the_database_refuses_takes_its_handlers_work_with_it(world: World) -> None:
    store = world.store(turn=60)
    batch = [incoming(str(n), b"1e-20000" if n in (2, 5) else b"1") for n in range(8)]
    result = store.store(TENANT, batch)
    assert result.stored == 6
    assert [(one.index, one.reason) for one in result.unstorable] == [
        (2, "refused_by_database"),
        (5, "refused_by_database"),
    ]
    assert {identity for identity, _ in world.effects()} == world.stored()


def test_a_suspect_s_attempt_is_counted_before_it_is_made(world: World) -> None:
    noted: list[object] = []

    def act(message: Message, cursor: object) -> None:
        noted.append([(row["attempts"], row["reason"]) for row in world.attempts()])
        if message.attempt == 1:
            raise ValueError("not yet")

    store = world.store(act)
    result = store.store(TENANT, [incoming("1")], {0: None})
    assert result.held[0].tried == Tried(1, "handler_failed")
    world.make_due()
    result = store.store(TENANT, [incoming("1")], {0: None})
    assert (result.stored, world.attempts()) == (1, [])
    assert noted == [[(1, "worker_killed")], [(2, "worker_killed")]]
    assert [one.attempt for one in world.seen] == [1, 2]


def test_a_suspect_that_has_killed_often_enough_is_not_handled_again(world: World) -> None:
    store = world.store(attempts=2)
    with world.database.connection() as connection:
        # A killed daemon leaves only the row that it wrote before the attempt.
        connection.execute(
            "INSERT INTO tenantry.attempts VALUES"
            " (%s, %s, 2, 'worker_killed', 'first', 'last', now(), now())",
            [TENANT, _key(incoming("1"))],
        )
    result = store.store(TENANT, [incoming("1")], {0: None})
    (verdict,) = result.unstorable
    assert (verdict.reason, verdict.attempts) == ("worker_killed", 2)
    assert (verdict.first_error, verdict.error) == ("first", "last")
    assert world.seen == []


def _key(message: Incoming) -> bytes:
    return fingerprint(message)


def test_a_message_that_comes_again_before_its_pause_is_over_is_held_on(world: World) -> None:
    store = world.store(fails("1"))
    store.store(TENANT, [incoming("1")])
    result = store.store(TENANT, [incoming("1"), incoming("2")], {0: None, 1: None})
    (held,) = result.held
    assert held.tried == Tried(1, "worker_killed")
    assert 500 < held.seconds <= 1200
    assert result.failures == ()
    assert [one.id for one in world.seen] == ["1", "2"]


def test_many_that_come_again_are_tried_in_groups_and_leave_nothing_behind(world: World) -> None:
    store = world.store(turn=60)
    batch = [incoming(str(n)) for n in range(100)]
    result = store.store(TENANT, batch, dict.fromkeys(range(100)))
    assert result.stored == 100
    assert {one.attempt for one in world.seen} == {1}
    assert world.attempts() == []


def test_those_of_a_group_that_ended_with_the_daemon_are_tried_one_by_one(world: World) -> None:
    store = world.store(fails("5", error=SystemExit), turn=60)
    batch = [incoming(str(n)) for n in range(20)]
    with world.database.connection() as connection:
        for message in batch:
            connection.execute(
                "INSERT INTO tenantry.attempts VALUES"
                " (%s, %s, 0, 'worker_killed', 'x', 'x', now(), now())",
                [TENANT, _key(message)],
            )
    result = store.store(TENANT, batch, dict.fromkeys(range(20)))
    assert result.stored == 19
    assert [one.tried for one in result.held] == [Tried(1, "handler_failed")]
    assert "SystemExit" in world.attempts()[0]["first_error"]


def test_only_one_suspect_is_tried_at_a_time(world: World) -> None:
    inside, most = [0], [0]

    def act(message: Message, cursor: object) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        world.attempts()
        inside[0] -= 1

    store = world.store(act)

    def until_stored(number: int) -> StoreResult:
        # A message that waits too long for its turn is held, as in a consumer.
        while (result := store.store(TENANT, [incoming(str(number))], {0: None})).held:
            assert not result.stored
        return result

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(until_stored, range(12)))
    assert [one.stored for one in results] == [1] * 12, results
    assert most == [1]


def test_what_was_taken_out_of_the_schema_is_no_messages_fault_nor_its_workers(
    world: World,
) -> None:
    store = world.store()
    with world.database.connection() as connection:
        connection.execute("ALTER FUNCTION tenantry.store_messages RENAME TO gone")
        try:
            with pytest.raises(StoreUnavailableError, match="does not exist"):
                store.store(TENANT, [incoming("1")])
        finally:
            connection.execute("ALTER FUNCTION tenantry.gone RENAME TO store_messages")
    assert world.effects() == []
    assert world.attempts() == []
    assert store.store(TENANT, [incoming("1")]).stored == 1


def test_slow_handlers_leave_the_rest_of_a_batch_to_others(world: World) -> None:
    store = world.store(lambda message, cursor: time.sleep(0.02), turn=0.05)
    batch = [incoming(str(n)) for n in range(30)]
    result = store.store(TENANT, batch)
    assert 0 < result.stored < 30
    assert result.left == tuple(range(result.stored, 30))
    assert len(world.stored()) == result.stored


def test_workers_handle_side_by_side(world: World) -> None:
    together = threading.Barrier(3)
    store = world.store(lambda message, cursor: together.wait(DEADLINE))
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda n: store.store(TENANT, [incoming(str(n))]), range(3))
    assert sum(one.stored for one in results) == 3


def test_a_message_that_two_workers_have_at_once_is_handled_once_for_good(world: World) -> None:
    together, met = threading.Barrier(2), threading.Event()

    def act(message: Message, cursor: object) -> None:
        if not met.is_set():
            together.wait(DEADLINE)
            met.set()

    store = world.store(act)
    batch = [incoming("1"), incoming("2")]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: store.store(TENANT, batch), range(2)))
    assert sum(one.stored for one in results) == 2
    assert sum(one.duplicates for one in results) == 2
    assert world.effects() == [("1", 1), ("2", 1)]


def test_a_deadlock_among_handlers_is_no_failure_of_theirs(world: World) -> None:
    with world.database.connection() as connection:
        connection.execute(
            "CREATE TABLE public.accounts AS SELECT n, 0 AS sum FROM generate_series(1, 2) n"
        )
    together, met = threading.Barrier(2), threading.Event()

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        for account in message.payload:
            cursor.execute("UPDATE accounts SET sum = sum + 1 WHERE n = %s", [account])
            if not met.is_set():
                together.wait(DEADLINE)
                met.set()

    store = world.store(act)
    batches = [[incoming("1", [1, 2])], [incoming("2", [2, 1])]]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda batch: store.store(TENANT, batch), batches))
    assert sum(one.stored for one in results) == 2
    assert world.attempts() == []
    assert world.effects() == [("1", 1), ("2", 1)]


def test_a_lost_connection_is_an_outage_and_not_the_handler_s_failure(world: World) -> None:
    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        with world.database.connection() as connection:
            pid = cursor.connection.info.backend_pid
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        cursor.execute("SELECT 1")

    store = world.store(act)
    with pytest.raises(StoreUnavailableError):
        store.store(TENANT, [incoming("1")])
    assert world.attempts() == []
    assert world.stored() == set()


def test_attempts_at_messages_that_never_came_again_are_swept(world: World) -> None:
    store = world.store(fails("1", "2"))
    store.store(TENANT, [incoming("1"), incoming("2")])
    with world.database.connection() as connection:
        connection.execute(
            "UPDATE tenantry.attempts SET updated_at = now() - interval '8 days' WHERE key = %s",
            [_key(incoming("1"))],
        )
    assert store.sweep() == 1
    assert [bytes(row["key"]) for row in world.attempts()] == [_key(incoming("2"))]
    world.plain.drop_partition(TENANT, retain=True)
    assert world.attempts() == []
