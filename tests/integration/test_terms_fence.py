"""The fence around the leader's tables: nothing of an earlier term is committed any more."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tenantry.database.errors import TermOverError
from tenantry.database.pool import Database
from tenantry.messages.port import Incoming, StoreUnavailableError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.terms.port import Holder, Standing
from tenantry.terms.postgres import PostgresTerms
from tests.waiting import DEADLINE, eventually

ONE = Holder(instance="one", host="here", pid=1)
TWO = Holder(instance="two", host="there", pid=2)
UNFENCED = {"terms", "schema_migrations"}


def take(database: Database, by: Holder = TWO) -> Standing:
    terms = PostgresTerms(database)
    taken = terms.take(terms.look(), by)
    assert taken is not None
    return taken


def leader_sessions(database_url: str, number: int) -> Database:
    opened = Database(database_url, pool_size=2, term=f"daemon/{number}")
    opened.open()
    return opened


def message(name: str) -> Incoming:
    return Incoming(name, "default", 0, b"1", "application/json", None, None)


def test_every_table_is_behind_the_fence(database: Database) -> None:
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT c.relname FROM pg_class AS c"
            " WHERE c.relnamespace = 'tenantry'::regnamespace AND c.relkind IN ('r', 'p')"
            " AND NOT c.relispartition AND NOT EXISTS (SELECT FROM pg_trigger AS t"
            " WHERE t.tgrelid = c.oid AND t.tgfoid = 'tenantry.check_term()'::regprocedure)"
        ).fetchall()
    unfenced = {name for (name,) in rows}
    assert unfenced == UNFENCED


def test_a_session_without_a_term_and_one_with_the_present_term_write(
    database: Database, database_url: str
) -> None:
    PostgresMessageStore(database).create_partition("acme")
    leader = leader_sessions(database_url, take(database).number)
    result = PostgresMessageStore(leader).store("acme", [message("a"), message("b")])
    leader.close()
    assert result.stored == 2


def test_a_session_of_an_earlier_term_stores_nothing(database: Database, database_url: str) -> None:
    PostgresMessageStore(database).create_partition("acme")
    old = leader_sessions(database_url, take(database, ONE).number)
    store = PostgresMessageStore(old)
    assert store.store("acme", [message("before")]).stored == 1
    take(database)
    with pytest.raises(StoreUnavailableError, match="term daemon/1 is over: 2 is the term now"):
        store.store("acme", [message("after")])
    for statement in (
        "INSERT INTO tenantry.credentials VALUES ('acme', 'x')",
        "UPDATE tenantry.journal_head SET position = position + 1",
        "DELETE FROM tenantry.tenants",
        "TRUNCATE tenantry.snapshots",
        "SELECT tenantry.create_messages_partition('other')",
        "SELECT tenantry.drop_messages_partition('acme')",
    ):
        with pytest.raises(TermOverError), old.connection() as connection:
            connection.execute(statement.encode())
    old.close()
    with database.connection() as connection:
        rows = connection.execute("SELECT id FROM public.messages").fetchall()
    assert rows == [("before",)]


def test_what_an_earlier_term_has_in_hand_is_aborted_by_the_takeover(
    database: Database, database_url: str
) -> None:
    number = take(database, ONE).number
    with psycopg.connect(database_url, options=f"-c tenantry.term=daemon/{number}") as frozen:
        frozen.execute("INSERT INTO tenantry.credentials VALUES ('acme', 'of the frozen one')")
        # It answers nothing now and has its transaction open: nobody waits for it.
        assert take(database).number == number + 1
        with pytest.raises(psycopg.OperationalError):
            frozen.execute("COMMIT")
    with database.connection() as connection:
        assert connection.execute("SELECT FROM tenantry.credentials").fetchall() == []


def test_a_transaction_that_began_before_the_takeover_and_writes_after_it_fails(
    database: Database, database_url: str
) -> None:
    PostgresMessageStore(database).create_partition("acme")
    number = take(database, ONE).number
    old = leader_sessions(database_url, number)
    outcome: list[BaseException] = []

    def store() -> None:
        try:
            PostgresMessageStore(old).store("acme", [message("late")])
        except StoreUnavailableError as error:
            outcome.append(error)

    waiting = (
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    with psycopg.connect(database_url) as holding:
        holding.execute("SELECT FROM tenantry.tenant_counters FOR UPDATE")
        thread = threading.Thread(target=store)
        thread.start()
        with psycopg.connect(database_url, autocommit=True) as watcher:
            eventually(lambda: watcher.execute(waiting).fetchall(), what="a store that waits")
        assert take(database).number == number + 1
        holding.rollback()
        thread.join(DEADLINE)
    old.close()
    assert "is over" in str(outcome[0])
    with database.connection() as connection:
        assert connection.execute("SELECT FROM public.messages").fetchall() == []


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_stricter_isolation_which_would_not_see_a_takeover_is_refused(
    database: Database, database_url: str, level: str
) -> None:
    leader = leader_sessions(database_url, take(database).number)
    with leader.connection() as connection:
        connection.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
        with pytest.raises(psycopg.errors.InvalidTransactionState):
            connection.execute("DELETE FROM tenantry.credentials")
        connection.execute("ROLLBACK")
    leader.close()


def test_a_backup_that_reads_everything_does_not_hold_up_a_takeover(
    database: Database, database_url: str
) -> None:
    with psycopg.connect(database_url) as backup:
        backup.execute("LOCK TABLE tenantry.terms, tenantry.events IN ACCESS SHARE MODE")
        assert take(database).number == 1
