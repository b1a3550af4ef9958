"""A broker and a database that may be killed, frozen and starved, and are the experiment's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tenantry.broker.rabbitmq.node import PrivateNode
from tenantry.database.embedded import EmbeddedPostgres

RABBITMQCTL = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")


class Postgres:
    """A PostgreSQL server with fsync on, which ends in every way a server can end."""

    def __init__(self, directory: Path) -> None:
        self._data = directory
        self._server = EmbeddedPostgres(directory)
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
def own_postgres(directory: Path | None = None) -> Iterator[Postgres]:
    """Run a server, in a directory of its own unless one is given."""
    made = Path(tempfile.mkdtemp(prefix="tnt-pg-"))
    server = Postgres((directory or made) / "pg")
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def own_node() -> Iterator[PrivateNode]:
    """Run a RabbitMQ node."""
    with tempfile.TemporaryDirectory(prefix="tnt-mq-") as directory:
        node = PrivateNode(Path(directory) / "node")
        try:
            node.start()
            yield node
        finally:
            node.stop(grace=0)


def rabbitmqctl(node: PrivateNode, *arguments: str) -> str:
    """Give an operator's command to a node."""
    files = node._files
    ports = node._ports
    assert ports is not None
    done = subprocess.run(
        [str(RABBITMQCTL), "-n", "tenantry@localhost", *arguments],
        env={
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "HOME": str(files.directory),
            "RABBITMQ_CONF_ENV_FILE": f"{files.directory}/rabbitmq-env.conf",
            "RABBITMQ_CTL_ERL_ARGS": "-dist_listen false -start_epmd false"
            f" -erl_epmd_port {ports.distribution}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"rabbitmqctl {arguments[0]}: {done.stderr or done.stdout}"
    return done.stdout


def address_of(url: str) -> tuple[str, int] | str:
    """Give where a database's or broker's URL leads: host and port, or a socket's path."""
    parts = urlsplit(url)
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&"))
    directory = query.get("host", "").replace("%2F", "/")
    if directory.startswith("/"):
        return f"{directory}/.s.PGSQL.{query.get('port', 5432)}"
    return (parts.hostname or "127.0.0.1", parts.port or 5672)
