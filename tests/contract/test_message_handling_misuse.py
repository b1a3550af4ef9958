"""Handlers that hang, misuse their cursor, or leave something behind on their connection."""

from __future__ import annotations

import itertools
import secrets
import threading
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tenantry.handlers.attempts import HANDLER_FAILED
from tenantry.handlers.message import Handler, Message
from tenantry.messages.port import Tried
from tests.fakes.handling import TENANT, World, incoming
from tests.waiting import DEADLINE, eventually


def test_a_handler_that_hangs_is_left_behind_and_can_do_nothing_more(world: World) -> None:
    wake, outcome = threading.Event(), []

    def act(message: Message, cursor: psycopg.Cursor[Any]) -> None:
        if message.id == "2" and message.attempt == 1:
            wake.wait(DEADLINE)
            try:
                cursor.execute("INSERT INTO effects VALUES ('late', 0)")
                cursor.connection.commit()
            except psycopg.Error as error:
                outcome.append(type(error))
                raise

    store = world.store(act, timeout=2)
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

    store = world.store(act, timeout=2)
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
        lambda message, cursor: wake.wait(DEADLINE), timeout=0.05, attempts=100, bare=True
    )
    try:
        # A thread that has not reached its handler in time ends by itself, and is not counted.
        numbers = itertools.count()
        while not world.overruns:
            assert world.pool.abandoned <= 16
            store.store(TENANT, [incoming(str(next(numbers)))])
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
    coroutine.close()  # so that Python does not warn: a warning fails the test
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
        # The handler's table is only found by the usual search path.
    assert len({str(one) for one in found}) == 1
    with world.database.connection() as connection:
        # No session holds the handler's advisory lock any more.
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
        # The child comes first: a deferred constraint stays deferred while the handler works.
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
