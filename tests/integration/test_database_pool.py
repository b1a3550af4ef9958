"""The pool against a real server: what it says, what it survives."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from tenantry.api.idempotency import PostgresIdempotencyKeys
from tenantry.assembly.backends import Stores
from tenantry.broker.port import Outgoing, UnroutableError
from tenantry.broker.postgres.publishing import PostgresPublishing
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.errors import DatabaseUnavailableError, DatabaseUrlError
from tenantry.database.liveness import has_died
from tenantry.database.pool import Connection, Database
from tenantry.messages.postgres import PostgresMessageStore
from tests.services_postgres import running_server
from tests.waiting import DEADLINE, eventually

SECRET = "s3cret-pässword"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have callers wait for a connection as long as a busy machine needs to make one."""
    monkeypatch.setattr("tenantry.database.pool.ACQUIRE_TIMEOUT", DEADLINE)


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to stop and start at will."""
    with running_server() as own:
        yield own


def failure_of(url: str, *, timeout: float = 0) -> DatabaseUnavailableError:
    database = Database(url, connect_timeout=2)
    with pytest.raises(DatabaseUnavailableError) as caught:
        database.open(timeout)
    database.close()
    text = str(caught.value)
    assert "\n" not in text
    assert "s3cret" not in text
    assert "s3cret" not in repr(database)
    return caught.value


def use(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("SELECT 1")


def warm(database: Database, count: int) -> None:
    """Leave `count` open connections at rest in the pool."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(database.connection())
            connection.execute("SELECT 1")


def terminate_all(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


def lose(borrowed: AbstractContextManager[Connection], database_url: str) -> None:
    """Have the server end a connection while it is in use."""
    with borrowed as connection:
        terminate_all(database_url)
        connection.execute("SELECT 1")


def test_an_unreachable_server_is_named_with_a_remedy() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # held, so that nobody else listens there
        port = unheard.getsockname()[1]
        failure = failure_of(f"postgresql://bob:{quote(SECRET)}@127.0.0.1:{port}/shop")
    assert str(failure) == (
        f'can\'t connect to PostgreSQL at 127.0.0.1:{port}, database "shop": connection refused; '
        "start the server or correct database.url (DATABASE_URL)"
    )
    assert not failure.permanent


def test_a_server_that_does_not_answer_is_given_up_on_in_time() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        failure = failure_of(f"postgresql://bob:{quote(SECRET)}@127.0.0.1:{port}/shop")
    assert "no answer in time" in str(failure)


def test_an_unknown_host_is_named() -> None:
    failure = failure_of(f"postgresql://bob:{quote(SECRET)}@no-such-host.invalid/shop")
    assert "no-such-host.invalid:5432" in str(failure)


def test_an_unknown_database_is_named(database_url: str) -> None:
    url = urlsplit(database_url)._replace(path="/nowhere").geturl()
    # What the time does not mend is not waited for.
    failure = failure_of(url, timeout=3600)
    assert 'database "nowhere": there is no such database' in str(failure)
    assert failure.permanent


def test_an_unknown_user_is_told_from_an_unknown_database(database_url: str) -> None:
    failure = failure_of(database_url.replace("postgres@", "nobody-here:secret@"))
    assert "the password or user was refused; check user and password" in str(failure)
    assert failure.permanent


def test_a_wrong_password_is_told(server: EmbeddedPostgres) -> None:
    url = server.start()
    data_dir = server.log_dir.parent
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE bob LOGIN PASSWORD 'right'")
        hba = data_dir / "pg_hba.conf"
        hba.write_text("local all bob scram-sha-256\n" + hba.read_text())
        connection.execute("SELECT pg_reload_conf()")
    with closing(Database(url.replace("postgres@", "bob:right@"))) as right:
        right.open()
        use(right)
    for wrong in (f":{quote(SECRET)}", ""):
        failure = failure_of(url.replace("postgres@", f"bob{wrong}@"), timeout=DEADLINE)
        assert "the password or user was refused; check user and password" in str(failure)
        assert failure.permanent


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3cret",
        "mysql://bob:s3cret@host/x",
        "postgresql://bob:@s3cret@host/x",
        "postgresql://bob:12/s3cret@host/x",
        "postgresql://bob:a/s3cret@host/x",
        "postgresql://bob:a@host:s3cret/x",
    ],
)
def test_a_url_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(DatabaseUrlError, match=r"DATABASE_URL") as caught:
        Database(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_opening_waits_for_a_server_that_is_coming_up(server: EmbeddedPostgres) -> None:
    url = server.start()
    server.stop()
    database = Database(url)
    with ThreadPoolExecutor(1) as pool, closing(database):
        opening = pool.submit(database.open, DEADLINE)
        server.start()
        opening.result(timeout=DEADLINE)
        use(database)


def test_connections_say_who_they_are_and_have_limits(database: Database) -> None:
    with database.connection() as connection:
        assert connection.autocommit
        rows = connection.execute(
            "SELECT current_setting(name) FROM unnest(ARRAY['application_name',"
            " 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout'])"
            " WITH ORDINALITY AS one (name, n) ORDER BY n"
        ).fetchall()
    assert rows == [("tenantry",), ("30s",), ("10s",), ("1min",)]


def test_what_the_url_asks_for_wins(database_url: str) -> None:
    url = f"{database_url}&application_name=shop&options=-c%20statement_timeout%3D7s"
    with closing(Database(url)) as database:
        database.open()
        with database.connection() as connection:
            row = connection.execute(
                "SELECT current_setting('application_name'),"
                " current_setting('statement_timeout'), current_setting('lock_timeout')"
            ).fetchone()
    assert row == ("shop", "7s", "10s")


def test_closing_is_harmless_before_opening_and_twice(database_url: str) -> None:
    database = Database(database_url)
    database.close()
    with pytest.raises(DatabaseUnavailableError, match="not open"):
        use(database)
    database.open()
    database.open()
    use(database)
    database.close()
    database.close()
    with pytest.raises(DatabaseUnavailableError, match="not open"):
        use(database)
    database.open()
    use(database)
    database.close()


def test_a_pool_that_is_all_lent_out_is_waited_for_a_bounded_time(database_url: str) -> None:
    with closing(Database(database_url, pool_size=1)) as database:
        database.open()
        with (
            database.connection(),
            pytest.raises(DatabaseUnavailableError),
            database.connection(timeout=0.1),
        ):
            pass
        use(database)


def test_a_statement_that_takes_too_long_is_not_now(database_url: str) -> None:
    with closing(Database(database_url, statement_timeout=0.1)) as database:
        database.open()
        with (
            pytest.raises(DatabaseUnavailableError, match="statement timeout"),
            database.connection() as connection,
        ):
            connection.execute("SELECT pg_sleep(60)")
        use(database)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT 1/0", psycopg.errors.DivisionByZero),
        ("SELECT '{'::jsonb", psycopg.errors.InvalidTextRepresentation),
        ("SELEKT", psycopg.errors.SyntaxError),
        ("SELECT * FROM nowhere", psycopg.errors.UndefinedTable),
        ("SELECT repeat('x', 1073741824)", psycopg.errors.ProgramLimitExceeded),
        ("INSERT INTO tenantry.journal_head VALUES (true, 0, now())", psycopg.IntegrityError),
    ],
)
def test_an_error_of_the_statement_stays_what_it_is(
    database: Database, statement: str, error: type[Exception]
) -> None:
    with pytest.raises(error), database.connection() as connection:
        connection.execute(statement.encode())
    use(database)


def test_a_deadlock_is_not_now(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("CREATE TABLE public.pair AS SELECT * FROM generate_series(1, 2) AS n")
    both_hold_one = threading.Barrier(2)

    def cross(first: int, second: int) -> str:
        try:
            with database.connection() as connection, connection.transaction():
                connection.execute("SELECT FROM public.pair WHERE n = %s FOR UPDATE", [first])
                both_hold_one.wait(timeout=DEADLINE)
                connection.execute("SELECT FROM public.pair WHERE n = %s FOR UPDATE", [second])
        except DatabaseUnavailableError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(cross, (1, 2), (2, 1)))
    assert outcomes[0] == ""
    assert "deadlock" in outcomes[1]


def test_a_serialization_failure_is_not_now(database: Database) -> None:
    with database.connection() as one, database.connection() as other:
        one.execute("CREATE TABLE public.pair AS SELECT 1 AS n")
        one.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        one.execute("SELECT * FROM public.pair")
        other.execute("UPDATE public.pair SET n = 2")
        with pytest.raises(psycopg.errors.SerializationFailure):
            one.execute("UPDATE public.pair SET n = 3")
        one.execute("ROLLBACK")
    with (
        pytest.raises(DatabaseUnavailableError) as caught,
        database.connection(),
    ):
        raise psycopg.errors.SerializationFailure("could not serialize access")
    assert isinstance(caught.value.__cause__, psycopg.errors.SerializationFailure)


def test_an_exception_of_the_caller_undoes_its_transaction(database: Database) -> None:
    def fail_half_way() -> None:
        with database.connection() as connection, connection.transaction():
            connection.execute("CREATE TABLE public.half_made (n int)")
            raise LookupError

    with pytest.raises(LookupError):
        fail_half_way()
    with database.connection() as connection:
        row = connection.execute("SELECT to_regclass('public.half_made')").fetchone()
    assert row == (None,)


def test_of_many_connections_that_died_at_rest_not_even_the_first_is_noticed(
    database_url: str,
) -> None:
    with closing(Database(database_url, min_size=5)) as database:
        database.open()
        warm(database, 5)
        for _ in range(3):
            terminate_all(database_url)
            for _ in range(5):
                use(database)


def test_a_connection_lost_in_use_is_told_and_not_lent_again(database_url: str) -> None:
    with closing(Database(database_url)) as database:
        database.open()
        with pytest.raises(DatabaseUnavailableError):
            lose(database.connection(), database_url)
        for _ in range(5):
            use(database)


@pytest.fixture
def dies_as_it_is_lent(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], None]:
    """Have the server end the next connections that are lent, each after it was found alive."""
    left = [0]

    def found_dead(connection: Connection) -> bool:
        dead = has_died(connection)
        if left[0] and not dead:
            left[0] -= 1
            terminate_all(database_url)
        return dead

    def die(times: int) -> None:
        left[0] = times

    monkeypatch.setattr("tenantry.database.pool.has_died", found_dead)
    return die


def test_what_is_read_on_a_connection_that_dies_as_it_is_lent_is_read_on_another(
    database: Database, dies_as_it_is_lent: Callable[[int], None]
) -> None:
    use(database)
    dies_as_it_is_lent(1)
    assert database.read(lambda one: one.execute("SELECT 1").fetchone()) == (1,)
    dies_as_it_is_lent(2)  # it is tried once more, and no oftener
    with pytest.raises(DatabaseUnavailableError):
        database.read(lambda one: one.execute("SELECT 1").fetchone())


def test_a_transaction_on_a_connection_that_dies_as_it_is_lent_is_begun_on_another(
    database: Database, database_url: str, dies_as_it_is_lent: Callable[[int], None]
) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE TABLE public.told (n int)")
    dies_as_it_is_lent(1)
    with database.transaction() as connection:
        connection.execute("INSERT INTO public.told VALUES (1)")
    with pytest.raises(DatabaseUnavailableError):
        lose(database.transaction(), database_url)
    assert database.read(lambda one: one.execute("SELECT n FROM public.told").fetchall()) == [(1,)]


def test_whoever_asks_as_the_connection_dies_is_answered(
    database: Database, dies_as_it_is_lent: Callable[[int], None]
) -> None:
    stores = Stores.on(database)
    PostgresMessageStore(database).create_partition("acme")
    publishing, keys = PostgresPublishing(database), PostgresIdempotencyKeys(database)
    message = Outgoing(exchange="nobody_stream", routing_key="default", body=b"{}")

    def publish() -> None:
        with pytest.raises(UnroutableError):
            publishing.publish([message], timeout=DEADLINE)

    ways: list[Callable[[], object]] = [
        lambda: stores.directory.get("acme"),
        stores.directory.page,
        stores.journal.read_all,
        lambda: stores.messages.page("acme"),
        lambda: stores.dead_letters.page("acme"),
        lambda: keys.claim(b"acme", b"key", b"body"),
        publish,
    ]
    for way in ways:
        use(database)
        dies_as_it_is_lent(1)
        way()


def test_many_that_lose_their_connections_at_once_all_go_on(database_url: str) -> None:
    with closing(Database(database_url, pool_size=8)) as database:
        database.open()
        lost = threading.Barrier(9)
        failures = []

        def work() -> None:
            try:
                with database.connection() as connection:
                    lost.wait(timeout=DEADLINE)
                    lost.wait(timeout=DEADLINE)
                    connection.execute("SELECT 1")
            except DatabaseUnavailableError as error:
                failures.append(error)
            use(database)

        with ThreadPoolExecutor(8) as pool:
            working = [pool.submit(work) for _ in range(8)]
            lost.wait(timeout=DEADLINE)
            terminate_all(database_url)
            lost.wait(timeout=DEADLINE)
            for one in working:
                one.result(timeout=DEADLINE)
        assert len(failures) == 8


def test_it_recovers_by_itself_soon_after_an_outage(
    server: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    url = server.start()
    with closing(Database(url)) as database:
        database.open()
        warm(database, 3)
        server.stop()
        failures: list[DatabaseUnavailableError] = []
        down_until = time.monotonic() + 6
        while time.monotonic() < down_until:
            try:
                with database.connection(timeout=0.5) as connection:
                    connection.execute("SELECT 1")
            except DatabaseUnavailableError as error:
                failures.append(error)
        assert "can't connect to PostgreSQL" in str(failures[-1])
        assert "no server listens there" in str(failures[-1])
        with pytest.raises(DatabaseUnavailableError):
            use(database)
        server.start()

        def back() -> bool:
            with suppress(DatabaseUnavailableError):
                use(database)
                return True
            return False

        eventually(back, what="the database")
        for _ in range(20):
            use(database)
    assert "lost a connection" in caplog.text


def test_a_connection_for_listening_is_apart_from_the_pool(database_url: str) -> None:
    with closing(Database(database_url, pool_size=1)) as database:
        database.open()
        with database.connection(), database.listen_connection() as own:
            assert own.autocommit
            own.execute("LISTEN something")
            with database.listen_connection() as other:
                other.execute("NOTIFY something, 'heard'")
            (notice,) = own.notifies(timeout=DEADLINE, stop_after=1)
            assert notice.payload == "heard"
            terminate_all(database_url)
            with pytest.raises(psycopg.OperationalError):
                own.execute("SELECT 1")
    with pytest.raises(DatabaseUnavailableError):
        lose(Database(database_url).listen_connection(), database_url)


def test_a_notice_that_waits_to_be_read_is_no_death(database: Database) -> None:
    with database.connection() as connection:
        connection.pgconn.send_query(b"DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
        connection.pgconn.flush()
        select.select([connection.pgconn.socket], [], [], 30)
        assert not has_died(connection)
        while connection.pgconn.get_result():
            pass
