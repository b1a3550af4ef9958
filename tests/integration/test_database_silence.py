"""A PostgreSQL that is stopped, not ended: it holds its connections and answers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tenantry.database import session
from tenantry.database.conninfo import Place
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.liveness import Silence, bounded
from tenantry.database.pool import Database
from tenantry.urls import postgres_url
from tests.services_postgres import frozen, running_server


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    with running_server() as made:
        yield made


def test_a_frozen_server_is_given_up_in_time_and_used_again_afterwards(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.database.liveness.PROBE_AFTER", 0.5)
    monkeypatch.setattr("tenantry.database.sessions.PROBE_TIMEOUT", 2)
    with closing(Database(server.start())) as database:
        database.open()
        with database.connection() as connection:
            connection.execute("CREATE TABLE public.told (n int)")
        with database.connection() as connection, frozen(server):
            with pytest.raises(psycopg.OperationalError, match="fallen silent"):
                connection.execute("INSERT INTO public.told VALUES (1)")
            assert connection.closed
        with database.connection() as connection:
            connection.execute("SELECT 1")


def test_of_several_one_that_is_frozen_is_given_up_though_another_answers(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.database.liveness.PROBE_AFTER", 0.5)
    monkeypatch.setattr("tenantry.database.sessions.PROBE_TIMEOUT", 2)
    monkeypatch.setattr("tenantry.database.sessions.EACH", 2.0)
    with running_server() as standby:
        directories = [str(one.log_dir.parent) for one in (server, standby)]
        hosts = [(conninfo_to_dict(one.start())["host"], "5432") for one in (server, standby)]
        url = postgres_url(user="postgres", hosts=hosts, database="postgres")
        with closing(Database(url)) as database:
            database.open()
            with database.connection() as connection:
                assert where(connection) == directories[0]
                with frozen(server):
                    with pytest.raises(psycopg.OperationalError, match="fallen silent"):
                        connection.execute("SELECT 1")
                    with database.listen_connection() as other:
                        assert where(other) == directories[1]
            # Who took over keeps it, also when the first is back.
            with database.listen_connection() as connection:
                assert where(connection) == directories[1]


def test_who_is_let_in_too_late_goes_to_the_server_that_has_taken_over(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server() as standby:
        directories = [str(one.log_dir.parent) for one in (server, standby)]
        hosts = [conninfo_to_dict(one.start())["host"] for one in (server, standby)]
        both = [(host, "5432") for host in hosts]
        database = Database(postgres_url(user="postgres", hosts=both, database="postgres"))
        order, judge = database._sessions._hosts, session.judge

        def takes_over_meanwhile(host: str) -> None:
            """Have another connection find a server while the next one is kept waiting."""

            def late(*given: Any, **options: Any) -> Any:
                monkeypatch.undo()
                assert order.prefer(Place(host, "", "5432"), order.changes)
                return judge(*given, **options)

            monkeypatch.setattr(session, "judge", late)

        async def on_a_loop() -> Any:
            connection = await database.connect_async()
            found = await (await connection.execute("SHOW data_directory")).fetchone()
            await connection.close()
            return found

        takes_over_meanwhile(hosts[1])
        with database.listen_connection() as connection:
            assert where(connection) == directories[1]
        takes_over_meanwhile(hosts[0])
        assert asyncio.run(on_a_loop()) == (directories[0],)


def where(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return str(row[0])


class _Answers(Silence):
    def __init__(self, *, silent: bool) -> None:
        super().__init__(lambda: pytest.fail("nobody was to connect"))
        self.silent = silent
        self.asked = 0

    def found(self) -> bool:
        self.asked += 1
        return self.silent


def waiting(steps: int) -> Iterator[object]:
    """Wait so many times, as psycopg does, then answer."""
    for _ in range(steps):
        yield "read"


def go_along(silence: Silence, clock: list[float], *, longest: float | None = None) -> list[str]:
    given_up: list[str] = []
    going = bounded(
        waiting(len(clock)),  # type: ignore[arg-type]
        silent=silence.found,
        longest=longest,
        give_up=lambda: given_up.append("given up"),
    )
    next(going)
    with suppress(StopIteration):
        while True:
            going.send(0)
    return given_up


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    times = [float(n) for n in range(40)]
    left = iter(times)
    monkeypatch.setattr("tenantry.database.liveness.time.monotonic", lambda: next(left, 99.0))
    return times[:30]


def test_a_slow_answer_of_a_server_that_lives_is_waited_for(clock: list[float]) -> None:
    silence = _Answers(silent=False)
    assert go_along(silence, clock) == []
    assert silence.asked > 1


def test_beyond_the_servers_own_limit_no_answer_is_waited_for(clock: list[float]) -> None:
    with pytest.raises(psycopg.OperationalError, match="no answer for 12 seconds"):
        go_along(_Answers(silent=False), clock, longest=12.0)


def test_a_silent_server_is_not_waited_for(clock: list[float]) -> None:
    with pytest.raises(psycopg.OperationalError, match="silent"):
        go_along(_Answers(silent=True), clock)
