"""No tenant's session holds up anybody else: what it holds is its own, or it is ended."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from psycopg import sql

from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.database.pool import Database
from tenantry.domain.names import UserKind
from tenantry.isolation.sessions import Limits, TenantsSessions
from tenantry.messages.port import Incoming
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tests.brokers import INSTALLATION
from tests.services_postgres import grant
from tests.waiting import DEADLINE, eventually


class World:
    def __init__(self, database: Database, stack: ExitStack) -> None:
        self.database = database
        self.store = PostgresMessageStore(database)
        self.access = PostgresSqlAccess(database)
        self.administration = PostgresAdministration(database, installation=INSTALLATION)
        self.administration.check()
        # Roles are the whole server's.
        self.tenant, self.other = (f"t{secrets.token_hex(5)}" for _ in range(2))
        self.administration.ensure_topology(
            TenantTopology(tenant_id=self.tenant, topics=(), partitions=1)
        )
        for tenant in (self.tenant, self.other):
            self.store.create_partition(tenant)
            self.store.store(tenant, [Incoming("1", "default", 0, b"{}", None, None, None)])
        self.reading = grant(self.access, self.tenant).url
        stack.callback(self.access.revoke, self.tenant)
        credentials, hashed = self.administration.new_credentials(self.tenant)
        self.administration.ensure_user(self.tenant, hashed)
        stack.callback(self.administration.remove_user, self.tenant)
        self.publishing = credentials.postgres_url
        credentials, hashed = self.administration.new_credentials(self.tenant, UserKind.CONSUMER)
        self.administration.ensure_user(self.tenant, hashed, UserKind.CONSUMER)
        stack.callback(self.administration.remove_user, self.tenant, kind=UserKind.CONSUMER)
        self.consuming = credentials.postgres_url

    def look(self, **limits: float) -> int:
        return TenantsSessions(self.database, Limits(**limits)).look()  # type: ignore[arg-type]

    def count(self, query: str, *parameters: object) -> int:
        with self.database.connection() as connection:
            row = connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(database, stack)


@contextmanager
def ended(session: psycopg.Connection) -> Iterator[None]:
    yield
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")


def test_a_transaction_that_lasts_too_long_is_ended_whatever_its_session_has_set(
    world: World,
) -> None:
    for url in (world.reading, world.publishing, world.consuming):
        with psycopg.connect(url) as session:
            session.execute("SET idle_in_transaction_session_timeout = 0")
            assert world.look(transaction=60) == 0
            session.execute("SELECT 1")
            with ended(session):
                assert world.look(transaction=0) == 1


def test_a_session_that_holds_many_locks_is_ended_though_it_is_idle(world: World) -> None:
    with world.database.connection() as connection:
        connection.execute("GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO PUBLIC")
    with psycopg.connect(world.reading, autocommit=True) as session:
        session.execute("SELECT pg_advisory_lock(n) FROM generate_series(1, 60) AS n")
        assert world.look(locks=60) == 0
        with ended(session):
            assert world.look(locks=50) == 1


def test_a_session_that_keeps_notifications_is_ended_when_their_queue_fills(world: World) -> None:
    with psycopg.connect(world.publishing) as session:
        session.execute("LISTEN anything")
        session.commit()
        session.execute("SELECT 1")
        assert world.look(grace=0) == 0
        with ended(session):
            assert world.look(grace=0, notices=-1) == 1


def test_a_transaction_that_is_to_outlive_its_session_is_refused_or_rolled_back(
    world: World,
) -> None:
    allowed = world.count("SELECT current_setting('max_prepared_transactions')")
    with psycopg.connect(world.publishing, autocommit=True) as session:
        session.execute("BEGIN; SELECT tenantry.publish('default', '1')")
        if not allowed:
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                session.execute("PREPARE TRANSACTION 'mine'")
            return
        session.execute(f"PREPARE TRANSACTION '{world.tenant}'".encode())
    left = "SELECT count(*) FROM pg_prepared_xacts WHERE gid = %s"
    assert world.count(left, world.tenant) == 1
    world.look(transaction=0)
    assert world.count(left, world.tenant) == 0


def test_a_tenant_that_reads_for_long_keeps_no_other_from_going(world: World) -> None:
    with psycopg.connect(world.reading) as one, psycopg.connect(world.reading) as two:
        assert one.execute("SELECT count(*) FROM messages").fetchone() == (1,)
        assert world.store.drop_partition(world.other, retain=False) == 1
        two.execute("SELECT count(*) FROM messages")
        world.store.create_partition("third")
        assert one.execute("SELECT count(*) FROM messages").fetchone() == (1,)


@pytest.mark.parametrize("kind", ["reading", "publishing"])
def test_whom_others_wait_for_is_ended_whatever_it_holds(world: World, kind: str) -> None:
    """A table that can be named can be held, whatever the rights: by preparing a statement."""
    with (
        psycopg.connect(getattr(world, kind)) as session,
        ThreadPoolExecutor(1) as pool,
    ):
        session.execute("PREPARE mine AS SELECT FROM public.messages")
        dropping = pool.submit(world.store.drop_partition, world.other, retain=False)
        # The view is the server's, and tables of other tests' databases have the same number.
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE waitstart IS NOT NULL AND relation = %s::regclass"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        eventually(lambda: world.count(waiting, "public.messages"))
        assert world.look(grace=600) == 0
        with ended(session):
            assert world.look(grace=0) == 1
        assert dropping.result(DEADLINE) == 1


def test_a_role_made_by_an_earlier_version_is_brought_to_what_one_is_today(world: World) -> None:
    with psycopg.connect(world.reading) as session:
        role = session.info.user
    name = sql.Identifier(role)
    with world.database.connection() as connection:
        for statement in (
            "DROP SCHEMA {} CASCADE", "ALTER ROLE {} RESET ALL",
            "ALTER ROLE {} SET search_path = public", "ALTER ROLE {} CONNECTION LIMIT -1",
        ):  # fmt: skip
            connection.execute(sql.SQL(statement).format(name))
        (group,) = connection.execute("SELECT tenantry.sql_group()::text").fetchone() or ("",)
        readers = sql.Identifier(group)
        connection.execute(sql.SQL("GRANT SELECT ON public.messages TO {}").format(readers))
    sessions = TenantsSessions(world.database)
    assert sessions.mend() == [role]
    assert sessions.mend() == []
    with psycopg.connect(world.reading) as session:
        assert session.execute("SELECT tenant_id FROM messages").fetchall() == [(world.tenant,)]
        assert session.execute("SHOW statement_timeout").fetchone() == ("30s",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT FROM public.messages")


def test_what_a_role_has_set_for_itself_is_set_back(world: World) -> None:
    sessions = TenantsSessions(world.database)
    assert sessions.mend() == []
    for url in (world.reading, world.publishing):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("SET default_transaction_read_only = off")
            session.execute("ALTER ROLE CURRENT_USER SET statement_timeout = 0")
            session.execute("ALTER ROLE CURRENT_USER RESET idle_in_transaction_session_timeout")
            mended = sessions.mend()
            assert mended == [session.info.user]
        with psycopg.connect(url) as session:
            assert session.execute("SHOW idle_in_transaction_session_timeout").fetchone() == (
                "1min",
            )


def test_what_a_role_has_set_for_itself_in_one_database_is_set_back(world: World) -> None:
    sessions = TenantsSessions(world.database)
    assert sessions.mend() == []
    for url in (world.reading, world.publishing):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("SET default_transaction_read_only = off")
            here = sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} SET {} = {}")
            database = sql.Identifier(session.info.dbname)
            for name, value in (("statement_timeout", "0"), ("TimeZone", "Asia/Tokyo")):
                session.execute(here.format(database, sql.Identifier(name), value))
            assert sessions.mend() == [session.info.user]
            assert sessions.mend() == []
        with psycopg.connect(url) as session:
            assert session.execute("SHOW statement_timeout").fetchone() != ("0",)
            assert session.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)


def test_a_producer_publishes_messages_as_large_as_they_may_be_again_and_again(
    world: World,
) -> None:
    with psycopg.connect(world.publishing, autocommit=True) as session:
        # As after some calls: then the statements' plans are made once for all.
        session.execute("SET plan_cache_mode = force_generic_plan")
        session.execute(
            "SELECT tenantry.publish_bytes('default',"
            " convert_to(repeat('x', 32 * 1024 * 1024), 'UTF8'), 'text/plain')"
        )
    assert world.count("SELECT octet_length(body) FROM tenantry.queued") == 32 * 1024 * 1024


def test_a_role_that_its_own_open_transaction_holds_is_mended_and_revoked_all_the_same(
    world: World,
) -> None:
    sessions = TenantsSessions(world.database)
    for url in (world.reading, world.publishing):
        with psycopg.connect(url) as session:
            session.execute("SET default_transaction_read_only = off")
            session.commit()
            session.execute("ALTER ROLE CURRENT_USER SET statement_timeout = 0")
            session.commit()
            session.execute("ALTER ROLE CURRENT_USER SET lock_timeout = 0")
            with ended(session):
                assert sessions.mend() == [session.info.user]
    with psycopg.connect(world.reading) as session:
        session.execute("SET default_transaction_read_only = off")
        session.commit()
        session.execute("ALTER ROLE CURRENT_USER SET lock_timeout = 0")
        with ended(session):
            assert world.access.revoke(world.tenant)


def test_a_view_follows_the_columns_of_the_table(world: World) -> None:
    with world.database.connection() as connection:
        connection.execute("ALTER TABLE public.messages ADD COLUMN more text DEFAULT 'x'")
    TenantsSessions(world.database).mend()
    with psycopg.connect(world.reading) as session:
        assert session.execute("SELECT more FROM messages").fetchone() == ("x",)
