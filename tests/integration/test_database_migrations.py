"""Migrations against a real database: once each, whole or not at all, never backwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest

from tenantry.database import preflight
from tenantry.database.errors import MigrationError, SchemaTooNewError
from tenantry.database.migrations import Migration, migrate, migrations, pending
from tenantry.database.pool import Connection, Database
from tests.waiting import DEADLINE

FIRST = Migration(number=1, name="first", sql="CREATE TABLE tenantry.first (n int);")
SECOND = Migration(
    number=2,
    name="second",
    sql="CREATE TABLE tenantry.second (n int); INSERT INTO tenantry.second VALUES (7);",
)


def ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question.encode()).fetchone()
        return None if row is None else row[0]


def test_everything_is_applied_once_in_order(empty_database_url: str) -> None:
    url = empty_database_url
    assert pending(url) == migrations()
    assert ask(url, "SELECT to_regnamespace('tenantry')") is None
    assert migrate(url) == migrations()
    assert pending(url) == []
    assert migrate(url) == []
    assert ask(url, "SELECT count(*) FROM tenantry.schema_migrations") == len(migrations())
    assert ask(url, "SELECT to_regclass('tenantry.events') IS NOT NULL") is True


def test_only_what_is_missing_is_applied(empty_database_url: str) -> None:
    assert migrate(empty_database_url, known=[FIRST]) == [FIRST]
    assert pending(empty_database_url, known=[FIRST, SECOND]) == [SECOND]
    assert migrate(empty_database_url, known=[FIRST, SECOND]) == [SECOND]
    assert ask(empty_database_url, "SELECT n FROM tenantry.second") == 7


def test_an_open_database_will_do_too(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    database.open()
    assert migrate(database, known=[FIRST]) == [FIRST]
    database.close()


def test_programs_that_start_at_once_wait_for_one_another(empty_database_url: str) -> None:
    together = threading.Barrier(4)

    def start(_: int) -> list[Migration]:
        together.wait(timeout=DEADLINE)
        return migrate(empty_database_url)

    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(start, range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, len(migrations())]


def test_a_program_that_looks_while_another_begins_takes_its_work_for_no_strangers(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = empty_database_url
    look = preflight.look

    def slowly(connection: Connection) -> preflight.Found:
        found = look(connection)
        monkeypatch.undo()
        assert len(migrate(url)) == len(migrations())  # the other one, from the first to the last
        return found

    monkeypatch.setattr(preflight, "look", slowly)
    assert migrate(url) == []


def test_a_failing_migration_leaves_nothing_and_those_before_it_stay(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    broken = replace(SECOND, sql="CREATE TABLE tenantry.half (n int);\nSELECT 1/0;")
    with pytest.raises(MigrationError, match=r"0002_second failed: division by zero"):
        migrate(url, known=[FIRST, broken])
    assert ask(url, "SELECT to_regclass('tenantry.half')") is None
    assert pending(url, known=[FIRST, SECOND]) == [SECOND]
    assert migrate(url, known=[FIRST, SECOND]) == [SECOND]


def test_a_migration_may_not_end_its_own_transaction(empty_database_url: str) -> None:
    sly = replace(SECOND, sql="CREATE TABLE tenantry.half (n int); COMMIT; SELECT 1/0;")
    with pytest.raises(MigrationError):
        migrate(empty_database_url, known=[FIRST, sly])


def test_a_schema_newer_than_the_program_is_left_alone(empty_database_url: str) -> None:
    url = empty_database_url
    migrate(url, known=[FIRST, SECOND])
    for refuse in (migrate, pending):
        with pytest.raises(SchemaTooNewError) as caught:
            refuse(url, known=[FIRST])
        assert (caught.value.database, caught.value.program) == (2, 1)
        assert "migration 2" in str(caught.value)
        assert "program's 1" in str(caught.value)


def test_a_migration_changed_after_it_was_applied_is_found(empty_database_url: str) -> None:
    migrate(empty_database_url, known=[FIRST])
    changed = replace(FIRST, sql="CREATE TABLE tenantry.first (n bigint);")
    with pytest.raises(MigrationError, match="0001_first was applied with another text"):
        migrate(empty_database_url, known=[changed, SECOND])
    assert ask(empty_database_url, "SELECT to_regclass('tenantry.second')") is None


def test_a_migration_that_appears_below_the_schema_is_refused(empty_database_url: str) -> None:
    migrate(empty_database_url, known=[SECOND])
    with pytest.raises(MigrationError, match="0001_first is missing below"):
        migrate(empty_database_url, known=[FIRST, SECOND])


def test_a_user_of_an_odd_search_path_gets_the_same_schema(empty_database_url: str) -> None:
    url = f"{empty_database_url}&options=-c%20search_path%3Dnowhere"
    migrate(url)
    assert ask(empty_database_url, "SELECT to_regclass('public.messages') IS NOT NULL") is True
