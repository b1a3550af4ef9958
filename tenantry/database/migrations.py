"""The schema's history: numbered SQL files, each applied once, in order, in a transaction.

A file may have several steps, each its own transaction: a step that reads a large table must not
lock it until the rest is done. Steps before the last may be repeated; the last is committed with
the record.
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
"""The migration that introduced terms."""

NODES: Final = 29
"""The migration since which several daemons may work at once."""

STATEMENT_TIMEOUT: Final = 600.0
FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
STEP: Final = re.compile(r"^-- step\s*$", re.MULTILINE)
"""The line that begins another step of a migration."""

log = logging.getLogger(__name__)

TRIES: Final = 5
"""Attempts at a migration that other sessions block, and at creating the gate."""

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
"""The gate: a table that a program locks to migrate alone. It lies in a schema that no tenant's
role can name, because a role that can name a table can lock it. The table stays empty."""

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
        """The SQL of each transaction of the migration."""
        return STEP.split(self.sql)

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


def migrations() -> list[Migration]:
    """Read the migrations that come with the program, in order.

    Raises `MigrationError` where two have the same number or a file's name is invalid.
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
    """Apply the missing migrations, in order, and return them.

    Nothing is created where the migrations would foreseeably fail (`DatabaseUnfitError`): another
    program has a table public.messages, say. Each migration is committed together with its record.
    A failed migration leaves behind only steps that may be repeated; earlier migrations stay in
    place. Programs that start at the same time wait for one another. In the end only the daemon's
    own code runs as the database's user, or `OpenSchemaError` says what else would.
    Raises `SchemaTooNewError`, `MigrationError`, `DatabaseUnavailableError`.
    """
    known = migrations() if known is None else known
    with _session(database) as connection:
        _look(connection, known)  # before anything is created, even the gate
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
    """Apply missing migrations unless one leader may be at work; return whether none is missing.

    A schema from before nodes has a single term, and only its holder may change the schema. Since
    then nodes also work with the schema of the next version. Raises as `migrate` does, for a schema
    that is too new as well.
    """
    missing = [one.number for one in pending(database)]
    if missing and TERMS < missing[0] <= NODES:
        return False
    if missing:
        migrate(database)
    return True


@contextmanager
def _session(database: Database | str) -> Iterator[Connection]:
    # Not a pooled connection: the session holds the lock, and big tables take long.
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
    """Lock the gate for the whole run, so that a second program finds all migrations applied."""
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
    """Create the gate; of several programs that try at once, one does."""
    for left in reversed(range(TRIES)):
        row = connection.execute(_GATE_IS_THERE).fetchone()
        if row is not None and row[0]:
            return
        try:
            with connection.transaction():
                connection.execute(_GATE)
        except (errors.UniqueViolation, errors.DuplicateObject, errors.InternalError):
            # Another program has just created it: IF NOT EXISTS is not atomic.
            if not left:
                raise


def _patiently(connection: Connection, step: Callable[[], None]) -> None:
    """Run a step that changes tables, and end other users' sessions that lock those tables."""
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
    """Fence the daemons' tables, new ones too: only the term's holder may write to them."""
    row = connection.execute("SELECT to_regprocedure('tenantry.fence_tables()')").fetchone()
    if row is not None and row[0] is not None:
        connection.execute("SELECT tenantry.fence_tables()")


def _look(connection: Connection, known: Sequence[Migration]) -> list[Migration]:
    """Return the missing migrations; raise where they could not be applied."""
    with connection.transaction():
        # One snapshot: another program may be migrating; its half-made schema would look foreign.
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
    # Names in a migration are schema-qualified; no user's search_path applies.
    connection.execute(f"SET LOCAL search_path = {SEARCH_PATH}".encode())
    connection.execute(step.encode())
