"""An installation's name: made once, kept, and given up by a copy beside its original."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from tenantry.broker.drift import NAME, mark_of, marks_in
from tenantry.database.installation import find_installation
from tenantry.database.pool import Database
from tests.services_postgres import admin_url


def named(url: str) -> str:
    database = Database(url, pool_size=2)
    database.open()
    try:
        return find_installation(database)
    finally:
        database.close()


def test_a_name_is_made_at_the_first_start_and_stays(database: Database) -> None:
    name = find_installation(database)
    assert NAME.fullmatch(name)
    assert find_installation(database) == name
    assert marks_in(["management", mark_of(name), "tenantry", "tenantry-"]) == {name}


def test_a_copy_beside_its_original_gets_a_name_of_its_own_and_leaves_the_others_roles_alone(
    database_url: str,
) -> None:
    name = named(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenantry.sql_roles (role, tenant_id) VALUES ('tenant_a_sql_1', 'a')"
        )
    original, copy = urlsplit(database_url).path[1:], f"copy_{secrets.token_hex(6)}"
    with psycopg.connect(admin_url(), autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        admin.execute(create.format(sql.Identifier(copy), sql.Identifier(original)))
        url = urlunsplit(urlsplit(database_url)._replace(path=f"/{copy}"))
        try:
            renamed = named(url)
            assert renamed != name
            assert named(url) == renamed
            assert named(database_url) == name
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT FROM tenantry.sql_roles").fetchall() == []
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(copy)))


@pytest.mark.parametrize("column", ["database", "server"])
def test_a_database_that_has_moved_keeps_its_name(database: Database, column: str) -> None:
    name = find_installation(database)
    with database.connection() as connection:
        # As it comes out of a dump: of another server, or with a number nobody has here.
        move = sql.SQL("UPDATE tenantry.installation SET {} = 1000000")
        connection.execute(move.format(sql.Identifier(column)))
    assert find_installation(database) == name
    with database.connection() as connection:
        query = "SELECT count(*) FROM tenantry.installation WHERE 1000000 IN (database, server)"
        assert connection.execute(query).fetchone() == (0,)
