"""Whatever SQL a tenant's role sends, of each kind, it reaches nobody else's: tried, not argued."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import errors, sql

from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.database.rights import open_to_tenants
from tenantry.isolation.postgres import PostgresProbes
from tenantry.isolation.sessions import Limits, TenantsSessions
from tenantry.messages.port import Incoming
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tests.brokers import INSTALLATION
from tests.integration.hostile_statements import (
    ATTEMPTS,
    FOR_TENANTS,
    IN_A_CATALOGUE_OF_OURS,
    SHADOWS,
)
from tests.services_postgres import admin_url, database, grant

KINDS = ("reader", "probe", "producer")

REFUSED = (
    errors.InsufficientPrivilege,
    errors.InvalidParameterValue,  # SET ROLE to a role that is not there
    errors.FeatureNotSupported,
    errors.ObjectNotInPrerequisiteState,  # prepared transactions are disabled
    errors.UndefinedObject,
    errors.UndefinedFile,
    errors.InvalidSchemaName,
    errors.WrongObjectType,
    errors.UndefinedTable,
    errors.UndefinedFunction,
    errors.SyntaxError,  # of an older server
    errors.DependentObjectsStillExist,
)


@dataclass(frozen=True)
class World:
    owner: str
    daemon: Database
    url: str
    urls: dict[str, str]
    sessions: dict[str, psycopg.Connection]
    superuser: bool
    mine: str
    theirs: str

    def named(self, text: str) -> str:
        """Put in the tenants' ids: roles are the whole server's, so each world has its own."""
        return text.replace("messages_mine", f"messages_{self.mine}").replace("theirs", self.theirs)

    def words(self, kind: str) -> dict[str, object]:
        own = self.sessions[kind].info.user
        victim = f"tenant_{self.theirs}_producer"
        with self.daemon.connection() as connection:
            daemon = connection.info.backend_pid
            if kind != "producer":
                query = "SELECT tenantry.sql_role(%s)::text"
                (victim,) = connection.execute(query, [self.theirs]).fetchone() or ("",)
        assert own != victim
        return {
            "owner": self.owner,
            "victim": victim,
            "daemon": daemon,
            "database": self.sessions[kind].info.dbname,
        }


@contextmanager
def world_of(owner: str, daemon: Database, url: str, *, superuser: bool) -> Iterator[World]:
    """Two tenants with everything there is of a tenant, and sessions of one of them."""
    store, access = PostgresMessageStore(daemon), PostgresSqlAccess(daemon)
    administration, probes = (
        PostgresAdministration(daemon, installation=INSTALLATION),
        PostgresProbes(daemon),
    )
    administration.check()
    ids = [f"{one}{secrets.token_hex(4)}" for one in ("m", "t")]
    with ExitStack() as stack:
        urls = {}
        for tenant in ids:
            store.create_partition(tenant)
            store.store(tenant, [Incoming("1", "default", 0, b"{}", None, None, None)])
            administration.ensure_topology(
                TenantTopology(tenant_id=tenant, topics=("events",), partitions=2)
            )
            credentials, hashed = administration.new_credentials(tenant)
            administration.ensure_user(tenant, hashed)
            stack.callback(administration.remove_user, tenant)
            stack.callback(access.revoke, tenant)
            urls["reader"], urls["producer"] = grant(access, tenant).url, credentials.postgres_url
            if tenant == ids[0]:
                urls["probe"] = stack.enter_context(probes.probe(tenant)).url
                mine = dict(urls)
        sessions = {
            kind: stack.enter_context(psycopg.connect(mine[kind], autocommit=True))
            for kind in KINDS
        }
        for session in sessions.values():
            session.execute("SET default_transaction_read_only = off; SET statement_timeout = 0")
        yield World(owner, daemon, url, mine, sessions, superuser, *ids)


@pytest.fixture(scope="module", params=["superuser", "createrole"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A daemon that is a superuser on a server of its own; and one that is but an owner."""
    superuser = request.param == "superuser"
    with ExitStack() as stack:
        admin = stack.enter_context(psycopg.connect(admin_url(), autocommit=True))
        url = stack.enter_context(database(admin_url(), migrated=superuser))
        owner = admin.info.user
        if not superuser:
            owner = f"owner_{secrets.token_hex(4)}"
            name = sql.Identifier(owner)
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD 'x'").format(name))
            stack.callback(admin.execute, sql.SQL("DROP ROLE {}").format(name))
            stack.callback(admin.execute, sql.SQL("DROP OWNED BY {}").format(name))
            with psycopg.connect(url, autocommit=True) as inside:
                stack.callback(drop_what_it_owns, url, name)
                inside.execute(
                    sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                        sql.Identifier(inside.info.dbname), name
                    )
                )
            url = url.replace("postgres@", f"{owner}:x@")
        daemon = Database(url)
        daemon.open()
        stack.callback(daemon.close)
        migrate(daemon)
        yield stack.enter_context(world_of(owner, daemon, url, superuser=superuser))


def drop_what_it_owns(url: str, owner: sql.Identifier) -> None:
    with psycopg.connect(url, autocommit=True) as inside:
        inside.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(
                sql.Identifier(inside.info.dbname)
            )
        )
        inside.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(owner))


def tried(session: psycopg.Connection, statement: str) -> str | None:
    """Try a statement and undo it; say what came of it, or nothing where it was refused."""
    try:
        try:
            with session.transaction(force_rollback=True):
                session.execute(statement.encode())
        except errors.ActiveSqlTransaction:
            session.execute(statement.encode())
    except REFUSED:
        return None
    except psycopg.Error as error:
        return f"{statement}: {type(error).__name__}: {error}"
    return f"{statement}: was allowed"


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_role_is_refused_whatever_is_not_its_own(world: World, kind: str) -> None:
    words = world.words(kind)
    statements = [line.format_map(Words(words)) for line in lines(world.named(ATTEMPTS))]
    if world.superuser:
        statements += lines(IN_A_CATALOGUE_OF_OURS)
    else:
        statements += lines(IN_A_CATALOGUE_OF_OURS)[:4]
    assert [said for one in statements if (said := tried(world.sessions[kind], one))] == []


class Words(dict[str, object]):
    """Leaves braces that are SQL's own."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_role_is_refused_every_relation_and_every_function_that_is_not_for_tenants(
    world: World, kind: str
) -> None:
    with world.daemon.connection() as connection:
        relations = connection.execute(
            "SELECT c.oid::regclass::text FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p', 'v', 'S') AND n.nspname !~ '^(pg_|information_schema)'"
            " AND n.nspname <> ALL (%s)",
            [[session.info.user for session in world.sessions.values()]],
        ).fetchall()
        functions = connection.execute(
            "SELECT format('%s(%s)', p.oid::regproc, (SELECT string_agg(CASE"
            " WHEN t.typname IN ('text', 'name') THEN quote_literal('theirs') || '::text'"
            " WHEN t.typcategory = 'N' THEN '1::' || t.oid::regtype"
            " ELSE 'NULL::' || t.oid::regtype END, ', ' ORDER BY a.n)"
            " FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a(type, n)"
            " JOIN pg_type AS t ON t.oid = a.type))"
            " FROM pg_proc AS p WHERE p.pronamespace = 'tenantry'::regnamespace"
            " AND p.prorettype <> 'trigger'::regtype AND p.proname <> 'tenant_of_role'"
        ).fetchall()
    assert len(relations) > 20
    assert len(functions) > 20
    session = world.sessions[kind]
    allowed = []
    for (relation,) in relations:
        for words in ("SELECT FROM {} LIMIT 1", "DELETE FROM {}", "TRUNCATE {}",
                      "LOCK TABLE {} IN ACCESS SHARE MODE", "CREATE INDEX ON {} ((1))",
                      "DROP TABLE {}", "ANALYZE {}; SELECT FROM {} LIMIT 1"):  # fmt: skip
            allowed += [tried(session, words.format(relation, relation))]
    for (call,) in functions:
        if kind == "producer" and call.startswith(FOR_TENANTS):
            continue
        allowed += [tried(session, world.named(f"SELECT {call}"))]
    assert [one for one in allowed if one] == []


def test_a_role_sees_its_own_by_what_it_was_given(world: World) -> None:
    for kind in ("reader", "probe"):
        rows = world.sessions[kind].execute("SELECT tenant_id, id FROM messages").fetchall()
        assert rows == [(world.mine, "1")]
    producer = world.sessions["producer"]
    producer.execute("SELECT tenantry.publish('events', '{}', key => 'k', id => 'own')")
    found = [
        row
        for partition in range(2)
        for row in producer.execute(
            "SELECT id FROM tenantry.look(%s)", [f"tenant_{world.mine}_stream.events.{partition}"]
        )
    ]
    assert ("own",) in found


HOSTILE_VALUES = """
''
NULL
repeat('x', 100000)
E'\\'; DROP TABLE public.messages; --'
'%s%s%n'
'theirs'
E'theirs\\n'
'tenant_theirs_stream'
'..'
'*'
"""
CALLS = """
SELECT tenantry.publish({0}, '1')
SELECT tenantry.publish('default', '1', key => {0}, id => {0})
SELECT tenantry.publish('default', '1', tenant => {0})
SELECT tenantry.publish_bytes({0}, 'x', {0}, tenant => {0})
SELECT tenantry.publish_many(ARRAY[{0}], ARRAY[{0}], ARRAY[''::bytea], ARRAY[{0}], NULL, NULL, {0})
SELECT tenantry.publish_many(ARRAY['default'], NULL, NULL, NULL, NULL, NULL, tenant => {0})
SELECT * FROM tenantry.look({0}, -1)
SELECT * FROM tenantry.look('tenant_theirs_queue', 2147483647)
"""


def test_what_a_producer_may_call_takes_no_hostile_value_for_another_tenant(world: World) -> None:
    session = world.sessions["producer"]

    def theirs() -> object:
        with world.daemon.connection() as connection:
            return connection.execute(
                "SELECT count(*) FROM tenantry.queued AS m JOIN tenantry.queues AS q"
                " ON q.id = m.queue WHERE q.tenant_id = %s", [world.theirs]
            ).fetchone()  # fmt: skip

    before = theirs()
    for value in lines(world.named(HOSTILE_VALUES)):
        for call in lines(world.named(CALLS)):
            with suppress(psycopg.Error):
                session.execute(call.format(value).encode())
            assert not session.closed, call
    assert theirs() == before


def test_what_a_role_may_change_of_itself_harms_nobody_and_is_mended(world: World) -> None:
    sessions = TenantsSessions(world.daemon, Limits(transaction=0))
    owner = sql.Identifier(world.owner)
    for kind in ("reader", "producer"):
        session = world.sessions[kind]
        own = sql.Identifier(session.info.user)
        session.execute("ALTER ROLE CURRENT_USER SET statement_timeout = 0")
        with suppress(errors.InsufficientPrivilege):
            # Before PostgreSQL 16 a role decides by itself who is a member of it.
            session.execute(sql.SQL("REVOKE {} FROM {}").format(own, owner))
        with suppress(errors.InsufficientPrivilege):
            other = sql.Identifier(f"tenant_{world.theirs}_producer")
            session.execute(sql.SQL("GRANT {} TO {}").format(own, other))
        assert session.info.user in sessions.mend()
        with psycopg.connect(world.urls[kind]) as second:
            second.execute("SELECT 1")
            assert sessions.look() == 1
            with pytest.raises(psycopg.OperationalError):
                second.execute("SELECT 1")


def test_functions_and_operators_in_public_that_fit_better_are_never_called(world: World) -> None:
    """Whoever may create in `public` shadows there all that our own functions call."""
    with psycopg.connect(world.url, autocommit=True) as owner:
        # As any role could where PUBLIC has the right; it raises whoever calls it.
        names = owner.execute(
            "SELECT DISTINCT w.word[1] FROM pg_proc AS p,"
            " regexp_matches(p.prosrc, '([a-z_0-9]+)\\s*\\(', 'g') AS w(word)"
            " WHERE p.pronamespace = 'tenantry'::regnamespace AND EXISTS (SELECT FROM pg_proc AS o"
            " WHERE o.proname = w.word[1] AND o.pronamespace = 'pg_catalog'::regnamespace)"
        ).fetchall()
        assert len(names) > 20
        with owner.transaction():
            for (name,) in names:
                for arguments in SHADOWS:
                    owner.execute(
                        f'CREATE FUNCTION public."{name}"({arguments}) RETURNS bigint'
                        " LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END'".encode()
                    )
            owner.execute(
                "CREATE FUNCTION public.trap(text, name) RETURNS bool LANGUAGE plpgsql"
                " AS 'BEGIN RAISE ''trapped''; END'"
            )
            for operator in ("=", "<>", "||", "~", "<"):
                owner.execute(
                    f"CREATE OPERATOR public.{operator}"
                    " (LEFTARG = text, RIGHTARG = name, FUNCTION = public.trap)".encode()
                )
    store, access = PostgresMessageStore(world.daemon), PostgresSqlAccess(world.daemon)
    administration = PostgresAdministration(world.daemon, installation=INSTALLATION)
    third = "third"
    store.create_partition(third)
    store.store(third, [Incoming("1", "default", 0, b"{}", None, None, None)])
    assert store.page(third)[0].id == "1"
    administration.ensure_topology(TenantTopology(tenant_id=third, topics=(), partitions=1))
    grant(access, third)
    administration.survey()
    administration.queue_counts()
    world.sessions["producer"].execute("SELECT tenantry.publish('events', '{}', key => 'k')")
    assert world.sessions["reader"].execute("SELECT count(*) FROM messages").fetchone() == (1,)
    assert access.revoke(third)
    administration.remove_topology(third)
    assert store.drop_partition(third, retain=False) == 1


def test_what_stays_open_on_a_server_that_is_not_ours_is_named(world: World) -> None:
    with world.daemon.connection() as connection:
        named = " ".join(open_to_tenants(connection))
    closable = ("advisory locks", "large objects", "writing WAL", "statistics")
    assert [one for one in closable if one in named] == ([] if world.superuser else [*closable])
    assert "temporary tables" not in named
    assert "schema public" not in named
