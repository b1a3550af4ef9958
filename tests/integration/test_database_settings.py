"""Whatever has been set for the database, the role or the environment: sessions are ours."""

from __future__ import annotations

import asyncio
import re
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql

from tenantry.database.errors import DatabaseUnfitError, DatabaseUrlError
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.database.session import LIMITS, NEWER, PINNED, REQUIRED
from tenantry.handlers.connection import tidy
from tenantry.messages.postgres import PostgresMessageStore
from tests.contract.test_message_store import incoming
from tests.services_postgres import admin_url

PAGE = Path(__file__).parents[2] / "docs" / "postgresql.md"

OTHERWISE = {
    "synchronous_commit": "off",
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "search_path": "nowhere",
    "row_security": "off",
    "check_function_bodies": "off",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "TimeZone": "Pacific/Apia",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "idle_session_timeout": "1min",
    "exit_on_error": "on",
    "client_min_messages": "error",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "4",
    "plpgsql.extra_errors": "all",
    "plpgsql.extra_warnings": "all",
    "createrole_self_grant": "set, inherit",
    "transaction_timeout": "1min",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "default_table_access_method": "nothing_like_it",
}
"""What somebody may have set for the database: of each pinned setting another value."""


def tables() -> dict[str, set[str]]:
    """Give the settings of each table of the page, by its heading."""
    found: dict[str, set[str]] = {}
    for part in PAGE.read_text("utf-8").split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        found[heading] = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    return found


def set_otherwise(url: str, settings: dict[str, str]) -> None:
    """Set defaults of a database, which every session inherits from then on."""
    name = urlsplit(url).path[1:]
    with psycopg.connect(admin_url(), autocommit=True) as connection:
        connection.execute("LOAD 'plpgsql'")
        known = {row[0] for row in connection.execute("SELECT name FROM pg_settings")}
        for setting, value in settings.items():
            if setting not in known:
                continue  # of a newer server
            values = [value]
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                sql.Identifier(name),
                sql.Identifier(*setting.split(".")),
                sql.SQL(", ").join(values),
            )
            if setting == "default_table_access_method":
                # What is not there is refused here, but not where a session inherits it.
                connection.execute(
                    "UPDATE pg_db_role_setting SET setconfig = setconfig || %s"
                    " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = %s)",
                    [[f"{setting}={value}"], name],
                )
            else:
                connection.execute(statement)


def shown(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute("SELECT pg_catalog.current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def test_every_setting_that_a_session_can_inherit_has_a_decision_on_the_page(
    database_url: str,
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("LOAD 'plpgsql'")
        rows = connection.execute(
            "SELECT name FROM pg_settings"
            " WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')"
        ).fetchall()
    decided = tables()
    everything = [name for names in decided.values() for name in names]
    assert len(everything) == len(set(everything)), "a setting stands in two tables"
    assert {name for (name,) in rows} <= set(everything)
    assert decided["Pinned"] == {*PINNED, *NEWER, *LIMITS}
    assert decided["Required"] == set(REQUIRED)


def test_each_pinned_setting_is_ours_in_every_kind_of_session(database_url: str) -> None:
    wanted = {**PINNED, "statement_timeout": "30s", "lock_timeout": "10s"}
    with psycopg.connect(database_url) as connection:
        newer = connection.info.server_version
    wanted |= {name: value for name, (since, value) in NEWER.items() if newer >= since}
    assert {*wanted, *LIMITS} <= {*OTHERWISE, "transaction_timeout"}

    async def of_a_loop() -> dict[str, str]:
        connection = await database.connect_async()
        try:
            cursor = await connection.execute("SELECT name, setting FROM pg_catalog.pg_settings")
            return dict(await cursor.fetchall())
        finally:
            await connection.close()

    set_otherwise(database_url, OTHERWISE)
    with closing(Database(database_url)) as database:
        database.open()
        with (
            database.connection() as pooled,
            database.listen_connection() as listening,
            closing(
                database.beside(pool_size=1, statement_timeout=30, idle_timeout=60)
            ) as handlers,
        ):
            handlers.open()
            for name, value in wanted.items():
                assert shown(pooled, name) == value, name
                assert shown(listening, name) == value, name
            with handlers.connection() as handling:
                assert {name: shown(handling, name) for name in wanted} == wanted
                # What users' code gets.
                handling.execute("SET search_path TO DEFAULT")
                assert shown(handling, "search_path") == "nowhere"
        looped = asyncio.run(of_a_loop())
        assert {name: looped[name] for name in PINNED if "." not in name} == {
            name: value for name, value in PINNED.items() if "." not in name
        }


def test_a_database_with_every_setting_otherwise_is_migrated_and_stores(
    empty_database_url: str,
) -> None:
    set_otherwise(empty_database_url, OTHERWISE)
    with closing(Database(empty_database_url)) as database:
        migrate(database)
        database.open()
        store = PostgresMessageStore(database)
        store.create_partition("a")
        stored = store.store("a", [incoming("ä", body=b'{"n": "\xc3\xbc"}'), incoming("2")])
        assert (stored.stored, stored.unstorable) == (2, ())
        assert [row.id for row in store.page("a")] == ["ä", "2"]


@pytest.mark.parametrize("options_are_taken", [True, False])
def test_what_a_handler_resets_is_ours_again(database_url: str, *, options_are_taken: bool) -> None:
    set_otherwise(database_url, {"synchronous_commit": "off"})
    with closing(Database(database_url, term="daemon/7")) as database:
        # Some poolers take none.
        database._sessions._options_refused = not options_are_taken
        database.open()
        with database.connection() as connection:
            assert shown(connection, "synchronous_commit") == "on"
            connection.execute("RESET ALL")
            if options_are_taken:
                assert shown(connection, "tenantry.term") == "daemon/7"
            assert shown(connection, "synchronous_commit") == ("on" if options_are_taken else "off")
            tidy(connection)
            assert shown(connection, "synchronous_commit") == "on"
            assert shown(connection, "tenantry.term") == "daemon/7"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("session_replication_role", "replica"),
        ("zero_damaged_pages", "on"),
        ("ignore_checksum_failure", "on"),
    ],
)
def test_a_session_that_finds_a_required_setting_otherwise_is_refused_with_a_remedy(
    database_url: str, setting: str, value: str
) -> None:
    set_otherwise(database_url, {setting: value})
    with pytest.raises(DatabaseUnfitError) as caught:
        Database(database_url).open(0)
    assert f"{setting} is {value}" in str(caught.value)
    assert "pg_db_role_setting" in str(caught.value)
    assert caught.value.permanent


def test_the_environment_s_settings_for_libpq_have_no_say(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off -c work_mem=77MB")
    monkeypatch.setenv("PGTZ", "Pacific/Apia")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with closing(Database(database_url)) as database:
        database.open()
        with database.connection() as connection:
            names = ("synchronous_commit", "TimeZone", "DateStyle", "client_encoding")
            assert [shown(connection, name) for name in names] == [PINNED[name] for name in names]
            assert shown(connection, "work_mem") != "77MB"


@pytest.mark.parametrize(
    "options",
    [
        "-c synchronous_commit=off",
        "-cDateStyle=German",
        "--default-transaction-isolation=serializable",
    ],
)
def test_a_url_that_asks_for_a_pinned_setting_is_refused_by_its_name(options: str) -> None:
    name = options.partition("=")[0].removeprefix("-c").strip("- ").replace("-", "_").lower()
    with pytest.raises(DatabaseUrlError, match=name):
        Database(f"postgresql://user:secret@host/x?options={quote(options)}")


def test_a_url_may_ask_for_more_safety_for_limits_and_for_a_search_path_of_handlers(
    database_url: str,
) -> None:
    options = quote(
        "-c synchronous_commit=remote_apply -c lock_timeout=7s -c search_path=nowhere"
        " -c work_mem=5MB -c extra_float_digits=1"
    )
    with closing(Database(f"{database_url}&options={options}")) as database:
        database.open()
        with database.connection() as connection:
            assert shown(connection, "synchronous_commit") == "remote_apply"
            assert shown(connection, "lock_timeout") == "7s"
            assert shown(connection, "work_mem") == "5MB"
            assert shown(connection, "search_path") == "pg_catalog, pg_temp"
        beside = database.beside(pool_size=1, statement_timeout=30, idle_timeout=60)
        with closing(beside):
            beside.open()
            with beside.connection() as connection:
                assert shown(connection, "search_path") == "pg_catalog, pg_temp"
                connection.execute("SET search_path TO DEFAULT")
                assert shown(connection, "search_path") == "nowhere"
