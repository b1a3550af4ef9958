"""Queries on an event loop, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from psycopg import pq

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tests.waiting import DEADLINE, eventually

PID = b"SELECT pg_backend_pid()"
INT8 = 20
"""The oid of `bigint`."""


def connections(database: Database) -> int:
    """Count the other connections to the database, the pool's own left out."""
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def dies_as_it_is_used(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next connection die between the look at it and its query."""

    def dies(pgconn: pq.abc.PGconn) -> bool:
        monkeypatch.undo()
        with database.connection() as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pgconn.backend_pid])
        return False  # it was alive

    monkeypatch.setattr("tenantry.database.loop.has_ended", dies)


def run(act: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE):
            await act()

    asyncio.run(main())


def test_a_row_comes_as_bytes(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        row = await queries.row(
            b"SELECT $1::int8, $2::text, NULL, '{}'::text", [b"258", "é".encode()]
        )
        assert row == [b"\0\0\0\0\0\0\1\2", "é".encode(), None, b"{}"]

    run(act)


def test_a_parameter_may_be_given_in_binary(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        row = await queries.row(
            b"SELECT $1 + 1, $2::text, $3::text IS NULL",
            [(INT8, b"\0\0\0\0\0\0\1\1"), b"text", None],
        )
        assert row == [b"\0\0\0\0\0\0\1\2", b"text", b"\1"]

    run(act)


def test_one_connection_serves_one_query_after_the_other(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        assert len({tuple(await queries.row(PID, [])) for _ in range(5)}) == 1

    run(act)


def test_many_queries_share_a_few_connections(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database, connections=3)
        question = b"SELECT pg_backend_pid(), pg_sleep(0.01)"
        rows = await asyncio.gather(*[queries.row(question, []) for _ in range(30)])
        assert len({row[0] for row in rows}) == 3

    run(act)


def test_a_large_query_and_a_large_answer_go_through(database: Database) -> None:
    async def act() -> None:
        large = b"x" * 20_000_000
        assert await LoopQueries(database).row(b"SELECT $1::text", [large]) == [large]

    run(act)


def test_who_waits_too_long_for_a_connection_is_told(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database, connections=1, patience=0.05)
        slow = asyncio.create_task(queries.row(b"SELECT pg_sleep(60)", []))
        await asyncio.sleep(0)
        with pytest.raises(DatabaseUnavailableError, match="no connection was free"):
            await queries.row(b"SELECT 1", [])
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await queries.row(b"SELECT 'free again'", []) == [b"free again"]

    run(act)


def test_a_query_that_is_refused_spoils_no_connection(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database, connections=1)
        before = await queries.row(PID, [])
        with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
            await queries.row(b"SELECT * FROM nowhere", [])
        with pytest.raises(psycopg.errors.DivisionByZero):
            await queries.row(b"SELECT 1 / $1::int", [b"0"])
        assert await queries.row(PID, []) == before

    run(act)


def test_a_connection_lost_between_queries_is_replaced(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        pids = await asyncio.gather(*[queries.row(PID, []) for _ in range(4)])
        with database.connection() as connection:
            for (pid,) in pids:
                assert pid is not None
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [int.from_bytes(pid)])
        assert await queries.row(PID, []) not in pids

    run(act)


def test_a_connection_that_dies_as_it_is_used_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        before = await queries.row(PID, [])
        dies_as_it_is_used(database, monkeypatch)
        assert await queries.row(PID, []) != before

    run(act)


def test_what_is_to_run_once_runs_on_a_new_connection_where_none_has_begun_on_it(
    database: Database,
) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        (pid,) = await queries.row(PID, [])
        with database.connection() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(%s, 5000)", [int.from_bytes(pid or b"")]
            )
        assert await queries.row(PID, [], once=True) != [pid]

    run(act)


def test_what_is_to_run_once_and_may_have_run_does_not_run_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        await queries.row(PID, [])
        dies_as_it_is_used(database, monkeypatch)
        with pytest.raises(DatabaseUnavailableError):
            await queries.row(PID, [], once=True)
        assert len(await queries.row(PID, [], once=True)) == 1

    run(act)


def test_a_connection_lost_during_a_query_is_unavailability(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        slow = asyncio.create_task(queries.row(b"SELECT pg_sleep(60)", []))
        with database.connection() as connection:
            while not slow.done():
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE '%%pg_sleep(60)%%'"
                    " AND pid <> pg_backend_pid()"
                )
                await asyncio.sleep(0.01)
        with pytest.raises(DatabaseUnavailableError):
            await slow
        assert await queries.row(b"SELECT 'again'", []) == [b"again"]

    run(act)


def test_a_query_that_takes_too_long_is_unavailability(database_url: str) -> None:
    async def act() -> None:
        queries = LoopQueries(Database(database_url, statement_timeout=0.1))
        with pytest.raises(DatabaseUnavailableError, match="statement timeout"):
            await queries.row(b"SELECT pg_sleep(60)", [])

    run(act)


def test_a_database_that_is_not_there_is_unavailability() -> None:
    async def act() -> None:
        queries = LoopQueries(Database("postgresql://nobody@127.0.0.1:1/nowhere"))
        for _ in range(10):  # each gives its turn back
            with pytest.raises(DatabaseUnavailableError, match="connection refused"):
                await queries.row(b"SELECT 1", [])

    run(act)


def test_the_connections_are_closed_with_the_loop(database: Database) -> None:
    async def act() -> None:
        queries = LoopQueries(database)
        await asyncio.gather(*[queries.row(b"SELECT pg_sleep(0.01)", []) for _ in range(4)])
        eventually(lambda: connections(database) == 4, what="four connections")

    run(act)
    # The server ends a connection a moment after it was closed.
    eventually(lambda: connections(database) == 0, what="no connection")


def test_the_next_socket_of_a_lost_connections_number_is_heard(database: Database) -> None:
    async def act() -> None:
        mine, theirs = socket.socketpair()
        queries = LoopQueries(database)
        (pid,) = await queries.row(b"SELECT pg_backend_pid()::text", [])
        (link,) = queries._idle
        number = link._socket
        with database.connection() as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (int(pid or b""),))
        while not link._connection.closed:  # noqa: ASYNC110 - the loop itself has to find it
            await asyncio.sleep(0)
        # libpq has closed the socket; whatever is opened next has its number.
        os.dup2(mine.fileno(), number)
        with mine, theirs, socket.socket(fileno=number):
            heard = asyncio.Event()
            asyncio.get_running_loop().add_reader(number, heard.set)
            theirs.send(b"x")
            await heard.wait()
            asyncio.get_running_loop().remove_reader(number)

    run(act)


def test_whose_queries_are_many_lets_others_pass(database: Database) -> None:
    async def act() -> None:
        queries, ended = LoopQueries(database, connections=1), []

        async def ask(client: str) -> None:
            await queries.row(PID, [], client)
            ended.append(client)

        asked = [asyncio.create_task(ask("noisy")) for _ in range(30)]
        await queries.row(PID, [], "noisy")
        asked += [asyncio.create_task(ask("quiet")) for _ in range(2)]
        await asyncio.gather(*asked)
        assert ended.count("quiet") == 2
        assert ended.index("quiet") < 25

    run(act)
