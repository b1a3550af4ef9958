"""The schema's history: numbered SQL files, each applied once, in order, in a transaction.

A file may have several steps, a transaction each: what reads a large table must not lock it till
the rest is done. Those before the last may be repeated; the last is committed with the record.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Final

import psycopg
from psycopg import errors

from tenantry.database import preflight, rights
from tenantry.database.errors import DatabaseUnfitError, MigrationError, SchemaTooNewError
from tenantry.database.failures import is_unavailable, one_line
from tenantry.database.locks import end_holders
from tenantry.database.pool import Connection, Database
from tenantry.database.session import SEARCH_PATH
from tenantry.database.sessions import LOCK_TIMEOUT

TERMS: Final = 6
"""The migration since which there are terms."""

NODES: Final = 29
"""The migration since which there may be several daemons at work."""

STATEMENT_TIMEOUT: Final = 600.0
FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
STEP: Final = re.compile(r"^-- step\s*$", re.MULTILINE)
"""What begins another step of a migration."""

log = logging.getLogger(__name__)

TRIES: Final = 5
"""How often a migration is tried that others hold up, and what all of them wait for is made."""

LOCK_TIMEOUT_MS: Final = 3000
"""Milliseconds a migration waits for a table before the sessions that hold it are ended."""

_GATE: Final = """
CREATE SCHEMA IF NOT EXISTS tenantry_fence;
REVOKE ALL ON SCHEMA tenantry_fence FROM PUBLIC;
CREATE TABLE IF NOT EXISTS tenantry_fence.migrations ();
CREATE SCHEMA IF NOT EXISTS tenantry;
CREATE TABLE IF NOT EXISTS tenantry.schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""
"""The table that lets one program at a time migrate is in a schema that no tenant's role can name:
a role that can name a table can hold it. It is locked, and nothing is ever in it."""

_GATE_IS_THERE: Final = """
SELECT to_regclass('tenantry_fence.migrations') IS NOT NULL
   AND to_regclass('tenantry.schema_migrations') IS NOT NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A step of the schema's history; its text never changes once it has been released."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """The fingerprint of the text, whatever its line ends."""
        text = self.sql.replace("\r\n", "\n").strip()
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def steps(self) -> list[str]:
        """The transactions it takes."""
        return STEP.split(self.sql)

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


def migrations() -> list[Migration]:
    """Read the migrations that come with the program, in order.

    Raises `MigrationError` where two have the same number or a file's name is none.
    """
    found: dict[int, Migration] = {}
    for file in resources.files("tenantry.sql").joinpath("migrations").iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = FILE_NAME.fullmatch(file.name)
        if match is None:
            raise MigrationError(f"{file.name} is no migration's name: NNNN_name.sql")
        number = int(match[1])
        if number in found:
            raise MigrationError(f"two migrations have the number {number:04}")
        found[number] = Migration(number=number, name=match[2], sql=file.read_text("utf-8"))
    return [found[number] for number in sorted(found)]


def migrate(
    database: Database | str, *, known: Sequence[Migration] | None = None
) -> list[Migration]:
    """Apply what is missing, in order, and give what was applied.

    Nothing is made where it is seen beforehand that it would not work: another program has a table
    public.messages, say (`DatabaseUnfitError`). Each migration is committed together with its
    record; a migration that fails leaves nothing behind but steps that may be repeated, and those
    before it in place. Programs
    that start at once wait for one another. In the end only our own code runs as the database's
    user, or `OpenSchemaError` says what else would.
    Raises `SchemaTooNewError`, `MigrationError`, `DatabaseUnavailableError`.
    """
    known = migrations() if known is None else known
    with _session(database) as connection:
        _look(connection, known)  # before anything is made, the gate as well
        with _alone(database):
            return _bring_up(connection, known)


def _bring_up(connection: Connection, known: Sequence[Migration]) -> list[Migration]:
    applied: list[Migration] = []
    for migration in _missing(_applied(connection), known):
        _patiently(connection, partial(_apply, connection, migration))
        log.info("applied migration %s", migration)
        applied.append(migration)
    _patiently(connection, partial(_fence, connection))
    if rights.are_kept(connection):
        rights.close_paths(connection)
        rights.refuse_strangers(connection)
        rights.take_from_public(connection)
    return applied


def pending(
    database: Database | str, *, known: Sequence[Migration] | None = None
) -> list[Migration]:
    """Tell which migrations `migrate` would apply; changes nothing.

    Raises as `migrate` does.
    """
    with _session(database) as connection:
        return _look(connection, migrations() if known is None else known)


def migrate_unless_led(database: Database) -> bool:
    """Apply what is missing, unless one daemon that may be at work leads all of them; tell whether.

    That is so with a schema from before there were nodes: only who holds the one term there was may
    change it. Since then nodes work with the schema of the next version as well. Raises as
    `migrate` does, for a schema that is too new as well.
    """
    missing = [one.number for one in pending(database)]
    if missing and TERMS < missing[0] <= NODES:
        return False
    if missing:
        migrate(database)
    return True


@contextmanager
def _session(database: Database | str) -> Iterator[Connection]:
    # Not a connection of the pool: a session holds the lock, and big tables take their time.
    if isinstance(database, str):
        database = Database(database)
    try:
        with database.listen_connection(statement_timeout=STATEMENT_TIMEOUT) as connection:
            yield connection
    except DatabaseUnfitError as error:
        raise error.of(database.where) from error
    except psycopg.Error as error:
        raise MigrationError(f"{database.where} can't be migrated: {one_line(error)}") from error


@contextmanager
def _alone(database: Database | str) -> Iterator[None]:
    """Hold the gate for the whole run, so that the second of two programs finds all done."""
    # On a session of its own: each migration is a transaction by itself.
    with _session(database) as connection:
        _make_gate(connection)
        with connection.transaction():
            # Waiting for another program's migration may take as long as that takes.
            connection.execute(
                "SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
            )
            connection.execute("LOCK TABLE tenantry_fence.migrations IN EXCLUSIVE MODE")
            yield


def _make_gate(connection: Connection) -> None:
    """Make what programs wait for to migrate; of several that try at once one does."""
    for left in reversed(range(TRIES)):
        row = connection.execute(_GATE_IS_THERE).fetchone()
        if row is not None and row[0]:
            return
        try:
            with connection.transaction():
                connection.execute(_GATE)
        except (errors.UniqueViolation, errors.DuplicateObject, errors.InternalError):
            # Another has just made it: IF NOT EXISTS looks before it makes, and not at once.
            if not left:
                raise


def _patiently(connection: Connection, step: Callable[[], None]) -> None:
    """Do something to tables, and end the sessions of strangers that hold them."""
    connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}".encode())
    for left in reversed(range(TRIES)):
        try:
            step()
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if not left:
                raise
            held_by = end_holders(connection)
            log.warning("migrating waits for %s: %s", held_by or "a table", one_line(error))
        else:
            break
    connection.execute(f"SET lock_timeout = {int(LOCK_TIMEOUT * 1000)}".encode())


def _fence(connection: Connection) -> None:
    """See that only the holder of the term writes what daemons write, in new tables too."""
    row = connection.execute("SELECT to_regprocedure('tenantry.fence_tables()')").fetchone()
    if row is not None and row[0] is not None:
        connection.execute("SELECT tenantry.fence_tables()")


def _look(connection: Connection, known: Sequence[Migration]) -> list[Migration]:
    """Tell which migrations are missing, and raise where they could not be applied."""
    with connection.transaction():
        # All of it at one moment: another program may be migrating, which is no stranger's work.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        found = preflight.look(connection)
        done = _applied(connection) if found["history"] else {}
        missing = _missing(done, known)
        if missing:
            preflight.refuse_unfit(connection, found, applied=frozenset(done))
    return missing


def _missing(done: Mapping[int, str], known: Sequence[Migration]) -> list[Migration]:
    newest = max(done, default=0)
    ours = max((migration.number for migration in known), default=0)
    if newest > ours:
        raise SchemaTooNewError(newest, ours)
    missing: list[Migration] = []
    for migration in known:
        checksum = done.get(migration.number)
        if checksum is None:
            missing.append(migration)
        elif checksum != migration.checksum:
            raise MigrationError(
                f"migration {migration} was applied with another text than this program's; "
                "reinstall the tenantry that made this database"
            )
    if missing and missing[0].number < newest:
        raise MigrationError(
            f"migration {missing[0]} is missing below the schema's {newest:04}; "
            "reinstall the tenantry that made this database"
        )
    return missing


def _applied(connection: Connection) -> dict[int, str]:
    rows = connection.execute("SELECT number, checksum FROM tenantry.schema_migrations")
    return dict(rows.fetchall())


def _apply(connection: Connection, migration: Migration) -> None:
    try:
        *before, last = migration.steps
        for step in before:
            with connection.transaction():
                _run(connection, step)
        with connection.transaction():
            _run(connection, last)
            connection.execute(
                "INSERT INTO tenantry.schema_migrations (number, name, checksum)"
                " VALUES (%s, %s, %s)",
                [migration.number, migration.name, migration.checksum],
            )
    except psycopg.Error as error:
        if is_unavailable(error):
            raise
        raise MigrationError(f"migration {migration} failed: {one_line(error)}") from error


def _run(connection: Connection, step: str) -> None:
    # Names in a migration are written out in full; nobody's search_path has a say.
    connection.execute(f"SET LOCAL search_path = {SEARCH_PATH}".encode())
    connection.execute(step.encode())
