"""A database in which the schema can't be made is refused with a remedy, and is as it was then."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from tenantry.database.errors import DatabaseError, OpenSchemaError
from tenantry.database.migrations import NODES, Migration, migrate, migrations, pending
from tenantry.database.pool import Database
from tests.services_postgres import admin_url, drop_database, in_database

FENCE = 16
"""The migration that puts a table of its own beside the gate."""

EVERYTHING = """
SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
UNION ALL SELECT nspname FROM pg_namespace ORDER BY 1
"""


def refusal(url: str) -> str:
    """Have the database refused, by a look and by a migration; give what is said of it."""
    with psycopg.connect(admin_url()) as connection:
        name = urlsplit(url).path[1:]
    with psycopg.connect(in_database(admin_url(), name)) as connection:
        before = connection.execute(EVERYTHING).fetchall()
    said = set()
    for act in (pending, migrate):
        with pytest.raises(DatabaseError) as caught:
            act(url)
        said.add(str(caught.value))
    with psycopg.connect(in_database(admin_url(), name)) as connection:
        assert connection.execute(EVERYTHING).fetchall() == before
    assert len(said) == 1
    (text,) = said
    assert "\n" not in text
    return text


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_an_encoding_in_which_not_every_message_can_be_stored_is_refused(encoding: str) -> None:
    name = f"test_{encoding.lower()}"
    url = in_database(admin_url(), name)
    with psycopg.connect(admin_url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                "CREATE DATABASE {} ENCODING {} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            ).format(sql.Identifier(name), sql.Literal(encoding))
        )
    try:
        text = refusal(url)
    finally:
        drop_database(url)
    assert f"encoding is {encoding}" in text
    assert "createdb --template=template0 --encoding=UTF8" in text


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["CREATE TABLE public.messages (n int)"], "there is a table public.messages already"),
        (["CREATE VIEW public.messages AS SELECT 1"], "there is a table public.messages already"),
        (
            ["CREATE SCHEMA tenantry", "CREATE TABLE tenantry.things (n int)"],
            "there is a schema tenantry already",
        ),
        (
            ["CREATE SCHEMA tenantry", "CREATE TABLE tenantry.schema_migrations (version text)"],
            "there is a schema tenantry already",
        ),
        (
            ["CREATE SCHEMA tenantry_fence", "CREATE TABLE tenantry_fence.terms ()"],
            "there is a schema tenantry_fence already",
        ),
        (
            [
                "CREATE SCHEMA tenantry_fence",
                "CREATE FUNCTION tenantry_fence.f() RETURNS int LANGUAGE sql RETURN 1",
            ],
            "there is a schema tenantry_fence already",
        ),
        (["DROP SCHEMA public"], "no schema public; CREATE SCHEMA public"),
        (["DROP EXTENSION plpgsql"], "no PL/pgSQL"),
    ],
)
def test_what_is_somebody_else_s_or_not_there_is_found_before_anything_is_made(
    empty_database_url: str, statements: list[str], said: str
) -> None:
    run(empty_database_url, *statements)
    assert said in refusal(empty_database_url)


def test_schemas_that_were_made_for_it_and_are_empty_will_do(empty_database_url: str) -> None:
    run(empty_database_url, "CREATE SCHEMA tenantry", "CREATE SCHEMA tenantry_fence")
    assert migrate(empty_database_url)


def test_a_schema_that_its_superuser_has_made_for_a_modest_user_will_do(
    empty_database_url: str,
) -> None:
    with modest(empty_database_url) as (role, url):
        run(
            empty_database_url,
            "CREATE SCHEMA tenantry",
            f'GRANT CREATE, USAGE ON SCHEMA public, tenantry TO "{role}"',
        )
        assert migrate(url)
        assert not migrate(url)


@pytest.mark.parametrize("schema", ["tenantry", "tenantry_fence"])
def test_a_schema_of_somebody_who_could_hold_what_lies_in_it_is_refused(
    empty_database_url: str, schema: str
) -> None:
    with modest(empty_database_url) as (role, url):
        run(empty_database_url, f'GRANT CREATE, USAGE ON SCHEMA public TO "{role}"')
        with modest(empty_database_url) as (other, _):
            run(
                empty_database_url,
                f'CREATE SCHEMA {schema} AUTHORIZATION "{other}"',
                f'GRANT CREATE, USAGE ON SCHEMA {schema} TO "{role}"',
            )
            assert f"schema {schema}" in (text := refusal(url))
            assert other in text


def test_a_fence_that_somebody_has_made_in_the_meantime_is_refused(empty_database_url: str) -> None:
    with modest(empty_database_url) as (other, _):
        before_the_fence = [one for one in migrations() if one.number < FENCE]
        migrate(empty_database_url, known=before_the_fence)
        run(empty_database_url, "CREATE TABLE tenantry_fence.things (n int)")
        assert "there is a schema tenantry_fence already" in refusal(empty_database_url)
        run(empty_database_url, "DROP TABLE tenantry_fence.things")
        assert migrate(empty_database_url)
        run(empty_database_url, f'ALTER SCHEMA tenantry_fence OWNER TO "{other}"')
        with pytest.raises(OpenSchemaError, match=f"schema tenantry_fence, which is {other}'s"):
            migrate(empty_database_url)


def test_what_our_schema_has_in_the_fence_is_in_no_later_migrations_way(database: Database) -> None:
    after = Migration(number=migrations()[-1].number + 1, name="next", sql="SELECT 1")
    assert migrate(database, known=[*migrations(), after]) == [after]


def test_the_fences_of_nodes_are_in_no_later_migrations_way(empty_database_url: str) -> None:
    migrate(empty_database_url, known=[one for one in migrations() if one.number <= NODES])
    run(empty_database_url, "SELECT tenantry.open_node('a'), tenantry.open_node('b')")
    assert next(one.number for one in migrate(empty_database_url)) == NODES + 1
    run(empty_database_url, "CREATE TABLE tenantry_fence.node_x ()")
    run(empty_database_url, "DELETE FROM tenantry.schema_migrations WHERE number > 29")
    assert "there is a schema tenantry_fence already" in refusal(empty_database_url)


@contextmanager
def modest(database_url: str) -> Iterator[tuple[str, str]]:
    """A role that may create schemas in a database, and its URL."""
    role = f"test_modest_{secrets.token_hex(4)}"
    parts = urlsplit(database_url)
    run(
        database_url,
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        f'GRANT CREATE ON DATABASE "{parts.path[1:]}" TO "{role}"',
    )
    try:
        yield role, urlunsplit(parts._replace(netloc=f"{role}:x@"))
    finally:
        run(database_url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_a_user_who_may_not_create_is_refused_with_what_to_grant(empty_database_url: str) -> None:
    role = "test_modest_migrator"
    run(admin_url(), f"DROP ROLE IF EXISTS {role}", f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    parts = urlsplit(empty_database_url)
    url = urlunsplit(parts._replace(netloc=f"{role}:x@"))
    name = parts.path[1:]
    try:
        text = refusal(url)
        assert f'GRANT CREATE ON DATABASE "{name}" TO "{role}"' in text
        run(empty_database_url, f'GRANT CREATE ON DATABASE "{name}" TO "{role}"')
        text = refusal(url)
        assert f'GRANT CREATE, USAGE ON SCHEMA public TO "{role}"' in text
        run(empty_database_url, f'GRANT CREATE, USAGE ON SCHEMA public TO "{role}"')
        assert migrate(url)
        with closing(Database(url)) as database:
            database.open()
    finally:
        run(empty_database_url, f"DROP OWNED BY {role}")
        run(admin_url(), f"DROP ROLE {role}")
