"""Nothing that we wait for can be held by a role that may only connect, or only publish."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

import tenantry
from tenantry.broker.port import DeadLettersBusyError
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.database import migrations as migrating
from tenantry.database.migrations import Migration, migrate
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tenantry.terms.port import Holder
from tenantry.terms.postgres import PostgresTerms
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies
from tests.services_postgres import grant
from tests.waiting import eventually

ONCE_HELD = """
SELECT pg_advisory_lock(7308332183866338937), count(pg_advisory_lock(hashtextextended(what, 0)))
FROM (SELECT 'tenantry.consumer.' || n AS what FROM generate_series(1, 50) AS n
      UNION ALL SELECT format('tenantry.%s.acme', what)
          FROM unnest(ARRAY['partition', 'topology', 'dead_letters', 'walk']) AS what
      UNION ALL VALUES ('tenantry.roles'), ('tenantry.sql_roles')) AS named
"""
"""Keys that a daemon has waited for."""


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


@contextmanager
def role(database_url: str) -> Iterator[str]:
    """Make a role that may log in; give the URL by which it does."""
    name = f"stranger_{secrets.token_hex(6)}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'".encode())
        try:
            yield (
                urlsplit(database_url)
                ._replace(netloc=urlsplit(database_url).netloc.replace("postgres@", f"{name}:x@"))
                .geturl()
            )
        finally:
            admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def name_of(url: str) -> str:
    return urlsplit(url).username or ""


def source_files() -> Iterator[Path]:
    root = Path(tenantry.__file__).parent
    newest = max((root / "sql/migrations").iterdir())
    for folder in (root, root.parent / "actors"):
        yield from folder.rglob("*.py")
    yield from (one for one in root.rglob("*.sql") if one.parent.name != "migrations")
    yield newest


def test_no_function_and_no_query_of_ours_names_an_advisory_lock(database: Database) -> None:
    with database.connection() as connection:
        found = connection.execute(
            "SELECT p.oid::regprocedure::text FROM pg_proc AS p"
            " WHERE p.pronamespace = 'tenantry'::regnamespace AND p.prosrc ~* 'advisory'"
        ).fetchall()
    assert found == []
    # But for undoing what a handler may have taken.
    taking = re.compile(r"(SELECT|PERFORM|,|=)\s+pg_(try_)?advisory_\w*lock", re.IGNORECASE)
    assert [one.name for one in source_files() if taking.search(one.read_text())] == []


def test_only_one_function_notifies_and_it_sees_that_there_is_room(database: Database) -> None:
    with database.connection() as connection:
        found = connection.execute(
            "SELECT p.oid::regprocedure::text FROM pg_proc AS p"
            " WHERE p.pronamespace = 'tenantry'::regnamespace"
            " AND p.prosrc ~* 'pg_notify *\\(|^ *notify '"
        ).fetchall()
    assert found == [("tenantry.tell(text,text)",)]


def test_a_table_that_is_locked_as_a_whole_is_one_that_no_tenant_can_name(
    database: Database,
) -> None:
    with database.connection() as connection:
        found = connection.execute(
            "SELECT regexp_matches(p.prosrc, 'LOCK TABLE (\\S+)', 'gi') FROM pg_proc AS p"
            " WHERE p.pronamespace = 'tenantry'::regnamespace"
        ).fetchall()
        public = connection.execute(
            "SELECT grantee FROM pg_namespace, aclexplode(nspacl)"
            " WHERE nspname = 'tenantry_fence' AND grantee <> nspowner"
        ).fetchall()
    assert {name for ((name,),) in found} == {"tenantry_fence.terms", "tenantry_fence.%I"}
    assert public == []


def test_who_holds_every_key_that_was_ever_waited_for_is_in_nobodys_way(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with role(url) as stranger_url, psycopg.connect(stranger_url, autocommit=True) as stranger:
        stranger.execute(ONCE_HELD)
        stranger.execute("SELECT count(pg_advisory_lock(19800, n)) FROM generate_series(0, 1023) n")
        options = "&options=-c%20lock_timeout%3D2s"
        impatient = Database(url + options)
        migrate(impatient)
        impatient.open()
        store = PostgresMessageStore(impatient)
        store.create_partition("acme")
        with brokers.postgres(impatient) as broker:
            tenant = broker.tenant()
            sink = RecordingSink()
            broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
            sink.heard("consuming")
            broker.publish(tenant, "default", b"1")
            assert bodies(sink.received(1)) == [b"1"]
            _, hashed = broker.administration.new_credentials(tenant.tenant_id)
            broker.administration.ensure_user(tenant.tenant_id, hashed)
            broker.administration.remove_user(tenant.tenant_id)
            with PostgresDeadLetters(impatient).browse("acme") as browser:
                assert browser.next(10) == []
        grant(PostgresSqlAccess(impatient), "acme")
        assert PostgresSqlAccess(impatient).revoke("acme")
        store.drop_partition("acme", retain=False)
        impatient.close()


def test_a_table_held_by_a_prepared_statement_does_not_hold_up_a_takeover(
    broker: Broker, database: Database
) -> None:
    tenant = broker.tenant()
    with tenants_session(broker, tenant.tenant_id) as session:
        session.execute("BEGIN")
        for table in ("terms", "locks", "queued", "schema_migrations", "journal_head"):
            statement = f"PREPARE {table} AS DELETE FROM tenantry.{table}"
            session.execute(statement.encode())
        terms = PostgresTerms(database)
        taken = terms.take(terms.look(), Holder(instance="two", host="there", pid=2))
        assert taken is not None
        # Nor is anybody thrown out for it.
        assert session.execute("SELECT 1").fetchone() == (1,)
        for table in ("terms", "migrations"):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege),
                session.transaction(),
            ):
                session.execute(f"PREPARE x AS SELECT FROM tenantry_fence.{table}".encode())


@contextmanager
def tenants_session(broker: Broker, tenant_id: str) -> Iterator[psycopg.Connection]:
    credentials, hashed = broker.administration.new_credentials(tenant_id)
    broker.administration.ensure_user(tenant_id, hashed)
    try:
        with psycopg.connect(credentials.postgres_url, autocommit=True) as session:
            yield session
    finally:
        broker.administration.remove_user(tenant_id)


def test_a_migration_ends_the_session_of_a_stranger_who_holds_its_table(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = empty_database_url
    monkeypatch.setattr(migrating, "LOCK_TIMEOUT_MS", 50)
    first = Migration(number=1, name="first", sql="CREATE TABLE tenantry.first (n int);")
    second = Migration(number=2, name="second", sql="ALTER TABLE tenantry.first ADD m int;")
    migrate(url, known=[first])
    with role(url) as stranger_url, psycopg.connect(stranger_url) as stranger:
        with psycopg.connect(url, autocommit=True) as admin:
            grant = sql.SQL("GRANT USAGE ON SCHEMA tenantry TO {}")
            admin.execute(grant.format(sql.Identifier(name_of(stranger_url))))
        stranger.execute("PREPARE x AS UPDATE tenantry.first SET n = 1")
        assert migrate(url, known=[first, second]) == [second]
        with pytest.raises(psycopg.OperationalError):
            stranger.execute("SELECT 1")
        stranger.close()


def test_what_changes_only_roles_is_refused_under_a_past_term(
    broker: Broker, database: Database, database_url: str
) -> None:
    tenant = broker.tenant()
    terms = PostgresTerms(database)
    standing = terms.take(terms.look(), Holder(instance="one", host="here", pid=1))
    assert standing is not None
    old = Database(database_url, term=terms.claim(standing.number))
    old.open()
    access, here = PostgresSqlAccess(old), PostgresSqlAccess(database)
    administration = brokers.PostgresAdministration(old, installation=brokers.INSTALLATION)
    _, hashed = administration.new_credentials(tenant.tenant_id)
    administration.ensure_user(tenant.tenant_id, hashed)
    grant(access, tenant.tenant_id)
    assert terms.take(terms.look(), Holder(instance="two", host="there", pid=2)) is not None
    with database.connection() as connection:
        roles = "SELECT oid, rolpassword FROM pg_authid WHERE rolname ~ %s ORDER BY oid"
        before = connection.execute(roles, [tenant.tenant_id]).fetchall()
        assert len(before) == 2
        _, another = administration.new_credentials(tenant.tenant_id)
        for act in (
            partial(administration.ensure_user, tenant.tenant_id, another),
            partial(administration.remove_user, tenant.tenant_id),
            partial(administration.ensure_topology, tenant),
            partial(administration.remove_topology, tenant.tenant_id),
            administration.check,
            partial(grant, access, tenant.tenant_id),
            partial(access.revoke, tenant.tenant_id),
        ):
            with pytest.raises(Exception, match="the term daemon/1 is over: 2 is the term now"):
                act()
        assert connection.execute(roles, [tenant.tenant_id]).fetchall() == before
    old.close()
    broker.administration.remove_user(tenant.tenant_id)
    here.revoke(tenant.tenant_id)


def test_a_role_that_its_own_session_holds_is_changed_and_dropped_all_the_same(
    broker: Broker, database: Database
) -> None:
    tenant = broker.tenant()
    name = names.username(tenant.tenant_id)
    for act in (
        lambda: broker.administration.ensure_user(
            tenant.tenant_id, broker.administration.new_credentials(tenant.tenant_id)[1]
        ),
        lambda: broker.administration.remove_user(tenant.tenant_id),
    ):
        with tenants_session(broker, tenant.tenant_id) as session:
            session.execute("BEGIN")
            session.execute("ALTER ROLE CURRENT_USER PASSWORD 'mine'")
            act()
            with pytest.raises(psycopg.OperationalError):
                session.execute("COMMIT")
    with database.connection() as connection:
        assert connection.execute("SELECT to_regrole(%s)", [name]).fetchone() == (None,)


def test_one_walks_along_a_tenants_dead_letters_and_the_next_when_its_session_ends(
    database: Database, database_url: str
) -> None:
    letters = PostgresDeadLetters(database)
    ended = "SELECT pg_terminate_backend(pid, 5000) FROM tenantry.walks"
    with letters.browse("acme"), letters.browse("globex"):
        with pytest.raises(DeadLettersBusyError), letters.browse("acme"):
            pass
        with database.connection() as connection:
            connection.execute(ended)
        with letters.browse("acme"):
            pass
    with letters.browse("acme"):
        pass


def test_who_reads_a_queue_as_awake_is_heard_though_the_reader_lies_down_before_the_commit(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    sink = RecordingSink()
    broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    sink.heard("consuming")
    stream = names.exchange_name(tenant.tenant_id)
    put = (
        "SELECT tenantry.enqueue(%s, ARRAY['default'], ARRAY[NULL], ARRAY['1'::bytea],"
        " ARRAY[NULL], ARRAY[NULL::jsonb], ARRAY[0::bigint])"
    )
    asleep = "SELECT asleep FROM tenantry.queues"
    heard: list[str] = []
    with (
        psycopg.connect(database_url, autocommit=True) as ear,
        psycopg.connect(database_url) as publisher,
    ):
        row = ear.execute("SELECT name FROM tenantry.channels WHERE purpose = 'queued'").fetchone()
        assert row is not None
        assert re.fullmatch("tenantry_queued_[0-9a-f]{32}", row[0])
        ear.add_notify_handler(lambda notice: heard.append(notice.payload))
        ear.execute(sql.SQL("LISTEN {}").format(sql.Identifier(row[0])))
        eventually(lambda: ear.execute(asleep).fetchone() == (True,), what="sleep")
        ear.execute("UPDATE tenantry.queues SET asleep = false")
        publisher.execute(put, [stream])
        ear.execute("UPDATE tenantry.queues SET asleep = true")
        publisher.commit()
        sink.received(1)
        assert heard == []
        # One that reads what was in a snapshot of long ago tells in any case.
        publisher.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        publisher.execute(put, [stream])
        publisher.commit()
        sink.received(2)
        ear.execute("SELECT 1")
        assert len(heard) == 1


def test_rubbish_on_the_readers_own_channel_changes_nothing(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    sink = RecordingSink()
    broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    sink.heard("consuming")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for rubbish in ("-", "", "x", "9" * 7999, "٣", "²", "-1", "0", "999999999", "\x01"):
            connection.execute("SELECT tenantry.tell('queued', %s)", [rubbish])
    broker.publish(tenant, "default", b"1")
    assert bodies(sink.received(1)) == [b"1"]
    assert sink.missing == []


def test_a_session_has_ended_when_no_process_of_its_number_began_when_it_did(
    database_url: str,
) -> None:
    has_ended = "SELECT tenantry.session_has_ended(%s, %s)"
    own = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    with psycopg.connect(database_url, autocommit=True) as watcher:
        with psycopg.connect(database_url, autocommit=True) as other:
            pid, began = other.execute(own).fetchone() or (0, None)
            assert watcher.execute(has_ended, [pid, began]).fetchone() == (False,)
            # Another session that happens to have got the same number.
            later = "SELECT tenantry.session_has_ended(%s, %s::timestamptz + interval '1 s')"
            assert watcher.execute(later, [pid, began]).fetchone() == (True,)
            watcher.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            assert watcher.execute(has_ended, [pid, began]).fetchone() == (True,)
        assert watcher.execute(has_ended, [None, None]).fetchone() == (False,)
