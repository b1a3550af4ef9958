"""A pooler that keeps sessions apart is fine; one that does not is noticed, and never worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg
import pytest

from tenantry.database.errors import DatabaseUnavailableError, DatabaseUnfitError
from tenantry.database.pool import Database
from tenantry.messages.port import StoreUnavailableError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.watch import DatabaseWatch
from tests.contract.test_message_store import incoming
from tests.poolers import Pooler, pooling


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    with pooling(urlsplit(database_url).path[1:]) as one:
        yield one


def shown(database: Database, name: str) -> str:
    with database.connection() as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("takes_options", [True, False])
def test_by_session_everything_is_set_whether_the_pooler_takes_options_or_not(
    pooler: Pooler, *, takes_options: bool
) -> None:
    pooler.takes_options = takes_options
    with closing(Database(pooler.url, term="daemon/0")) as database:
        database.open()
        assert shown(database, "synchronous_commit") == "on"
        assert shown(database, "tenantry.term") == "daemon/0"
        assert shown(database, "lock_timeout") == "10s"

        async def of_a_loop() -> object:
            connection = await database.connect_async()
            try:
                return await (await connection.execute("SHOW lock_timeout")).fetchone()
            finally:
                await connection.close()

        assert asyncio.run(of_a_loop()) == ("10s",)


@pytest.mark.parametrize("takes_options", [True, False])
def test_by_transaction_it_is_refused_at_once_with_what_to_do(
    pooler: Pooler, *, takes_options: bool
) -> None:
    pooler.by_transaction, pooler.takes_options = True, takes_options
    with pytest.raises(DatabaseUnfitError, match="set pool_mode = session") as caught:
        Database(pooler.url).open(30)
    assert caught.value.permanent


def test_a_pooler_that_changes_its_ways_is_noticed_when_connections_are_made_anew(
    pooler: Pooler,
) -> None:
    # One connection: another might just have been made, by session, when the pooler changes.
    with closing(Database(pooler.url, pool_size=1)) as database:
        database.open()
        store, watch = PostgresMessageStore(database), DatabaseWatch(database)
        store.create_partition("a")
        watch.look()
        assert watch.trouble is None
        pooler.by_transaction = True
        with pytest.raises(DatabaseUnavailableError), database.connection() as connection:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="pool_mode = session"):
                store.store("a", [incoming("1")])
        watch.look()
        assert "pool_mode = session" in str(watch.trouble)
        pooler.by_transaction = False
        _until_it_stores(store)
        watch.look()
        assert watch.trouble is None


def _until_it_stores(store: PostgresMessageStore) -> None:
    for _ in range(20):
        try:
            store.store("a", [incoming("1")])
        except StoreUnavailableError:
            continue
        return
    pytest.fail("it does not recover")


@pytest.mark.parametrize(
    "error", [psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName]
)
def test_a_session_that_has_lost_what_it_prepared_is_given_up_and_not_the_tenant_s_fault(
    database: Database, error: type[psycopg.Error]
) -> None:
    with pytest.raises(DatabaseUnavailableError), database.connection() as connection:
        raise error('prepared statement "_pg3_0"')
    assert connection.closed
