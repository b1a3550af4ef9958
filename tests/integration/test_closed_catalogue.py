"""Only our own code runs with the daemon's rights: no path of ours leads past what we wrote."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import errors, sql

from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.database import rights
from tenantry.database.errors import OpenSchemaError
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.messages.postgres import PostgresMessageStore
from tests import brokers

CLOSED = ("pg_catalog, pg_temp",)


@contextmanager
def stranger(admin: psycopg.Connection) -> Iterator[str]:
    """A role that was let into the schema, and may create there and in public."""
    name = f"stranger_{secrets.token_hex(4)}"
    role = sql.Identifier(name)
    admin.execute(sql.SQL("CREATE ROLE {}").format(role))
    admin.execute(sql.SQL("GRANT ALL ON SCHEMA tenantry, public TO {}").format(role))
    try:
        yield name
    finally:
        admin.execute("RESET ROLE")
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def admin(database_url: str) -> Iterator[psycopg.Connection]:
    """The owner, of a database in which PUBLIC may what it may where nobody has taken care."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO PUBLIC',"
            " current_database()); END $$; GRANT CREATE ON SCHEMA public TO PUBLIC;"
            " GRANT USAGE ON LANGUAGE plpgsql TO PUBLIC"
        )
        yield connection


def test_every_function_of_the_schema_has_a_closed_search_path(admin: psycopg.Connection) -> None:
    found = admin.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace IN ('tenantry'::regnamespace,"
        " 'public'::regnamespace) AND proconfig @> ARRAY['search_path=pg_catalog, pg_temp']"
    ).fetchall()
    assert ("store_messages",) in found
    assert rights.open_paths(admin) == []
    assert rights.strangers(admin) == []


def test_one_that_was_left_open_is_closed_with_the_next_migration(
    admin: psycopg.Connection, database_url: str
) -> None:
    admin.execute("CREATE FUNCTION tenantry.left_open(text) RETURNS text RETURN $1")
    admin.execute("ALTER FUNCTION tenantry.enqueue RESET ALL")
    assert len(rights.open_paths(admin)) == 2
    migrate(database_url)
    assert rights.open_paths(admin) == []


FUNCTION = "CREATE FUNCTION public.trap({}) RETURNS {} LANGUAGE plpgsql AS 'BEGIN RETURN {}; END';"
TRAPS = {
    "a function": "CREATE FUNCTION tenantry.helper() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "a view": "CREATE VIEW tenantry.looks_harmless AS SELECT 1",
    "a trigger": FUNCTION.format("", "trigger", "NEW")
    + "SET ROLE postgres; CREATE TRIGGER trap BEFORE INSERT ON tenantry.events"
    " FOR EACH ROW EXECUTE FUNCTION public.trap()",
    "a policy": FUNCTION.format("text", "bool", "true")
    + "SET ROLE postgres; CREATE POLICY trap ON public.messages USING (public.trap(tenant_id))",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_where_a_strangers_code_would_run_as_the_daemon_nothing_starts(
    admin: psycopg.Connection, database_url: str, trap: str
) -> None:
    with stranger(admin) as name:
        admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(name)))
        admin.execute(TRAPS[trap].encode())
        admin.execute("RESET ROLE")
        with pytest.raises(OpenSchemaError, match=rf"{name}'s.*drop it"):
            migrate(database_url)
    migrate(database_url)


@pytest.mark.parametrize("asked", ["", "&options=-c%20search_path%3Dpublic"])
def test_every_session_of_ours_has_a_closed_path_whatever_the_url_says(
    database_url: str, asked: str
) -> None:
    database = Database(database_url + asked)
    database.open()
    lending = database.beside(pool_size=1, statement_timeout=10, idle_timeout=10)
    lending.open()
    try:
        with database.connection() as one, database.listen_connection() as two:
            assert one.execute("SHOW search_path").fetchone() == CLOSED
            assert two.execute("SHOW search_path").fetchone() == CLOSED
        assert asyncio.run(_shown(database)) == CLOSED
        with lending.connection() as connection:
            assert connection.execute("SHOW search_path").fetchone() == CLOSED
            connection.execute("SET search_path TO DEFAULT")
            usual = connection.execute("SHOW search_path")
            assert usual.fetchone() == ("public" if asked else '"$user", public',)
    finally:
        lending.close()
        database.close()


async def _shown(database: Database) -> object:
    async with await database.connect_async() as connection:
        return await (await connection.execute("SHOW search_path")).fetchone()


def test_a_better_match_in_public_is_never_called(
    admin: psycopg.Connection, database: Database
) -> None:
    """PUBLIC may create in `public` where a PostgreSQL before 15 has made the database."""
    with stranger(admin) as name:
        admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(name)))
        for signature in (
            "hashtextextended(text, integer)", "starts_with(name, text)", "substr(name, integer)",
            "format(text, text)", "pg_advisory_xact_lock(numeric)", "cardinality(text[])",
        ):  # fmt: skip
            with_body = f"CREATE FUNCTION public.{signature} RETURNS bigint LANGUAGE plpgsql AS"
            admin.execute(f"{with_body} 'BEGIN RAISE ''called''; END'".encode())
        admin.execute("RESET ROLE")
        store = PostgresMessageStore(database)
        store.create_partition("acme")
        assert store.partitions().whole.keys() == {"acme"}
        assert store.drop_partition("acme", retain=False) == 0


FAKES = {
    "pg_roles": "SELECT r.oid, 'tenant_{theirs}_producer'::name AS rolname"
    " FROM pg_catalog.pg_roles AS r WHERE rolname = current_user",
    "pg_database": "SELECT 1 AS oid, current_database() AS datname",
    "queues": "SELECT 1 AS id, '{theirs}' AS tenant_id",
}


def test_temp_tables_named_like_the_catalogue_let_nobody_act_for_another(
    admin: psycopg.Connection, database: Database
) -> None:
    with brokers.postgres(database) as broker:
        mine, other = broker.tenant().tenant_id, broker.tenant().tenant_id
        with session(broker.administration, mine) as tenant:
            for fake, rows in FAKES.items():
                tenant.execute(f"CREATE TEMP TABLE {fake} AS {rows.format(theirs=other)}".encode())
            for reach in (
                f"SELECT tenantry.publish('default', '1', tenant => '{other}')",
                f"SELECT * FROM tenantry.look('tenant_{other}_queue')",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    tenant.execute(reach.encode())
            tenant.execute("SELECT tenantry.publish('default', '1')")


def test_temp_domains_named_like_types_run_none_of_their_owners_code(
    admin: psycopg.Connection, database: Database
) -> None:
    with brokers.postgres(database) as broker:
        mine = broker.tenant().tenant_id
        with session(broker.administration, mine) as tenant:
            tenant.execute(
                "CREATE FUNCTION pg_temp.spy(pg_catalog.text) RETURNS bool LANGUAGE plpgsql AS"
                " 'BEGIN IF current_user <> session_user THEN RAISE ''ran as %'', current_user;"
                " END IF; RETURN true; END'"
            )
            for name, plain in PLAIN.items():
                tenant.execute(
                    f'CREATE DOMAIN pg_temp."{name}" AS pg_catalog."{plain}"'
                    " CHECK (pg_temp.spy(VALUE::pg_catalog.text))".encode()
                )
            tenant.execute("""SELECT tenantry.publish('default', '{"a": 1}', key => 'k')""")
            tenant.execute(f"SELECT * FROM tenantry.look('tenant_{mine}_queue')".encode())


PLAIN = {"bigint": "int8", "integer": "int4"} | {
    name: name for name in ("text", "jsonb", "oid", "bytea")
}


@contextmanager
def session(administration: PostgresAdministration, tenant_id: str) -> Iterator[psycopg.Connection]:
    credentials, hashed = administration.new_credentials(tenant_id)
    administration.ensure_user(tenant_id, hashed)
    try:
        with psycopg.connect(credentials.postgres_url, autocommit=True) as connection:
            yield connection
    finally:
        administration.remove_user(tenant_id)
