"""A real PostgreSQL for the tests: one server a run, a fresh database a test."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.migrations import migrate, migrations
from tenantry.messages.sql_access import SqlCredentials
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tests import on_demand, scratch

ENVIRONMENT = "TENANTRY_TEST_DATABASE_URL"
"""Names the server's URL to every worker of a test run; set beforehand, that server is used."""

SEED_ENVIRONMENT = "TENANTRY_TEST_POSTGRES_SEED"
"""Names a data directory of which nothing has been made use of, for servers of tests' own."""

THROWN_AWAY = (
    "fsync = off", "full_page_writes = off", "wal_level = minimal", "max_wal_senders = 0",
    "autovacuum = off", "file_copy_method = clone", "max_wal_size = 64MB", "min_wal_size = 32MB",
)  # fmt: skip
"""Settings of the run's server: nothing on it need outlive a power cut, or lives for long."""

TEMPLATE_LOCK = 0x74656D706C617465


class PostgresService:
    """The test run's own server, in a temporary directory that goes with it."""

    variables = (ENVIRONMENT, SEED_ENVIRONMENT)

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._server: EmbeddedPostgres | None = None

    def start(self) -> str:
        """Start the server, unless it runs or the environment names one, and give its URL."""
        url = os.environ.get(ENVIRONMENT)
        if url:
            return url
        self._directory = scratch.made("tenantry-test-pg-")
        self._server = EmbeddedPostgres(self._directory / "postgres")
        self._server.start()
        self._server.stop()
        seed = self._directory / "seed"
        _copy(self._directory / "postgres", seed)
        os.environ[SEED_ENVIRONMENT] = str(seed)
        with (self._directory / "postgres" / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in THROWN_AWAY)
        url = self._server.start()
        os.environ[ENVIRONMENT] = url
        return url

    def stop(self) -> None:
        """Stop the server this object started, and remove its data."""
        if self._server is not None:
            _let_go()
            os.environ.pop(ENVIRONMENT, None)
            os.environ.pop(SEED_ENVIRONMENT, None)
            self._server.stop()
            self._server = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def own_server(data_dir: Path) -> EmbeddedPostgres:
    """Give a server of a test's own; its data is a copy, as to make it takes a second or two."""
    on_demand.ensure("postgres")
    seed = os.environ.get(SEED_ENVIRONMENT)
    if seed:
        _copy(Path(seed), data_dir)
    return EmbeddedPostgres(data_dir)


@contextmanager
def running_server() -> Iterator[EmbeddedPostgres]:
    """Start a server of a test's own: nobody else shall freeze with it."""
    with scratch.directory("tnt-pg-") as directory:
        made = own_server(directory / "pg")
        made.start()
        try:
            yield made
        finally:
            made.stop()


def _copy(data_dir: Path, to: Path) -> None:
    # With owners and modes: the server may run as another user than the tests.
    subprocess.run(["cp", "-a", str(data_dir), str(to)], check=True)


def admin_url() -> str:
    """Give the URL of the run's server."""
    on_demand.ensure("postgres")
    return os.environ[ENVIRONMENT]


def fresh_database(server_url: str, *, migrated: bool = True) -> str:
    """Make a database of a new name, with the whole schema or empty, and give its URL."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    with _connected(server_url) as connection:
        template = _template(connection, server_url) if migrated else "template1"
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                sql.Identifier(name),
                sql.Identifier(template),
                # The cheaper one where nothing is synced; on a server as it is, the other.
                sql.SQL("FILE_COPY" if os.environ.get(SEED_ENVIRONMENT) else "WAL_LOG"),
            )
        )
    return in_database(server_url, name)


def drop_database(url: str) -> None:
    """Drop a database that `fresh_database` made, whoever is still connected."""
    name = urlsplit(url).path.lstrip("/")
    with _connected(in_database(url, "postgres")) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


@contextmanager
def database(server_url: str, *, migrated: bool = True) -> Iterator[str]:
    """Give the URL of a fresh database and drop it afterwards."""
    url = fresh_database(server_url, migrated=migrated)
    try:
        yield url
    finally:
        drop_database(url)


_kept: dict[str, psycopg.Connection] = {}
"""The process's connection to the run's server: a database is made and dropped for each test."""


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection]:
    """Give a connection to a server: the one that is kept, where it is the run's."""
    if url != os.environ.get(ENVIRONMENT) or os.environ.get(SEED_ENVIRONMENT) is None:
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
        return
    kept = _kept.get(url)
    if kept is None or kept.closed:
        if not _kept:
            atexit.register(_let_go)
        kept = _kept[url] = psycopg.connect(url, autocommit=True)
    yield kept


def _let_go() -> None:
    while _kept:
        _kept.popitem()[1].close()


def in_database(url: str, name: str) -> str:
    """Give the URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _template(connection: psycopg.Connection, server_url: str) -> str:
    """Migrate once for each state of the migrations; a copy takes a fraction of the time."""
    fingerprint = hashlib.sha256("".join(step.checksum for step in migrations()).encode())
    name = f"template_{fingerprint.hexdigest()[:16]}"
    connection.execute("SELECT pg_advisory_lock(%s)", [TEMPLATE_LOCK])
    try:
        query = "SELECT FROM pg_database WHERE datname = %s AND datistemplate"
        if connection.execute(query, [name]).fetchone() is None:
            identifier = sql.Identifier(name)
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(drop.format(identifier))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
            migrate(in_database(server_url, name))
            # A database's first connection writes down what every other begins with; copied, it
            # need not be put together for each.
            psycopg.connect(in_database(server_url, name)).close()
            connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(identifier))
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", [TEMPLATE_LOCK])
    return name


def processes(server: EmbeddedPostgres) -> list[int]:
    """Give the server's processes, its children first."""
    parent = int((server.log_dir.parent / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [*map(int, children), parent]


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop all of a server's processes: its connections stay, and nobody answers."""
    stopped = processes(server)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def grant(access: PostgresSqlAccess, tenant_id: str) -> SqlCredentials:
    """Give a tenant its role, or that role a new password."""
    with access.granting(tenant_id) as granted:
        return granted
