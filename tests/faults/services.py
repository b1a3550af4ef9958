"""A database that may be killed, frozen and starved, and is the experiment's own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests import scratch
from tests.services_postgres import own_server


class Postgres:
    """A PostgreSQL server with fsync on, which ends in every way a server can end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._server = own_server(self._data)
        self.url = ""

    def start(self) -> None:
        """Start, or start again after any end; returns once it takes connections."""
        self.url = self._server.start()

    @property
    def running(self) -> bool:
        return self._server.running

    def kill(self) -> None:
        """Kill it without warning; its children notice by themselves and go."""
        os.kill(self._pid(), signal.SIGKILL)

    def stop_immediately(self) -> None:
        """End it as `pg_ctl stop -m immediate` does: all children quit, nothing is flushed."""
        self._server._pg_ctl("stop", "-m", "immediate", "-w")

    def stop(self) -> None:
        self._server.stop()

    def _pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])


@contextmanager
def own_postgres(*, disk_mb: int | None = None) -> Iterator[Postgres]:
    """Run a server in a directory of its own, or on a disk as small as is wanted.

    Raises `NoRightsError` where disks can't be mounted.
    """
    with ExitStack() as stack:
        made = stack.enter_context(scratch.directory("tnt-pg-"))
        if disk_mb is not None:
            stack.enter_context(small_disk(made, disk_mb))
        server = Postgres(made)
        stack.callback(server.stop)
        server.start()
        yield server


class NoRightsError(Exception):
    """What is wanted is not for this user to do."""


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """Put a disk in memory, of so many megabytes, under a directory.

    Raises `NoRightsError` where this user may not.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tenantry", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoRightsError(f"a small disk can't be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: what is left of the server's children lets go of it soon.
        subprocess.run(["umount", "-l", str(directory)], check=True)


def address_of(url: str) -> tuple[str, int] | str:
    """Give where a database's or broker's URL leads: host and port, or a socket's path."""
    parts = urlsplit(url)
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&"))
    directory = query.get("host", "").replace("%2F", "/")
    if directory.startswith("/"):
        return f"{directory}/.s.PGSQL.{query.get('port', 5432)}"
    return (parts.hostname or "127.0.0.1", parts.port or 5672)
