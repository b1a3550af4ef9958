"""What the store does with handlers, on a real PostgreSQL."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tenantry.database.pool import Database
from tenantry.dead_letters.port import RejectedMessage, fingerprint
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.handlers.attempts import HANDLER_FAILED, RetryPolicy
from tenantry.handlers.handler_pool import HandlerPool
from tenantry.handlers.message import Handler, Message
from tenantry.handlers.store import HandlingStore
from tenantry.messages.port import Incoming, StoreResult, StoreUnavailableError, Tried
from tenantry.messages.postgres import PostgresMessageStore
from tests.waiting import eventually

TENANT = "t"
PAUSES = (10.0, 20.0, 30.0)


def incoming(
    identity: str | None = "1",
    body: object = None,
    topic: str = "events",
    content_type: str | None = "application/json",
    headers: dict[str, object] | None = None,
) -> Incoming:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming(identity, topic, 0, data, content_type, headers, None)


class World:
    """A store whose topic `events` has a handler, and the table the handler writes to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.plain = PostgresMessageStore(database)
        self.plain.create_partition(TENANT)
        self.letters = PostgresDeadLetterIndex(database)
        self.seen: list[Message] = []
        self.overruns: list[str] = []
        self._open: list[Any] = []
        with database.connection() as connection:
            connection.execute("CREATE TABLE public.effects (id text, attempt integer)")

    def store(
        self, act: Handler = lambda message, cursor: None, *, timeout: float = 20, **options: Any
    ) -> HandlingStore:
        """Make a store; the handler notes what it sees, writes a row, then does `act`.

        With `bare`, it only does `act`.
        """

        def handler(message: Message, cursor: psycopg.Cursor[Any]) -> object:
            self.seen.append(message)
            cursor.execute("INSERT INTO effects VALUES (%s, %s)", [message.id, message.attempt])
            return act(message, cursor)

        bare = options.pop("bare", False)
        database = self.database.beside(pool_size=4, statement_timeout=30, idle_timeout=60)
        database.open()
        pool = HandlerPool(places=4, timeout=timeout, on_overrun=self.overruns.append)
        self._open += [pool, database]
        self.pool = pool
        return HandlingStore(
            self.database,
            database,
            {"events": act if bare else handler},
            pool=pool,
            retry=RetryPolicy(attempts=options.pop("attempts", 3), pauses=PAUSES),
            turn=options.pop("turn", 20),
            **options,
        )

    def close(self) -> None:
        for one in self._open:
            one.close()

    def effects(self) -> list[tuple[str, int]]:
        with self.database.connection() as connection:
            rows = connection.execute(
                "SELECT id, attempt FROM public.effects ORDER BY 1, 2"
            ).fetchall()
        return [(identity, attempt) for identity, attempt in rows]

    def stored(self) -> set[str]:
        return {row.id for row in self.plain.page(TENANT, limit=1000)}

    def attempts(self) -> list[dict[str, Any]]:
        with (
            self.database.connection() as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            return cursor.execute("SELECT * FROM tenantry.attempts ORDER BY updated_at").fetchall()

    def make_due(self) -> None:
        with self.database.connection() as connection:
            connection.execute("UPDATE tenantry.attempts SET not_before = clock_timestamp()")


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    world = World(database)
    yield world
    world.close()


def fails(*ids: str, error: type[BaseException] = ValueError) -> Handler:
    def act(message: Message, cursor: object) -> None:
        if message.id in ids:
            raise error(f"no {message.id} at {message.attempt}")

    return act


def tried(result: StoreResult) -> dict[int, Tried | None]:
    return {place: one.tried for place, one in enumerate(result.held)}


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
    assert all(10 <= one.seconds <= 12 for one in result.held)
    assert result.failures == ("handler_failed",) * 2
    others = {str(n) for n in range(10)} - {"4", "7"}
    assert world.stored() == others
    assert world.effects() == sorted((one, 1) for one in others)
    assert [(row["attempts"], row["reason"]) for row in world.attempts()] == [
        (1, "handler_failed")
    ] * 2
    assert "ValueError: no 4 at 1 (test_message_handling.py:" in world.attempts()[0]["last_error"]


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
    assert 20 <= result.held[0].seconds <= 24
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
    # The row is there for as long as the letter is not.
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
        # As a killed daemon leaves it: the note before the attempt, and nothing after.
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
    assert 5 < held.seconds <= 12
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
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda n: store.store(TENANT, [incoming(str(n))], {0: None}), range(12))
        )
    assert [one.stored for one in results] == [1] * 12, results
    assert most == [1]


def test_a_handler_that_hangs_is_left_behind_and_can_do_nothing_more(world: World) -> None:
    wake, outcome = threading.Event(), []

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        if message.id == "2" and message.attempt == 1:
            wake.wait(30)
            try:
                cursor.execute("INSERT INTO effects VALUES ('late', 0)")
                cursor.connection.commit()
            except psycopg.Error as error:
                outcome.append(type(error))
                raise

    store = world.store(act, timeout=0.3)
    result = store.store(TENANT, [incoming(str(n)) for n in range(5)])
    (held,) = result.held
    assert (held.index, held.tried) == (2, Tried(1, "handler_timeout"))
    assert result.left == (0, 1, 3, 4)
    assert world.pool.abandoned == 1
    result = store.store(TENANT, [incoming(str(n)) for n in (0, 1, 3, 4)])
    assert result.stored == 4
    wake.set()
    eventually(lambda: world.pool.abandoned == 0)
    assert outcome == [psycopg.OperationalError]
    assert world.effects() == [("0", 1), ("1", 1), ("3", 1), ("4", 1)]
    result = store.store(TENANT, [incoming("2")], {0: held.tried})
    assert result.stored == 1
    assert world.effects()[2] == ("2", 2)


def test_a_statement_that_hangs_is_cancelled_on_the_server(world: World) -> None:
    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SELECT pg_sleep(600) /* hangs */")

    store = world.store(act, timeout=0.3)
    result = store.store(TENANT, [incoming("1")])
    assert result.held[0].tried == Tried(1, "handler_timeout")
    eventually(lambda: world.pool.abandoned == 0)

    def running() -> int:
        with world.database.connection() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%/* hangs */'"
                " AND state = 'active' AND pid <> pg_backend_pid()"
            ).fetchone()
        assert row is not None
        return int(row[0])

    eventually(lambda: running() == 0)


def test_too_many_hanging_handlers_are_too_many(world: World) -> None:
    wake = threading.Event()
    store = world.store(
        lambda message, cursor: wake.wait(60), timeout=0.05, attempts=100, bare=True
    )
    try:
        for number in range(17):
            assert world.overruns == []
            store.store(TENANT, [incoming(str(number))])
        assert world.overruns == ["17 threads hang in handlers"]
    finally:
        wake.set()
        eventually(lambda: world.pool.abandoned == 0)


def swallow(message: Message, cursor: psycopg.Cursor[Any]) -> None:
    with suppress(psycopg.Error):
        cursor.execute("SELECT 1/0")


async def later(message: Message, cursor: object) -> None:
    raise AssertionError("nobody awaits it")


MISUSES: dict[str, tuple[Handler, str]] = {
    "commit": (lambda m, c: c.connection.commit(), "commit"),
    "rollback": (lambda m, c: c.connection.rollback(), "rollback"),
    "COMMIT": (lambda m, c: c.execute("/* a */ commit"), "may not begin or end"),
    "ROLLBACK": (lambda m, c: c.execute(b"ROLLBACK WORK"), "may not begin or end"),
    "hidden": (lambda m, c: c.execute("SELECT 1; COMMIT"), "ended the transaction"),
    "close": (lambda m, c: c.close(), "not the handler's to close"),
    "disconnect": (lambda m, c: c.connection.close(), "closed the connection"),
    "autocommit": (lambda m, c: c.connection.set_autocommit(False), "autocommit"),
    "swallow": (swallow, "went on after an error"),
}


def unawaited(message: Message, cursor: object) -> object:
    coroutine = later(message, cursor)
    coroutine.close()  # lest Python warns, which tests take for an error
    return coroutine


MISUSES["async"] = (unawaited, "nobody awaits")


@pytest.mark.parametrize("kind", MISUSES)
def test_a_handler_that_misuses_its_cursor_fails_clearly(world: World, kind: str) -> None:
    misuse, words = MISUSES[kind]
    store = world.store(lambda m, c: misuse(m, c) if m.id == "bad" else None)
    batch = [incoming("1"), incoming("bad"), incoming("2")]
    results = [store.store(TENANT, batch)]
    if results[0].left:
        results.append(store.store(TENANT, [batch[n] for n in results[0].left]))
    assert sum(one.stored + one.duplicates for one in results) == 2
    assert [one.tried for one in results[0].held] == [Tried(1, "handler_failed")]
    assert words in world.attempts()[0]["last_error"]
    assert world.stored() == {"1", "2"}


@pytest.mark.parametrize("first", ["fail", "write"])
@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
def test_failures_before_and_after_a_handler_s_work_undo_that_work_and_no_other(
    world: World, first: str, every: int
) -> None:
    failing = {str(n) for n in range(0, 100, every)}

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        if first == "fail" and message.id in failing:
            raise ValueError
        cursor.execute("INSERT INTO effects VALUES (%s, 7)", [message.id])
        if message.id in failing:
            raise ValueError

    store = world.store(act, bare=True)
    result = store.store(TENANT, [incoming(str(n)) for n in range(100)])
    assert {str(one.index) for one in result.held} == failing
    good = {str(n) for n in range(100)} - failing
    assert world.stored() == good
    assert world.effects() == sorted((one, 7) for one in good)
    assert len(world.attempts()) == len(failing)


def test_json_that_python_can_t_read_is_the_message_s_failure(world: World) -> None:
    store = world.store()
    result = store.store(
        TENANT, [incoming("1"), incoming("2", b"[" * 2000 + b"]" * 2000), incoming("3")]
    )
    assert [one.tried for one in result.held] == [Tried(1, "handler_failed")]
    assert "recursion depth" in world.attempts()[0]["last_error"]
    assert world.effects() == [("1", 1), ("3", 1)]


def test_savepoints_are_a_handler_s_to_use(world: World) -> None:
    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        with cursor.connection.transaction(force_rollback=True):
            cursor.execute("INSERT INTO effects VALUES ('undone', 0)")
        cursor.execute("SAVEPOINT mine")
        cursor.execute("INSERT INTO effects VALUES ('undone', 0)")
        cursor.execute("ROLLBACK TO mine")

    assert world.store(act).store(TENANT, [incoming("1")]).stored == 1
    assert world.effects() == [("1", 1)]


def test_what_a_handler_sets_on_its_connection_is_gone_for_the_next(world: World) -> None:
    found: list[object] = []

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        cursor.execute("SHOW search_path")
        found.append(cursor.fetchone())
        cursor.execute("SET search_path = 'nowhere'")
        cursor.execute("CREATE TEMP TABLE kept (n integer)")
        cursor.execute("SELECT pg_advisory_lock(7)")
        cursor.connection.row_factory = dict_row  # type: ignore[assignment]

    store = world.store(act)
    for number in range(3):
        assert store.store(TENANT, [incoming(str(number))]).stored == 1
        # The handler's table is only found by the usual path.
    assert len({str(one) for one in found}) == 1
    with world.database.connection() as connection:
        # Nobody has it any more.
        row = connection.execute("SELECT pg_try_advisory_lock(7)").fetchone()
        assert row == (True,)


def test_a_handler_may_work_as_a_role_with_fewer_rights(world: World) -> None:
    role = f"app_{secrets.token_hex(4)}"
    with world.database.connection() as connection:
        connection.execute(f"CREATE ROLE {role}; GRANT ALL ON public.effects TO {role}".encode())

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        cursor.execute(f"SET ROLE {role}".encode())
        cursor.execute("UPDATE effects SET attempt = attempt + 1 WHERE id = %s", [message.id])

    try:
        assert world.store(act).store(TENANT, [incoming("1"), incoming("2")]).stored == 2
        assert world.effects() == [("1", 2), ("2", 2)]
    finally:
        with world.database.connection() as connection:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_what_a_deferred_constraint_refuses_is_its_own_messages_failure(world: World) -> None:
    with world.database.connection() as connection:
        connection.execute(
            "CREATE TABLE public.parents (id text PRIMARY KEY);"
            "CREATE TABLE public.children (parent text REFERENCES public.parents"
            " DEFERRABLE INITIALLY DEFERRED)"
        )

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        # The child first: what is deferred stays so for as long as a handler is at work.
        cursor.execute("INSERT INTO children VALUES (%s)", [message.id])
        if message.id not in ("3", "6"):
            cursor.execute("INSERT INTO parents VALUES (%s)", [message.id])

    result = world.store(act, turn=60).store(TENANT, [incoming(str(n)) for n in range(9)])
    assert (result.stored, [one.index for one in result.held]) == (7, [3, 6])
    assert {one.tried.reason for one in result.held if one.tried} == {HANDLER_FAILED}
    assert world.stored() == {str(n) for n in range(9)} - {"3", "6"}
    noted = world.attempts()
    assert all("children_parent_fkey" in one["last_error"] for one in noted), noted


def test_what_a_deferred_trigger_has_no_right_to_is_its_own_messages_failure(world: World) -> None:
    with world.database.connection() as connection:
        connection.execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE insufficient_privilege USING MESSAGE = 'not by you'; END $$;"
            "CREATE TABLE public.guarded (id text);"
            "CREATE CONSTRAINT TRIGGER guard AFTER INSERT ON public.guarded"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse()"
        )

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        if message.id == "1":
            cursor.execute("INSERT INTO guarded VALUES ('1')")

    result = world.store(act, turn=60).store(TENANT, [incoming(str(n)) for n in range(3)])
    assert (result.stored, [one.index for one in result.held]) == (2, [1])


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
    store = world.store(lambda message, cursor: together.wait(20))
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda n: store.store(TENANT, [incoming(str(n))]), range(3))
    assert sum(one.stored for one in results) == 3


def test_a_message_that_two_workers_have_at_once_is_handled_once_for_good(world: World) -> None:
    together, met = threading.Barrier(2), threading.Event()

    def act(message: Message, cursor: object) -> None:
        if not met.is_set():
            together.wait(20)
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
                together.wait(20)
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
