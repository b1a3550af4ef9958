"""A database of the experiment's own, which may be killed, frozen and starved of disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tenantry.database.embedded import ACCESS, EmbeddedPostgres, url_of
from tenantry.urls import postgres_url
from tests import scratch
from tests.services_postgres import own_server, processes
from tests.waiting import eventually


class Postgres:
    """A PostgreSQL server with fsync on, which can be ended in every way a server ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._server = own_server(directory / "data")
        self.url = ""

    @property
    def _data(self) -> Path:
        return self._server.log_dir.parent

    def start(self) -> None:
        """Start the server, after any end as well; return once it takes connections."""
        self.url = self._server.start()

    @property
    def running(self) -> bool:
        return self._server.running

    def kill(self) -> None:
        """Kill the postmaster without warning; its children notice by themselves and exit."""
        os.kill(self._pid(), signal.SIGKILL)

    def stop_immediately(self) -> None:
        """Stop it by `pg_ctl stop -m immediate`: all children quit, nothing is flushed."""
        self._server._pg_ctl("stop", "-m", "immediate", "-w")

    def stop(self) -> None:
        self._server.stop()

    def _pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])


@contextmanager
def own_postgres(*, disk_mb: int | None = None, standby: bool = False) -> Iterator[Postgres]:
    """Run a server in a directory of its own, on a small disk if wanted, or with a standby.

    Raises `NoRightsError` if this user can't mount disks.
    """
    with ExitStack() as stack:
        made = stack.enter_context(scratch.directory("tnt-pg-"))
        if disk_mb is not None:
            stack.enter_context(small_disk(made, disk_mb))
        server = Pair(made) if standby else Postgres(made)
        stack.callback(server.stop)
        server.start()
        yield server


class Pair(Postgres):
    """A primary with a synchronous standby, which confirms each commit before the client hears it.

    `url` names both servers, and does not say which is the primary.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._standby: EmbeddedPostgres | None = None
        self._former: EmbeddedPostgres | None = None
        self._gone = 0

    def start(self) -> None:
        """Start both servers."""
        super().start()
        primary = self._data
        self.join()
        hosts = [(str(one), "5432") for one in (primary, self._other.log_dir.parent)]
        parameters = {"target_session_attrs": "read-write", "connect_timeout": "2"}
        self.url = postgres_url(
            user="postgres", hosts=hosts, database="postgres", parameters=parameters
        )

    def stop(self) -> None:
        """Stop both servers."""
        if self._former is not None:
            self.fence()
        super().stop()
        if self._standby is not None:
            self._standby.stop()

    def join(self) -> None:
        """Make a standby in the free one of two directories, and wait until it follows."""
        directory = self.directory / ("standby" if self._data.name == "data" else "data")
        self._standby = standby = EmbeddedPostgres(directory)
        primary = self._server
        with (self._data / ACCESS).open("a") as rules:
            rules.write("local replication postgres trust\n")
        primary._pg_ctl("reload")
        directory.mkdir(mode=0o700)
        owner = self._data.stat()
        os.chown(directory, owner.st_uid, owner.st_gid)
        primary._run(
            "pg_basebackup",
            *("-D", directory, "-h", self._data, "-p", "5432", "-U", "postgres"),
            *("--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"),
        )
        standby.start()
        self._set("'*'")
        eventually(self._follows, what="the standby follows")

    def freeze(self) -> None:
        """Stop all of the primary's processes, for good."""
        for pid in processes(self._server):
            os.kill(pid, signal.SIGSTOP)

    def promote(self) -> None:
        """Promote the standby, as a failover manager does; the new primary waits for no standby."""
        self._former, self._server, self._standby = self._server, self._other, None
        self._server._pg_ctl("promote", "-w")
        self._set("''")

    def fence(self) -> None:
        """Make sure that the former primary is gone for good."""
        former, self._former = self._former, None
        assert former is not None, "nobody was taken over from"
        if former.running:
            for pid in processes(former):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        former._leave()
        data = former.log_dir.parent
        self._gone += 1
        # Surviving children may still write there.
        data.rename(self.directory / f"gone-{self._gone}")
        shutil.rmtree(self.directory / f"gone-{self._gone - 1}", ignore_errors=True)

    @property
    def _other(self) -> EmbeddedPostgres:
        assert self._standby is not None, "there is no standby"
        return self._standby

    def _set(self, names: str) -> None:
        with psycopg.connect(url_of(self._data), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = {names}".encode())
            connection.execute("SELECT pg_reload_conf()")

    def _follows(self) -> bool:
        with psycopg.connect(url_of(self._data), autocommit=True) as connection:
            row = connection.execute(
                "SELECT FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
            ).fetchone()
        return row is not None


class NoRightsError(Exception):
    """This user lacks the rights that the experiment needs."""


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """Mount a disk in memory, of so many megabytes, on a directory.

    Raises `NoRightsError` if this user may not.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tenantry", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoRightsError(f"a small disk can't be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: surviving children of the server let go of it soon.
        subprocess.run(["umount", "-l", str(directory)], check=True)


def address_of(url: str) -> tuple[str, int] | str:
    """Return the address in a database's or broker's URL: host and port, or a socket's path."""
    parts = urlsplit(url)
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&"))
    directory = query.get("host", "").replace("%2F", "/")
    if directory.startswith("/"):
        return f"{directory}/.s.PGSQL.{query.get('port', 5432)}"
    return (parts.hostname or "127.0.0.1", parts.port or 5672)
